"""Laws of untrusted YAML: plain values or one clear error, in bounded time."""

import time
from pathlib import Path

import pytest

from promptembedder.errors import ConfigError
from promptembedder.storage import parse_yaml, read_yaml

LAUGHS = "l0: &l0 [x]\n" + "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 10))


@pytest.mark.parametrize("text", ["", "a: 1", "a: [1, 2.5, true, null, x]", "a: &x [1]\nb: *x", "\ufeffa: 2001-01-01"])
def test_plain_values_are_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text",
    [
        *("a: 2001-99-99", "a: !!int x", "a: !!float x", "a: !!bool z", "a: !!timestamp x"),
        *("a: " + "9" * 5000, "[" * 3_000, "a: !!python/object/apply:os.system ['true']", "a: *none", "{", "\x00"),
        *("a: *" + "x" * 5000, "a: !" + "x" * 5000, "a: !<" + "x" * 5000 + "> b"),
        *("a: &a [*a]", "&a {b: *a}", "? [a]\n: b", "a: 1\n--- \nb: 2", LAUGHS, LAUGHS + "z: {<<: [*l9]}"),
    ],
    ids=lambda text: repr(text[:40]),
)
def test_everything_else_is_one_clear_error(text: str) -> None:
    """PyYAML raised ValueError, KeyError, AttributeError and RecursionError; aliases in aliases filled the memory."""
    began = time.perf_counter()
    with pytest.raises(ConfigError) as refused:
        parse_yaml(text)
    assert len(str(refused.value)) < 600
    assert "\n" not in str(refused.value)
    assert time.perf_counter() - began < 20


def test_a_missing_binary_or_huge_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"a: \xff")
    (tmp_path / "c.yaml").write_bytes(b"#" * ((1 << 20) + 1))
    for name in ("none.yaml", "b.yaml", "c.yaml"):
        with pytest.raises(ConfigError, match=f"cannot read .*{name}"):
            read_yaml(tmp_path / name)
