"""Laws of the manifest: what does not fit is refused before a tensor is read."""

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptembedder.errors import ModelFormatError
from promptembedder.storage import FORMAT, MANIFEST_NAME, Manifest, read_manifest, write_manifest

MANIFEST = Manifest(
    config={"num_soft_tokens": 5, "reader": {"source": "größe"}},
    backbones={"reader": {"source": "a", "fingerprint": "sha256:1"}},
    instructions=["one", "zwei ✓"],
    files={"a.bin": "", "b.bin": ""},
    provenance={"torch": "2"},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(b"first")
    (tmp_path / "b.bin").write_bytes(b"second")
    write_manifest(tmp_path, MANIFEST)
    return tmp_path


@pytest.fixture
def as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks of this test suite, which would notice a wrong type first."""
    monkeypatch.setattr(Manifest, "__init__", inspect.unwrap(Manifest.__init__))


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest as somebody with an editor would."""
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


def test_write_then_read_is_identity_with_the_hashes_filled_in(folder: Path) -> None:
    found = read_manifest(folder)
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in MANIFEST.files}
    assert found == Manifest(**{**vars(MANIFEST), "files": hashes})


def test_writing_leaves_no_other_file(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"a.bin", "b.bin", MANIFEST_NAME}


def test_a_folder_without_manifest_is_no_saved_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="is not a saved model: it has no promptembedder.json"):
        read_manifest(tmp_path)


def test_a_newer_format_asks_for_an_upgrade(folder: Path) -> None:
    rewritten(folder, lambda content: content.update(format=FORMAT + 1))
    with pytest.raises(
        ModelFormatError, match=rf"format {FORMAT + 1}, this version reads formats up to {FORMAT}. Upgrade"
    ):
        read_manifest(folder)


@pytest.mark.parametrize("version", [None, "1", 0, -3, True])
def test_a_format_that_never_was_is_damage(folder: Path, version: object) -> None:
    rewritten(folder, lambda content: content.update(format=version))
    with pytest.raises(ModelFormatError, match="The manifest is damaged"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1', b"\xff\xfe", b"[]", b'"text"', b"null"])
def test_damaged_json_is_refused_with_its_path(folder: Path, content: bytes) -> None:
    (folder / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ModelFormatError, match=rf"{MANIFEST_NAME} is damaged"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("config"),
        lambda content: content.update(surprise=1),
        lambda content: content.update(files=["a.bin"]),
        lambda content: content.update(files={"a.bin": 3}),
        lambda content: content.update(config=[]),
        lambda content: content.update(backbones="a"),
        lambda content: content.update(backbones={"reader": "a"}),
        lambda content: content.update(instructions={"one": 1}),
        lambda content: content.update(instructions=[1]),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_a_manifest_of_another_shape_is_damaged(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """A list of files used to end in an AttributeError."""
    rewritten(folder, lambda content: (change(content), content)[1])
    with pytest.raises(ModelFormatError, match=f"{MANIFEST_NAME} is damaged"):
        read_manifest(folder)


@pytest.mark.parametrize("change", [{"config": {"num_soft_tokens": 6}}, {"sha256": "0"}, {"sha256": None}])
def test_an_edited_manifest_is_refused(folder: Path, change: dict[str, Any]) -> None:
    """A model with another temperature would load, and compute something else."""
    rewritten(folder, lambda content: content.update(change))
    with pytest.raises(ModelFormatError, match=f"{MANIFEST_NAME} is damaged: it has changed"):
        read_manifest(folder)


def test_a_manifest_that_is_laid_out_anew_is_the_same(folder: Path) -> None:
    expected = read_manifest(folder)
    rewritten(folder, lambda content: dict(reversed(content.items())))
    assert read_manifest(folder) == expected


@pytest.mark.parametrize("version", [1, 2])
def test_formats_without_a_hash_of_their_own_are_read(folder: Path, version: int) -> None:
    expected = read_manifest(folder)
    rewritten(folder, lambda content: (content.update(format=version), content.pop("sha256"), content)[-1])
    assert read_manifest(folder) == expected


@pytest.mark.parametrize("version", [1, 2])
def test_a_format_that_is_turned_back_does_not_lose_the_hash(folder: Path, version: int) -> None:
    rewritten(folder, lambda content: content.update(format=version))
    with pytest.raises(ModelFormatError, match=f"{MANIFEST_NAME} is damaged"):
        read_manifest(folder)


@pytest.mark.parametrize("absolute", [True, False])
def test_no_link_out_of_the_folder_is_followed(tmp_path: Path, absolute: bool) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.write_bytes(b"first")
    (folder / "a.bin").symlink_to(outside if absolute else Path("..") / "outside")
    write_manifest(folder, Manifest(config={}, backbones={}, files={"a.bin": ""}))
    with pytest.raises(ModelFormatError, match="a.bin is a link to a file outside its folder"):
        read_manifest(folder)


def test_a_manifest_that_is_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path.with_name(tmp_path.name + "-outside")
    (folder / MANIFEST_NAME).rename(outside)
    (folder / MANIFEST_NAME).symlink_to(outside)
    with pytest.raises(ModelFormatError, match=f"{MANIFEST_NAME} is a link to a file outside its folder"):
        read_manifest(folder)


def test_links_within_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "snapshots" / "commit", tmp_path / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "hash").write_bytes(b"first")
    (folder / "a.bin").symlink_to(Path("..") / ".." / "blobs" / "hash")
    write_manifest(folder, Manifest(config={}, backbones={}, files={"a.bin": ""}))
    assert list(read_manifest(folder).files) == ["a.bin"]


def test_incomplete_folder_error_names_the_last_complete_checkpoint(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.bin").write_bytes(b"first")
        write_manifest(tmp_path / name, Manifest(config={}, backbones={}, files={"a.bin": ""}))
    for incomplete in ("checkpoint-11", "model"):
        (tmp_path / incomplete / "a.bin").write_bytes(b"other")
    with pytest.raises(ModelFormatError, match=r"model: a.bin has changed .*checkpoint is .*checkpoint-10\."):
        read_manifest(tmp_path / "model")


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "b.bin").unlink()
    with pytest.raises(ModelFormatError, match=r"Incomplete model folder .*: b.bin is missing"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"secone", b"secon", b"second\0", b""])
def test_a_changed_byte_is_noticed(folder: Path, content: bytes) -> None:
    (folder / "b.bin").write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"Incomplete model folder .*: b.bin has changed"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/a.bin", "..", ".", ""])
def test_no_file_outside_the_folder_is_opened(tmp_path: Path, name: str) -> None:
    """The manifest may come from anybody, and a hash that fits would tell what a file holds."""
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    write_manifest(folder, Manifest(config={}, backbones={}))
    digest = hashlib.sha256(b"secret").hexdigest()
    rewritten(
        folder, lambda content: (content.update(format=2, files={name: digest}), content.pop("sha256"), content)[-1]
    )
    with pytest.raises(ModelFormatError, match=r"outside its folder|is missing"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["a" * 5000, "\ud800", "a\nb", "..", "a\0b", "\u202e"])
def test_a_file_name_that_cannot_be_is_refused_in_a_line_that_can_be_printed(folder: Path, name: str) -> None:
    """Fuzzing: OSError over a long name; a message that no terminal could take over a lone surrogate."""
    rewritten(folder, lambda content: content.update(files={name: "x"}))
    with pytest.raises(ModelFormatError) as refused:
        read_manifest(folder)
    assert len(str(refused.value).encode()) < 500
    assert "\n" not in str(refused.value)
