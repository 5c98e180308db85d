"""Low-rank adapters on a foreign LLM, through PEFT."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

__all__ = ["add_lora"]


def add_lora(model: PreTrainedModel, *, rank: int, alpha: int, seed: int) -> None:
    """Put trainable adapters on every linear layer of `model` except its head; their start is drawn from `seed`.

    On a Llama that is all seven matrices of a layer: q, k, v, o, gate, up and down.
    """
    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's matrices
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(lora, model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # float32 whatever the base runs in: small updates vanish in bf16
            parameter.data = parameter.data.float()
