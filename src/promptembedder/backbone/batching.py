"""Batches of similar length within a token budget."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch

from promptembedder.errors import ConfigError
from promptembedder.types import Tensor

__all__ = [
    "MAX_BATCH_TOKENS",
    "BatchStats",
    "TokenBudgetBatcher",
    "TokenIds",
    "bucket_width",
    "length_bucketed_batches",
    "packed_batches",
    "restore_order",
    "unpad",
]

# Fixed cost of a forward pass, in tokens: measured on a CPU with a reader of 135M parameters, where one text of
# 128 tokens takes as long as 200 tokens in a large batch. A larger number only splits less.
_CALL_TOKENS = 64
# (largest width, multiple to round up to): costs a few percent of padding.
_WIDTH_STEPS = ((64, 8), (256, 16))
_LARGEST_WIDTH_STEP = 32


def length_bucketed_batches(
    lengths: Sequence[int], *, max_tokens: int | None = None, max_texts: int | None = None
) -> list[list[int]]:
    """Split texts into batches, longest first, such that the fewest tokens are computed, padding included.

    A batch of n texts, the longest of m tokens, costs n * m and a constant; the least sum is found by dynamic
    programming over the distinct lengths, O(distinct lengths squared). Batches too large are then cut evenly.

    Args:
        lengths: Tokens of each text.
        max_tokens: Maximum number of tokens of a batch, padding included.
        max_texts: Maximum number of texts of a batch.

    Raises:
        ConfigError: If a text is longer than `max_tokens`.
    """
    longest_text = max(lengths, default=0)
    if max_tokens is not None and max_tokens < longest_text:
        raise ConfigError(
            f"max_batch_tokens is {max_tokens}, and a text has {longest_text} tokens. Raise it to that at least."
        )
    counts = sorted(Counter(lengths).items(), reverse=True)
    least, begins = [0], [0]  # cost of the texts of the first i distinct lengths; where their last batch begins
    for end in range(1, len(counts) + 1):
        options, rows = [], 0
        for begin in range(end - 1, -1, -1):
            longest, count = counts[begin]
            rows += count
            options.append((least[begin] + rows * longest + _CALL_TOKENS, begin))
        cost, begin = min(options)
        least.append(cost)
        begins.append(begin)
    ordered = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    texts_before = list(accumulate((count for _, count in counts), initial=0))
    batches: list[list[int]] = []
    end = len(counts)
    while end:
        batches.insert(0, ordered[texts_before[begins[end]] : texts_before[end]])
        end = begins[end]
    return [piece for batch in batches for piece in _cut(batch, _room(lengths[batch[0]], max_tokens, max_texts))]


def packed_batches(lengths: Sequence[int], *, max_tokens: int, max_texts: int | None = None) -> list[list[int]]:
    """Split texts into the fewest batches without padding, longest first, and return the indices of each batch.

    Args:
        lengths: Tokens of each text.
        max_tokens: Maximum number of tokens of a batch. A longer text is a batch alone.
        max_texts: Maximum number of texts of a batch.
    """
    batches: list[list[int]] = []
    room = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if not batches or lengths[place] > room or len(batches[-1]) == max_texts:
            batches.append([])
            room = max_tokens
        batches[-1].append(place)
        room -= lengths[place]
    return batches


def bucket_width(width: int) -> int:
    """Round `width` up, so that batches of all lengths have few different widths.

    For half-precision matrices on a CPU oneDNN makes a kernel for each number of rows and never drops one: up to 1 MB
    for each new product of batch size and width, measured on a reader of 135M parameters.
    """
    step = next((step for below, step in _WIDTH_STEPS if width <= below), _LARGEST_WIDTH_STEP)
    return -(-width // step) * step


def _room(longest: int, max_tokens: int | None, max_texts: int | None) -> int | None:
    """Return the maximum number of texts of a batch whose longest text has `longest` tokens. None means no limit."""
    limits = [] if max_texts is None else [max_texts]
    if max_tokens is not None:
        limits.append(max_tokens // max(longest, 1))
    return min(limits, default=None)


def _cut(batch: list[int], room: int | None) -> list[list[int]]:
    """Split the batch into the fewest pieces of at most `room` texts, with sizes that differ by at most one."""
    pieces = 1 if room is None else -(-len(batch) // room)
    ends = [len(batch) * piece // pieces for piece in range(pieces + 1)]
    return [batch[start:end] for start, end in pairwise(ends)]


logger = logging.getLogger(__name__)

# On a CPU 2,000 tokens already run at full speed; a GPU needs more, and the KV cache of a batch
# is then 0.4 GB for a model of 135M parameters and 1 GB for one of 7B.
MAX_BATCH_TOKENS = 8192

TokenIds = tuple[int, ...]
Result = TypeVar("Result")


@dataclass
class BatchStats:
    """Counts of the texts and tokens computed.

    Attributes:
        texts: Number of texts. Duplicates within a batch count once.
        tokens: Number of tokens of the texts.
        padding: Number of padding tokens.
    """

    texts: int = 0
    tokens: int = 0
    padding: int = 0

    @property
    def padding_share(self) -> float:
        """Share of padding in all tokens computed, 0..1."""
        return self.padding / max(self.tokens + self.padding, 1)


class TokenBudgetBatcher:
    """Splitter of texts into batches within a token budget, which shrinks when the GPU runs out of memory.

    Attributes:
        counts: Texts and tokens computed.
        single_batch: Ignore the budget and use one batch. Processes that share the weights of a sharded reader must
            call it equally often.
    """

    def __init__(
        self,
        width_for: Callable[[int], int] = lambda longest: longest,
        *,
        packed_tokens: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Create a batcher with the default budget.

        Args:
            width_for: Maps the length of the longest text to the width of the batch. The budget ignores the difference.
            packed_tokens: Returns the best number of tokens of an unpadded batch, or None if the reader needs padding.
        """
        self.counts = BatchStats()
        self.single_batch = False
        self._width_for, self._packed_tokens = width_for, packed_tokens
        self._max_batch_tokens = MAX_BATCH_TOKENS
        self._oom_limit: int | None = None  # token limit after an out-of-memory error

    @property
    def max_batch_tokens(self) -> int:
        """Maximum number of tokens of a batch, padding included. Batches are smaller after an out-of-memory error."""
        return self._max_batch_tokens

    @max_batch_tokens.setter
    def max_batch_tokens(self, value: int) -> None:
        if value < 1:
            raise ConfigError(f"max_batch_tokens must be at least 1, got {value}. Try {MAX_BATCH_TOKENS}.")
        self._max_batch_tokens, self._oom_limit = value, None

    def map_batches(
        self,
        texts: Sequence[TokenIds],
        read: Callable[[list[int]], Result],
        *,
        max_texts: int | None = None,
        supports_packing: bool = False,
    ) -> tuple[list[list[int]], list[Result]]:
        """Call `read` with the indices of each batch, longest first, and return the indices and results by batch.

        Args:
            max_texts: Maximum number of texts of a batch.
            supports_packing: A batch may hold texts of any lengths where the reader needs no padding.

        Raises:
            ConfigError: If a single text is longer than the budget.
            torch.OutOfMemoryError: If the GPU has no memory for a single text.
        """
        unpadded = self._packed_tokens() if len(texts) > 1 else None
        at_best = unpadded if supports_packing else None
        waiting = self._batches(texts, list(range(len(texts))), max_texts, at_best)
        done: list[list[int]] = []
        results: list[Result] = []
        while waiting:
            batch = waiting[0]
            fitted = True
            try:
                result = read(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1 or self.single_batch:
                    raise
                fitted = False
            if not fitted:  # outside of the except clause, whose traceback holds on to the batch's tensors
                lengths = [len(texts[place]) for place in batch]
                self._halve(len(batch) * max(lengths) if at_best is None else sum(lengths))
                waiting = self._batches(texts, [place for each in waiting for place in each], max_texts, at_best)
                continue
            self.count([len(texts[place]) for place in batch], packed=unpadded is not None)
            done.append(waiting.pop(0))
            results.append(result)
        return done, results

    def count(self, lengths: Sequence[int], *, width: int | None = None, packed: bool = False) -> None:
        """Count a batch of texts of these lengths, `width` columns wide, by default as wide as `map_batches` expects.

        Args:
            packed: The batch had no padding.
        """
        self.counts.texts += len(lengths)
        self.counts.tokens += sum(lengths)
        if not packed:
            width = self._width_for(max(lengths)) if width is None else width
            self.counts.padding += len(lengths) * width - sum(lengths)

    def _batches(
        self, texts: Sequence[TokenIds], places: Sequence[int], max_texts: int | None, at_best: int | None
    ) -> list[list[int]]:
        if self.single_batch:
            return [list(places)] if places else []
        lengths = [len(texts[place]) for place in places]
        budget = self._max_batch_tokens
        if self._oom_limit is not None:
            budget = min(budget, max([self._oom_limit, *lengths]))
        if at_best is not None and max(lengths, default=0) <= budget:
            batches = packed_batches(lengths, max_tokens=min(budget, at_best), max_texts=max_texts)
        else:
            batches = length_bucketed_batches(lengths, max_tokens=budget, max_texts=max_texts)
        return [[places[index] for index in batch] for batch in batches]

    def _halve(self, tokens: int) -> None:
        self._oom_limit = tokens // 2
        torch.cuda.empty_cache()
        logger.warning("the GPU has no memory for %d tokens at once; using %d from now on", tokens, self._oom_limit)


def restore_order(batches: Sequence[Sequence[int]], parts: Sequence[Tensor], *, dim: int) -> Tensor:
    """Concatenate results of batches along `dim` and restore the order of the indices."""
    places = torch.tensor([place for batch in batches for place in batch], device=parts[0].device)
    return torch.cat(list(parts), dim=dim).index_select(dim, places.argsort())


def unpad(features: dict[str, Any]) -> list[TokenIds]:
    """Return the token ids of each text of a batch, without padding."""
    rows = zip(features["input_ids"].tolist(), features["attention_mask"].tolist(), strict=True)
    return [tuple(token for token, present in zip(ids, mask, strict=True) if present) for ids, mask in rows]
