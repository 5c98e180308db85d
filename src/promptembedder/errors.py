"""What a caller may catch. Every message says what was wrong, the value found, and the mend.

PromptEmbedderError
├── BackboneError       a foreign LLM cannot be found, read or used
├── ConfigError         a setting is unknown or out of range (also a ValueError)
├── DataError           a data file or row cannot be used (also a ValueError)
├── ModelFormatError    a saved model cannot be read, or does not fit its backbone
├── RanksDifferError    processes that train one model together are not in step
└── WeightsError        weights, or what they compute, are not finite (also a ValueError)
"""

__all__ = [
    "BackboneError",
    "ConfigError",
    "DataError",
    "ModelFormatError",
    "PromptEmbedderError",
    "RanksDifferError",
    "WeightsError",
]


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


class WeightsError(PromptEmbedderError, ValueError):
    """Weights, or what they compute, are not finite, or not what they were when the model was saved."""
