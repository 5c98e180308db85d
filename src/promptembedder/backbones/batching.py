"""Which texts are read together: those of like length, so that little is padding, or any where none is needed."""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise

from promptembedder.errors import ConfigError

__all__ = ["few_widths", "like_length_batches", "packed_batches"]

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
