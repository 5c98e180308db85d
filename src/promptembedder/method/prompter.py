"""The trainable Prompting LLM: generates K relaxed soft tokens from an instruction."""

from collections.abc import Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn.utils import skip_init
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from promptembedder.backbone import Backbone, left_pad, text_positions
from promptembedder.method.alignment import rescale_norm
from promptembedder.method.config import PrompterConfig
from promptembedder.method.relaxation import RelaxationConfig, RelaxedTokens, relax, relaxation_weights
from promptembedder.types import Float, Int, Tensor

__all__ = ["Prompter", "add_lora"]

_MAX_REFERENCE = 512  # tokens of a reference instruction with its template
_MIN_STD = 1e-4  # a dimension that is constant over the reference instructions is not amplified


def add_lora(model: PreTrainedModel, *, rank: int, alpha: int, seed: int) -> None:
    """Attach LoRA adapters to every linear layer of `model` except the LM head; `seed` draws their initial weights.

    In a Llama these are the seven matrices q, k, v, o, gate, up and down of each layer.
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
    """A causal LM that generates K relaxed tokens; gradients flow through all K generation steps.

    The output is `exp(log_scale) * generated + init_embeddings + soft_prompt_delta`. The offset is initialised with the
    embeddings of a phrase that makes an LLM summarise a text, one token per soft token, and is trained like a static
    soft prompt: it gives the K tokens distinct initial values and a gradient that does not pass through a softmax.

    `generated` is the relaxed token (`config.output` "token"), or the hidden state behind it ("state"), standardised
    per step and dimension over reference instructions and rescaled to the norm of an embedding. Relaxed tokens of
    different instructions are nearly equal; what standardised states have in common is subtracted. In both cases the
    relaxed token is the next input.

    With "state", the offset stays fixed and trained maps do not see it: what training adds depends on the instruction
    and is zero for the average one. A trained offset or bias is a static prompt, through which training takes the easy
    way.
    """

    init_embeddings: Tensor
    state_mean: Float[Tensor, "prompt dim"]
    state_std: Float[Tensor, "prompt dim"]

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
        """Attach the trained parameters to `backbone`; `seed` draws the adapters' initial weights.

        Args:
            train_soft_prompt: False if the alignment reads the vocabulary weights, to which an offset adds nothing.
        """
        super().__init__()
        self.backbone = backbone
        self.relaxation = relaxation
        self.num_soft_tokens = num_soft_tokens
        self.output = config.output
        if config.output == "state":
            shape = (num_soft_tokens, backbone.dim)
            self.register_buffer("state_mean", torch.zeros(shape))
            self.register_buffer("state_std", torch.ones(shape))
        # the initial values follow from the configuration; only the difference is trained, decayed and saved
        self.register_buffer(
            "init_embeddings", backbone.init_embeddings(config.init_text, num_soft_tokens), persistent=False
        )
        trains = train_soft_prompt and config.tuning != "frozen"
        self.soft_prompt_delta = nn.Parameter(torch.zeros_like(self.init_embeddings), requires_grad=trains)
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=trains)
        # `hidden` feeds hidden states back as inputs through a trained map between the two spaces
        self.projection: nn.Linear | None = None
        if relaxation.kind == "hidden":
            # skip_init: the default initialisation would draw from the global random state
            self.projection = skip_init(nn.Linear, backbone.dim, backbone.dim, bias=False)
            nn.init.eye_(self.projection.weight)
        if config.tuning == "full":
            backbone.float().requires_grad_(True)  # an optimiser's steps are too small for bf16 weights
        elif config.tuning == "lora":
            self._add_adapters(config, seed)

    def _add_adapters(self, config: PrompterConfig, seed: int) -> None:
        add_lora(self.backbone.model, rank=config.lora_rank, alpha=config.lora_alpha, seed=seed)

    def forward(self, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]) -> RelaxedTokens:
        """Generate the relaxed tokens e_1..e_K after left-padded inputs, float32, in the prompter's input space."""
        tokens, states = self._generate(ids, mask)
        generated = tokens.embeddings
        if self.output == "state":
            # each dimension has variance 1, an embedding a norm of mean_embedding_norm
            scale = self.backbone.mean_embedding_norm / self.backbone.dim**0.5
            generated = scale * (states - self.state_mean) / self.state_std
        embeddings = self.log_scale.exp() * generated + (self.init_embeddings + self.soft_prompt_delta)
        offset = self.init_embeddings if self.output == "state" else None
        return RelaxedTokens(embeddings, tokens.weights, offset)

    @torch.no_grad()
    def fit_state_statistics(self, instructions: Sequence[str], *, template: str) -> None:
        """Compute mean and standard deviation of the hidden states over instructions, per step and dimension."""
        prompts = [template.replace("{text}", "").replace("{instruction}", one) for one in instructions]
        batch = self.backbone.tokenizer.tokenize(prompts, max_length=self.backbone.max_positions or _MAX_REFERENCE)
        device = self.backbone.input_embeddings.device
        _, states = self._generate(*left_pad(batch.ids.to(device), batch.mask.to(device)))
        self.state_mean.copy_(states.mean(dim=0))
        self.state_std.copy_(states.std(dim=0).clamp_min(_MIN_STD))

    def _generate(
        self, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]
    ) -> tuple[RelaxedTokens, Float[Tensor, "batch prompt dim"]]:
        """Generate K relaxed tokens, and return them with the hidden states that they were computed from, float32."""
        backbone, cache = self.backbone, DynamicCache()
        state = self._next_state(backbone.model.get_input_embeddings()(ids), mask, text_positions(mask), cache)
        lengths = mask.sum(dim=1, keepdim=True)
        tokens: list[Tensor] = []
        weights: list[Tensor] = []
        states: list[Tensor] = []
        for step in range(self.num_soft_tokens):
            if step > 0:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                state = self._next_state(tokens[-1].unsqueeze(1), mask, lengths + step - 1, cache)
            states.append(state)
            if self.projection is not None:
                tokens.append(
                    rescale_norm(self.projection(state.float()), backbone.mean_embedding_norm).to(state.dtype)
                )
                continue
            weights.append(relaxation_weights(self._logits(state), self.relaxation, training=self.training))
            tokens.append(relax(weights[-1], backbone.input_embeddings, scale=backbone.embedding_scale))
        generated = RelaxedTokens(torch.stack(tokens, dim=1).float(), torch.stack(weights, dim=1) if weights else None)
        return generated, torch.stack(states, dim=1).float()

    def _next_state(
        self, embeddings: Float[Tensor, "batch new dim"], mask: Tensor, positions: Tensor, cache: DynamicCache
    ) -> Float[Tensor, "batch dim"]:
        """Return the last hidden state at the last new input. All new inputs are appended to `cache`."""
        output = self.backbone.decoder(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        # Gradient checkpointing silently drops the cache: the next token would be generated without context.
        assert cache.get_seq_length() == mask.shape[1], "the prompter's cache did not grow"
        return output.last_hidden_state[:, -1]

    def _logits(self, state: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch vocab"]:
        model = self.backbone.model
        logits = model.get_output_embeddings()(state)
        cap = getattr(model.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits
