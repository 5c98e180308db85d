"""Which instruction a text is read under where none is asked for."""

import json
from pathlib import Path

__all__ = ["asked_or_saved"]


def asked_or_saved(asked: str | None, role: str, model: Path) -> str:
    """The instruction that was asked for, else the one saved with the model for this role; blank if neither is."""
    path = model / "config_sentence_transformers.json"
    saved = json.loads(path.read_text(encoding="utf-8")).get("prompts", {}) if path.is_file() else {}
    return (asked or saved.get(role) or "").strip()
