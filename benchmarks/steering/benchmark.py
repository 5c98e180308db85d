"""Score models on conflict triplets and answer choice, and a PromptEmbedder also without its parts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch

from promptembedder.evaluation.aspects import (
    AnswerChoiceScore,
    Aspect,
    AspectScore,
    answer_choice_score,
    aspect_scores,
)
from promptembedder.method import SoftTokenEncoder
from promptembedder.model import DualEncoder, LoadedEncoder

__all__ = ["VARIANTS", "SteeringRun", "constant_prompter", "score_model", "text_pooling_weight"]

_CONSTANT = "the mean over all instructions"
_WHOLE, _CONSTANT_PROMPTER = "whole", "constant prompter"
_WEIGHTS = {"soft tokens alone": 0.0, "text states alone": 1e4}  # of the text states
VARIANTS = (_WHOLE, _CONSTANT_PROMPTER, *_WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class SteeringRun:
    """Scores of one model, or of a model without one of its parts.

    Attributes:
        variant: `whole`, or which part was taken away.
    """

    model: str
    variant: str
    aspects: list[AspectScore]
    questions: list[AnswerChoiceScore]

    def means(self) -> dict[str, dict[str, float | None]]:
        """Return the mean shares of each kind of aspect."""
        kinds = dict.fromkeys(score.kind for score in self.aspects)
        return {kind: _means([score for score in self.aspects if score.kind == kind]) for kind in kinds}


def score_model(
    loaded: LoadedEncoder,
    *,
    name: str,
    aspects: Sequence[Aspect],
    questions: Mapping[str, Sequence[Mapping[str, Any]]],
    batch_size: int = 64,
    variants: Sequence[str] = VARIANTS,
    on_run: Callable[[SteeringRun], None] = lambda _: None,
) -> list[SteeringRun]:
    """Score a model; a dual encoder also with a constant prompter, and each half of its embedding alone.

    Args:
        questions: Rows of answer choice by the name of their file.
        variants: Those of `VARIANTS` to score, of a dual encoder.
        on_run: Called after each variant.
    """
    runs = []

    def score(model: Any, variant: str) -> None:
        takes = loaded.takes_instructions
        chosen = [
            answer_choice_score(model, rows, name=file, takes_instructions=takes, batch_size=batch_size)
            for file, rows in questions.items()
        ]
        shares = aspect_scores(model, aspects, takes_instructions=takes, batch_size=batch_size) if aspects else []
        runs.append(SteeringRun(model=name, variant=variant, aspects=shares, questions=chosen))
        on_run(runs[-1])

    encoder = getattr(loaded.model, "text_encoder", None)
    if not isinstance(encoder, DualEncoder) or encoder.prompter is None:
        score(loaded.model, _WHOLE)
        return runs
    if _WHOLE in variants:
        score(loaded.model, _WHOLE)
    if _CONSTANT_PROMPTER in variants:
        instructions = [aspect.instruction for aspect in aspects] or [
            str(question) for rows in questions.values() for row in rows for question in row["questions"]
        ]
        score(constant_prompter(loaded.model, instructions), _CONSTANT_PROMPTER)
    for variant, weight in _WEIGHTS.items():
        if encoder.text_pooling is not None and variant in variants:
            with text_pooling_weight(encoder, weight):
                score(loaded.model, variant)
    return runs


def constant_prompter(model: Any, instructions: Sequence[str]) -> Any:
    """Return an encoder that gives every instruction the mean of the soft tokens (and queries) of `instructions`."""
    encoder: DualEncoder = model.text_encoder
    with torch.no_grad():
        mean = encoder.eval().soft_tokens(list(dict.fromkeys(instructions))).mean(dim=0)
    encoder.store.add_compiled({_CONSTANT: mean.cpu()}, encoder.trained_weights())
    return _Constant(model)


class _Constant:
    """Encodes every text under the constant, whatever the instruction; texts without instruction as before."""

    def __init__(self, model: Any) -> None:
        self._model, self.encoder = model, model.text_encoder

    def encode_instructions(self, texts: Sequence[str], instructions: Sequence[str], **options: Any) -> Any:
        return np.stack([self._model.encode(texts, prompt=_CONSTANT, **options)] * len(instructions))

    def encode(self, texts: Sequence[str], *, prompt: str | None = None, **options: Any) -> Any:
        return self._model.encode(texts, prompt=None if prompt is None else _CONSTANT, **options)


@contextmanager
def text_pooling_weight(encoder: SoftTokenEncoder, weight: float) -> Iterator[None]:
    """Set the weight of the text states inside the block."""
    assert encoder.text_pooling is not None
    before = encoder.text_pooling.weight.clone()
    encoder.text_pooling.weight.fill_(weight)
    try:
        yield
    finally:
        encoder.text_pooling.weight.copy_(before)


def _means(scores: Sequence[AspectScore]) -> dict[str, float | None]:
    columns = {
        "own": [score.own for score in scores],
        "others": [score.others for score in scores if score.others is not None],
        "unseen_wording": [score.unseen_wording for score in scores if score.unseen_wording is not None],
    }
    return {name: fmean(column) if column else None for name, column in columns.items()}
