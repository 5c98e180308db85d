"""What is tested is what it is said to be: the source tree here, or the installed wheel."""

import os
import subprocess
import sys
from pathlib import Path

import promptembedder

ROOT = Path(__file__).parents[1]
EXPECTED = (ROOT / os.environ.get("PACKAGE_UNDER_TEST", "src")).resolve()  # `make test-wheel` names its own venv


def test_the_package_under_test_is_the_one_that_was_named() -> None:
    assert Path(promptembedder.__file__).resolve().is_relative_to(EXPECTED)


def test_other_processes_import_the_same_package(tmp_path: Path) -> None:
    program = "import promptembedder; print(promptembedder.__file__)"
    words = [sys.executable, "-c", program]
    said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(said).samefile(promptembedder.__file__)


def test_the_installed_command_belongs_to_this_python() -> None:
    """Otherwise a test that runs the command would test another installation."""
    command = Path(sys.executable).with_name("promptembedder")
    assert sys.executable in command.read_text(encoding="utf-8").split("import", 1)[0]
