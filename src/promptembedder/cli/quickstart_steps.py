"""Steps of `promptembedder quickstart`, each timed and reported."""

import dataclasses
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.markup import escape
from rich.table import Table

from promptembedder.backbone import BackboneConfig
from promptembedder.cli.console import Report
from promptembedder.cli.training_bar import TrainingBar
from promptembedder.data import SearchTask, TextRow, build_search_task, load_docstring_corpus, sample_training_pairs
from promptembedder.evaluation import RetrievalScore, bm25_score, retrieval_score
from promptembedder.method import ModelConfig, PrompterConfig
from promptembedder.model import PromptEmbedder, frozen_pooling
from promptembedder.search import build_index
from promptembedder.storage import versions
from promptembedder.training import (
    OptimConfig,
    Recipe,
    RunConfig,
    TrainingData,
    build_task_data,
    new_model,
    prepare_output,
    train_model,
)

__all__ = ["Quickstart", "quickstart_recipe"]

QUERY_INSTRUCTIONS = (
    "Given a description of what a function does, retrieve the Python function",
    "Find the code that does what the sentence says",
    "Retrieve the Python function that this docstring describes",
)
DOCUMENT_INSTRUCTION = "Represent the Python function by what it does"


# An earlier exit is a fifth cheaper; chosen on the quickstart's own queries: see docs/results.md.
GOOD_LAYERS = {"smollm2-135m": 24}


def quickstart_recipe(
    output: str, *, reader: BackboneConfig, optim: OptimConfig, max_seq_length: int, seed: int
) -> Recipe:
    """Build the recipe: one LLM in both roles, otherwise the defaults."""
    layers = GOOD_LAYERS.get(reader.source) if reader.layers is None else reader.layers
    return Recipe(
        model=ModelConfig(
            prompter=PrompterConfig(backbone=BackboneConfig(source=reader.source, dtype="float32")),
            reader=dataclasses.replace(reader, layers=layers),
            max_seq_length=max_seq_length,
            default_instruction=DOCUMENT_INSTRUCTION,
        ),
        optim=optim,
        run=RunConfig(output=output, seed=seed, save_every=max(optim.steps // 2, 1)),
    )


class Quickstart:
    """Steps of the quickstart, each timed."""

    def __init__(self, recipe: Recipe, report: Report) -> None:
        """Prepare the run of `recipe`, reported to `report`."""
        self.recipe = recipe
        self.report = report
        self.seconds: dict[str, float] = {}

    def run(self, queries: int, documents: int) -> dict[str, Any]:
        """Run all steps and return the JSON result."""
        # the count below replaces repeated warnings of truncation
        logging.getLogger("promptembedder.method.text_encoder").setLevel(logging.ERROR)
        prepare_output(self.recipe, overwrite=True)
        task, pairs = self._data(queries, documents)
        scores = {"bm25": bm25_score(task)}
        model = self._untrained(pairs)
        length = self.recipe.model.max_seq_length
        with self._step("scoring the frozen LLM (mean pooling)", "score_frozen_mean"):
            frozen = frozen_pooling(model.encoder.reader, max_seq_length=length)
            scores["frozen_mean"] = retrieval_score(frozen, task, query_prompt=None)
        scores["untrained"] = self._score(model, task, "untrained")
        self.report.print(
            f"  {model.encoder.truncated_texts} of the {len(task.documents)} functions exceed {length} tokens "
            "and are truncated"
        )
        with self._step(f"training {self._sizes(model)} for {self.recipe.optim.steps} steps", "train"):
            train_model(model, pairs, self.recipe, callbacks=[TrainingBar()])
        scores["trained"] = self._score(model, task, "trained")
        with self._step("saving and loading again", "save_and_load"):
            model.prompts |= {"query": QUERY_INSTRUCTIONS[0], "document": DOCUMENT_INSTRUCTION}
            model.compile_instructions([QUERY_INSTRUCTIONS[0], DOCUMENT_INSTRUCTION])
            model.save(self.recipe.run.output)
            model = PromptEmbedder.from_pretrained(self.recipe.run.output, with_prompter=False)
        self.report.print(_score_table(scores, len(task.queries), len(task.documents)))
        self._search(model, task)
        self._next_steps()
        return {
            "model": self.recipe.run.output,
            "train_pairs": pairs.pair_count,
            "test_queries": len(task.queries),
            "test_documents": len(task.documents),
            "scores": {name: dataclasses.asdict(score) for name, score in scores.items()},
            "seconds": {**self.seconds, "total": round(sum(self.seconds.values()), 1)},
            "versions": versions(),
        }

    def _data(self, queries: int, documents: int) -> tuple[SearchTask, TrainingData]:
        seed = self.recipe.run.seed
        with self._step("building pairs (docstring sentence, function) from this Python's standard library", "data"):
            corpus = load_docstring_corpus()
            task = build_search_task(corpus, queries, documents=documents, seed=seed)
            pairs = sample_training_pairs(corpus, len(corpus.train), seed=seed)
            tasks = build_task_data(
                pairs,
                "docstrings",
                instructions=QUERY_INSTRUCTIONS,
                document_instructions=[DOCUMENT_INSTRUCTION],
                seed=seed,
            )
        self.report.print(
            f"  {len(pairs)} training pairs; {len(task.queries)} queries over {len(task.documents)} functions "
            "of modules not used in training"
        )
        return task, TrainingData(tasks)

    def _untrained(self, data: TrainingData) -> PromptEmbedder:
        source = self.recipe.model.reader.source
        with self._step(f"loading {source} twice, as prompter and as frozen reader (unpacked on first use)", "load"):
            model = new_model(self.recipe, data)
            assert isinstance(model, PromptEmbedder)
            return model

    def _score(self, model: PromptEmbedder, task: SearchTask, name: str) -> RetrievalScore:
        with self._step(f"scoring the {name} PromptEmbedder", f"score_{name}"):
            return retrieval_score(
                model, task, query_prompt=QUERY_INSTRUCTIONS[0], document_prompt=DOCUMENT_INSTRUCTION
            )

    def _sizes(self, model: PromptEmbedder) -> str:
        trained = sum(weight.numel() for weight in model.encoder.trained_weights())
        return f"{trained / 1e6:.1f} M parameters (prompter adapters and alignment; the reader stays frozen)"

    def _search(self, model: PromptEmbedder, task: SearchTask) -> None:
        with self._step("searching with the loaded model", "search"):
            rows = [TextRow(name, text) for name, text in task.documents.items()]
            index = build_index(model, rows, prompt=DOCUMENT_INSTRUCTION, batch_size=32)
            table = Table(
                "query",
                "best functions",
                title="three of the queries; * marks the function in question",
                title_justify="left",
            )
            for name, query in list(task.queries.items())[:3]:
                vector = model.encode([query], prompt=QUERY_INSTRUCTIONS[0])[0]
                hits = index.search(vector, k=3)
                marks = ["*" if hit.id in task.relevant[name] else " " for hit in hits]
                lines = [f"{hit.score:.2f} {mark} {hit.id}" for hit, mark in zip(hits, marks, strict=True)]
                table.add_row(escape(query), escape("\n".join(lines)))
        self.report.print(table)

    def _next_steps(self) -> None:
        folder = escape(shlex.quote(self.recipe.run.output))
        # the bare name is not on PATH if the virtual environment is not active
        program = "promptembedder" if shutil.which("promptembedder") else escape(shlex.quote(sys.argv[0]))
        self.report.print(f"The model is in {folder}. Try next:")
        self.report.print(f"  {program} info {folder}")
        self.report.print(f'  {program} search {folder} "your question" --corpus YOUR.jsonl')
        self.report.print(f"  {program} embed {folder} YOUR.jsonl --output vectors.parquet")
        self.report.print(f"  {program} train recipes/mixture.yaml --mixture YOUR_MIXTURE.json")

    @contextmanager
    def _step(self, title: str, name: str) -> Iterator[None]:
        self.report.print(f"- {title}")
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)


def _score_table(scores: dict[str, RetrievalScore], queries: int, documents: int) -> Table:
    titles = {
        "frozen_mean": "frozen LLM, mean pooling",
        "untrained": "PromptEmbedder, untrained",
        "trained": "PromptEmbedder, trained",
        "bm25": "BM25 (lexical)",
    }
    table = Table(
        title=f"docstring -> function search, {queries} queries, {documents} functions, unseen modules",
        title_justify="left",
    )
    table.add_column("method")
    table.add_column("nDCG@10", justify="right")
    table.add_column("recall@10", justify="right")
    for name, title in titles.items():
        table.add_row(title, f"{scores[name].ndcg_at_10:.3f}", f"{scores[name].recall_at_10:.3f}")
    return table
