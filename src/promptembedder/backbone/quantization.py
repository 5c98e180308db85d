"""Weights of a frozen LLM in fewer bits: int8, one scale for each row, through torchao."""

import logging
import warnings

from torch import nn
from transformers import PreTrainedModel

from promptembedder import extras
from promptembedder.errors import BackboneError, ConfigError, short_repr

__all__ = ["QUANTIZATIONS", "quantize", "require_quantization"]

QUANTIZATIONS = ("int8",)


def require_quantization(name: str | None) -> None:
    """Check the name; None stands for none.

    Raises:
        ConfigError: It is unknown.
    """
    if name is not None and name not in QUANTIZATIONS:
        raise ConfigError(f"unknown quantization {short_repr(name)}. Use {', '.join(QUANTIZATIONS)}, or leave it out.")


def quantize(model: PreTrainedModel, name: str) -> None:
    """Replace the weights of all linear layers in place; states stay in the model's dtype.

    Raises:
        ImportError: torchao is not installed; the message holds the install line.
        BackboneError: The model has no linear layers in torch's sense (GPT-2 has others).
    """
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        kind = model.config.model_type
        raise BackboneError(f"{kind} has no torch.nn.Linear layers, so {name} does nothing. Leave quantization out.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own future
        logging.getLogger("torchao").setLevel(logging.ERROR)  # and of kernels for GPUs that are not there
        torchao = extras.require("torchao.quantization", extra="quant")
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
