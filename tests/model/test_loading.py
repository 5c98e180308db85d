"""One string opens any encoder, and says what it takes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

from promptembedder import ModelConfig, PromptEmbedder
from promptembedder.backbone.random_models import random_tokenizer
from promptembedder.errors import BackboneError, ConfigError, ModelFormatError
from promptembedder.method import text_encoder as instructed
from promptembedder.model import BaselineEmbedder, frozen_pooling, load_encoder
from promptembedder.model import loading as opening
from promptembedder.storage import MANIFEST_NAME

NewModel = Callable[..., PromptEmbedder]
NewBaseline = Callable[..., BaselineEmbedder]
INSTRUCTION = "find the same thing"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A plain sentence-transformers model: one vector a byte."""
    weights = np.random.default_rng(0).normal(size=(260, 8)).astype(np.float32)
    embedding = StaticEmbedding(random_tokenizer().backend_tokenizer, embedding_weights=weights)
    model = SentenceTransformer(modules=[embedding, Normalize()], device="cpu")
    model.save(str(tmp_path / "foreign" / "my_vectors"), create_model_card=False)
    return tmp_path / "foreign" / "my_vectors"


# -- what opens --------------------------------------------------------------------------------------------------------


def test_a_saved_promptembedder_opens(new_model: NewModel, texts: list[str], tmp_path: Path) -> None:
    model = new_model("tiny-qwen3", deep_prompt_interval=1)
    model.save(str(tmp_path / "model"))
    opened = load_encoder(str(tmp_path / "model"), device="cpu")
    assert isinstance(opened.model, PromptEmbedder)
    assert opened.name == str(tmp_path / "model")
    assert opened.takes_instructions
    assert opened.provenance == {"reader": "random:tiny-qwen3"}
    np.testing.assert_array_equal(
        opened.model.encode(texts, prompt=INSTRUCTION), model.encode(texts, prompt=INSTRUCTION)
    )


@pytest.mark.parametrize("kind", ["static", "lora", "frozen"])
def test_sentence_transformers_itself_loads_a_saved_baseline(
    kind: str, new_baseline: NewBaseline, texts: list[str], tmp_path: Path
) -> None:
    model = new_baseline(kind)
    model.save(str(tmp_path / "model"))
    theirs = SentenceTransformer(str(tmp_path / "model"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(
        theirs.encode(texts, prompt=INSTRUCTION), model.encode(texts, prompt=INSTRUCTION), atol=1e-6
    )


@pytest.mark.parametrize("kind", ["promptembedder", "baseline"])
def test_a_hub_id_of_ours_opens_as_ours(
    kind: str, new_model: NewModel, new_baseline: NewBaseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is a local folder here; of a stranger's model nothing but the manifest is asked for."""
    model = new_model() if kind == "promptembedder" else new_baseline("lora")
    model.save(str(tmp_path / "hub"))
    asked: list[object] = []

    def download(name: str, *, allow_patterns: list[str] | None = None, **_: object) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path / "hub")

    for module in (opening, instructed):
        monkeypatch.setattr(module, "snapshot_download", download)
    opened = load_encoder("someone/vectors", device="cpu")
    assert type(opened.model) is type(model)
    assert asked == [("someone/vectors", [MANIFEST_NAME]), ("someone/vectors", None)]
    (tmp_path / "hub" / MANIFEST_NAME).unlink()
    with pytest.raises(ModelFormatError, match="cannot open 'someone/vectors' as a sentence-transformers model"):
        load_encoder("someone/vectors", device="cpu")


@pytest.mark.parametrize("kind", ["static", "lora", "full", "frozen"])
def test_a_saved_baseline_opens(kind: str, new_baseline: NewBaseline, texts: list[str], tmp_path: Path) -> None:
    model = new_baseline(kind)
    model.save(str(tmp_path / "model"))
    opened = load_encoder(str(tmp_path / "model"), device="cpu")
    assert isinstance(opened.model, BaselineEmbedder)
    assert opened.takes_instructions
    assert opened.provenance == {"reader": "random:tiny-llama"}
    np.testing.assert_array_equal(
        opened.model.encode(texts, prompt=INSTRUCTION), model.encode(texts, prompt=INSTRUCTION)
    )


@pytest.mark.parametrize(
    ("way", "pooling", "template"),
    [
        ("mean", "mean", "instruct"),
        ("last", "last", "instruct"),
        ("prompteol", "last", "prompteol"),
        ("plain", "mean", "plain"),
    ],
)
def test_a_frozen_reader_opens_in_each_way(
    way: str, pooling: str, template: str, lively_backbones: None, texts: list[str]
) -> None:
    opened = load_encoder(f"frozen:{way}:random:tiny-llama", device="cpu")
    assert opened.provenance == {"reader": "random:tiny-llama"}
    reader = opened.model.text_encoder.reader
    by_hand = frozen_pooling(reader, pooling=pooling, template=template)
    vectors = opened.model.encode(texts, prompt=INSTRUCTION)
    np.testing.assert_array_equal(vectors, by_hand.encode(texts, prompt=INSTRUCTION))
    heard = np.abs(vectors - opened.model.encode(texts)).max() > 1e-3
    assert heard == opened.takes_instructions == (way != "plain")


def test_a_plain_sentence_transformers_folder_opens_and_takes_no_instructions(foreign: Path, texts: list[str]) -> None:
    opened = load_encoder(str(foreign), device="cpu")
    assert not opened.takes_instructions
    assert opened.provenance == {"source": str(foreign)}
    expected = SentenceTransformer(str(foreign), device="cpu").encode(texts)
    np.testing.assert_array_equal(opened.model.encode(texts), expected)


def test_an_installed_distribution_opens_by_its_name(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = foreign.parent
    record = site / "my_vectors-1.2.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: my-vectors\nVersion: 1.2\n")
    files = [path.relative_to(site) for path in foreign.rglob("*") if path.is_file()]
    (record / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    monkeypatch.syspath_prepend(str(site))
    opened = load_encoder("my-vectors", device="cpu")
    assert not opened.takes_instructions
    assert opened.provenance == {"source": "my-vectors", "version": "1.2"}
    assert opened.model.encode(["a"]).shape == (1, 8)


def test_every_kind_goes_to_the_device_that_was_asked_for(
    new_model: NewModel, new_baseline: NewBaseline, foreign: Path, tmp_path: Path
) -> None:
    """A frozen reader went to the best device there was, whatever had been asked for."""
    new_model().save(str(tmp_path / "method"))
    new_baseline("static").save(str(tmp_path / "static"))
    for name in (f"{tmp_path}/method", f"{tmp_path}/static", "frozen:mean:random:tiny-llama", str(foreign)):
        model = load_encoder(name, device="meta").model  # a device that every machine has and none would choose
        assert {weight.device.type for weight in model.parameters()} == {"meta"}


# -- what does not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("frozen:max:random:tiny-llama", ConfigError, "cannot read .*Write frozen:WAY:BACKBONE, WAY one of mean, last"),
        ("frozen:mean", ConfigError, "Write frozen:WAY:BACKBONE"),
        ("frozen:mean:", ConfigError, "Write frozen:WAY:BACKBONE"),
        ("frozen:mean:nobody", BackboneError, "unknown backbone 'nobody'"),
        ("frozen:mean:random:nobody", BackboneError, "no random model is named 'nobody'"),
        ("frozen:mean:nobody/nothing", BackboneError, "cannot load backbone 'nobody/nothing'"),
        ("./nothing", ModelFormatError, "./nothing does not exist. Check the path"),
        ("nobody/nothing", ModelFormatError, "cannot open 'nobody/nothing' as a sentence-transformers model"),
        ("nobody-knows-it", ModelFormatError, "cannot open 'nobody-knows-it' as a sentence-transformers model"),
        ("pytest", ModelFormatError, "cannot open 'pytest' as a sentence-transformers model"),  # installed, no model
        ("", ModelFormatError, "is no model"),
    ],
)
def test_a_bad_name_is_refused_in_one_line(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        load_encoder(name)
    assert "\n" not in str(raised.value)


def test_a_folder_or_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(ModelFormatError, match="is no model: it has neither promptembedder.json nor") as raised:
            load_encoder(str(path))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "modules",
    [
        "{",
        '{"a": 1}',
        '[{"idx": 0, "name": "0"}]',
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Nothing"}]),
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "somebody.elses.Code"}]),
    ],
)
def test_a_damaged_sentence_transformers_folder_is_refused_in_one_line(modules: str, tmp_path: Path) -> None:
    """A module that this version does not have, and a list that was none, came through as errors of Python."""
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(ModelFormatError, match="as a sentence-transformers model: ") as raised:
        load_encoder(str(tmp_path), device="cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["method", "baseline"])
def test_a_torn_model_of_ours_is_refused_in_one_line(
    kind: str, new_config: Callable[..., ModelConfig], new_baseline: NewBaseline, tmp_path: Path
) -> None:
    model = PromptEmbedder.create(config=new_config()) if kind == "method" else new_baseline("lora")
    model.save(str(tmp_path / "model"))
    next((tmp_path / "model").glob("*.safetensors")).unlink()
    with pytest.raises(ModelFormatError, match="Incomplete model folder .*: .* is missing") as raised:
        load_encoder(str(tmp_path / "model"))
    assert "\n" not in str(raised.value)


def test_no_code_of_a_foreign_folder_is_run(tmp_path: Path) -> None:
    (tmp_path / "spy.py").write_text("raise RuntimeError('ran')\n")
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "spy.Spy"}]))
    with pytest.raises(ModelFormatError) as raised:
        load_encoder(str(tmp_path), device="cpu")
    assert "ran" not in str(raised.value).split()
