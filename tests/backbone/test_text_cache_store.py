"""Laws of states kept from one epoch to the next."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from promptembedder.backbone import Backbone, TextCache, TextCacheConfig, TextCacheStore, left_pad_ids, prefill
from promptembedder.backbone import text_cache as text_state_store
from promptembedder.errors import ConfigError
from promptembedder.types import Tensor

ROWS = [(5, 6, 7, 8, 9), (11, 12), (5, 6), (40, 41, 42)]
NewBackbone = Callable[..., Backbone]


def read(reader: Backbone, rows: Sequence[tuple[int, ...]]) -> TextCache:
    return prefill(reader.decoder, *left_pad_ids(rows))


def filled(reader: Backbone, **config: Any) -> TextCacheStore:
    store = TextCacheStore(TextCacheConfig(**config), reader.identity)
    store.add(ROWS, read(reader, ROWS))
    return store


def tensors(states: TextCache) -> list[Tensor]:
    """Keys and values without what stands in the padding, and the mask."""
    present = states.mask[:, None, :, None]
    return [*(each * present for each in (*states.keys, *states.values)), states.mask]


@pytest.mark.parametrize("where", [{"memory_gib": 1.0}, {"disk_gib": 0.01}, {"memory_gib": 1e-5, "disk_gib": 0.01}])
def test_what_is_kept_is_what_was_read(
    family: str, new_backbone: NewBackbone, tmp_path: Path, where: dict[str, float]
) -> None:
    reader = new_backbone(family)
    folder = str(tmp_path / "states") if "disk_gib" in where else None
    store = filled(reader, folder=folder, **where)
    held, packed, missing = store.split([ROWS[2], (1, 2, 3), ROWS[0]])
    assert (held, missing, len(store)) == ([ROWS[2], ROWS[0]], [(1, 2, 3)], len(ROWS))
    for kept, anew in zip(
        tensors(store.states(packed, device=torch.device("cpu"))), tensors(read(reader, held)), strict=True
    ):
        torch.testing.assert_close(kept, anew, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "share"), [("bfloat16", 0.5), ("int8", 0.4)])
def test_smaller_kinds_are_as_near_as_their_rounding(new_backbone: NewBackbone, kind: str, share: float) -> None:
    reader = new_backbone("tiny-qwen3")
    exact, small = filled(reader, memory_gib=1), filled(reader, memory_gib=1, kind=kind)
    _, packed, _ = small.split(ROWS)
    _, whole, _ = exact.split(ROWS)
    assert sum(pack.size for pack in packed) <= share * sum(pack.size for pack in whole)
    rounded = small.states(packed, device=torch.device("cpu"))
    for got, true in zip(tensors(rounded), tensors(read(reader, ROWS)), strict=True):
        bound = true.abs().amax(dim=-1, keepdim=True) / 254 if kind == "int8" else true.abs() / 256
        assert bool(((got - true).abs() <= 1.001 * bound + 1e-6).all())


def test_a_full_store_keeps_what_it_has(new_backbone: NewBackbone) -> None:
    reader = new_backbone("tiny-llama")
    _, packed, _ = filled(reader, memory_gib=1).split(ROWS)
    store = filled(reader, memory_gib=(packed[0].size + packed[1].size) / 2**30)
    assert store.split(ROWS)[0] == ROWS[:2]
    store.add([(9, 9)], read(reader, [(9, 9)]))
    assert store.split(ROWS)[0] == ROWS[:2]


def test_a_later_run_finds_what_an_earlier_one_kept(new_backbone: NewBackbone, tmp_path: Path) -> None:
    reader = new_backbone("tiny-llama")
    config = {"disk_gib": 0.01, "folder": str(tmp_path)}
    filled(reader, **config).close()
    later = TextCacheStore(TextCacheConfig(**config), reader.identity)
    assert len(later) == len(ROWS)
    later.add([(1, 2)], read(reader, [(1, 2)]))  # from which it learns the shapes
    held, packed, _ = later.split(ROWS)
    assert held == ROWS
    kept = tensors(later.states(packed, device=torch.device("cpu")))
    for got, true in zip(kept, tensors(read(reader, ROWS)), strict=True):
        torch.testing.assert_close(got, true, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "index"])
def test_damage_on_disk_costs_a_reading_and_nothing_else(
    new_backbone: NewBackbone, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader = new_backbone("tiny-llama")
    config = {"disk_gib": 0.01, "folder": str(tmp_path)}
    filled(reader, **config).close()
    shard = next(tmp_path.glob("*.safetensors"))
    whole = shard.read_bytes()
    if damage == "flip":
        shard.write_bytes(whole[:-3] + bytes([whole[-3] ^ 255]) + whole[-2:])
    elif damage == "cut":
        shard.write_bytes(whole[: len(whole) // 2])
    elif damage == "gone":
        shard.unlink()
    else:
        (tmp_path / "index.jsonl").write_text((tmp_path / "index.jsonl").read_text()[:-20] + "\n[1]\n")
    store = TextCacheStore(TextCacheConfig(**config), reader.identity)
    store.add([(1, 2)], read(reader, [(1, 2)]))
    held, _, missing = store.split(ROWS)
    assert len(held) == {"flip": 3, "cut": 0, "gone": 0, "index": 3}[damage]
    assert sorted(held + missing) == sorted(ROWS)
    assert ("reading the text again" in caplog.text) == (damage in ("flip", "cut"))
    store.add(missing, read(reader, missing))
    assert store.split(ROWS)[0] == ROWS


def test_a_disk_that_fills_up_ends_the_keeping_and_not_the_run(
    new_backbone: NewBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    reader = new_backbone("tiny-llama")
    monkeypatch.setattr(text_state_store, "save_tensors", full)
    store = filled(reader, disk_gib=0.01, folder=str(tmp_path))
    store.close()
    assert "No space left on device" in caplog.text
    store.add([(1, 2)], read(reader, [(1, 2)]))
    assert store.split([*ROWS, (1, 2)])[0] == []


def test_a_folder_of_another_reader_or_kind_is_refused(new_backbone: NewBackbone, tmp_path: Path) -> None:
    config = {"disk_gib": 0.01, "folder": str(tmp_path)}
    filled(new_backbone("tiny-llama"), **config).close()
    with pytest.raises(ConfigError, match=r"holds states with reader .*tiny-llama.*tiny-qwen3.*Name another folder"):
        TextCacheStore(TextCacheConfig(**config), new_backbone("tiny-qwen3").identity)
    with pytest.raises(ConfigError, match="holds states with kind 'exact', this run has 'int8'"):
        TextCacheStore(TextCacheConfig(**config, kind="int8"), new_backbone("tiny-llama").identity)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        TextCacheStore(TextCacheConfig(**config), new_backbone("tiny-llama").identity)


def test_a_disk_without_the_space_is_named_at_once(new_backbone: NewBackbone, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"disk_gib is 1e\+09, and the disk of .* has .* GiB free. Lower it"):
        filled(new_backbone("tiny-llama"), disk_gib=1e9, folder=str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"memory_gib": -1.0}, "memory_gib must not be negative, got -1.0"),
        ({"disk_gib": 1.0}, "go together"),
        ({"folder": "x"}, "go together"),
        ({"kind": "int4"}, "unknown text_cache.kind 'int4'. Use one of: exact, bfloat16, int8"),
    ],
)
def test_bad_settings_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextCacheConfig(**config)


def test_the_index_names_only_files_of_its_folder(new_backbone: NewBackbone, tmp_path: Path) -> None:
    reader = new_backbone("tiny-llama")
    config = {"disk_gib": 0.01, "folder": str(tmp_path / "own")}
    filled(reader, **config).close()
    index = tmp_path / "own" / "index.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    outside = tmp_path / rows[0]["shard"]
    outside.write_bytes((tmp_path / "own" / rows[0]["shard"]).read_bytes())
    index.write_text("".join(json.dumps(row | {"shard": f"../{row['shard']}"}) + "\n" for row in rows))
    assert len(TextCacheStore(TextCacheConfig(**config), reader.identity)) == 0
