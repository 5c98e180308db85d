"""Hostile inputs derived from valid ones: bytes, JSON, YAML and headers, mutated by a seeded random generator."""

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "HOSTILE_WORDS",
    "Mutation",
    "fuzz_input",
    "mutated_bytes",
    "mutated_json",
    "mutated_lines",
    "mutated_tensor_file",
    "mutated_yaml",
]

Mutation = Callable[[random.Random, Sequence[bytes]], bytes]

# paths outside a folder, words with a special meaning for some reader, text that some writer cannot encode
HOSTILE_WORDS = (
    *("", ".", "..", "../outside", "../../etc/passwd", "/etc/passwd", "a/../../outside", "..\\outside", "C:\\x"),
    *("link", "link/x", "sub", "sub/x", "\0", "a\0b", "~", "~root/x", "file:///etc/passwd", "http://localhost:1/x"),
    *("\ud800", "\udfff\ud800", "\ufeff", "\u202e", "\u2028", "é" * 70, "a" * 300, "x" * 5000, "\n", " ", "\t"),
    *("null", "true", "NaN", "-0", "1e999", "0x10", "1_0", "\uff12", "os.system", "builtins.eval", "__class__"),
    *("{instruction}", "{0.__class__}", "%s%n", "$(id)", "{{ 7*7 }}", "<|im_end|>", "torch.float32", "None"),
    *("float32", "random:tiny-llama", "random:", "smollm2-135m", "a/b", "x.gguf", "1e-4", "inf", "text", "id"),
)
_NUMBERS = (0, 1, -1, 2, 255, 1 << 31, -(1 << 31) - 1, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 63) - 1)
_FLOATS = (0.0, -0.0, 1e-320, 1e308, -1e308, 0.5, float("inf"), float("-inf"), float("nan"))
# placeholders for values that json.dumps cannot write, replaced in its output
_DEEP, _DIGITS, _OVERFLOW, _TWICE = "@deep@", "@digits@", "@overflow@", "@twice@"
_YAML_PIECES = (
    *("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!binary '*'", "!!timestamp x"),
    *("!!int x", "!!float y", "!!bool z", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "2001-99-99", "1:99:99"),
    *("&a [*a, *a]", "*a", "&a", "<<: *a", "<<: [{a: 1}]", "? [a, b]\n: c", "--- \n", "...\n", "%YAML 9.9\n---\n"),
    *("{", "}", "[", "]", ": ", "- ", "\t", "|", ">", "|99", "'", '"', "\\", "#", "@", "`", "!<x>", "=", "<<", "~"),
    *("0o9", "0b2", "0x", ".inf", ".nan", "1e4", "1e+4", "9" * 5000, "2001-01-01 25:00:00", "\x85", "\u2028"),
)


def fuzz_input(mutation: Mutation, seeds: Sequence[bytes], *, seed: int, index: int) -> bytes:
    """Return input number `index` of this seed, deterministically. The first inputs are the unchanged seed inputs."""
    if index < len(seeds):
        return seeds[index]
    draw = random.Random(seed * 1_000_003 + index)
    made = mutation(draw, seeds)
    return _scrambled(draw, made, seeds) if draw.random() < 0.15 else made


def mutated_bytes(draw: random.Random, seeds: Sequence[bytes], *, within: int | None = None) -> bytes:
    """Return one seed input with a few bytes changed, moved, duplicated, deleted or inserted.

    Args:
        within: If given, most changes affect the first `within` bytes.
    """
    return _scrambled(draw, draw.choice(seeds), seeds, within=within)


def mutated_json(draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one seed input, a JSON document, with a few values, keys and levels changed."""
    return _dumped(draw, _changed(draw, json.loads(draw.choice(seeds))))


def mutated_lines(draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one seed input, JSON lines, with one or two lines changed, duplicated or deleted."""
    lines = draw.choice(seeds).splitlines()
    for _ in range(draw.randint(1, 2)):
        place = draw.randrange(len(lines))
        action = draw.random()
        if action < 0.7:
            lines[place] = _dumped(draw, _changed(draw, _loaded(lines[place])))
        elif action < 0.85:
            lines.insert(place, draw.choice(lines))
        else:
            lines[place] = draw.choice(
                (b"", b"{}", b"[]", b"\xef\xbb\xbf{}", b"\r", lines[place][: len(lines[place]) // 2])
            )
    return draw.choice((b"\n", b"\r\n", b"\n\n")).join(lines) + draw.choice((b"\n", b""))


def mutated_yaml(draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one seed input, a JSON document, as YAML with a few pieces of YAML syntax inserted."""
    dumped = _dumped(draw, _changed(draw, json.loads(draw.choice(seeds))), indent=draw.choice((None, 1)))
    text = dumped.decode("utf-8", "surrogatepass")
    if draw.random() < 0.02:  # ten levels of ten aliases: a small file that expands to ten thousand million values
        levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 10))
        return f"l0: &l0 [x]\n{levels}{draw.choice(('model', 'data', 'run'))}: {{seed: *l9, output: *l9}}\n".encode()
    for _ in range(draw.randint(0, 3)):
        place = draw.randrange(len(text) + 1)
        text = text[:place] + draw.choice(_YAML_PIECES) + text[place + draw.choice((0, 0, 1, 5)) :]
    return text.encode("utf-8", "surrogatepass")


def mutated_tensor_file(draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one seed input, a safetensors file, with its header changed as JSON and a right or wrong header length."""
    whole = draw.choice(seeds)
    size = int.from_bytes(whole[:8], "little")
    header = (
        _dumped(draw, _changed(draw, json.loads(whole[8 : 8 + size]))) if draw.random() < 0.8 else whole[8 : 8 + size]
    )
    header_size = (
        len(header) if draw.random() < 0.8 else draw.choice((0, 1, len(header) - 1, len(header) + 8, 1 << 40, 1 << 63))
    )
    content = whole[8 + size :]
    if draw.random() < 0.2:
        content = draw.choice((b"", content[:-1], content + b"\0", b"\xff" * len(content)))
    return struct.pack("<Q", header_size & ((1 << 64) - 1)) + header + content


def _loaded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # a line that an earlier change has made invalid
        return {}


def _scrambled(draw: random.Random, data: bytes, seeds: Sequence[bytes], *, within: int | None = None) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        size = len(changed)
        place = draw.randrange(min(within or size, size) + 1)
        if draw.random() < (0.3 if within is None else 0.05):  # headers and footers are at the ends
            place = max(size - 1 - draw.randrange(64), 0)
        _scramble_at(draw, changed, place, seeds)
    return bytes(changed)


def _scramble_at(draw: random.Random, changed: bytearray, place: int, seeds: Sequence[bytes]) -> None:
    """Apply one change to the bytes from `place` on."""
    length = draw.choice((1, 2, 4, 8, 8, 64))
    number = struct.pack(draw.choice("<>") + "Q", draw.choice(_NUMBERS) & ((1 << 64) - 1))[: draw.choice((2, 4, 8))]
    there = bytes(changed[place : place + length])
    other = draw.choice(seeds)
    bit = bytes([(there[0] if there else 0) ^ (1 << draw.randrange(8))])
    # number of deleted bytes, and the bytes inserted instead
    gone, new = draw.choice(
        (
            (1, draw.randbytes(1)),
            (1, bit),
            (0, draw.randbytes(length)),
            (length, b""),
            (0, there * draw.choice((1, 2, 50))),
            (len(changed), b""),
            (len(number), number),
            (0, draw.choice(HOSTILE_WORDS).encode("utf-8", "surrogatepass")),
            (len(changed), other[draw.randrange(len(other) + 1) :]),
        )
    )
    changed[place : place + gone] = new


def _changed(draw: random.Random, tree: Any) -> Any:
    """Change a few nodes of the tree in place, and return the tree."""
    root = [tree]
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        holder, key = draw.choice(_places(root))
        action = draw.random()
        if action < 0.55:
            holder[key] = _value(draw)
        elif action < 0.65 and holder is not root:
            del holder[key]
        elif action < 0.75 and isinstance(holder, dict):
            holder[draw.choice(HOSTILE_WORDS)] = holder.pop(key) if draw.random() < 0.5 else _value(draw)
        elif action < 0.85:
            holder[key] = draw.choice(([holder[key]], {"a": holder[key]}, [holder[key]] * 3, str(holder[key])))
        else:
            other, place = draw.choice(_places(root))
            holder[key] = json.loads(json.dumps(other[place]))  # a copy, because a tree must not contain itself
    return root[0]


def _places(root: Any) -> list[tuple[Any, Any]]:
    """Return the container and the key of every value."""
    places: list[tuple[Any, Any]] = []
    waiting = [root]
    while waiting:
        holder = waiting.pop()
        for key, value in list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder)):
            places.append((holder, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return places


def _value(draw: random.Random) -> Any:
    match draw.randrange(9):
        case 0:
            return None
        case 1:
            return draw.random() < 0.5
        case 2:
            return draw.choice(_NUMBERS)
        case 3:
            return draw.choice(_FLOATS)
        case 4 | 5:
            return draw.choice(HOSTILE_WORDS)
        case 6:
            return [_value(draw) for _ in range(draw.randrange(4))]
        case 7:
            return {draw.choice(HOSTILE_WORDS): _value(draw) for _ in range(draw.randrange(4))}
        case _:
            return draw.choice((_DEEP, _DIGITS, _OVERFLOW, _TWICE, 10**400, "0" * 40))


def _dumped(draw: random.Random, tree: Any, *, indent: int | None = None) -> bytes:
    text = json.dumps(tree, ensure_ascii=draw.random() < 0.7, indent=indent)
    if "@" in text:
        depth = draw.choice((20, 90, 1000, 30_000))
        brackets = draw.choice(("[]", '{"a":}'))
        opening, closing = brackets[:-1], brackets[-1]
        text = text.replace(f'"{_DEEP}"', opening * depth + ("1" if closing == "}" else "") + closing * depth)
        text = text.replace(f'"{_DIGITS}"', "9" * 5000).replace(f'"{_OVERFLOW}"', "-1e999")
        text = text.replace(f'"{_TWICE}"', '{"a": 1, "a": [2], "id": 3, "id": 4}')
    return text.encode("utf-8", "surrogatepass")
