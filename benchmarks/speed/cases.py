"""Cases of the speed benchmark: texts of given lengths, and methods to encode them."""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from benchmarks.efficiency.methods import INSTRUCTION
from benchmarks.efficiency.step import TrainStep
from promptembedder.backbone import (
    Backbone,
    BackboneConfig,
    TextCacheConfig,
    TextCacheStore,
    left_pad_ids,
    length_bucketed_batches,
    quiet_transformers,
    text_positions,
    unpad,
)
from promptembedder.method import ModelConfig, PrompterConfig, SoftTokenEncoder
from promptembedder.model import PromptEmbedder

__all__ = [
    "BARE",
    "EXITS",
    "OURS",
    "SENTENCE_TRANSFORMERS",
    "Case",
    "bare_forward",
    "build_embedder",
    "calls_of",
    "last_token_model",
    "texts_of",
]

OURS, BARE, SENTENCE_TRANSFORMERS = "promptembedder", "bare forward", "sentence-transformers"
ONE_BY_ONE, READ, HELD = "one by one", "texts read", "texts held"
EXITS = {"all layers": 1.0, "exit at 0.7": 0.7, "exit at 0.5": 0.5}

Call = Callable[[], object]

_WORDS = """\
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power
hour game line end member law car city community name president team minute idea body information back parent face
""".split()


@dataclass(frozen=True, kw_only=True)
class Case:
    """Timed case.

    Attributes:
        kind: `length`, `mixed`, `texts`, `bare`, `instructions`, `soft_tokens`, `early_exit_fraction` or `epoch`.
            `bare` is `length` without sentence-transformers, whose model is a copy of the reader on the disk.
        length: Text length in tokens. For mixed lengths, the length of the longest text (the shortest has 16).
    """

    kind: str
    length: int
    texts: int
    instructions: int = 1
    soft_tokens: int = ModelConfig.num_soft_tokens


def build_embedder(case: Case, *, reader: str, prompter: str, device: str, dtype: str) -> PromptEmbedder:
    """Build an untrained model for the case. Its speed does not depend on its weights."""
    config = ModelConfig(
        prompter=PrompterConfig(backbone=BackboneConfig(source=prompter, dtype="float32")),
        reader=BackboneConfig(source=reader, dtype=dtype),
        num_soft_tokens=case.soft_tokens,
        max_seq_length=case.length,
    )
    return PromptEmbedder.create(config=config, device=device).eval()


def texts_of(case: Case, reader: Backbone, *, seed: int = 0) -> list[str]:
    """Return texts of common nouns, each truncated to its number of tokens, including the reader's prefix tokens."""
    drawn = random.Random(seed)
    lengths = [case.length] * case.texts
    if case.kind == "mixed":
        lengths = [round(16 + (case.length - 16) * i / max(case.texts - 1, 1)) for i in range(case.texts)]
        drawn.shuffle(lengths)
    head = len(reader.tokenizer.tokenize([""], max_length=case.length).ids[0])
    return [_text(reader, max(length - head, 1), drawn) for length in lengths]


def _text(reader: Backbone, tokens: int, drawn: random.Random) -> str:
    text = " ".join(drawn.choice(_WORDS) for _ in range(tokens))  # a word has at least one token
    ids = reader.tokenizer.hf(text, add_special_tokens=False, verbose=False)["input_ids"][:tokens]
    decoded: str = reader.tokenizer.hf.decode(ids)
    return decoded


@contextmanager
def calls_of(case: Case, model: PromptEmbedder) -> Iterator[dict[str, Call]]:
    """Yield the methods of the case by name, ready to be timed."""
    texts = texts_of(case, model.encoder.reader)
    instructions = [f"{INSTRUCTION}, way {number}" for number in range(case.instructions)]
    many: Call = lambda: model.encode_instructions(texts, instructions)  # noqa: E731
    if case.kind == "epoch":
        yield _training_steps(case, model)
    elif case.kind == "instructions":
        alone: Call = lambda: [model.encode_instructions(texts, [each]) for each in instructions]  # noqa: E731
        yield {OURS: many, **({ONE_BY_ONE: alone} if case.instructions == 2 else {})}
    elif case.kind == "early_exit_fraction":
        yield {name: _encoding_at(depth, model, texts) for name, depth in EXITS.items()}
    elif case.kind == "soft_tokens":
        yield {OURS: lambda: model.encode(texts, prompt=INSTRUCTION)}
    elif case.kind == "bare":
        yield {OURS: lambda: model.encode(texts, prompt=INSTRUCTION), BARE: bare_forward(model, texts)}
    else:
        with last_token_model(model.encoder.reader, case) as other:
            yield {
                OURS: lambda: model.encode(texts, prompt=INSTRUCTION),
                BARE: bare_forward(model, texts),
                SENTENCE_TRANSFORMERS: lambda: other.encode(texts),
            }


def _encoding_at(depth: float, model: PromptEmbedder, texts: Sequence[str]) -> Call:
    def encode() -> None:
        model.early_exit_fraction = depth
        try:
            model.encode(list(texts), prompt=INSTRUCTION)
        finally:
            model.early_exit_fraction = 1.0

    return encode


def bare_forward(model: PromptEmbedder, texts: Sequence[str]) -> Call:
    """Return a call that runs only the frozen reader over the texts, in batches of similar length."""
    encoder = model.encoder
    rows = unpad(encoder.token_features(texts))
    budget = max(encoder.packed_tokens() or encoder.reading.max_batch_tokens, *map(len, rows))
    groups = length_bucketed_batches([len(row) for row in rows], max_tokens=budget)
    batches = [left_pad_ids([rows[place] for place in group], device=encoder.device) for group in groups]

    def forward() -> None:
        with torch.inference_mode():
            for ids, mask in batches:
                encoder.reader.decoder(
                    input_ids=ids, attention_mask=mask, position_ids=text_positions(mask), use_cache=False
                )

    return forward


@contextmanager
def last_token_model(reader: Backbone, case: Case) -> Iterator[SentenceTransformer]:
    """Yield the same LLM as a sentence-transformers model."""
    with tempfile.TemporaryDirectory() as folder:
        with quiet_transformers():
            reader.model.save_pretrained(folder)
            reader.tokenizer.hf.save_pretrained(folder)
            # otherwise sentence-transformers would format each text as a chat with a system message
            (Path(folder) / "chat_template.jinja").unlink(missing_ok=True)
            kwargs = {"dtype": reader.input_embeddings.dtype}
            transformer = Transformer(folder, model_kwargs=kwargs, max_seq_length=case.length)
        if transformer.tokenizer.pad_token is None:
            transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
        pooling = Pooling(reader.dim, pooling_mode="lasttoken")
        yield SentenceTransformer(modules=[transformer, pooling], device=str(reader.input_embeddings.device))


def _training_steps(case: Case, model: PromptEmbedder) -> dict[str, Call]:
    """Return a training step without and with cached hidden states of its texts."""
    model.max_seq_length = 2 * case.length
    trainee = TrainStep(model)
    columns = trainee.columns(case.length - 1, case.texts // 2)
    encoder = model.encoder
    store = TextCacheStore(TextCacheConfig(memory_gib=1024.0), encoder.reader.identity)

    def step(states: TextCacheStore | None) -> None:
        encoder.text_cache = states
        trainee.step(columns)

    assert isinstance(encoder, SoftTokenEncoder)
    return {READ: lambda: step(None), HELD: lambda: step(store)}
