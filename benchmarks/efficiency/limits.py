"""Largest batch that fits into a given memory, either searched or estimated from measured batches."""

from collections.abc import Callable, Mapping

__all__ = ["MAX_BATCH", "fitted_batch", "searched_batch"]

MAX_BATCH = 1 << 16  # upper limit of the search

_PRECISION = 16  # the search stops when the bounds differ by less than 1/16


def fitted_batch(peaks: Mapping[int, int], memory_bytes: int, *, failed: int | None = None) -> int | None:
    """Return the batch at which the peak reaches `memory_bytes`, on a line through the two largest measured batches.

    Activations grow linearly with the batch. The two largest batches are used because the peak of a small step is in
    the optimiser instead.

    Args:
        peaks: Peak bytes by batch.
        failed: Smallest batch that is known not to fit.

    Returns:
        The estimated batch, 0 if the smallest batch failed, or None if the points determine no rising line.
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
    """Search for the largest batch that fits, within 1/16: try the guess, then its neighbourhood, then bisect.

    Args:
        fits: Tests a batch.
        low: Batch that is known to fit, or 0.
        failed: Batch that is known not to fit, or None.
        guess: First batch to test.
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
