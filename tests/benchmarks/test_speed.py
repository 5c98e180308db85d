"""The speed benchmark: what it times is what it says, and it goes on where it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from benchmarks.speed.benchmark import SpeedConfig, run_speed, slowest_profile
from benchmarks.speed.cases import (
    BARE,
    EXITS,
    HELD,
    ONE_BY_ONE,
    OURS,
    READ,
    SENTENCE_TRANSFORMERS,
    Case,
    build_embedder,
    calls_of,
    last_token_model,
    texts_of,
)
from benchmarks.speed.machine_rates import copy_rate, forward_flops, matmul_rate
from benchmarks.speed.report import speed_markdown, speed_ratio, write_speed
from promptembedder.backbone import Backbone
from promptembedder.errors import ConfigError

pytestmark = pytest.mark.slow

TINY = "random:tiny-llama"


def embedder(case: Case, reader: str = TINY) -> Any:
    return build_embedder(case, reader=reader, prompter=TINY, device="cpu", dtype="float32")


def settings(**changes: Any) -> SpeedConfig:
    sizes = {"lengths": (8, 16), "length": 16, "texts": (1, 3), "instructions": (1, 2), "soft_tokens": (1, 2)}
    return SpeedConfig(
        **{"reader": TINY, "dtype": "float32", "tokens": 32, "batch": 2, "repeats": 2, **sizes, **changes}
    )


def test_flops_are_what_torch_counts(family: str, new_backbone: Callable[..., Backbone]) -> None:
    """Torch's counter takes attention as if every token looked at all; at one token there is no difference."""
    decoder: PreTrainedModel = new_backbone(family).decoder
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        decoder(input_ids=torch.ones(3, 1, dtype=torch.long), use_cache=False)
    assert forward_flops(decoder, texts=3, length=1) == pytest.approx(counter.get_total_flops(), rel=0.02)
    one, two = (forward_flops(decoder, texts=1, length=length) for length in (10, 20))
    assert forward_flops(decoder, texts=5, length=10) == 5 * one
    assert two > 2 * one


def test_rates_are_positive(new_backbone: Callable[..., Backbone]) -> None:
    assert matmul_rate(new_backbone("tiny-gpt2").decoder, rows=8, repeats=2) > 0
    assert copy_rate(torch.device("cpu"), repeats=1) > 0


@pytest.mark.parametrize("kind", ["length", "mixed"])
def test_texts_have_the_tokens_that_the_case_says(kind: str) -> None:
    case = Case(kind=kind, length=40, texts=5)
    model = embedder(case)
    texts = texts_of(case, model.encoder.reader)
    lengths = model.encoder.token_features(texts)["attention_mask"].sum(dim=1)
    wanted = [40] * 5 if kind == "length" else [16, 22, 28, 34, 40]
    assert sorted(lengths.tolist()) == pytest.approx(wanted, abs=1)
    assert texts == texts_of(case, model.encoder.reader)


def test_the_ways_of_a_case_do_the_same_work() -> None:
    case = Case(kind="mixed", length=30, texts=7)
    model = embedder(case)
    read: list[int] = []
    model.encoder.reader.decoder.register_forward_pre_hook(
        lambda _, __, named: read.append(int(named["attention_mask"].sum())), with_kwargs=True
    )
    with calls_of(case, model) as calls:
        calls[OURS]()  # the first time the reader is also tried on packed texts
        read.clear()
        ours = calls[OURS]()
        with_soft_tokens = sum(read)
        read.clear()
        calls[BARE]()
        assert with_soft_tokens == sum(read) + 7 * case.soft_tokens
        others = calls[SENTENCE_TRANSFORMERS]()
    assert np.isfinite(ours).all()
    assert others.shape == ours.shape


def test_the_other_library_is_given_texts_and_not_chats() -> None:
    """An LLM with a chat template gets a system message before each text from it, if it finds the template."""
    case = Case(kind="mixed", length=30, texts=7)
    reader = embedder(case).encoder.reader
    reader.tokenizer.hf.chat_template = "{% for message in messages %}system: be kind {{ message.content }}{% endfor %}"
    texts = texts_of(case, reader)
    own = [len(reader.tokenizer.hf(text)["input_ids"]) for text in texts]
    with last_token_model(reader, case) as other:
        assert other.preprocess(texts)["attention_mask"].sum(dim=1).tolist() == own


def test_a_held_text_is_not_read_again() -> None:
    case = Case(kind="epoch", length=12, texts=4)
    model = embedder(case)
    with calls_of(case, model) as calls:
        counts = []
        for name in (READ, READ, HELD, HELD):
            before = model.encoder.reading.counts.texts
            calls[name]()
            counts.append(model.encoder.reading.counts.texts - before)
    assert counts == [4, 4, 4, 0]


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    slow, fast = {"all_cpu_seconds": [2.0, 3.0, 8.0]}, {"all_cpu_seconds": [1.0, 2.0, 2.0]}
    assert speed_ratio(fast, slow) == 2.0


@pytest.mark.minutes
def test_a_run_has_every_case_and_the_same_run_again_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_speed(settings(), tmp_path)
    methods = {(row["kind"], row["method"]) for row in first["rows"]}
    others = {(kind, way) for kind in ("length", "mixed", "texts") for way in (OURS, BARE, SENTENCE_TRANSFORMERS)}
    assert methods == others | {
        ("instructions", OURS),
        ("instructions", ONE_BY_ONE),
        ("soft_tokens", OURS),
        *(("early_exit_fraction", way) for way in EXITS),
        ("epoch", READ),
        ("epoch", HELD),
    }
    files = write_speed(first, slowest_profile(settings(), first["rows"]), tmp_path)
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(first))
    assert "aten::" in files[3].read_text()
    page = speed_markdown(first)
    for words in ("x bare forward", "x faster than s.-t.", "texts held", "one by one", first["command"]):
        assert words in page

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("benchmarks.speed.benchmark.build_embedder", refused)
    assert run_speed(settings(), tmp_path)["rows"] == first["rows"]
    with pytest.raises(AssertionError, match="measured again"):
        run_speed(settings(length=12), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": (4, 16)}, "lengths must be at least 8 tokens, got 4"),
        ({"texts": ()}, r"texts must be numbers from 1 on, got \[\]"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"device": "tpu"}, "unknown device 'tpu'. Use cpu or cuda"),
        ({"dtype": "int3"}, "unknown dtype 'int3'"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changes)
