"""Optional dependencies are asked for by the line that installs them."""

import math
import sys
from pathlib import Path

import pytest

from promptembedder import extras


def test_require_returns_an_installed_module() -> None:
    assert extras.require("math", extra="anything") is math


@pytest.mark.parametrize("module", ["no_such_module", "no_such_module.part"])
def test_missing_module_raises_with_the_install_line(module: str) -> None:
    with pytest.raises(ImportError, match=rf'{module} is not installed. Run: pip install "promptembedder\[batch\]"'):
        extras.require(module, extra="batch")


def test_broken_import_inside_a_module_is_not_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To say that the extra is missing would send the user to install what is there."""
    (tmp_path / "half_installed.py").write_text("import its_missing_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'its_missing_dependency'"):
        extras.require("half_installed", extra="batch")
    assert "half_installed" not in sys.modules
