"""The trainable Prompting LLM: generates K relaxed soft tokens from an instruction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn.utils import skip_init
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from promptembedder.backbone import Backbone, BackboneConfig, left_pad, text_positions
from promptembedder.errors import ConfigError, check_choice, short_repr
from promptembedder.method.alignment import rescale_norm
from promptembedder.method.relaxation import RelaxationConfig, RelaxedTokens, relax, relaxation_weights
from promptembedder.method.text_encoder import MAX_TEMPLATE_TOKENS
from promptembedder.types import Float, Int, Tensor

__all__ = ["REFERENCE_INSTRUCTIONS", "Prompter", "PrompterConfig", "PrompterSnapshot", "add_lora"]

PROMPTER_OUTPUTS = ("token", "state")
TUNINGS = ("lora", "full", "frozen")
_MAX_REFERENCE = 512  # tokens of a reference instruction with its template
_MIN_STD = 1e-4  # a dimension that is constant over the reference instructions is not amplified


# instructions that the statistics of the prompter's hidden states are computed from
_REFERENCE_WORDINGS = (
    "Group the texts by {aspect}",
    "Represent the text by {aspect} and ignore everything else",
    "Find texts that agree in {aspect}",
    "How do the texts differ in {aspect}?",
)

_REFERENCE_ASPECTS = (
    "their topic",
    "the writer's opinion",
    "the emotion that is expressed",
    "the language",
    "the question that is asked",
    "the place where it happens",
    "the time when it happens",
    "the person who acts",
    "the company or product",
    "the price and value",
    "the quality of the service",
    "the style and register",
    "the grammar of the sentence",
    "the genre of the document",
    "the reading level",
    "the programming language",
    "the cause of the problem",
    "the intended next step",
    "the scientific field",
    "the claim that is argued for",
    "the urgency of the request",
    "the facts that are reported",
    "the meaning of the sentence",
    "the answer to the question",
)

REFERENCE_INSTRUCTIONS = tuple(
    _REFERENCE_WORDINGS[(number + shift) % len(_REFERENCE_WORDINGS)].format(aspect=aspect)
    for number, aspect in enumerate(_REFERENCE_ASPECTS)
    for shift in range(2)
)


@dataclass(frozen=True, kw_only=True)
class PrompterConfig:
    """Prompting LLM and its trained weights.

    Attributes:
        backbone: Identifier and dtype of the LLM.
        tuning: `lora`: low-rank adapters on all linear layers; `full`: all weights; `frozen`: none.
        lora_rank: Rank of the adapters.
        lora_alpha: Numerator of the adapters' scale, `lora_alpha / lora_rank`.
        template: Prompt, in which `{instruction}` is replaced, and `{text}` if there is one. The next tokens become the
            soft tokens. With `{text}` they depend on the text, otherwise on the instruction alone.
        output: Vector that the alignment maps: `token`, the relaxed token, or `state`, the standardised hidden state
            that it was computed from.
        init_text: Phrase whose last tokens initialise the soft prompt. If empty, the soft prompt starts at zero.
    """

    # float32: rounding accumulates over K recurrent steps, and an instruction is short
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(dtype="float32"))
    tuning: str = "lora"
    lora_rank: int = 16
    lora_alpha: int = 32
    template: str = "Task: {instruction}\nThe text in a few words:"
    output: str = "token"
    init_text: str = " This text in one word:"

    def __post_init__(self) -> None:
        check_choice("prompter.tuning", self.tuning, TUNINGS)
        check_choice("prompter.output", self.output, PROMPTER_OUTPUTS)
        if self.lora_rank < 1:
            raise ConfigError(f"prompter.lora_rank must be at least 1, got {self.lora_rank}. Try 16.")
        if "{instruction}" not in self.template:
            raise ConfigError(f"prompter.template must contain {{instruction}}, got {short_repr(self.template)}.")
        if self.template.count("{text}") > 1:
            raise ConfigError(f"prompter.template must contain {{text}} at most once, got {short_repr(self.template)}.")
        if self.backbone.quantization is not None:
            raise ConfigError("prompter.backbone.quantization is for frozen weights only. Quantise the reader instead.")

    @property
    def has_fixed_offset(self) -> bool:
        """True if what all instructions have in common is fixed, and trained maps leave it out (`output` state)."""
        return self.output == "state"

    @property
    def depends_on_text(self) -> bool:
        """True if the soft tokens depend on the text: `template` contains `{text}`."""
        return "{text}" in self.template


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


@dataclass(frozen=True, kw_only=True)
class PrompterSnapshot:
    """Saved weights and cached outputs of an offloaded prompter.

    Attributes:
        identity: Manifest entry of the prompter's backbone.
        state: Trained weights.
        tokens: Relaxed tokens by instruction, one row each, in the prompter's input space.
    """

    identity: Mapping[str, Any]
    state: Mapping[str, Tensor]
    tokens: Mapping[str, RelaxedTokens] = field(default_factory=dict)


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
        self.config = config
        if config.has_fixed_offset:
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
        if not relaxation.has_weights:
            # skip_init: the default initialisation would draw from the global random state
            self.projection = skip_init(nn.Linear, backbone.dim, backbone.dim, bias=False)
            nn.init.eye_(self.projection.weight)
        if config.tuning == "full":
            backbone.float().requires_grad_(True)  # an optimiser's steps are too small for bf16 weights
        elif config.tuning == "lora":
            add_lora(backbone.model, rank=config.lora_rank, alpha=config.lora_alpha, seed=seed)

    def tokenize(
        self, instructions: Sequence[str], texts: Sequence[str] | None = None, *, max_seq_length: int
    ) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
        """Return the input ids and attention mask of the template with each instruction (and text).

        Args:
            max_seq_length: Maximum number of tokens of a text.

        Raises:
            ConfigError: If an instruction is too long.
        """
        before, _, after = self.config.template.rpartition("{text}")
        prefixes, suffixes = (
            [part.replace("{instruction}", instruction) for instruction in instructions] for part in (before, after)
        )
        limit = self.backbone.max_positions
        room = max_seq_length + MAX_TEMPLATE_TOKENS if limit is None else limit - self.num_soft_tokens
        if texts is not None:
            batch = self.backbone.tokenizer.tokenize(texts, max_length=room, prefixes=prefixes, suffixes=suffixes)
            return batch.ids, batch.mask
        batch = self.backbone.tokenizer.tokenize(suffixes, max_length=room)
        if batch.truncated:
            raise ConfigError(f"an instruction is longer than the {room} tokens that are read. Say it in fewer words.")
        return batch.ids, batch.mask

    def forward(self, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]) -> RelaxedTokens:
        """Generate the relaxed tokens e_1..e_K after left-padded inputs, float32, in the prompter's input space."""
        tokens, states = self._generate(ids, mask)
        generated = tokens.embeddings
        if self.config.has_fixed_offset:
            # each dimension has variance 1, an embedding a norm of mean_embedding_norm
            scale = self.backbone.mean_embedding_norm / self.backbone.dim**0.5
            generated = scale * (states - self.state_mean) / self.state_std
        embeddings = self.log_scale.exp() * generated + (self.init_embeddings + self.soft_prompt_delta)
        offset = self.init_embeddings if self.config.has_fixed_offset else None
        return RelaxedTokens(embeddings, tokens.weights, offset)

    @torch.no_grad()
    def fit_state_statistics(self, instructions: Sequence[str] = REFERENCE_INSTRUCTIONS) -> None:
        """Compute mean and standard deviation of the hidden states over instructions, per step and dimension.

        Does nothing for an output without statistics.
        """
        if not self.config.has_fixed_offset:
            return
        template = self.config.template.replace("{text}", "")
        prompts = [template.replace("{instruction}", one) for one in instructions]
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
