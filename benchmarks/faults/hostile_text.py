"""Texts that break tokenizers, terminals and file formats, drawn by kind with a seed."""

import random
import sys
from collections.abc import Callable

__all__ = ["KINDS", "hostile_text"]

_SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>", "[INST]"),
    *("[CLS]", "[SEP]", "[MASK]", "<|start|>", "<|end|>", "<start_of_turn>user\n", "<|eot_id|>", "<think>", "<image>"),
    *("<0x00>", "▁", "Ġ", "Ċ", "##ing", "{instruction}", "{0}", "%s%n", "\\u0000", "<|", "|>", "<unused0>"),
)
_BIDI = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u180e\u034f\u115f\u3164\ufe0f\ufe0e\u2028\u2029\x85"
_EMOJI = ("👩‍👩‍👧‍👦", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🇩🇪", "🇩", "👍🏽", "❤️‍🔥", "\U0001f3fb", "🏳️‍🌈", "1️⃣", "\ufe0f")
_SCRIPTS = ((0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3))
_ODD = (
    "\ufffe\uffff\ufffd\ue000\U000f0000\U0010ffff\U0001fffe\ufdd0\U000e0001\U00030000\ufb01\u01c5\u0130ß\u212bA\u030a"
)
_WORDS = ("a red house", "the river is cold", "def add(a, b):", "東京", "naïve café", "0", " ", "\t", "\r\n")


def hostile_text(draw: random.Random) -> str:
    """Return a text of one kind, or a concatenation of several kinds."""
    kinds = tuple(KINDS.values())
    if draw.random() < 0.75:
        return draw.choice(kinds)(draw)
    return "".join(piece for _ in range(draw.randint(2, 4)) for piece in (draw.choice(kinds)(draw)[:200],))


def _any_characters(draw: random.Random) -> str:
    return "".join(chr(draw.randint(0, sys.maxunicode)) for _ in range(draw.randint(1, 60)))


def _surrogates(draw: random.Random) -> str:
    pieces = (*_WORDS, "\ud83d", "\ude00", "\ud83d\ude00", "\ude00\ud83d", "\udcff", "\ud800" * 9)
    return "".join(draw.choice(pieces) for _ in range(draw.randint(1, 12)))


def _bidi(draw: random.Random) -> str:
    return "".join(draw.choice((*_BIDI, "שלום", "مرحبا", *_WORDS)) for _ in range(draw.randint(1, 40)))


def _combining(draw: random.Random) -> str:
    marks = [chr(draw.choice((0x300, 0x483, 0x591, 0x1AB0, 0x20D0, 0xFE20)) + draw.randrange(12)) for _ in range(8)]
    flood = "".join(draw.choice(marks) for _ in range(draw.choice((3, 50, 500, 20_000))))
    return draw.choice(("", "a", "e", "\u1100\u1161")) + flood


def _controls(draw: random.Random) -> str:
    pieces = (*_WORDS, *map(chr, range(32)), "\x7f", "\x9f", "\0" * 50, "\x1b[2J\x1b[31m", "\b" * 9)
    return "".join(draw.choice(pieces) for _ in range(draw.randint(1, 30)))


def _special(draw: random.Random) -> str:
    return "".join(draw.choice((*_SPECIAL, *_WORDS)) for _ in range(draw.randint(1, 20)))


def _invisible(draw: random.Random) -> str:
    return "".join(draw.choice((*_INVISIBLE, "a", " ")) for _ in range(draw.randint(1, 80)))


def _emoji(draw: random.Random) -> str:
    return "".join(draw.choice(_EMOJI) for _ in range(draw.randint(1, 40)))


def _scripts(draw: random.Random) -> str:
    return "".join(chr(draw.randint(*draw.choice(_SCRIPTS))) for _ in range(draw.randint(1, 200)))


def _odd(draw: random.Random) -> str:
    return "".join(draw.choice(_ODD) for _ in range(draw.randint(1, 50)))


def _blank(draw: random.Random) -> str:
    return draw.choice(("", " ", "\n", "\t\t", "\u3000", "\xa0" * 30, "\u200b", "\0"))


def _one_line(draw: random.Random) -> str:
    """Return a text without spaces and line ends, which tokenizers treat as one word."""
    return draw.choice(("a", "ab", "é", "中", "😀", "=", "0", "\u0300")) * draw.choice((100, 3_000, 30_000))


def _million(draw: random.Random) -> str:
    if draw.random() < 0.9:  # each takes a second
        return _one_line(draw)
    unit = draw.choice((*_WORDS, "x", "\ud83d", "\u0300", "<|im_end|>", "😀", "\0"))
    return (unit * (1_000_000 // len(unit) + 1))[:1_000_000]


KINDS: dict[str, Callable[[random.Random], str]] = {
    "any characters": _any_characters,
    "surrogates": _surrogates,
    "bidi": _bidi,
    "combining": _combining,
    "controls": _controls,
    "special tokens": _special,
    "invisible": _invisible,
    "emoji": _emoji,
    "scripts": _scripts,
    "odd": _odd,
    "blank": _blank,
    "one line": _one_line,
    "million": _million,
}
