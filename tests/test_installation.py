"""The package under test is the source tree, or the installed wheel in `make test`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import promptembedder

ROOT = Path(__file__).parents[1]
EXPECTED = (ROOT / os.environ.get("PACKAGE_UNDER_TEST", "src")).resolve()  # `make test-wheel` names its own venv


def test_package_is_imported_from_the_named_location() -> None:
    assert Path(promptembedder.__file__).resolve().is_relative_to(EXPECTED)


@pytest.mark.integration
def test_subprocesses_import_the_same_package(tmp_path: Path) -> None:
    program = "import promptembedder; print(promptembedder.__file__)"
    words = [sys.executable, "-c", program]
    location = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(location).samefile(promptembedder.__file__)


def test_installed_command_uses_this_python() -> None:
    """Otherwise a test that runs the command would test another installation."""
    command = Path(sys.executable).with_name("promptembedder")
    assert sys.executable in command.read_text(encoding="utf-8").split("import", 1)[0]
