"""From token ids and instructions to vectors: what the server's one computing thread does."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from promptembedder.models import DualEncoder, TokenRow, in_order
from promptembedder.server.memory import give_back
from promptembedder.shapes import Float, Tensor

__all__ = ["InstructionKey", "VectorComputer"]

_CALLS_BETWEEN = 8  # before free memory goes back: a few milliseconds, and batches of all lengths leave holes


@dataclass(frozen=True)
class InstructionKey:
    """An instruction and whose it is: what one tenant's instruction made is not used for another's.

    Else the time of an answer would tell whether somebody else has asked the same.
    """

    tenant: str
    instruction: str


class VectorComputer:
    """Vectors of texts, each under the instructions that are wanted of it; for one thread alone."""

    def __init__(self, encoder: DualEncoder, *, max_batch_tokens: int, max_cached_instructions: int) -> None:
        """Compute with `encoder`, which reads at most `max_batch_tokens` at once, or one text."""
        self._encoder = encoder.eval()
        encoder.reading.max_batch_tokens = max(max_batch_tokens, encoder.max_seq_length)
        # compiled ones are the model's own and nobody's secret
        self._compiled = dict(encoder.store.compiled)
        self._generated: OrderedDict[InstructionKey, Tensor] = OrderedDict()
        self._max_cached = max_cached_instructions
        self._calls = 0

    @property
    def device(self) -> torch.device:
        """Where the reader is."""
        return self._encoder.device

    @torch.inference_mode()
    def vectors(
        self, wanted: Mapping[TokenRow, Sequence[InstructionKey]]
    ) -> dict[tuple[TokenRow, InstructionKey], Float[np.ndarray, " dim"]]:
        """The vector of each text under each instruction that is wanted of it; each text is read once.

        Raises:
            ConfigError: An instruction is too long, or not compiled and there is no prompter.
            ValueError: A vector is not finite.
        """
        self._calls += 1
        if self._calls % _CALLS_BETWEEN == 0:
            give_back()
        soft = self._soft_tokens(list(dict.fromkeys(key for keys in wanted.values() for key in keys)))
        alike: dict[tuple[InstructionKey, ...], list[TokenRow]] = {}
        for row, keys in wanted.items():
            # texts with one instruction each are read together, whichever it is
            alike.setdefault(tuple(keys) if len(keys) > 1 else (), []).append(row)
        found: dict[tuple[TokenRow, InstructionKey], Float[np.ndarray, " dim"]] = {}
        for keys, rows in alike.items():
            owns = [keys or tuple(wanted[row]) for row in rows]
            vectors = self._shared(rows, keys, soft) if keys else self._single(rows, owns, soft)
            for row, own, of_row in zip(rows, owns, vectors, strict=True):
                found |= {(row, key): vector for key, vector in zip(own, of_row, strict=True)}
        return found

    def _single(
        self,
        rows: Sequence[TokenRow],
        keys: Sequence[tuple[InstructionKey, ...]],
        soft: Mapping[InstructionKey, Tensor],
    ) -> Float[np.ndarray, "texts 1 dim"]:
        def embed(places: list[int]) -> Tensor:
            own = torch.stack([soft[keys[place][0]] for place in places])
            return self._encoder.embed_rows([rows[place] for place in places], own)

        batches, parts = self._encoder.reading.in_batches(rows, embed, packs=True)
        return in_order(batches, parts, dim=0).float().cpu().numpy()[:, None]

    def _shared(
        self, rows: Sequence[TokenRow], keys: Sequence[InstructionKey], soft: Mapping[InstructionKey, Tensor]
    ) -> Float[np.ndarray, "texts instructions dim"]:
        together = torch.stack([soft[key] for key in keys])

        def embed(places: list[int]) -> Tensor:
            states = self._encoder.read_rows([rows[place] for place in places])
            return self._encoder.embed_each_after(states, together).transpose(0, 1)

        batches, parts = self._encoder.reading.in_batches(rows, embed)
        return in_order(batches, parts, dim=0).float().cpu().numpy()

    def _soft_tokens(self, keys: Sequence[InstructionKey]) -> dict[InstructionKey, Tensor]:
        at_hand: dict[InstructionKey, Tensor] = {}
        for key in keys:
            if key.instruction in self._compiled:
                at_hand[key] = self._compiled[key.instruction].to(self.device)
            elif key in self._generated:
                self._generated.move_to_end(key)
                at_hand[key] = self._generated[key]
        missing = [key for key in keys if key not in at_hand]
        if missing:
            # past the encoder's own memory, which knows no tenants
            made = self._encoder.generate([key.instruction for key in missing])
            at_hand |= dict(zip(missing, made.unbind(0), strict=True))
            # copies: a row of a batch would keep the whole batch in memory
            self._generated |= {key: at_hand[key].clone() for key in missing}
        while len(self._generated) > self._max_cached:
            self._generated.popitem(last=False)
        return at_hand
