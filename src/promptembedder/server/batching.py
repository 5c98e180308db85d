"""Which of the waiting texts are read next."""

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["next_batch"]

# Padding that a batch may hold: this share of its texts' tokens, or so many tokens, whichever is more. A pass costs as
# much as 64 tokens beside its own (backbones/batching.py), so that much padding is cheaper than another pass.
_PADDING_SHARE = 0.15
_PADDING_TOKENS = 64


def next_batch(lengths: Sequence[int], *, max_tokens: int) -> list[int]:
    """Places of the texts to read now: the first one, which waits longest, and others of like length.

    Texts are taken from both sides of the first one's length, the least padding first, until padding or budget end it.

    Args:
        lengths: Tokens of each distinct waiting text, in the order of their coming.
        max_tokens: Of the batch, padding included; the first text is taken even if it is longer alone.
    """
    by_length = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    sorted_lengths = [lengths[place] for place in by_length]
    first = bisect_left(sorted_lengths, lengths[0])
    first = by_length.index(0, first)
    low, high = first, first  # the batch is by_length[low..high], its width the length of the last
    total = lengths[0]
    while True:
        # what each side would add: padding below the width, or all below a new width
        shorter = None if low == 0 else sorted_lengths[low - 1]
        longer = None if high + 1 == len(by_length) else sorted_lengths[high + 1]
        count, width = high - low + 2, sorted_lengths[high]
        below = None if shorter is None else count * width - (total + shorter)
        above = None if longer is None else count * longer - (total + longer)
        options = [
            (padding, step)
            for padding, step, added, wide in ((below, "low", shorter, width), (above, "high", longer, longer))
            if padding is not None
            and added is not None
            and wide is not None
            and count * wide <= max_tokens
            and padding <= max(_PADDING_SHARE * (total + added), _PADDING_TOKENS)
        ]
        if not options:
            return by_length[low : high + 1]
        if min(options)[1] == "low":
            low -= 1
            total += sorted_lengths[low]
        else:
            high += 1
            total += sorted_lengths[high]
