"""A GGUF is converted once, whole or not at all."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import promptembedder.backbone.gguf as conversion
from promptembedder.backbone import (
    INSTALLED_MODELS,
    Backbone,
    BackboneConfig,
    convert_gguf,
    find_source,
    load_backbone,
)
from promptembedder.backbone.random_models import random_model, random_tokenizer
from promptembedder.backbone.sources import InstalledModel, sha256_of
from promptembedder.errors import BackboneError

TENSORS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_gguf(path: Path, model: PreTrainedModel) -> None:
    """A Llama with the random byte-level tokenizer and one merge, as llama.cpp writes it, unquantised."""
    config, state = model.config, {name: weight.numpy() for name, weight in model.state_dict().items()}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = random_tokenizer().convert_ids_to_tokens(range(258))
    writer.add_token_list([*tokens, "he", "<unused>"])
    writer.add_token_types([1] * 256 + [3, 3, 1, 3])
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    for layer in range(config.num_hidden_layers):
        for theirs, ours in TENSORS.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in heads:  # llama.cpp keeps the two halves of a rotary pair side by side
                weight = weight.reshape(heads[theirs], 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def original(lively_backbones: None) -> PreTrainedModel:
    return random_model("tiny-llama", layers=None, dtype=torch.float32)


@pytest.fixture(scope="module")
def pristine(original: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, original)
    return path


@pytest.fixture
def file(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    (tmp_path / "tiny.gguf").write_bytes(pristine.read_bytes())
    return tmp_path / "tiny.gguf"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with each conversion."""
    made: list[str] = []
    convert = conversion._convert
    monkeypatch.setattr(
        conversion, "_convert", lambda source, folder: made.append(source.name) or convert(source, folder)
    )
    return made


def loaded(file: Path, cache: Path, *, layers: int | None = None) -> Backbone:
    return load_backbone(
        BackboneConfig(source=str(file), dtype="float32", layers=layers), head=True, cache_folder=cache
    )


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(20)[None]).logits


def folders(cache: Path) -> list[str]:
    """What the cache holds, locks aside."""
    return sorted(path.name for path in cache.glob("*/*") if path.suffix != ".lock")


def test_a_gguf_gives_the_model_that_was_written_into_it(file: Path, cache: Path, original: PreTrainedModel) -> None:
    backbone = loaded(file, cache)
    assert torch.equal(logits(backbone.model), logits(original))
    assert backbone.identity.fingerprint == f"sha256:{sha256_of([file])}"
    assert backbone.tokenizer.tokenize(["he <|end|>"], max_length=20).ids[0, 1] == 258
    assert 257 not in backbone.tokenizer.tokenize(["he <|end|>"], max_length=20).ids


def test_layers_keeps_the_first_ones(file: Path, cache: Path) -> None:
    short, whole = loaded(file, cache, layers=2).model.state_dict(), loaded(file, cache).model.state_dict()
    assert len(short) < len(whole)
    assert all(torch.equal(weight, whole[name]) for name, weight in short.items())


def test_the_first_load_converts_and_later_ones_do_not(file: Path, cache: Path, conversions: list[str]) -> None:
    first = loaded(file, cache)
    times = {path: path.stat().st_mtime_ns for path in cache.rglob("*.*") if path.suffix != ".lock"}
    second = loaded(file, cache)
    assert conversions == [str(file)]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert torch.equal(logits(first.model), logits(second.model))


def test_a_changed_file_has_its_own_place_in_the_cache(
    file: Path, cache: Path, conversions: list[str], original: PreTrainedModel
) -> None:
    before = loaded(file, cache)
    content = bytearray(file.read_bytes())
    at = content.rindex(original.state_dict()["model.layers.2.mlp.down_proj.weight"].numpy().tobytes())
    content[at : at + 4] = np.float32(9.0).tobytes()
    file.write_bytes(content)
    after = loaded(file, cache)
    assert len(conversions) == len(folders(cache)) == 2
    assert not torch.equal(logits(before.model), logits(after.model))
    assert before.identity.fingerprint != after.identity.fingerprint


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_a_conversion_that_is_cut_off_leaves_nothing_and_the_next_one_succeeds(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, original: PreTrainedModel
) -> None:
    def torn(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(original.__class__, "save_pretrained", torn)
        with pytest.raises((KeyboardInterrupt, BackboneError)):
            loaded(file, cache)
    assert folders(cache) == []
    assert torch.equal(logits(loaded(file, cache).model), logits(original))


def test_files_are_whole_before_the_folder_has_its_name(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    rename = Path.rename
    monkeypatch.setattr(
        Path,
        "rename",
        lambda self, to: seen.append(to.exists() or not (self / "sizes.json").exists()) or rename(self, to),
    )
    loaded(file, cache)
    assert seen == [False]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_cache_that_lost_a_file_is_made_again(
    file: Path, cache: Path, conversions: list[str], damage: Callable[[Path], object], original: PreTrainedModel
) -> None:
    loaded(file, cache)
    damage(next(cache.rglob("model.safetensors")))
    assert torch.equal(logits(loaded(file, cache).model), logits(original))
    assert len(conversions) == 2


@pytest.mark.parametrize("content", [b"", b"GGUF", b"junk" * 500, b"GGUF" + bytes(range(256)) * 9])
def test_a_file_that_is_no_gguf_is_refused_by_name(file: Path, cache: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(BackboneError, match=f"cannot read '{file}' as a GGUF model"):
        loaded(file, cache)
    assert folders(cache) == []


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_truncated_gguf_is_refused_by_name(file: Path, cache: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BackboneError, match=f"cannot read '{file}' as a GGUF model"):
        loaded(file, cache)
    assert folders(cache) == []


def test_a_gguf_that_lacks_a_weight_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, original: PreTrainedModel
) -> None:
    """The missing weight was drawn at random and kept in the cache."""
    monkeypatch.delitem(TENSORS, "ffn_up")
    write_gguf(tmp_path / "less.gguf", original)
    with pytest.raises(BackboneError, match="cannot read .* as a GGUF model: it lacks .*up_proj"):
        loaded(tmp_path / "less.gguf", cache)
    assert folders(cache) == []


def test_weights_with_another_hash_than_promised_are_refused(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INSTALLED_MODELS, "fake", InstalledModel((), "tiny.gguf", "ab" * 32, ""))
    monkeypatch.setattr("promptembedder.backbone.sources._installed_parts", lambda *_: (file,))
    with pytest.raises(BackboneError, match=f"'fake' have sha256 {sha256_of([file])[:12]}…, expected abababababab…"):
        convert_gguf(find_source("fake"), cache)
    assert folders(cache) == []


def test_a_gguf_in_parts_is_put_together(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, original: PreTrainedModel
) -> None:
    content, parts = file.read_bytes(), tuple(file.with_suffix(f".part{part}") for part in (1, 2, 3))
    for part, path in enumerate(parts):
        path.write_bytes(content[part * 60_000 : (part + 1) * 60_000])
    assert sum(path.stat().st_size for path in parts) == len(content)
    monkeypatch.setitem(INSTALLED_MODELS, "fake", InstalledModel((), "tiny.gguf", sha256_of([file]), ""))
    monkeypatch.setattr("promptembedder.backbone.sources._installed_parts", lambda *_: parts)
    backbone = load_backbone(BackboneConfig(source="fake", dtype="float32"), head=True, cache_folder=cache)
    assert torch.equal(logits(backbone.model), logits(original))


@pytest.mark.integration
def test_two_processes_that_convert_at_once_both_get_the_model(
    file: Path, cache: Path, original: PreTrainedModel
) -> None:
    program = (
        "import sys; from pathlib import Path; from promptembedder.backbone import convert_gguf, find_source\n"
        "print(convert_gguf(find_source(sys.argv[1]), Path(sys.argv[2]))[0])"
    )
    command = [sys.executable, "-c", program, str(file), str(cache)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=120)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(answers) == 1
    model = AutoModelForCausalLM.from_pretrained(answers.pop())
    assert torch.equal(logits(model), logits(original))
    assert len(folders(cache)) == 1
