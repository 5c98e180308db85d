"""Batches with the instruction they are read under: one of a task's wordings, drawn batch by batch."""

import random
import zlib
from dataclasses import dataclass, field
from typing import Any

from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from promptembedder.training.ranks import Ranks

__all__ = ["InstructionCollator", "Wordings"]


@dataclass(frozen=True)
class Wordings:
    """Ways to say a task's instruction; documents without any get the model's default."""

    anchor: tuple[str, ...]
    document: tuple[str, ...]


@dataclass
class InstructionCollator(SentenceTransformerDataCollator):
    """Draws wordings from the batch's own rows and the seed, not from a running generator.

    So the draw of a batch does not depend on the batches before it: a run that resumes after a kill skips those
    without collating them, and must still draw the same. Of several processes each is given the joint batch, draws
    what the others draw, and keeps its share of the rows; `joint_rows` then says how many all have together.
    """

    wordings: dict[str, Wordings] = field(default_factory=dict)
    seed: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    _drawn: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch's columns as features, each with its instruction."""
        if features:
            self._drawn = self._draw(features)
        if self.ranks.count == 1:
            return super().__call__(features)
        # an empty share gets a row to stand in: every process has to do the same work
        own = features[self.ranks.shares(len(features))[self.ranks.own]] or features[:1]
        return {**super().__call__(own), "joint_rows": len(features)}

    def _draw(self, features: list[dict[str, Any]]) -> dict[str, str]:
        wordings = self.wordings.get(features[0].get("dataset_name", ""))
        if wordings is None:
            return {}
        digest = zlib.crc32("\x00".join(str(row["anchor"]) for row in features).encode("utf-8", "replace"))
        generator = random.Random(f"{self.seed}-{digest}")
        anchor = generator.choice(wordings.anchor) if wordings.anchor else None
        if wordings.document == wordings.anchor:  # a symmetric task: both sides are read under the same words
            document = anchor
        else:
            document = generator.choice(wordings.document) if wordings.document else None
        columns = [column for column in features[0] if column != "dataset_name"]
        drawn = {column: anchor if column == "anchor" else document for column in columns}
        return {column: words for column, words in drawn.items() if words is not None}

    def _resolve_prompts(self, batch: dict[str, Any]) -> str | dict[str, str] | None:
        return self._drawn
