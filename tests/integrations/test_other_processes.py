"""What only a process of its own shows: stores that open again, hints that nobody checks, extras that are missing."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import chromadb
import lancedb
import pytest
from haystack import Pipeline
from lancedb.pydantic import LanceModel, Vector
from packaging.requirements import Requirement

import promptembedder
from promptembedder.integrations import (
    PromptEmbedderEmbeddingFunction,
    PromptEmbedderFunction,
    PromptEmbedderTextEmbedder,
)

from .conftest import QUERIES, TEXTS

SOURCE = Path(promptembedder.__file__).parent


def answer_of(program: str, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    """What the program prints, line by line."""
    ran = subprocess.run(
        [sys.executable, *options, "-c", program, *arguments], capture_output=True, text=True, timeout=200, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


WRONG_TYPES = """
import sys
from promptembedder import integrations as own
def told(act):
    try:
        act()
    except (TypeError, ValueError) as error:
        print(type(error).__name__, error)
view = own.EmbedderView(own.ViewConfig(model="a"))
told(lambda: own.ViewConfig(model="a", max_tokens="7"))
told(lambda: view.embed_queries(["a"], instruction=7))
told(lambda: view.embed_documents(["a", None]))
told(lambda: own.PromptEmbedderEmbeddings(3))
told(lambda: own.PromptEmbedderEmbeddings("a", instruction=["b"]))
told(lambda: own.PromptEmbedderEmbeddings("a").embed_documents("texts"))
told(lambda: own.PromptEmbedderEmbedding("a", instruction=7))
told(lambda: own.PromptEmbedderFunction.create(model="a", document_instruction=7))
told(lambda: own.PromptEmbedderEmbeddingFunction("a", instruction=7))
print({"torch", "transformers"} & set(sys.modules))
told(lambda: own.PromptEmbedderTextEmbedder("a").run(["a text"]))
told(lambda: own.PromptEmbedderTextEmbedder("a").run("a text", instruction=3))
told(lambda: own.PromptEmbedderDocumentEmbedder("a").run("a text"))
told(lambda: own.PromptEmbedderDocumentEmbedder("a").run(["a text"]))
"""


REOPENED = """
import sys
import chromadb, lancedb
import promptembedder.integrations.chroma, promptembedder.integrations.lancedb
folder = sys.argv[1]
client = chromadb.PersistentClient(folder + "/chroma", settings=chromadb.Settings(anonymized_telemetry=False))
collection = client.get_collection("texts")
table = lancedb.connect(folder).open_table("texts")
print("--")
print(collection.query(query_texts=["a new stone"], n_results=3)["ids"])
print(collection.configuration["embedding_function"].get_config()["instruction"])
table.add([{"text": "a new stone"}])
print([row["text"] for row in table.search("a new stone").limit(4).to_list()])
print(table.embedding_functions["vector"].function.view.config.instruction)
import promptembedder.integrations.haystack
from haystack import Pipeline
print(Pipeline.loads(open(folder + "/pipeline.yaml").read()).run({"text": {"text": "a"}})["text"]["embedding"][:3])
"""


@pytest.fixture(scope="module")
def told(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str], list[str]]:
    """What one process says to wrong types, and of stores that were made here; the stores' own answers.

    One for both, since its imports take seconds.
    """
    tmp_path = tmp_path_factory.mktemp("stores")
    client = chromadb.PersistentClient(tmp_path / "chroma", settings=chromadb.Settings(anonymized_telemetry=False))
    of_chroma = PromptEmbedderEmbeddingFunction(model_folder, instruction=QUERIES)
    collection = client.create_collection("texts", embedding_function=of_chroma)
    collection.add(ids=["0", "1", "2"], documents=TEXTS)
    of_lance: Any = PromptEmbedderFunction.create(model=model_folder, instruction=QUERIES)

    class Row(LanceModel):
        text: str = of_lance.SourceField()
        vector: Vector(of_lance.ndims()) = of_lance.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(tmp_path).create_table("texts", schema=Row)
    table.add([{"text": text} for text in TEXTS])
    pipeline = Pipeline()
    pipeline.add_component("text", PromptEmbedderTextEmbedder(model_folder, instruction=QUERIES))
    (tmp_path / "pipeline.yaml").write_text(pipeline.dumps())
    lines = answer_of(WRONG_TYPES + REOPENED, str(tmp_path))
    table.checkout_latest()
    end = lines.index("--")
    return (
        lines[:end],
        lines[end + 1 :],
        [
            str(collection.query(query_texts=["a new stone"], n_results=3)["ids"]),
            QUERIES,
            str([row["text"] for row in table.search("a new stone").limit(4).to_list()]),
            QUERIES,
            str(pipeline.run({"text": {"text": "a"}})["text"]["embedding"][:3]),
        ],
    )


def test_stores_and_pipelines_open_in_a_process_that_was_told_nothing(
    told: tuple[list[str], list[str], list[str]],
) -> None:
    _, there, here = told
    assert there == here


def test_wrong_types_are_one_line_and_come_before_torch(told: tuple[list[str], list[str], list[str]]) -> None:
    """Here every hint is checked, and would speak first."""
    looked_for = "Describe in words what to search for, or omit it for the model's own."
    of_documents = "documents must be a list of haystack.Document. For a text, use PromptEmbedderTextEmbedder."
    assert told[0] == [
        "TypeError max_tokens must be an int, got str. Try 512.",
        f"TypeError instruction must be a str, got int. {looked_for}",
        "DataError document 1 must be a str, got NoneType. Convert it, or remove it.",
        "TypeError model must be a str, got int. Give the folder or hub id of a saved PromptEmbedder; "
        "model.save(folder) writes one.",
        f"TypeError instruction must be a str, got list. {looked_for}",
        "TypeError texts must be a list of str, got one str. Put it into a list.",
        f"TypeError instruction must be a str, got int. {looked_for}",
        "TypeError document_instruction must be a str, got int. Describe in words how documents are used, "
        "or omit it for the model's own.",
        f"TypeError instruction must be a str, got int. {looked_for}",
        "set()",
        "DataError query 0 must be a str, got list. Convert it.",
        f"TypeError instruction must be a str, got int. {looked_for}",
        f"TypeError {of_documents}",
        f"TypeError {of_documents}",
    ]


EXTRAS = {
    "langchain": ("langchain-core", "langchain"),
    "llama_index": ("llama-index-core", "llama-index"),
    "lancedb": ("lancedb", "search"),
    "chroma": ("chromadb", "chroma"),
    "haystack": ("haystack-ai", "haystack"),
}
WITHOUT_SITE = """
import sys, importlib
sys.path[:0] = sys.argv[1:]
import promptembedder.integrations
for name in ("langchain", "llama_index", "lancedb", "chroma", "haystack"):
    try:
        importlib.import_module("promptembedder.integrations." + name)
    except ImportError as error:
        print(error)
"""


def test_a_missing_extra_is_told_with_the_line_that_installs_it() -> None:
    """A Python that sees this library and nothing that was ever installed."""
    assert answer_of(WITHOUT_SITE, str(SOURCE.parent), options=("-I", "-S")) == [
        f'{distribution} is not installed. Run: pip install "promptembedder[{extra}]"'
        for distribution, extra in EXTRAS.values()
    ]


def test_an_extra_that_is_too_old_is_told_with_the_line_that_upgrades_it(tmp_path: Path) -> None:
    for distribution, _ in EXTRAS.values():
        info = tmp_path / f"{distribution.replace('-', '_')}-0.13.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.13.9\n")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = [Requirement(line) for _, extra in EXTRAS.values() for line in extras[extra]]
    needed = {one.name: str(one.specifier).removeprefix(">=") for one in requirements}
    assert answer_of(WITHOUT_SITE, str(SOURCE.parent), str(tmp_path), options=("-I", "-S")) == [
        f"{distribution} 0.13.9 is installed, promptembedder needs {needed[distribution]} or later. "
        f'Run: pip install --upgrade "promptembedder[{extra}]"'
        for distribution, extra in EXTRAS.values()
    ]
