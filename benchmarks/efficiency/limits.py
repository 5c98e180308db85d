"""The largest batch that a memory holds: searched for, or estimated from batches that were measured."""

from collections.abc import Callable, Mapping

__all__ = ["MAX_BATCH", "fitted_batch", "searched_batch"]

MAX_BATCH = 1 << 16  # nobody asks for more; a search ends here

_PRECISION = 16  # a search stops when what fits and what does not are less than 1/16 apart


def fitted_batch(peaks: Mapping[int, int], memory_bytes: int, *, failed: int | None = None) -> int | None:
    """The batch at which the peak reaches `memory_bytes`, on a straight line through the two largest batches measured.

    Activations grow with the batch in proportion; the largest two, because small steps peak in the optimiser instead.

    Args:
        peaks: Peak bytes by batch.
        failed: The smallest batch known not to fit.

    Returns:
        0 if the smallest failed; None if a line cannot be drawn.
    """
    known = sorted(batch for batch, peak in peaks.items() if peak <= memory_bytes)
    if not known:
        return 0 if failed is not None else None
    ceiling = MAX_BATCH if failed is None else failed - 1
    largest = sorted(peaks)[-2:]
    if len(largest) < 2 or peaks[largest[1]] <= peaks[largest[0]]:
        return known[-1] if failed == known[-1] + 1 else None
    low, high = largest
    slope = (peaks[high] - peaks[low]) / (high - low)
    reached = int(high + (memory_bytes - peaks[high]) / slope)
    return max(known[-1], min(reached, ceiling))


def searched_batch(fits: Callable[[int], bool], *, low: int, failed: int | None, guess: int | None) -> int:
    """The largest batch that fits, to within a sixteenth, by trying: the guess, its surroundings, then halving.

    Args:
        fits: Tries a batch.
        low: Known to fit; 0 if nothing is.
        failed: Known not to fit, or None.
        guess: Where to look first.
    """
    high = failed
    tried = {low, high}
    while low < MAX_BATCH and (high is None or high - low > max(1, low // _PRECISION)):
        nearby = [] if guess is None else [guess, guess + guess // _PRECISION + 1, guess - guess // _PRECISION - 1]
        middle = min(2 * max(low, 4), MAX_BATCH) if high is None else (low + high) // 2
        fresh = [batch for batch in nearby if batch not in tried and low < batch < (high or MAX_BATCH + 1)]
        batch = fresh[0] if fresh else middle
        tried.add(batch)
        if fits(batch):
            low = batch
        else:
            high = batch
    return low
