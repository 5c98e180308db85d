"""LanceDB: tables that find their embedder again."""

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector

from promptembedder import PromptEmbedder
from promptembedder.errors import ConfigError, DataError
from promptembedder.integrations import PromptEmbedderFunction

from .conftest import DOCUMENTS, QUERIES, TEXTS


def new_table(folder: Path, function: PromptEmbedderFunction) -> Any:
    class Row(LanceModel):
        text: str | None = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

    return lancedb.connect(folder).create_table("texts", schema=Row)


def test_a_table_embeds_its_rows_and_queries(model_folder: str, plain: PromptEmbedder, tmp_path: Path) -> None:
    assert get_registry().get("promptembedder") is PromptEmbedderFunction
    function = PromptEmbedderFunction.create(model=model_folder, instruction=QUERIES, document_instruction=DOCUMENTS)
    table = new_table(tmp_path, function)
    table.add([{"text": text} for text in TEXTS])
    documents = plain.encode(TEXTS, prompt=DOCUMENTS)
    np.testing.assert_allclose(np.stack(table.to_arrow()["vector"].to_pylist()), documents, atol=1e-6)
    scores = documents @ plain.encode(["which house"], prompt=QUERIES)[0]
    found = table.search("which house").distance_type("cosine").limit(3).to_list()
    assert [row["text"] for row in found] == [TEXTS[i] for i in np.argsort(-scores)]
    np.testing.assert_allclose([1 - row["_distance"] for row in found], np.sort(scores)[::-1], atol=1e-5)


def test_many_searches_load_the_model_once(model_folder: str, tmp_path: Path, nothing_loaded: None) -> None:
    """LanceDB makes a new function for each search."""
    from promptembedder.integrations.embedder_view import _models

    table = new_table(tmp_path, PromptEmbedderFunction.create(model=model_folder))
    table.add([{"text": TEXTS[0]}])
    seen = set()
    for _ in range(3):
        table.search("a house").to_list()
        seen |= {id(model) for model in _models.values()}
    assert len(seen) == 1


def test_a_row_without_text_is_refused_at_once(model_folder: str, tmp_path: Path) -> None:
    """LanceDB would try again for minutes, and then say no more than that it did; it makes a RuntimeError of ours."""
    table = new_table(tmp_path, PromptEmbedderFunction.create(model=model_folder))
    with pytest.raises(RuntimeError, match="DataError: document 1 has no text, only ''. Remove it, or add text."):
        table.add([{"text": "a"}, {"text": ""}])
    with pytest.raises(DataError, match="document 0 has no text"):
        table.embedding_functions["vector"].function.compute_source_embeddings_with_retry([" "])
    assert table.count_rows() == 0


def test_wrong_settings_are_one_line() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'name' of a view"):
        PromptEmbedderFunction.create(name="a")
    with pytest.raises(ConfigError, match="a view needs a model"):
        PromptEmbedderFunction.create()
