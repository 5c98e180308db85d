"""Where the text sits in a padded batch."""

from collections.abc import Sequence

import torch

from promptembedder.shapes import Bool, Int, Tensor

__all__ = ["left_padded", "left_padded_rows", "text_positions"]


def left_padded(
    ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"] | Bool[Tensor, "batch seq"]
) -> tuple[Int[Tensor, "batch kept"], Int[Tensor, "batch kept"]]:
    """The same tokens with all padding moved to the left, whatever side (or sides) it was on, as narrow as they allow.

    With the text at the end of each row, soft tokens follow it directly: sliding windows, which count columns, then
    see the same distances as in an unpadded text.
    """
    mask = mask.long()
    order = mask.argsort(dim=1, stable=True)  # padding (0) first, tokens (1) in their order
    width = max(int(mask.sum(dim=1).max()), 0) if mask.numel() else 0
    first = mask.shape[1] - width  # columns that are padding in every row
    return ids.gather(1, order)[:, first:], mask.gather(1, order)[:, first:]


def left_padded_rows(
    rows: Sequence[Sequence[int]], *, device: torch.device | None = None, width: int | None = None
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Ids and mask of rows of ids, padded with zeros on the left to `width`, by default the longest one's."""
    if width is None:
        width = max(map(len, rows), default=0)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids.reshape(len(rows), width).to(device), mask.reshape(len(rows), width).to(device)


def text_positions(mask: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Position of each token in its own text, counted from 0; padding gets 0."""
    return (mask.cumsum(dim=1) - 1).clamp_min(0)
