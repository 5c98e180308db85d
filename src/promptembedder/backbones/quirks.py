"""What differs between LLM families, as one table: a new family is a new row."""

from dataclasses import dataclass

from transformers import PretrainedConfig

__all__ = ["Quirks", "quirks_of"]


@dataclass(frozen=True, kw_only=True)
class Quirks:
    """How a family departs from the plain case (Llama, Qwen, Mistral, SmolLM: all defaults).

    Attributes:
        table_scale: What the embedding module multiplies its rows by: `none` or `sqrt_dim`. Inputs given as vectors
            must carry that factor themselves. Families that multiply inside the forward pass count as `none`.
        needs_bos: Reads badly without its begin-of-sequence token, whatever the tokenizer's files say.
        learned_positions: Positions past the table do not exist: the length limit is hard.
    """

    table_scale: str = "none"
    needs_bos: bool = False
    learned_positions: bool = False

    def expected_scale(self, config: PretrainedConfig) -> float:
        """Factor between a row of the embedding weights and the input vector that the model makes of it."""
        return float(config.hidden_size) ** 0.5 if self.table_scale == "sqrt_dim" else 1.0


_GEMMA = Quirks(table_scale="sqrt_dim", needs_bos=True)
_BY_MODEL_TYPE = {
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": Quirks(learned_positions=True),
    "opt": Quirks(learned_positions=True),
}


def quirks_of(config: PretrainedConfig) -> Quirks:
    """The row of the table for this configuration; the plain case for a family that has none."""
    return _BY_MODEL_TYPE.get(config.model_type, Quirks())
