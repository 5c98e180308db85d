"""What a caller may catch. Every message says what was wrong, the value found, and the mend.

PromptEmbedderError
├── BackboneError       a foreign LLM cannot be found, read or used
├── ConfigError         a setting is unknown or out of range (also a ValueError)
├── DataError           a data file or row cannot be used (also a ValueError)
├── ModelFormatError    a saved model cannot be read, or does not fit its backbone
├── RanksDifferError    processes that train one model together are not in step
├── SaveError           a folder cannot be written; what was there before is as it was (also an OSError)
├── TrainingStoppedError  training went wrong and was stopped before it spoilt what is saved
└── WeightsError        weights, or what they compute, are not finite (also a ValueError)
"""

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
    "brief",
    "shown",
    "shown_name",
]

_MOST_SHOWN_CHARS, _MOST_BRIEF_CHARS = 80, 300


class PromptEmbedderError(Exception):
    """Base of all errors that a caller can mend."""


class BackboneError(PromptEmbedderError):
    """A backbone is unknown, missing, damaged or not what the saved model was trained on."""


class ConfigError(PromptEmbedderError, ValueError):
    """A setting is unknown or out of range."""


class DataError(PromptEmbedderError, ValueError):
    """A data file or one of its rows cannot be used."""


class ModelFormatError(PromptEmbedderError):
    """A saved model is torn, tampered with, or of a format that this version does not read."""


class RanksDifferError(PromptEmbedderError):
    """Processes that train one model together hold different numbers where they must hold the same."""


class SaveError(PromptEmbedderError, OSError):
    """A folder cannot be written: the disk is full, read-only or gone; what was there before is as it was."""


class TrainingStoppedError(PromptEmbedderError):
    """Training went wrong: a loss, gradient, weight or soft token out of all bounds."""


class WeightsError(PromptEmbedderError, ValueError):
    """Weights, or what they compute, are not finite, or not what they were when the model was saved."""


def shown(value: object) -> str:
    """A value as a message may hold it: its repr, cut short, whatever a stranger has made of it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of too many digits; lists in lists in lists
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= _MOST_SHOWN_CHARS else f"{text[: _MOST_SHOWN_CHARS - 3]}..."


def brief(error: BaseException | str) -> str:
    """The first line of what a foreign error says, or of its words, cut short: it may repeat what a stranger wrote."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate could not be printed
    return text if len(text) <= _MOST_BRIEF_CHARS else f"{text[: _MOST_BRIEF_CHARS - 3]}..."


def shown_name(name: str) -> str:
    """A name as a message may hold it: itself, where it is one line that can be printed and not too long."""
    return name if name.isprintable() and len(name) <= _MOST_BRIEF_CHARS else shown(name)
