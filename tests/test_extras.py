"""Optional dependencies are asked for by the line that installs them."""

import math
import sys
from pathlib import Path

import pytest

from promptembedder import extras


def test_a_module_that_is_there_is_returned() -> None:
    assert extras.require("math", extra="anything") is math


@pytest.mark.parametrize("module", ["no_such_module", "no_such_module.part"])
def test_a_missing_module_is_named_with_the_line_that_installs_it(module: str) -> None:
    with pytest.raises(ImportError, match=rf'{module} is not installed. Run: pip install "promptembedder\[batch\]"'):
        extras.require(module, extra="batch")


def test_a_module_whose_own_import_fails_tells_of_that_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To say that the extra is missing would send the user to install what is there."""
    (tmp_path / "half_installed.py").write_text("import its_missing_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'its_missing_dependency'"):
        extras.require("half_installed", extra="batch")
    assert "half_installed" not in sys.modules
