"""Default instruction of a saved model for queries and documents."""

import json
from pathlib import Path

__all__ = ["given_or_saved"]


def given_or_saved(given: str | None, role: str, model: Path) -> str:
    """Return the given instruction, else the one saved with the model for this role, else a blank string."""
    path = model / "config_sentence_transformers.json"
    saved = json.loads(path.read_text(encoding="utf-8")).get("prompts", {}) if path.is_file() else {}
    return (given or saved.get(role) or "").strip()
