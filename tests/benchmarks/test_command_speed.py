"""`python -m benchmarks speed` at tiny scale."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

pytestmark = pytest.mark.slow

Run = Callable[..., Result]
Refused = Callable[..., str]
TINY = (
    "--reader",
    "random:tiny-llama",
    "--dtype",
    "float32",
    "--length",
    "16",
    "--tokens",
    "32",
    "--batch",
    "2",
    "--repeats",
    "1",
)


def test_one_command_writes_json_table_page_and_profile(run: Run, tmp_path: Path) -> None:
    sizes = ("--lengths", "8,16", "--texts", "1", "--instructions", "1,2", "--soft-tokens", "1,2")
    result = run("speed", *TINY, *sizes, "-o", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    assert {path.name for path in tmp_path.iterdir()} == {
        "speed.csv",
        "speed.journal.jsonl",
        "speed.json",
        "speed.md",
        "speed_profile.txt",
    }
    assert said["rows"] == json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert "faster" in result.stderr
    page = tmp_path / "page.md"
    page.write_text("<!-- speed -->\n<!-- end speed -->\n")
    assert run("report", page, "--results", tmp_path).exit_code == 0
    assert "x bare forward" in page.read_text()


def test_bad_numbers_are_one_line(refused: Refused, tmp_path: Path) -> None:
    words = refused("speed", *TINY, "--lengths", "4", "-o", tmp_path)
    assert "lengths must be at least 8 tokens, got 4" in words
