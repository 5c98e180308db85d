"""No code from a model's folder is executed; the linter forbids pickle, eval and dynamic imports in the source."""

import json
from pathlib import Path

import pytest

from promptembedder.errors import ModelFormatError
from promptembedder.model import load_encoder


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
