"""The trainable Prompting LLM: generates K relaxed soft tokens from an instruction."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn.utils import skip_init
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from promptembedder.backbone import Backbone, text_positions
from promptembedder.method.alignment import rescale_norm
from promptembedder.method.config import PrompterConfig
from promptembedder.method.relaxation import RelaxationConfig, RelaxedTokens, relax, relaxation_weights
from promptembedder.types import Float, Int, Tensor

__all__ = ["Prompter", "add_lora"]


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


class Prompter(nn.Module):
    """A causal LM whose next tokens stay relaxed; gradients flow through all K generation steps.

    What it hands on is `gate * generated + anchor`. The anchor begins as the words of a phrase that makes any LLM sum
    up a text, one token a soft token, and is trained like a static soft prompt: it gives the K tokens different places
    to start from and a gradient that does not pass through a softmax.
    """

    init_embeddings: Tensor

    def __init__(
        self,
        backbone: Backbone,
        config: PrompterConfig,
        relaxation: RelaxationConfig,
        *,
        num_soft_tokens: int,
        train_soft_prompt: bool = True,
        seed: int = 0,
    ) -> None:
        """Attach what is trained to `backbone`; the adapters' random start is drawn from `seed`.

        Args:
            train_soft_prompt: False if the alignment reads the vocabulary weights, to which an offset adds nothing.
        """
        super().__init__()
        self.backbone = backbone
        self.relaxation = relaxation
        self.num_soft_tokens = num_soft_tokens
        # the start is known from the configuration; only the difference is trained, decayed and saved
        self.register_buffer(
            "init_embeddings", backbone.init_embeddings(config.init_text, num_soft_tokens), persistent=False
        )
        trains = train_soft_prompt and config.tuning != "frozen"
        self.soft_prompt_delta = nn.Parameter(torch.zeros_like(self.init_embeddings), requires_grad=trains)
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=trains)
        # `hidden` sends states back as inputs; a trained map turns the one space into the other
        self.projection: nn.Linear | None = None
        if relaxation.kind == "hidden":
            # skip_init: the usual start would draw from the global random state
            self.projection = skip_init(nn.Linear, backbone.dim, backbone.dim, bias=False)
            nn.init.eye_(self.projection.weight)
        if config.tuning == "full":
            backbone.float().requires_grad_(True)  # an optimiser's steps are too small for bf16 weights
        elif config.tuning == "lora":
            self._add_adapters(config, seed)

    def _add_adapters(self, config: PrompterConfig, seed: int) -> None:
        add_lora(self.backbone.model, rank=config.lora_rank, alpha=config.lora_alpha, seed=seed)

    def forward(self, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]) -> RelaxedTokens:
        """Relaxed tokens e_1..e_K after the left-padded inputs; in the prompter's input space, float32."""
        backbone, cache = self.backbone, DynamicCache()
        state = self._next_state(backbone.model.get_input_embeddings()(ids), mask, text_positions(mask), cache)
        lengths = mask.sum(dim=1, keepdim=True)
        tokens: list[Tensor] = []
        weights: list[Tensor] = []
        for step in range(self.num_soft_tokens):
            if step > 0:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                state = self._next_state(tokens[-1].unsqueeze(1), mask, lengths + step - 1, cache)
            if self.projection is not None:
                tokens.append(
                    rescale_norm(self.projection(state.float()), backbone.mean_embedding_norm).to(state.dtype)
                )
                continue
            weights.append(relaxation_weights(self._logits(state), self.relaxation, training=self.training))
            tokens.append(relax(weights[-1], backbone.input_embeddings, scale=backbone.embedding_scale))
        generated = torch.stack(tokens, dim=1).float()
        embeddings = self.log_scale.exp() * generated + (self.init_embeddings + self.soft_prompt_delta)
        return RelaxedTokens(embeddings, torch.stack(weights, dim=1) if weights else None)

    def _next_state(
        self, embeddings: Float[Tensor, "batch new dim"], mask: Tensor, positions: Tensor, cache: DynamicCache
    ) -> Float[Tensor, "batch dim"]:
        """Final state at the last of the new inputs; `cache` grows by all of them."""
        output = self.backbone.decoder(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        # Gradient checkpointing silently drops the cache; the next token would then be generated without a past.
        assert cache.get_seq_length() == mask.shape[1], "the prompter's cache did not grow"
        return output.last_hidden_state[:, -1]

    def _logits(self, state: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch vocab"]:
        model = self.backbone.model
        logits = model.get_output_embeddings()(state)
        cap = getattr(model.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits
