"""Maps between the hidden states of two LLMs, from what both make of the same texts; no labels, no training."""

from collections.abc import Sequence

import torch

from promptembedder.backbones import Backbone
from promptembedder.data import clean_text
from promptembedder.nn import left_padded_rows, text_positions
from promptembedder.shapes import Float, Tensor

__all__ = ["hidden_maps"]

_RIDGE = 1e-3  # of the mean variance of the source
_BATCH = 8
_MAX_TOKENS = 128


@torch.no_grad()
def hidden_maps(
    source: Backbone, target: Backbone, texts: Sequence[str], layers: Sequence[tuple[int, int]]
) -> list[Float[Tensor, "dim_s dim_t"]]:
    """For each (a, b): the linear map from states that enter layer a of `source` to those entering b of `target`.

    Ridge regression around the means, over the places where a token of both ends at the same letter: what a decoder
    knows there comes from the same text, however its tokenizer cuts it. Summed up batch by batch, in float64.
    """
    sums = [_Sums(source.dim, target.dim, source.input_table.device) for _ in layers]
    cleaned = sorted((clean_text(text) for text in texts), key=len)
    for start in range(0, len(cleaned), _BATCH):
        batch = cleaned[start : start + _BATCH]
        x, y = _States(source, batch), _States(target, batch)
        places = [(row, end) for row, ends in enumerate(x.ends) for end in ends if end in y.ends[row]]
        if not places:
            continue
        for one, (a, b) in zip(sums, layers, strict=True):
            one.add(x.at(a, places), y.at(b, places))
    return [one.solved() for one in sums]


class _States:
    """Hidden states of a batch of texts, by layer and by the letter at which a token ends."""

    def __init__(self, backbone: Backbone, texts: Sequence[str]) -> None:
        prefix = backbone.tokenizer.prefix
        room = min(_MAX_TOKENS, backbone.max_positions or _MAX_TOKENS) - len(prefix)
        foreign, words = backbone.tokenizer.foreign, {"add_special_tokens": False, "split_special_tokens": True}
        rows = [foreign(text, return_offsets_mapping=True, **words) for text in texts]
        ids = [prefix + row["input_ids"][:room] for row in rows]
        padded, mask = left_padded_rows(ids, device=backbone.input_table.device)
        width = padded.shape[1]
        self.ends: list[dict[int, int]] = []
        for row, own in zip(rows, ids, strict=True):
            first = width - len(own) + len(prefix)
            self.ends.append({end: first + place for place, (_, end) in enumerate(row["offset_mapping"][:room])})
        self._hidden: tuple[Tensor, ...] = ()
        if width:
            self._hidden = backbone.decoder(
                input_ids=padded,
                attention_mask=mask,
                position_ids=text_positions(mask),
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states

    def at(self, layer: int, places: Sequence[tuple[int, int]]) -> Float[Tensor, "places dim"]:
        """States that enter the layer, at (row, letter)."""
        rows = [row for row, _ in places]
        return self._hidden[layer][rows, [self.ends[row][end] for row, end in places]].double()


class _Sums:
    """What ridge regression needs of all pairs of rows."""

    def __init__(self, dim_s: int, dim_t: int, device: torch.device) -> None:
        self.count = 0
        self.x = torch.zeros(dim_s, dtype=torch.float64, device=device)
        self.y = torch.zeros(dim_t, dtype=torch.float64, device=device)
        self.xx = torch.zeros(dim_s, dim_s, dtype=torch.float64, device=device)
        self.xy = torch.zeros(dim_s, dim_t, dtype=torch.float64, device=device)

    def add(self, x: Float[Tensor, "rows dim_s"], y: Float[Tensor, "rows dim_t"]) -> None:
        self.count += len(x)
        self.x += x.sum(dim=0)
        self.y += y.sum(dim=0)
        self.xx += x.T @ x
        self.xy += x.T @ y

    def solved(self) -> Float[Tensor, "dim_s dim_t"]:
        count = max(self.count, 1)
        xx = self.xx - torch.outer(self.x, self.x) / count
        xy = self.xy - torch.outer(self.x, self.y) / count
        ridge = _RIDGE * xx.diagonal().mean().clamp_min(1e-12)
        return torch.linalg.solve(xx + ridge * torch.eye(len(xx), dtype=xx.dtype, device=xx.device), xy).float()
