"""Store the KV caches of training texts from one epoch to the next."""

import functools
import hashlib
import itertools
import json
import logging
import math
import shutil
import uuid
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from promptembedder.backbone.batching import TokenIds
from promptembedder.backbone.forward import TextCache, left_pad_ids
from promptembedder.backbone.load import BackboneIdentity
from promptembedder.errors import ConfigError, first_line, short_repr
from promptembedder.storage import write_json
from promptembedder.storage.tensors import save_tensors
from promptembedder.types import Float, Tensor

__all__ = [
    "KINDS",
    "KVLayout",
    "StoredKV",
    "TextCacheConfig",
    "TextCacheStore",
    "packed_texts",
    "unpacked_states",
]

KINDS = ("exact", "bfloat16", "int8")

_LARGEST = 127  # int8, symmetric


@dataclass(frozen=True)
class KVLayout:
    """Shapes of a reader's keys and values: by layer, keys then values, (heads, head_dim); and their dtype."""

    shapes: tuple[tuple[int, int], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, states: TextCache) -> "KVLayout":
        """Return the layout of a text cache."""
        pairs = itertools.chain.from_iterable(zip(states.keys, states.values, strict=True))
        return cls(tuple((each.shape[1], each.shape[3]) for each in pairs), states.keys[0].dtype)


@dataclass(frozen=True)
class StoredKV:
    """Stored keys and values of one text.

    Attributes:
        numbers: All keys and values, [layers * 2 * heads * tokens * head_dim].
        scales: For int8, the factor of each run of head_dim numbers, float32 [runs]. Empty for other kinds.
    """

    numbers: Tensor
    scales: Tensor

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.numbers.nbytes + self.scales.nbytes


def packed_texts(states: TextCache, lengths: Sequence[int], kind: str) -> list[StoredKV]:
    """Extract each text of a left-padded batch into CPU memory.

    Args:
        lengths: Number of tokens of each text, at least 1.
        kind: `exact` (dtype of the reader), `bfloat16` or `int8`. int8 has one scale per head and token, which maps the
            largest absolute value to 127: the rounding error is at most 1/254 of that value.

    Raises:
        ConfigError: If `kind` is unknown.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of stored states {kind!r}. Use one of: {', '.join(KINDS)}.")
    tensors = list(itertools.chain.from_iterable(zip(states.keys, states.values, strict=True)))
    packed = []
    for row, length in enumerate(lengths):
        parts = [tensor[row, :, tensor.shape[2] - length :] for tensor in tensors]
        packed.append(_packed(parts, kind))
    return packed


def unpacked_states(texts: Sequence[StoredKV], layout: KVLayout, *, device: torch.device) -> TextCache:
    """Return the texts as one left-padded batch. `TextCache.hidden` is empty."""
    per_token = sum(heads * width for heads, width in layout.shapes)
    lengths = [text.numbers.numel() // per_token for text in texts]
    longest = max(lengths)
    whole = [torch.zeros(len(texts), heads, longest, width, dtype=layout.dtype) for heads, width in layout.shapes]
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        sizes = [heads * length * width for heads, width in layout.shapes]
        for target, part in zip(whole, _numbers(text, layout, length).split(sizes), strict=True):
            heads, width = target.shape[1], target.shape[3]
            target[row, :, longest - length :] = part.view(heads, length, width)
    moved = [tensor.to(device) for tensor in whole]
    _, mask = left_pad_ids([[0] * length for length in lengths], device=device)
    hidden = torch.zeros(len(texts), longest, 0, dtype=layout.dtype, device=device)
    return TextCache(keys=tuple(moved[::2]), values=tuple(moved[1::2]), mask=mask, hidden=hidden)


def _packed(parts: Sequence[Float[Tensor, "heads tokens head_dim"]], kind: str) -> StoredKV:
    nothing = torch.zeros(0)
    if kind == "int8":
        scales = [part.abs().amax(dim=-1).float() / _LARGEST for part in parts]
        rounded = [
            (part.float() / scale.unsqueeze(-1).clamp_min(math.ulp(0.0))).round().clamp(-_LARGEST, _LARGEST)
            for part, scale in zip(parts, scales, strict=True)
        ]
        numbers = torch.cat([part.to(torch.int8).flatten() for part in rounded])
        return StoredKV(numbers.cpu(), torch.cat([scale.flatten() for scale in scales]).cpu())
    numbers = torch.cat([part.flatten() for part in parts])
    return StoredKV((numbers if kind == "exact" else numbers.bfloat16()).cpu(), nothing)


def _numbers(text: StoredKV, layout: KVLayout, length: int) -> Tensor:
    """Return all keys and values of one text in the reader's dtype."""
    if not text.scales.numel():
        return text.numbers.to(layout.dtype)
    runs = torch.tensor([heads * length for heads, _ in layout.shapes])
    widths = torch.tensor([width for _, width in layout.shapes]).repeat_interleave(runs)
    return (text.numbers.float() * text.scales.repeat_interleave(widths)).to(layout.dtype)


logger = logging.getLogger(__name__)

_GIB = 1 << 30
_SHARD_BYTES = 64 << 20
_HEADER, _INDEX = "store.json", "index.jsonl"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class TextCacheConfig:
    """Storage of the KV caches of training texts, so that later epochs skip their prefill.

    A text of 128 tokens takes 5.9 MB with SmolLM2-135M in float32, half of it in bfloat16, a quarter in int8.

    Attributes:
        memory_gib: Maximum memory in GiB. 0 stores nothing in memory.
        disk_gib: Maximum disk space in GiB in `folder`, used once memory is full. 0 stores nothing on disk.
        folder: Folder of the disk cache. Later runs with the same reader can reuse it.
        kind: `exact` (dtype of the reader), `bfloat16` or `int8`.
    """

    memory_gib: float = 0.0
    disk_gib: float = 0.0
    folder: str | None = None
    kind: str = "exact"

    def __post_init__(self) -> None:
        for name in ("memory_gib", "disk_gib"):
            if getattr(self, name) < 0:
                raise ConfigError(f"text_cache.{name} must not be negative, got {getattr(self, name)}.")
        if (self.disk_gib > 0) != (self.folder is not None):
            raise ConfigError("text_cache.disk_gib and text_cache.folder go together. Give both or neither.")
        if self.kind not in KINDS:
            raise ConfigError(f"unknown text_cache.kind {short_repr(self.kind)}. Use one of: {', '.join(KINDS)}.")

    @property
    def keeps_any(self) -> bool:
        """True if a tier has a capacity above 0."""
        return self.memory_gib > 0 or self.disk_gib > 0


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Location of a text on disk."""

    shard: str
    bytes: int
    crc32: int


class TextCacheStore:
    """KV caches of texts by token ids, in memory up to the limit, then on disk.

    A full store accepts no more texts and evicts none. An epoch requests each text once, so with eviction of the oldest
    texts the next epoch would have no hits.
    """

    def __init__(self, config: TextCacheConfig, reader: BackboneIdentity, *, early_exit_fraction: float = 1.0) -> None:
        """Open the folder of the configuration, if it has one.

        Args:
            early_exit_fraction: Fraction of the reader's layers that texts run through, see `ModelConfig`.

        Raises:
            ConfigError: If the folder contains states of another reader, depth or kind, or if its disk has too little
                space.
        """
        self._config = config
        self._layout: KVLayout | None = None
        self._memory: dict[str, StoredKV] = {}
        self._memory_bytes = 0
        self._memory_full = False
        self._disk = (
            None if config.folder is None else _DiskTier(Path(config.folder), config, reader, early_exit_fraction)
        )

    def __len__(self) -> int:
        """Return the number of stored texts."""
        return len(self._memory) + (len(self._disk) if self._disk else 0)

    def __contains__(self, text: TokenIds) -> bool:
        """Return True if the text is stored."""
        key = _key(text)
        return key in self._memory or (self._disk is not None and key in self._disk)

    def split(self, texts: Sequence[TokenIds]) -> tuple[list[TokenIds], list[StoredKV], list[TokenIds]]:
        """Split texts into stored ones, their KV, and missing ones."""
        held, packed, missing = [], [], []
        for text in texts:
            found = self._find(_key(text)) if text and self._layout is not None else None
            if found is None:
                missing.append(text)
            else:
                held.append(text)
                packed.append(found)
        return held, packed, missing

    def states(self, packed: Sequence[StoredKV], *, device: torch.device) -> TextCache:
        """Return stored texts as one batch."""
        assert self._layout is not None
        return unpacked_states(packed, self._layout, device=device)

    def add(self, texts: Sequence[TokenIds], states: TextCache) -> None:
        """Store the texts that fit."""
        if not states.keys:  # all texts are empty
            return
        self._layout = self._layout or KVLayout.of(states)
        if self._memory_full and (self._disk is None or self._disk.full):
            return
        packed = packed_texts(states, [len(text) for text in texts], self._config.kind)
        for text, pack in zip(texts, packed, strict=True):
            key = _key(text)
            if not text or key in self._memory:
                continue
            self._memory_full |= self._memory_bytes + pack.size > self._config.memory_gib * _GIB
            if not self._memory_full:
                self._memory[key] = pack
                self._memory_bytes += pack.size
            elif self._disk is not None:
                self._disk.add(key, pack)

    def close(self) -> None:
        """Write all pending texts to disk."""
        if self._disk is not None:
            self._disk.flush()

    def _find(self, key: str) -> StoredKV | None:
        found = self._memory.get(key)
        if found is None and self._disk is not None:
            found = self._disk.get(key)
        return found


class _DiskTier:
    """Memory-mapped safetensors shards, and an index with the checksum of each text."""

    def __init__(
        self, folder: Path, config: TextCacheConfig, reader: BackboneIdentity, early_exit_fraction: float
    ) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        own = {"fingerprint": reader.fingerprint, "layers": reader.layers, "dtype": reader.dtype}
        own |= {} if reader.quantization is None else {"quantization": reader.quantization}
        own |= {} if early_exit_fraction == 1 else {"early_exit_fraction": early_exit_fraction}
        _check_owner(folder, {"format": _FORMAT, "kind": config.kind, "reader": own})
        self._index = _read_index(folder / _INDEX)
        self._bytes = sum(place.bytes for place in self._index.values())
        self._limit = config.disk_gib * _GIB
        free = shutil.disk_usage(folder).free
        if free < self._limit - self._bytes:
            raise ConfigError(
                f"text_cache.disk_gib is {config.disk_gib:g}, and the disk of {folder} has {free / _GIB:.1f} GiB "
                f"free. Lower it, or name a folder elsewhere."
            )
        self._waiting: dict[str, StoredKV] = {}
        self._open: dict[str, Any] = {}
        self._sound: set[str] = set()
        self.full = self._bytes >= self._limit

    def __len__(self) -> int:
        return len(self._index) + len(self._waiting)

    def __contains__(self, key: str) -> bool:
        return key in self._index or key in self._waiting

    def get(self, key: str) -> StoredKV | None:
        """Return the text, or None if it is missing. A text with a wrong checksum is removed from the index."""
        if key in self._waiting:
            return self._waiting[key]
        place = self._index.get(key)
        if place is None:
            return None
        try:
            pack = self._read(key, place)
        except (OSError, SafetensorError) as error:
            logger.warning("cannot read stored states in %s (%s); reading the text again", place.shard, error)
            pack = None
        if pack is None:
            self._index.pop(key)
        return pack

    def add(self, key: str, pack: StoredKV) -> None:
        """Store the text if the disk tier is not full."""
        if self.full or key in self._index or key in self._waiting:
            return
        if self._bytes + pack.size > self._limit:
            self.full = True
            return
        self._waiting[key] = pack
        self._bytes += pack.size
        if sum(each.size for each in self._waiting.values()) >= _SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write all pending texts. If the write fails, drop them and store no more texts."""
        if not self._waiting:
            return
        name = f"states-{uuid.uuid4().hex}.safetensors"
        tensors = {key: pack.numbers for key, pack in self._waiting.items()}
        scales = {f"{key}.scales": pack.scales for key, pack in self._waiting.items() if pack.scales.numel()}
        places = {
            key: _Place(shard=name, bytes=pack.size, crc32=_checksum(pack)) for key, pack in self._waiting.items()
        }
        try:
            save_tensors(self._folder / name, {**tensors, **scales})
            with (self._folder / _INDEX).open(
                "a", encoding="utf-8"
            ) as file:  # after the shard, so that the index lists complete shards only
                file.writelines(json.dumps({"key": key, **asdict(place)}) + "\n" for key, place in places.items())
        except (OSError, SafetensorError) as error:
            logger.warning("cannot store more states in %s (%s); going on without", self._folder, error)
            (self._folder / name).unlink(missing_ok=True)
            self.full = True
        else:
            self._index.update(places)
        self._waiting = {}

    def _read(self, key: str, place: _Place) -> StoredKV | None:
        if place.shard not in self._open:
            self._open[place.shard] = safe_open(self._folder / place.shard, framework="pt")
        shard = self._open[place.shard]
        scales = shard.get_tensor(f"{key}.scales") if self._has_scales(shard, key) else torch.zeros(0)
        pack = StoredKV(shard.get_tensor(key), scales)
        if key not in self._sound:
            if _checksum(pack) != place.crc32:
                logger.warning("stored states in %s are damaged; reading the text again", place.shard)
                return None
            self._sound.add(key)
        return pack

    def _has_scales(self, shard: Any, key: str) -> bool:
        return f"{key}.scales" in shard.keys()


def _key(text: TokenIds) -> str:
    return hashlib.sha256(array("q", text).tobytes()).hexdigest()


def _checksum(pack: StoredKV) -> int:
    """Compute the CRC-32 of all bytes, which detects damage but not tampering."""
    parts = (each.contiguous().view(torch.uint8).numpy().data for each in (pack.numbers, pack.scales))
    return functools.reduce(lambda before, part: zlib.crc32(part, before), parts, 0)


def _check_owner(folder: Path, header: Mapping[str, Any]) -> None:
    path = folder / _HEADER
    if not path.is_file():
        write_json(path, dict(header))
        return
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({first_line(error)}). Delete the folder, or name another.") from error
    for name, own in header.items():
        if held.get(name) != own:
            raise ConfigError(
                f"{folder} holds states with {name} {short_repr(held.get(name))}, this run has {own!r}. "
                "Name another folder."
            )


def _read_index(path: Path) -> dict[str, _Place]:
    """Read the texts of the index. Truncated lines and texts of missing shards are ignored."""
    places: dict[str, _Place] = {}
    if not path.is_file():
        return places
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            key, place = row.pop("key"), _Place(**row)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if Path(place.shard).name == place.shard and (path.parent / place.shard).is_file():
            places[key] = place
    return places
