"""Evaluation of steering: the same texts under several instructions, each with a right answer of its own.

Conflict triplets: the positive shares the anchor's value of the attribute and differs in a second one, the negative
the other way round. A model that ignores the instruction is right in half of them, averaged over the attributes of a
corpus. Answer choice: a text under a question must lie nearest to the answer of that question among the answers to
all questions about the text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from promptembedder.data import read_rows
from promptembedder.errors import DataError, first_line, short_repr
from promptembedder.types import Float

__all__ = [
    "AnswerChoiceScore",
    "Aspect",
    "AspectScore",
    "answer_choice_score",
    "aspect_scores",
    "read_aspects",
    "read_questions",
    "triplet_accuracy",
]


@dataclass(frozen=True, kw_only=True)
class Aspect:
    """An attribute of a corpus with conflict triplets.

    Attributes:
        kind: `seen` or `unseen`: whether training may have contained the attribute.
        texts: Texts of the corpus, shared by its aspects.
        unseen_wordings: Further wordings of `instruction`.
        triplets: Row numbers of anchor, positive and negative, int [triplets 3].
    """

    corpus: str
    attribute: str
    kind: str
    texts: tuple[str, ...]
    instruction: str
    unseen_wordings: tuple[str, ...]
    triplets: np.ndarray


@dataclass(frozen=True, kw_only=True)
class AspectScore:
    """Shares of conflict triplets that are right, 0..100; 50 ignores the instruction.

    Attributes:
        own: Under the instruction of the attribute.
        others: Mean under the instructions of the corpus's other attributes. None if there is no other.
        unseen_wording: Mean under the unseen wordings. None if there are none.
    """

    corpus: str
    attribute: str
    kind: str
    triplets: int
    own: float
    others: float | None
    unseen_wording: float | None


@dataclass(frozen=True, kw_only=True)
class AnswerChoiceScore:
    """Share of questions whose own answer lies nearest.

    Attributes:
        accuracy: 0..100.
        blind: Accuracy expected of a model that ignores the question: mean of 1 / number of answers, 0..100.
    """

    name: str
    questions: int
    accuracy: float
    blind: float

    @property
    def gain(self) -> float:
        """Share of the way from blind to perfect in percent."""
        return 100 * (self.accuracy - self.blind) / (100 - self.blind)


def read_aspects(path: Path, *, limit: int | None = None) -> list[Aspect]:
    """Read a JSON file of aspects; its `file` entries are relative to it.

    Args:
        limit: Triplets of each aspect. If None, all.

    Raises:
        DataError: The file cannot be read, an entry lacks a key, or a triplet names a row that does not exist.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {first_line(error)}. Give a JSON list of aspects.") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path} must be a JSON list of aspects, one object each.")
    texts: dict[str, tuple[str, ...]] = {}
    return [
        _aspect(entry, f"{path}, aspect {number}", path.parent, texts, limit) for number, entry in enumerate(entries, 1)
    ]


def _aspect(
    entry: Mapping[str, Any], where: str, folder: Path, texts: dict[str, tuple[str, ...]], limit: int | None
) -> Aspect:
    lacking = [key for key in ("corpus", "attribute", "file", "instruction", "triplets") if not entry.get(key)]
    if lacking:
        raise DataError(
            f"{where} lacks {lacking[0]!r}. Each aspect needs corpus, attribute, file, instruction, triplets."
        )
    file = str(entry["file"])
    if file not in texts:
        texts[file] = tuple(str(row["text"]) for row in _rows(folder / file, ("text",)))
    try:
        triplets = np.array(entry["triplets"], dtype=np.int64)[:limit]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: triplets must be lists of three row numbers.") from error
    if triplets.ndim != 2 or triplets.shape[1] != 3:
        raise DataError(f"{where}: triplets must be lists of three row numbers.")
    outside = triplets[(triplets < 0) | (triplets >= len(texts[file]))]
    if outside.size:
        raise DataError(f"{where}: a triplet names row {outside[0]}, but {file} has rows 0 to {len(texts[file]) - 1}.")
    return Aspect(
        corpus=str(entry["corpus"]),
        attribute=str(entry["attribute"]),
        kind=str(entry.get("kind", "unseen")),
        texts=texts[file],
        instruction=str(entry["instruction"]),
        unseen_wordings=tuple(map(str, entry.get("unseen_wordings", ()))),
        triplets=triplets,
    )


def _rows(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    rows = list(read_rows(path))
    for number, row in enumerate(rows, 1):
        lacking = [key for key in keys if row.get(key) is None]
        if lacking:
            raise DataError(f"{path}, row {number} lacks {lacking[0]!r}. Each row needs {', '.join(keys)}.")
    return rows


def triplet_accuracy(vectors: Float[np.ndarray, "texts dim"], triplets: np.ndarray) -> float:
    """Return the percentage of triplets whose anchor has the higher cosine with its positive; a tie counts half."""
    unit = _unit(vectors)
    anchor, positive, negative = (unit[triplets[:, column]] for column in range(3))
    difference = (anchor * positive).sum(axis=1) - (anchor * negative).sum(axis=1)
    return 100 * float(np.where(difference == 0, 0.5, difference > 0).mean())


def aspect_scores(
    model: Any, aspects: Sequence[Aspect], *, takes_instructions: bool = True, batch_size: int = 64
) -> list[AspectScore]:
    """Score every aspect under its own instruction, the other attributes' instructions and unseen wordings.

    Args:
        model: Encodes texts with `encode(texts, prompt=instruction)`; a PromptEmbedder encodes each text once.
        takes_instructions: If False, the model encodes without any; the shares `own` and `others` are then equal.
    """
    by_corpus: dict[str, list[Aspect]] = {}
    for aspect in aspects:
        by_corpus.setdefault(aspect.corpus, []).append(aspect)
    scores: list[AspectScore] = []
    for group in by_corpus.values():
        instructions = [text for aspect in group for text in (aspect.instruction, *aspect.unseen_wordings)]
        used = sorted({int(row) for aspect in group for row in aspect.triplets.flat})
        position = np.zeros(len(group[0].texts), dtype=np.int64)
        position[used] = np.arange(len(used))
        vectors = _encode_under_each(
            model, [group[0].texts[row] for row in used], instructions, takes_instructions, batch_size
        )
        accuracies = {
            (aspect.attribute, instruction): triplet_accuracy(vectors[instruction], position[aspect.triplets])
            for aspect in group
            for instruction in vectors
        }
        scores += [_score(aspect, group, accuracies) for aspect in group]
    return scores


def _score(aspect: Aspect, group: Sequence[Aspect], accuracies: Mapping[tuple[str, str], float]) -> AspectScore:
    of_others = [other.instruction for other in group if other.attribute != aspect.attribute]
    others = [accuracies[aspect.attribute, instruction] for instruction in of_others]
    unseen = [accuracies[aspect.attribute, instruction] for instruction in aspect.unseen_wordings]
    return AspectScore(
        corpus=aspect.corpus,
        attribute=aspect.attribute,
        kind=aspect.kind,
        triplets=len(aspect.triplets),
        own=accuracies[aspect.attribute, aspect.instruction],
        others=fmean(others) if others else None,
        unseen_wording=fmean(unseen) if unseen else None,
    )


def _encode_under_each(
    model: Any, texts: Sequence[str], instructions: Sequence[str], takes_instructions: bool, batch_size: int
) -> dict[str, np.ndarray]:
    """Return the vectors [texts dim] by instruction, from one pass over the texts where the model can."""
    distinct = list(dict.fromkeys(instructions))
    if not takes_instructions:
        vectors = np.asarray(model.encode(list(texts), batch_size=batch_size))
        return dict.fromkeys(distinct, vectors)
    if getattr(getattr(model, "encoder", None), "reads_text_once", False):
        return dict(zip(distinct, model.encode_instructions(list(texts), distinct, batch_size=batch_size), strict=True))
    return {
        instruction: np.asarray(model.encode(list(texts), prompt=instruction, batch_size=batch_size))
        for instruction in distinct
    }


def read_questions(path: Path, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Read rows of `text`, `questions` and `answers`, as many answers as questions.

    Args:
        limit: First rows. If None, all.

    Raises:
        DataError: The file cannot be read, or a row does not have at least two questions with one answer each.
    """
    rows = _rows(path, ("text", "questions", "answers"))[:limit]
    for number, row in enumerate(rows, 1):
        questions, answers = row["questions"], row["answers"]
        lists = isinstance(questions, list) and isinstance(answers, list)
        if not lists or len(questions) != len(answers) or len(questions) < 2:
            raise DataError(
                f"{path}, row {number}: needs at least two questions and as many answers, got {short_repr(questions)}."
            )
    return rows


def answer_choice_score(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str = "answer choice",
    takes_instructions: bool = True,
    batch_size: int = 64,
) -> AnswerChoiceScore:
    """Score how often a text under a question lies nearest to the answer of that question.

    Answers are embedded as documents: without an instruction of their own.
    """
    answers = list(dict.fromkeys(str(answer) for row in rows for answer in row["answers"]))
    vectors = dict(zip(answers, _unit(np.asarray(model.encode(answers, batch_size=batch_size))), strict=True))
    right, blind = [], []
    for row in rows:
        questions = list(map(str, row["questions"]))
        by_question = _encode_under_each(model, [str(row["text"])], questions, takes_instructions, batch_size)
        candidates = np.stack([vectors[str(answer)] for answer in row["answers"]])
        for number, question in enumerate(questions):
            cosines = candidates @ _unit(by_question[question])[0]
            best = np.flatnonzero(cosines == cosines.max())
            right.append(float(number in best) / len(best))
            blind.append(1 / len(questions))
    return AnswerChoiceScore(name=name, questions=len(right), accuracy=100 * fmean(right), blind=100 * fmean(blind))


def _unit(vectors: Float[np.ndarray, "texts dim"]) -> Float[np.ndarray, "texts dim"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
