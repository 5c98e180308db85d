"""Batches of similar length within a token budget."""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from promptembedder.errors import ConfigError
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
import torch
from promptembedder.types import Tensor

__all__ = ['MAX_BATCH_TOKENS', 'ReadingCounts', 'TextReading', 'TokenRow', 'few_widths', 'in_order', 'like_length_batches', 'packed_batches', 'token_rows']

# What a pass costs beside its tokens, in tokens: measured on a CPU with a reader of 135M parameters, where one text of
# 128 tokens takes as long as 200 tokens in a large batch. A larger number only splits less.
_CALL_TOKENS = 64
# What a width is rounded up to a multiple of, by the width from which on a larger one serves: a few percent of padding.
_WIDTH_STEPS = ((64, 8), (256, 16))
_LARGEST_WIDTH_STEP = 32


def like_length_batches(
    lengths: Sequence[int], *, max_tokens: int | None = None, max_texts: int | None = None
) -> list[list[int]]:
    """Places of the texts by batch, longest first: the split that reads the fewest tokens, padding included.

    A batch of n texts, the longest of m tokens, costs n * m and a constant; the least sum is found by dynamic
    programming over the distinct lengths, O(distinct lengths squared). Batches too large are then cut evenly.

    Args:
        lengths: Tokens of each text.
        max_tokens: Tokens of a batch, padding included, at most.
        max_texts: Texts of a batch at most.

    Raises:
        ConfigError: A text is longer than `max_tokens`.
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
    """Places of the texts by batch, longest first, for texts that are read without padding: as few batches as will do.

    Args:
        lengths: Tokens of each text.
        max_tokens: Tokens of a batch at most; a longer text is a batch of its own.
        max_texts: Texts of a batch at most.
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


def few_widths(width: int) -> int:
    """`width` or a little more, so that texts of all lengths have few different ones.

    For half-precision matrices on a CPU oneDNN makes a kernel for each number of rows and never drops one: up to 1 MB
    for each new product of batch size and width, measured on a reader of 135M parameters.
    """
    step = next((step for below, step in _WIDTH_STEPS if width <= below), _LARGEST_WIDTH_STEP)
    return -(-width // step) * step


def _room(longest: int, max_tokens: int | None, max_texts: int | None) -> int | None:
    """Texts that a batch may have whose longest has `longest` tokens; None: any number."""
    limits = [] if max_texts is None else [max_texts]
    if max_tokens is not None:
        limits.append(max_tokens // max(longest, 1))
    return min(limits, default=None)


def _cut(batch: list[int], room: int | None) -> list[list[int]]:
    """The batch in as few pieces of at most `room` texts as will do, of equal size but for one text."""
    pieces = 1 if room is None else -(-len(batch) // room)
    ends = [len(batch) * piece // pieces for piece in range(pieces + 1)]
    return [batch[start:end] for start, end in pairwise(ends)]


logger = logging.getLogger(__name__)

# On a CPU 2,000 tokens already run at full speed; a GPU wants more, and what a batch keeps for soft tokens to look at
# is then 0.4 GB for a model of 135M parameters and 1 GB for one of 7B.
MAX_BATCH_TOKENS = 8192

TokenRow = tuple[int, ...]
Result = TypeVar("Result")


@dataclass
class ReadingCounts:
    """What was read so far.

    Attributes:
        texts: Those alike within a batch count once.
        tokens: Of the texts.
        padding: Tokens beside them, which fill a batch up to its longest text.
    """

    texts: int = 0
    tokens: int = 0
    padding: int = 0

    @property
    def padding_share(self) -> float:
        """Share of padding in all tokens computed, 0..1."""
        return self.padding / max(self.tokens + self.padding, 1)


class TextReading:
    """How an encoder goes through texts.

    Attributes:
        counts: What was read so far.
        in_one: Read all texts at once, whatever the budget: processes that share the weights of a reader have to call
            it equally often.
    """

    def __init__(
        self,
        width_for: Callable[[int], int] = lambda longest: longest,
        *,
        packed_tokens: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Begin with the default budget.

        Args:
            width_for: Columns of a batch whose longest text has so many tokens; the budget does not see what it adds.
            packed_tokens: How many tokens are read at once at best where the reader needs no padding; None: it does.
        """
        self.counts = ReadingCounts()
        self.in_one = False
        self._width_for, self._packed_tokens = width_for, packed_tokens
        self._max_batch_tokens = MAX_BATCH_TOKENS
        self._fitting: int | None = None  # tokens that the GPU had memory for, once it had none for more

    @property
    def max_batch_tokens(self) -> int:
        """Tokens read at once, padding included; where a GPU has no memory for them, fewer are."""
        return self._max_batch_tokens

    @max_batch_tokens.setter
    def max_batch_tokens(self, value: int) -> None:
        if value < 1:
            raise ConfigError(f"max_batch_tokens must be at least 1, got {value}. Try {MAX_BATCH_TOKENS}.")
        self._max_batch_tokens, self._fitting = value, None

    def in_batches(
        self,
        texts: Sequence[TokenRow],
        read: Callable[[list[int]], Result],
        *,
        max_texts: int | None = None,
        packs: bool = False,
    ) -> tuple[list[list[int]], list[Result]]:
        """Call `read` with the places of each batch of texts, longest first; the places, and what it gave for them.

        Args:
            max_texts: Of a batch.
            packs: A batch may hold texts of any lengths where the reader needs no padding.

        Raises:
            ConfigError: A text alone is longer than the budget.
            torch.OutOfMemoryError: The GPU has no memory for one text alone.
        """
        unpadded = self._packed_tokens() if len(texts) > 1 else None
        at_best = unpadded if packs else None
        waiting = self._batches(texts, list(range(len(texts))), max_texts, at_best)
        done: list[list[int]] = []
        results: list[Result] = []
        while waiting:
            batch = waiting[0]
            fitted = True
            try:
                result = read(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1 or self.in_one:
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
        """Note a batch of texts of these lengths, `width` columns wide, by default as wide as `in_batches` expects.

        Args:
            packed: There was no padding.
        """
        self.counts.texts += len(lengths)
        self.counts.tokens += sum(lengths)
        if not packed:
            width = self._width_for(max(lengths)) if width is None else width
            self.counts.padding += len(lengths) * width - sum(lengths)

    def _batches(
        self, texts: Sequence[TokenRow], places: Sequence[int], max_texts: int | None, at_best: int | None
    ) -> list[list[int]]:
        if self.in_one:
            return [list(places)] if places else []
        lengths = [len(texts[place]) for place in places]
        budget = self._max_batch_tokens
        if self._fitting is not None:
            budget = min(budget, max([self._fitting, *lengths]))
        if at_best is not None and max(lengths, default=0) <= budget:
            batches = packed_batches(lengths, max_tokens=min(budget, at_best), max_texts=max_texts)
        else:
            batches = like_length_batches(lengths, max_tokens=budget, max_texts=max_texts)
        return [[places[own] for own in batch] for batch in batches]

    def _halve(self, tokens: int) -> None:
        self._fitting = tokens // 2
        torch.cuda.empty_cache()
        logger.warning("the GPU has no memory for %d tokens at once; reading %d from now on", tokens, self._fitting)


def in_order(batches: Sequence[Sequence[int]], parts: Sequence[Tensor], *, dim: int) -> Tensor:
    """What came batch by batch, along `dim` in the order of the places."""
    places = torch.tensor([place for batch in batches for place in batch], device=parts[0].device)
    return torch.cat(list(parts), dim=dim).index_select(dim, places.argsort())


def token_rows(features: dict[str, Any]) -> list[TokenRow]:
    """The token ids of each text of a batch, wherever its padding is."""
    rows = zip(features["input_ids"].tolist(), features["attention_mask"].tolist(), strict=True)
    return [tuple(token for token, present in zip(ids, mask, strict=True) if present) for ids, mask in rows]
