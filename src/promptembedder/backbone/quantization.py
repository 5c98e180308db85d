"""Quantization of a frozen LLM with torchao: int8 weights with one scale per row."""

import logging
import warnings

from torch import nn
from transformers import PreTrainedModel

from promptembedder import extras
from promptembedder.errors import BackboneError, ConfigError, short_repr

__all__ = ["QUANTIZATIONS", "quantize", "require_quantization"]

QUANTIZATIONS = ("int8",)


def require_quantization(name: str | None) -> None:
    """Check the name of a quantization. None means no quantization.

    Raises:
        ConfigError: If the name is unknown.
    """
    if name is not None and name not in QUANTIZATIONS:
        raise ConfigError(f"unknown quantization {short_repr(name)}. Use {', '.join(QUANTIZATIONS)}, or leave it out.")


def quantize(model: PreTrainedModel, name: str) -> None:
    """Quantize the weights of all linear layers in place. Hidden states stay in the model's dtype.

    Raises:
        ImportError: If torchao is not installed. The message contains the install command.
        BackboneError: If the model has no torch.nn.Linear layers (GPT-2 uses another class).
    """
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        kind = model.config.model_type
        raise BackboneError(f"{kind} has no torch.nn.Linear layers, so {name} does nothing. Leave quantization out.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of torchao
        logging.getLogger("torchao").setLevel(logging.ERROR)  # warnings about kernels of missing GPUs
        torchao = extras.require("torchao.quantization", extra="quant")
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
