"""Code and commands in the README and the documents run; names in the design page exist."""

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
