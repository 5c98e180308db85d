"""One string names a backbone, and what cannot be found says how to get it."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from promptembedder.backbone import INSTALLED_MODELS, BackboneConfig, BackboneSource, find_source, load_backbone
from promptembedder.backbone.sources import InstalledModel, sha256_of
from promptembedder.errors import BackboneError


def installed(site: Path, distribution: str, files: dict[str, bytes]) -> None:
    """A distribution as pip leaves it."""
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(content)
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty site-packages in which a model of two distributions can be installed."""
    model = InstalledModel(("fake-llm-part1", "fake-llm-part2"), "fake.gguf", "00ff", "pip install fake-llm")
    monkeypatch.setitem(INSTALLED_MODELS, "fake-model", model)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_an_installed_model_is_its_distributions_files_in_order(site: Path) -> None:
    installed(
        site, "fake-llm-part2", {"fake_llm/fake.gguf.part2": b"two", "fake_llm/__init__.py": b"raise ImportError"}
    )
    installed(site, "fake-llm-part1", {"fake_llm1/fake.gguf.part1": b"one", "fake_llm1/other.txt": b"x"})
    parts = (site / "fake_llm1/fake.gguf.part1", site / "fake_llm/fake.gguf.part2")
    assert find_source("fake-model") == BackboneSource("installed", "fake-model", parts, "00ff")


def test_a_missing_distribution_is_named_with_the_line_that_installs_it(site: Path) -> None:
    installed(site, "fake-llm-part1", {"fake_llm1/fake.gguf.part1": b"one"})
    with pytest.raises(BackboneError, match="'fake-model' needs fake-llm-part2. Run: pip install fake-llm"):
        find_source("fake-model")


def test_a_distribution_that_lost_its_file_is_installed_again(site: Path) -> None:
    installed(site, "fake-llm-part1", {"fake_llm1/fake.gguf.part1": b"one"})
    (site / "fake_llm1/fake.gguf.part1").unlink()
    with pytest.raises(BackboneError, match="without its file fake.gguf. Run: pip install fake-llm --force-reinstall"):
        find_source("fake-model")


@pytest.mark.parametrize("name", INSTALLED_MODELS)
def test_each_known_model_promises_a_hash_and_says_how_to_get_it(name: str) -> None:
    model = INSTALLED_MODELS[name]
    assert len(bytes.fromhex(model.sha256)) == 32
    assert model.install.startswith("pip install ")
    assert model.distributions


def test_a_file_a_folder_a_random_model_and_a_hub_id_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{}")
    gguf, folder = str(tmp_path / "a.gguf"), str(tmp_path)
    assert find_source(gguf) == BackboneSource("gguf", gguf, (tmp_path / "a.gguf",))
    assert find_source(folder) == BackboneSource("folder", folder, (tmp_path,))
    assert find_source("random:tiny-llama") == BackboneSource("random", "random:tiny-llama")
    assert find_source("org/name") == BackboneSource("hub", "org/name")


def test_a_folder_named_like_a_hub_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_source("org/name").kind == "folder"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135", "unknown backbone 'smollm2-135', and no folder has this name. Did you mean 'smollm2-135m'[?]"),
        ("gemma-270m", "Did you mean 'gemma3-270m'[?]"),
        (
            "zzz",
            "unknown backbone 'zzz', and no folder has this name. Use an installed name .smollm2-135m",
        ),
        ("./no/such", "folder './no/such' does not exist. Check the path"),
        ("/no/such", "folder '/no/such' does not exist. Check the path"),
        ("a/b/c", "folder 'a/b/c' does not exist. Check the path"),
        ("no-such.gguf", "GGUF file 'no-such.gguf' does not exist"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        find_source(name)


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"holds no config.json. Give a folder that save_pretrained wrote"):
        find_source(str(tmp_path))


def test_the_hash_of_parts_is_that_of_the_whole(tmp_path: Path) -> None:
    whole = bytes(range(256)) * 50
    paths = [tmp_path / "1", tmp_path / "2"]
    paths[0].write_bytes(whole[:999])
    paths[1].write_bytes(whole[999:])
    assert sha256_of(paths) == hashlib.sha256(whole).hexdigest()


def test_the_default_cache_is_in_the_folder_that_hf_home_names(tmp_path: Path) -> None:
    """Converted files went to ~/.cache whatever HF_HOME was, so a full or read-only home could not be avoided."""
    program = "from promptembedder.backbone import default_cache_folder; print(default_cache_folder())"
    words = [sys.executable, "-c", program]
    done = subprocess.run(
        words, env={**os.environ, "HF_HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == tmp_path / "assets" / "promptembedder"


def test_a_hub_that_does_not_answer_is_refused_at_once_without_retries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The hub's client retried each file for half a minute, and printed each retry twice."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(BackboneError, match=r"'org/name' is not in the hub's cache .* cannot be reached"):
        load_backbone(BackboneConfig(source="org/name"), head=False)
    assert time.monotonic() - start < 10
    assert caplog.records == []
