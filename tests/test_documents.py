"""Code and commands in the README and the documents run; names in the design page exist."""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from promptembedder import PromptEmbedder

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "promptembedder"
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SMALL = {"smollm2-135m": "random:tiny-llama", "gemma3-270m": "random:tiny-qwen3"}
ELSEWHERE = {"serving.md"}  # needs a server: tests/server/test_process.py runs it


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def calls(page: Path) -> Iterator[str]:
    """The calls of the program in a page's blocks for the shell; lines that end in a backslash are one."""
    for block in blocks(page, "", "bash", "console"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            call = line.strip().removeprefix("$ ")
            if call.startswith("promptembedder "):
                yield call


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page.name not in ELSEWHERE]
WITH_CALLS = [page for page in PAGES if list(calls(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=names(WITH_PYTHON))
def test_python_of_a_page_runs(
    page: Path, new_model: "Callable[..., PromptEmbedder]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From top to bottom in one namespace, as a reader types it."""
    model = new_model("tiny-llama")
    model.save(str(tmp_path / "runs" / "quickstart"))
    shutil.copytree(tmp_path / "runs" / "quickstart", tmp_path / "runs" / "mixture")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(page, "python"))
    for real, small in SMALL.items():
        code = code.replace(real, small)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of frameworks; a page is not run as strictly as a test
        exec(compile(code, page.name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", WITH_CALLS, ids=names(WITH_CALLS))
def test_commands_of_a_page_parse(page: Path, reads: Callable[[str], None]) -> None:
    for call in calls(page):
        reads(call)


def test_design_page_lists_every_file_of_the_package() -> None:
    tree = DESIGN.split("## Layout")[1].split("## Main path")[0].split("    benchmarks/")[0]
    listed: set[str] = set()
    package = ""
    for name in re.findall(r"[├└]── (\S+)", tree):
        if name.endswith("/"):
            package = name
        else:
            listed.add(f"{package}{name}")
    files = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if not path.name.startswith("__")}
    assert listed == {name for name in files if not name.startswith("cli/")}


@pytest.mark.parametrize(("file", "name"), re.findall(r"`(\w+/\w+\.py):([\w.]+)`", DESIGN))
def test_function_in_the_design_page_exists(file: str, name: str) -> None:
    source = (SOURCE / file).read_text(encoding="utf-8")
    for part in name.split("."):
        assert re.search(rf"^ *(def|class) {part}\b", source, flags=re.MULTILINE)


@pytest.mark.parametrize("file", re.findall(r"`((?:backbone|method|model|training|export)/\w+\.py)`", DESIGN))
def test_file_in_the_design_page_exists(file: str) -> None:
    assert (SOURCE / file).is_file()


def test_the_files_of_the_data_page_are_read(tmp_path: Path) -> None:
    """The formats were spread over recipes and docstrings, and one page had a key of another."""
    from promptembedder.data import read_labelled_corpora, read_mixture
    from promptembedder.evaluation import read_tasks

    page = ROOT / "docs" / "data_files.md"
    tables = {
        "support.jsonl": [{"anchor": "a", "positive": "b"}],
        "reviews.jsonl": [
            {"text": "one", "labels": {"food": "good", "service": "bad"}},
            {"text": "two", "labels": {"food": "bad", "service": "good"}},
        ],
        "corpus.jsonl": [{"id": "1", "text": "a"}],
        "queries.jsonl": [{"id": "q", "text": "b"}],
        "qrels.jsonl": [{"query_id": "q", "doc_id": "1", "relevance": 1}],
        "topics.jsonl": [{"text": f"{i}", "label": i % 2, "split": "test" if i < 2 else "train"} for i in range(4)],
    }
    for name, rows in tables.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = []
    for number, block in enumerate(blocks(page, "json")):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(block)
    mixture, corpora, tasks = files
    assert [task.name for task in read_mixture(mixture)] == ["support"]
    assert [corpus.name for corpus in read_labelled_corpora(corpora)] == ["reviews"]
    assert [task.name for task in read_tasks(tasks)] == ["Support", "Topics"]


def test_the_recipe_for_own_pairs_is_about_pairs_of_any_kind() -> None:
    """It carried an instruction for code search and truncated texts after 64 tokens."""
    from promptembedder.storage import from_mapping, read_yaml
    from promptembedder.training import Recipe

    recipe = from_mapping(Recipe, read_yaml(ROOT / "recipes" / "pairs.yaml"))
    assert not any("code" in text or "function" in text for text in recipe.data.instructions)
    assert recipe.model.max_seq_length >= 256
