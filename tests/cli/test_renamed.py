"""Names of earlier versions answer with one line that contains the new name."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main
from typer.testing import Result

from promptembedder.cli.app import app, main
from promptembedder.cli.options import RENAMED_OPTIONS

CASES = [(command, old, new) for command, options in RENAMED_OPTIONS.items() for old, new in options.items()]


def call_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["promptembedder", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


@pytest.mark.parametrize(("command", "old", "new"), [*CASES, ("move", "--exit-depth", "--early-exit-fraction")])
def test_renamed_option_names_its_replacement(
    command: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments in ((command, "model", old, "0.5"), (command, "model", f"{old}=0.5")):
        assert call_main(monkeypatch, *arguments) == 2
        line = capfd.readouterr().err
        assert line.count("\n") == 1
        assert f"{old} is now {new}." in line


@pytest.mark.parametrize(("command", "old", "new"), CASES)
def test_replacement_is_an_option_of_the_command(command: str, old: str, new: str) -> None:
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    names = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    assert new in names
    assert old not in names


def test_bench_names_the_program_in_the_repository(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call_main(monkeypatch, "bench", "speed") == 2
    assert "run `python -m benchmarks` in the repository." in capfd.readouterr().err


def test_renamed_key_of_an_options_file_names_its_replacement(run: Callable[..., Result], tmp_path: Path) -> None:
    config = tmp_path / "options.yaml"
    config.write_text("exit_depth: 0.5\n")
    result = run("evaluate", "m", "--tasks", "t.json", "--config", config)
    assert result.exit_code == 2
    assert "early-exit-fraction" in result.stderr
