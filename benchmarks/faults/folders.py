"""Loading of damaged model folders: rejected with the library's own error, or loaded unchanged."""

import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.faults.model import tiny_embedder
from benchmarks.faults.result import Campaign
from benchmarks.faults.saving import vectors_of
from promptembedder.errors import PromptEmbedderError
from promptembedder.model import PromptEmbedder
from promptembedder.storage import MANIFEST_NAME

__all__ = ["corrupted_folders"]

_SHOWN = 10
_COMPILED = "Tell the mood"
Damage = Callable[[Path, Path, random.Random], str]  # (folder, another model's folder, draw) -> description


def corrupted_folders(*, count: int, seed: int, on_done: Callable[[int], None] = lambda _: None) -> Campaign:
    """Damage copies of a saved model at random, and load the copies.

    Args:
        count: Number of damaged folders.
        on_done: Called with the number of folders tested so far.
    """
    draw, began = random.Random(seed), time.perf_counter()
    failures: list[str] = []
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as work:
        whole, other = (Path(work) / name for name in ("whole", "other"))
        model = tiny_embedder(seed=seed)
        model.compile_instructions([_COMPILED])
        model.save(str(whole))
        tiny_embedder(seed=seed + 1).save(str(other))
        expected = vectors_of(PromptEmbedder.from_pretrained(whole, device="cpu"))
        for trial in range(1, count + 1):
            name, damage = draw.choice(list(_DAMAGES.items()))
            folder = Path(work) / "damaged"
            shutil.copytree(whole, folder)
            done = damage(folder, other, draw)
            end = _loaded(folder, expected)
            ends[f"{name} {end}"] += end in ("refused", "equal")
            if end not in ("refused", "equal"):
                failures.append(f"trial {trial}, {name}, {done}: {end}")
            shutil.rmtree(folder)
            on_done(trial)
    counts = ", ".join(f"{name} {number}" for name, number in sorted(ends.items()) if number)
    return Campaign(
        name="corrupted-folders",
        tried=count,
        survived=count - len(failures),
        seconds=time.perf_counter() - began,
        seed=seed,
        notes=f"{counts}; equal: the vectors are those of the undamaged model, bit for bit",
        failures=tuple(failures[:_SHOWN]),
    )


def _loaded(folder: Path, expected: np.ndarray) -> str:
    try:
        vectors = vectors_of(PromptEmbedder.from_pretrained(folder, device="cpu"))
    except PromptEmbedderError as error:
        return "refused" if "\n" not in str(error) else f"refused in several lines: {error}"
    except Exception as error:  # counted as a failure: anything but the library's own errors
        if isinstance(error, MemoryError):
            raise
        return f"{type(error).__name__}: {error}"
    return "equal" if np.array_equal(vectors, expected) else "loaded with other vectors"


def _file(folder: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(path for path in folder.iterdir() if path.stat().st_size > 0))


def _flip_bits(folder: Path, other: Path, draw: random.Random) -> str:
    path = _file(folder, draw)
    content = bytearray(path.read_bytes())
    places = [(draw.randrange(len(content)), draw.randrange(8)) for _ in range(draw.choice((1, 1, 2, 8)))]
    for place, bit in places:
        content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"{path.name} at {places}"


def _flip_manifest(folder: Path, other: Path, draw: random.Random) -> str:
    path = folder / MANIFEST_NAME
    content = bytearray(path.read_bytes())
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"at {place}, {bit}"


def _truncate(folder: Path, other: Path, draw: random.Random) -> str:
    path = _file(folder, draw)
    length = draw.randrange(path.stat().st_size)
    os.truncate(path, length)
    return f"{path.name} to {length}"


def _extend(folder: Path, other: Path, draw: random.Random) -> str:
    path = _file(folder, draw)
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randint(1, 64)))
    return path.name


def _zero(folder: Path, other: Path, draw: random.Random) -> str:
    """Overwrite a block with zeros, as a failing disk does."""
    path = _file(folder, draw)
    content = bytearray(path.read_bytes())
    begin = draw.randrange(len(content))
    end = min(begin + draw.choice((1, 512, 4096)), len(content))
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)
    return f"{path.name} from {begin} to {end}"


def _swap_within(folder: Path, other: Path, draw: random.Random) -> str:
    left, right = draw.sample(sorted(folder.iterdir()), 2)
    aside = folder / "aside"
    left.rename(aside)
    right.rename(left)
    aside.rename(right)
    return f"{left.name} and {right.name}"


def _swap_models(folder: Path, other: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(path for path in other.iterdir() if path.suffix != ".md"))
    shutil.copy(path, folder / path.name)
    return path.name


def _delete(folder: Path, other: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(folder.iterdir()))
    path.unlink()
    return path.name


def _empty(folder: Path, other: Path, draw: random.Random) -> str:
    path = _file(folder, draw)
    path.write_bytes(b"")
    return path.name


def _add(folder: Path, other: Path, draw: random.Random) -> str:
    name = draw.choice(("pytorch_model.bin", "custom.py", "model.safetensors", "__init__.py", "extra.json", ".hidden"))
    (folder / name).write_bytes(draw.randbytes(draw.randrange(200)))
    return name


def _link_out(folder: Path, other: Path, draw: random.Random) -> str:
    """Replace a file by a symbolic link to the same content outside the folder."""
    path = draw.choice(sorted(folder.iterdir()))
    outside = folder.parent / "outside"
    shutil.copy(path, outside)
    path.unlink()
    path.symlink_to(outside if draw.random() < 0.5 else Path("..") / "outside")
    return path.name


def _folder_instead(folder: Path, other: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(folder.iterdir()))
    path.unlink()
    path.mkdir()
    return path.name


_DAMAGES: dict[str, Damage] = {
    "bits flipped": _flip_bits,
    "bit of the manifest flipped": _flip_manifest,
    "truncated": _truncate,
    "extended": _extend,
    "block of zeros": _zero,
    "two files swapped": _swap_within,
    "file of another model": _swap_models,
    "deleted": _delete,
    "emptied": _empty,
    "added": _add,
    "link out": _link_out,
    "folder for a file": _folder_instead,
}
