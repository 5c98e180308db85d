"""Tiny random models for every test: float32, no network, no GPU."""

import gc
import json
import logging
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the hub's library is imported
os.environ |= {"HAYSTACK_TELEMETRY_ENABLED": "false", "ANONYMIZED_TELEMETRY": "false"}  # likewise: Haystack's, Chroma's

os.environ["OMP_NUM_THREADS"] = "1"  # here and in child processes: with other numbers of threads sums differ in a bit

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

gc.disable()  # while modules are imported, as the program does; on again when all tests are collected

if TYPE_CHECKING:  # importing them takes seconds, and half of the tests need no model
    from promptembedder import ModelConfig, PromptEmbedder
    from promptembedder.backbone import Backbone

WORDS = ("red", "green", "blue", "cold", "warm", "fast", "slow", "old")
THINGS = ("house", "river", "car", "stone", "song", "road")
FAMILIES = ("tiny-llama", "tiny-qwen3", "tiny-gemma3", "tiny-gpt2", "tiny-phi3")
FAST_FAMILIES = ("tiny-llama", "tiny-gemma3")  # of `make test-fast`
USUAL_FAMILIES = (*FAST_FAMILIES, "tiny-gpt2")  # of `make test`: rotary, sliding and learned positions

for noisy in ("torchao", "torch.utils._pytree"):  # on import it warns of kernels for GPUs that are not there
    logging.getLogger(noisy).setLevel(logging.ERROR)

# no deadline: a busy machine is slow at times
hypothesis.settings.register_profile("ci", deadline=None, max_examples=15)
hypothesis.settings.register_profile("all", deadline=None, max_examples=200)
hypothesis.settings.load_profile("ci")

# minutes each: begun first, so that no process is left alone with one at the end
LONG = {
    "test_quickstart.py",
    "test_distributed.py",
    "test_process.py",
    "test_command_transfer.py",
    "test_reliability.py",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests of minutes, all architectures and many examples")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--all"):
        hypothesis.settings.load_profile("all")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out a directory of integration tests if they are deselected: importing the frameworks takes long."""
    if "not integration" in config.getoption("-m") and collection_path.name == "integrations":
        return True
    return None


def _is_further_architecture(item: pytest.Item) -> bool:
    """Return True for the repetitions of a test on further architectures; Llama and Gemma 3 differ most."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return any(value in FAMILIES and value not in FAST_FAMILIES for value in params.values() if isinstance(value, str))


def _is_repetition(item: pytest.Item) -> bool:
    """Return True on further architectures, except for tests of the backbone and those marked `every_family`."""
    family = getattr(getattr(item, "callspec", None), "params", {}).get("family")
    if family is None or family in USUAL_FAMILIES:
        return False
    return item.path.parent.name != "backbone" and item.get_closest_marker("every_family") is None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "integrations":
            item.add_marker(pytest.mark.integration)
        if _is_further_architecture(item):
            item.add_marker(pytest.mark.slow)
        if _is_repetition(item):
            item.add_marker(pytest.mark.minutes)
    if not config.getoption("--all"):
        for item in items:
            if item.get_closest_marker("minutes"):
                item.add_marker(pytest.mark.skip(reason="takes minutes of two cores: make test-all runs it"))
    items.sort(key=lambda item: item.path.name not in LONG)  # stable: the rest stays as it was


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the collector pass over what was imported: each training ends with a full collection, half a second of it."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread for tiny tensors: they gain nothing from more, and on a busy machine threads wait for each other."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    return request.param


@pytest.fixture(scope="session")
def lively_backbones() -> Iterator[None]:
    """Random weights five times as large as usual.

    With the usual ones attention and next-token distributions are flat: a wrong position, mask or order hardly shows.
    """
    from promptembedder.backbone import RANDOM_MODELS

    def lively(build: Callable[[], Any]) -> Callable[[], Any]:
        def built() -> Any:
            config = build()
            config.initializer_range = 0.1
            return config

        return built

    usual = dict(RANDOM_MODELS)
    RANDOM_MODELS.update({name: lively(usual[name]) for name in FAMILIES})
    yield
    RANDOM_MODELS.update(usual)


@pytest.fixture
def new_backbone(lively_backbones: None) -> "Callable[..., Backbone]":
    """Makes a tiny backbone in float32: `new_backbone("tiny-gpt2", head=True, layers=2)`."""
    from promptembedder.backbone import BackboneConfig, load_backbone

    def made(name: str = "tiny-llama", *, head: bool = False, **changes: Any) -> "Backbone":
        return load_backbone(BackboneConfig(source=f"random:{name}", dtype="float32", **changes), head=head)

    return made


@pytest.fixture
def backbone_folder(tmp_path: Path, lively_backbones: None) -> Path:
    """A tiny backbone as files."""
    import torch

    from promptembedder.backbone.random_models import random_model, random_tokenizer

    folder = tmp_path / "backbone"
    random_model("tiny-qwen3", layers=None, dtype=torch.float32).save_pretrained(folder)
    random_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def new_config(lively_backbones: None) -> "Callable[..., ModelConfig]":
    """Makes a tiny configuration in float32: `new_config("tiny-gpt2", tuning="full", pooling="last")`.

    Soft tokens enter every layer, as they do by default; a prefix knows none but the first.
    """
    from promptembedder import BackboneConfig, ModelConfig, PrompterConfig

    def made(
        reader: str = "tiny-llama",
        prompter: str = "tiny-llama",
        *,
        tuning: str = "lora",
        text_start: str = "\n",
        with_text: bool = False,
        **changes: Any,
    ) -> "ModelConfig":
        backbone = BackboneConfig(source=f"random:{prompter}", dtype="float32", layers=2, text_start=text_start)
        if changes.get("placement") == "prefix":
            changes = {"deep_prompt_interval": 0, "text_pooling_weight": 0.0, **changes}
        prompter_config = PrompterConfig(backbone=backbone, tuning=tuning, lora_rank=4, lora_alpha=8)
        if with_text:  # soft tokens depend on the text, too
            prompter_config = replace(prompter_config, template="{text}\n\n" + prompter_config.template)
        return ModelConfig(
            prompter=prompter_config,
            reader=BackboneConfig(source=f"random:{reader}", dtype="float32", text_start=text_start),
            **changes,
        )

    return made


@pytest.fixture
def new_model(new_config: "Callable[..., ModelConfig]") -> "Callable[..., PromptEmbedder]":
    """Makes a tiny model from what `new_config` takes; its trained weights are moved away from their start.

    At their start adapters and the alignment's difference are zero, and much could be forgotten without a trace.
    """
    import torch

    from promptembedder import PromptEmbedder

    def made(*names: str, **changes: Any) -> "PromptEmbedder":
        model = PromptEmbedder.create(config=new_config(*names, **changes), device="cpu")
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            fitted = (
                []
                if model.encoder.text_pooling is None
                else [model.encoder.text_pooling.centre, model.encoder.text_pooling.shared]
            )
            for weight in (*model.encoder.trained_weights(), *fitted):
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
        return model.eval()

    return made


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


@pytest.fixture
def benchmark_files(tmp_path: Path) -> Path:
    """A folder with a mixture.json of two tasks to train on and a tasks.json of one to score on."""
    rows = [{"anchor": f"a {word} {thing}", "positive": f"the {thing} is {word}"} for word in WORDS for thing in THINGS]
    shared = {"document_instruction": None, "in_batch_negatives": True}
    mixture = [
        {
            "name": name,
            "file": _write_rows(tmp_path / f"{name}.jsonl", part),
            "instruction": f"Find what {name} says",
            "instruction_paraphrases": [f"Which one is meant by {name}?", f"Search {name}"],
            **shared,
        }
        for name, part in (("one", rows[:24]), ("two", rows[24:]))
    ]
    (tmp_path / "mixture.json").write_text(json.dumps(mixture), encoding="utf-8")
    pairs = [
        {"sentence1": f"a {word} car", "sentence2": f"a {other} car", "score": float(word == other) + place / 99}
        for place, (word, other) in enumerate(zip(WORDS, (*WORDS[:4], *WORDS[:4]), strict=True))
    ]
    tasks = [
        {
            "name": "Alike",
            "type": "sts",
            "files": {"pairs": _write_rows(tmp_path / "alike.jsonl", pairs)},
            "instruction": "Retrieve what means the same",
            "metric": "cosine_spearman",
        }
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    return tmp_path


@pytest.fixture
def reads() -> Callable[[str], None]:
    """Parses a line as the program would, down to its last option, and runs nothing."""
    import shlex

    import typer.main

    from promptembedder.cli.app import app

    def parsed(line: str) -> None:
        name, *words = shlex.split(line, comments=True)
        assert name == "promptembedder"
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands") and words and words[0] in command.commands:
            name, command = words[0], command.commands[words.pop(0)]
        command.make_context(name, words)

    return parsed
