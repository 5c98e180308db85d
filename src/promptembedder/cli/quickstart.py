"""`promptembedder quickstart`: train and search on the docstrings of the installed Python."""

import dataclasses
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from promptembedder.cli.console import Report, gc_paused
from promptembedder.cli.options import ConfigOption, JsonOption, check_output_folder
from promptembedder.cli.progress import training_progress
from promptembedder.storage import versions

if TYPE_CHECKING:  # slow imports that `--help` does not need
    from promptembedder.data import SearchTask
    from promptembedder.evaluation import RetrievalScore
    from promptembedder.model import PromptEmbedder
    from promptembedder.training import Recipe, TrainingData

__all__ = ["quickstart"]

_QUERY_INSTRUCTIONS = (
    "Given a description of what a function does, retrieve the Python function",
    "Find the code that does what the sentence says",
    "Retrieve the Python function that this docstring describes",
)
_DOCUMENT_INSTRUCTION = "Represent the Python function by what it does"
# An earlier exit is a fifth cheaper; chosen on the quickstart's own queries: see docs/results.md.
_LAYERS = {"smollm2-135m": 24}


def quickstart(
    output: Annotated[str, typer.Option("-o", "--output", help="Folder of the trained model.")] = "runs/quickstart",
    backbone: Annotated[str, typer.Option(help="LLM for both roles.")] = "smollm2-135m",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 60,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs per step.")] = 24,
    queries: Annotated[int, typer.Option(min=1, help="Number of test queries.")] = 150,
    documents: Annotated[int, typer.Option(min=1, help="Number of test functions to search.")] = 400,
    max_seq_length: Annotated[int, typer.Option(min=8, help="Maximum tokens per function.")] = 64,
    layers: Annotated[
        int | None,
        typer.Option(min=1, help="Number of reader layers to run. Default: 24 of the 30 of smollm2-135m, else all."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Reader dtype: auto, float32 or bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on the docstrings of the Python installed here, score before and after, save, reload and search.

    Example: promptembedder quickstart --steps 60 --output runs/quickstart
    """
    report = Report(as_json)
    check_output_folder(output)
    with gc_paused():  # seconds
        from promptembedder.backbone import BackboneConfig
        from promptembedder.method import ModelConfig, PrompterConfig
        from promptembedder.training import OptimConfig, Recipe, RunConfig

    recipe = Recipe(
        model=ModelConfig(
            prompter=PrompterConfig(backbone=BackboneConfig(source=backbone, dtype="float32")),
            reader=BackboneConfig(source=backbone, dtype=dtype, layers=layers or _LAYERS.get(backbone)),
            max_seq_length=max_seq_length,
            default_instruction=_DOCUMENT_INSTRUCTION,
        ),
        optim=OptimConfig(steps=steps, batch_size=batch_size),
        run=RunConfig(output=output, seed=seed, save_every=max(steps // 2, 1)),
    )
    result = _Quickstart(recipe, report).run(queries, documents)
    report.result(result)


class _Quickstart:
    """Steps of the quickstart, each timed and reported."""

    def __init__(self, recipe: "Recipe", report: Report) -> None:
        self.recipe, self.report = recipe, report
        self.seconds: dict[str, float] = {}

    def run(self, queries: int, documents: int) -> dict[str, Any]:
        """Run all steps and return the JSON result."""
        from promptembedder.evaluation import bm25_score, retrieval_score
        from promptembedder.model import PromptEmbedder, frozen_pooling
        from promptembedder.training import new_model, prepare_output, train_model

        # the count below replaces repeated warnings of truncation
        logging.getLogger("promptembedder.method.text_encoder").setLevel(logging.ERROR)
        prepare_output(self.recipe, overwrite=True)
        task, pairs = self._build_data(queries, documents)
        scores = {"bm25": bm25_score(task)}
        source, length = self.recipe.model.reader.source, self.recipe.model.max_seq_length
        with self._step(f"loading {source} twice, as prompter and as frozen reader (unpacked on first use)", "load"):
            model = new_model(self.recipe, pairs)
            assert isinstance(model, PromptEmbedder)
        with self._step("scoring the frozen LLM (mean pooling)", "score_frozen_mean"):
            frozen = frozen_pooling(model.encoder.reader, max_seq_length=length)
            scores["frozen_mean"] = retrieval_score(frozen, task, query_prompt=None)
        scores["untrained"] = self._score(model, task, "untrained")
        self.report.print(
            f"  {model.encoder.truncated_texts} of the {len(task.documents)} functions exceed {length} tokens "
            "and are truncated"
        )
        trained = sum(weight.numel() for weight in model.encoder.trained_weights()) / 1e6
        parameters = f"{trained:.1f} M parameters (prompter adapters and alignment; the reader stays frozen)"
        with self._step(f"training {parameters} for {self.recipe.optim.steps} steps", "train"):
            train_model(model, pairs, self.recipe, callbacks=[training_progress()])
        scores["trained"] = self._score(model, task, "trained")
        with self._step("saving and loading again", "save_and_load"):
            model.prompts |= {"query": _QUERY_INSTRUCTIONS[0], "document": _DOCUMENT_INSTRUCTION}
            model.compile_instructions([_QUERY_INSTRUCTIONS[0], _DOCUMENT_INSTRUCTION])
            model.save(self.recipe.run.output)
            model = PromptEmbedder.from_pretrained(self.recipe.run.output, with_prompter=False)
        self.report.print(_score_table(scores, len(task.queries), len(task.documents)))
        self._search(model, task)
        self._print_next_steps()
        return {
            "model": self.recipe.run.output,
            "train_pairs": pairs.pair_count,
            "test_queries": len(task.queries),
            "test_documents": len(task.documents),
            "scores": {name: dataclasses.asdict(score) for name, score in scores.items()},
            "seconds": {**self.seconds, "total": round(sum(self.seconds.values()), 1)},
            "versions": versions(),
        }

    def _build_data(self, queries: int, documents: int) -> "tuple[SearchTask, TrainingData]":
        from promptembedder.data import build_search_task, load_docstring_corpus, sample_training_pairs
        from promptembedder.training import TrainingData, build_task_data

        seed = self.recipe.run.seed
        with self._step("building pairs (docstring sentence, function) from this Python's standard library", "data"):
            corpus = load_docstring_corpus()
            task = build_search_task(corpus, queries, documents=documents, seed=seed)
            pairs = sample_training_pairs(corpus, len(corpus.train), seed=seed)
            tasks = build_task_data(
                pairs,
                "docstrings",
                instructions=_QUERY_INSTRUCTIONS,
                document_instructions=[_DOCUMENT_INSTRUCTION],
                seed=seed,
            )
        self.report.print(
            f"  {len(pairs)} training pairs; {len(task.queries)} queries over {len(task.documents)} functions "
            "of modules not used in training"
        )
        return task, TrainingData(tasks)

    def _score(self, model: "PromptEmbedder", task: "SearchTask", name: str) -> "RetrievalScore":
        from promptembedder.evaluation import retrieval_score

        with self._step(f"scoring the {name} PromptEmbedder", f"score_{name}"):
            return retrieval_score(
                model, task, query_prompt=_QUERY_INSTRUCTIONS[0], document_prompt=_DOCUMENT_INSTRUCTION
            )

    def _search(self, model: "PromptEmbedder", task: "SearchTask") -> None:
        from promptembedder.data import TextRow
        from promptembedder.search import build_index

        title = "three of the queries; * marks the function in question"
        table = Table("query", "best functions", title=title, title_justify="left")
        with self._step("searching with the loaded model", "search"):
            rows = [TextRow(name, text) for name, text in task.documents.items()]
            index = build_index(model, rows, prompt=_DOCUMENT_INSTRUCTION, batch_size=32)
            for name, query in list(task.queries.items())[:3]:
                hits = index.search(model.encode([query], prompt=_QUERY_INSTRUCTIONS[0])[0], k=3)
                lines = [f"{hit.score:.2f} {'*' if hit.id in task.relevant[name] else ' '} {hit.id}" for hit in hits]
                table.add_row(escape(query), escape("\n".join(lines)))
        self.report.print(table)

    def _print_next_steps(self) -> None:
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


def _score_table(scores: "dict[str, RetrievalScore]", queries: int, documents: int) -> Table:
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
    for name in ("nDCG@10", "recall@10"):
        table.add_column(name, justify="right")
    for name, title in titles.items():
        table.add_row(title, f"{scores[name].ndcg_at_10:.3f}", f"{scores[name].recall_at_10:.3f}")
    return table
