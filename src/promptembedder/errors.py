"""Exceptions of the library. Each message states the problem, the value, and how to fix it.

PromptEmbedderError
├── BackboneError         an LLM cannot be found, loaded or used
├── ConfigError           a configuration value is unknown or out of range (also a ValueError)
├── DataError             a data file or row cannot be used (also a ValueError)
├── ModelFormatError      a saved model is incomplete, damaged or does not fit its backbone
├── RanksDifferError      ranks of distributed training hold different values
├── SaveError             a folder cannot be written; its previous content is unchanged (also an OSError)
├── TrainingStoppedError  training diverged and was stopped before the divergence was saved
└── WeightsError          weights or outputs are not finite (also a ValueError)
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "BackboneError",
    "ConfigError",
    "DataError",
    "ModelFormatError",
    "PromptEmbedderError",
    "RanksDifferError",
    "SaveError",
    "TrainingStoppedError",
    "WeightsError",
    "check_choice",
    "did_you_mean",
    "first_line",
    "printable",
    "short_repr",
]

_MAX_REPR_CHARS, _MAX_LINE_CHARS = 80, 300


class PromptEmbedderError(Exception):
    """Base class of all errors that a caller can fix."""


class BackboneError(PromptEmbedderError):
    """Unknown, missing or damaged backbone, or a backbone that the saved model was not trained on."""


class ConfigError(PromptEmbedderError, ValueError):
    """Configuration value that is unknown or out of range."""


class DataError(PromptEmbedderError, ValueError):
    """Data file or row that cannot be used."""


class ModelFormatError(PromptEmbedderError):
    """Saved model that is incomplete, was changed, or has a format that this version does not support."""


class RanksDifferError(PromptEmbedderError):
    """Different values on ranks of distributed training where they must be equal."""


class SaveError(PromptEmbedderError, OSError):
    """Folder that cannot be written: full, read-only or missing disk. Its previous content is unchanged."""


class TrainingStoppedError(PromptEmbedderError):
    """Diverged training: a loss, gradient, weight or soft token is out of bounds."""


class WeightsError(PromptEmbedderError, ValueError):
    """Weights or outputs that are not finite, or that differ from those of the saved model."""


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise ConfigError if `value`, of the setting `name`, is not one of the known ones."""
    known = list(known)
    if value not in known:
        raise ConfigError(f"unknown {name} {short_repr(value)}. Use one of: {', '.join(known)}.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the question whether the closest known name was meant, with a trailing space, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {close[0]!r}? " if close else ""


def short_repr(value: object) -> str:
    """Return `repr(value)`, truncated to fit an error message. Never raises for untrusted values."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of too many digits; deeply nested lists
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= _MAX_REPR_CHARS else f"{text[: _MAX_REPR_CHARS - 3]}..."


def first_line(error: BaseException | str) -> str:
    """Return the first line of an error's message or of a text, truncated: it may contain untrusted input."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate could not be printed
    return text if len(text) <= _MAX_LINE_CHARS else f"{text[: _MAX_LINE_CHARS - 3]}..."


def printable(name: str) -> str:
    """Return `name` if it is printable and short, else its truncated repr."""
    return name if name.isprintable() and len(name) <= _MAX_LINE_CHARS else short_repr(name)
