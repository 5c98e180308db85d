"""No code from files is executed: no pickle, no class names, no remote code."""

import json
import re
from pathlib import Path

import pytest

import promptembedder
from promptembedder.errors import ModelFormatError
from promptembedder.model import load_encoder

SOURCE = Path(promptembedder.__file__).parent
FORBIDDEN = re.compile(
    r"^\s*(import|from)\s+(_?pickle|c?loudpickle|cPickle|dill|joblib|marshal|shelve|jsonpickle|imp|runpy)\b"
    r"|\b(pickle|cloudpickle|dill|joblib|marshal|shelve)\.\w"
    r"|\btorch\.(load|save|hub|package)\b|\bnp\.load\(|\bnumpy\.load\(|allow_pickle|read_pickle"
    r"|(?<![\w.])(eval|exec|compile|__import__)\("
    r"|\byaml\.(load|unsafe_load|full_load|load_all|Loader|UnsafeLoader|FullLoader|CLoader|add_constructor)\b"
    r"|trust_remote_code|\bos\.(system|popen)\(|shell=True|\bimport_module\(|\bimport_from_string\("
)
# what else looks like it, and why it is not
ALLOWED = {
    "extras.py": ("import_module(module)", "names come from our own calls of require, never from a file"),
    "__init__.py": ("import_module(_MODULE_OF[name])", "a table in the same file"),
    "evaluation/__init__.py": ('import_module(f"{__name__}.{_WITH_MTEB[name]}")', "a table in the same file"),
    "integrations/__init__.py": ('import_module(f"{__name__}.{_MODULE_OF[name]}")', "a table in the same file"),
}


def test_source_contains_no_unpickling_eval_or_dynamic_import() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if FORBIDDEN.search(line) and ALLOWED.get(str(path.relative_to(SOURCE).as_posix()), ("\0",))[0] not in line
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "x = eval(text)",
        "yaml.load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "np.load(path, allow_pickle=True)",
        "module = importlib.import_module(config['class'])",
    ],
)
def test_search_finds_forbidden_calls(line: str) -> None:
    assert FORBIDDEN.search(line)


def test_allowed_lines_still_exist() -> None:
    for name, (words, _) in ALLOWED.items():
        assert words in (SOURCE / name).read_text(encoding="utf-8"), name


def test_folder_with_remote_code_is_refused_without_running_it(tmp_path: Path) -> None:
    """sentence-transformers' modules.json names classes: it imports its own alone."""
    folder, mark = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own:\n    pass\n", encoding="utf-8")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "own.Own"}]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(ModelFormatError, match="own.Own"):
        load_encoder(str(folder), device="cpu")
    assert not mark.exists()
