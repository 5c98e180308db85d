"""Views of a model that is loaded once."""

import asyncio
import copy
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from promptembedder import PromptEmbedder
from promptembedder.errors import ConfigError, DataError, ModelFormatError
from promptembedder.integrations import EmbedderView, ViewConfig

from .conftest import DOCUMENTS, QUERIES, TEXTS


def view_of(model: str, **settings: object) -> EmbedderView:
    return EmbedderView(ViewConfig(model=model, **settings))  # type: ignore[arg-type]


def test_queries_and_documents_are_read_under_their_instructions(model_folder: str, plain: PromptEmbedder) -> None:
    view = view_of(model_folder, instruction=QUERIES, document_instruction=DOCUMENTS)
    np.testing.assert_allclose(view.embed_queries(TEXTS), plain.encode(TEXTS, prompt=QUERIES), atol=1e-6)
    np.testing.assert_allclose(view.embed_documents(TEXTS), plain.encode(TEXTS, prompt=DOCUMENTS), atol=1e-6)
    assert np.abs(view.embed_queries(TEXTS) - view.embed_documents(TEXTS)).max() > 1e-3


def test_without_instructions_the_models_own_are_used(
    model_folder: str, plain: PromptEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plain.prompts, "query", "Its own for queries")
    plain.save(str(tmp_path / "prompted"))
    view = view_of(str(tmp_path / "prompted"))
    np.testing.assert_allclose(view.embed_queries(TEXTS), plain.encode_query(TEXTS), atol=1e-6)
    default = plain.encoder.config.default_instruction
    np.testing.assert_allclose(view.embed_documents(TEXTS), plain.encode(TEXTS, prompt=default), atol=1e-6)


def test_the_instruction_of_a_call_wins(model_folder: str, plain: PromptEmbedder) -> None:
    view = view_of(model_folder, instruction=QUERIES)
    for embed in (view.embed_queries, view.embed_documents):
        np.testing.assert_allclose(
            embed(TEXTS, instruction="Another"), plain.encode(TEXTS, prompt="Another"), atol=1e-6
        )


def test_each_view_keeps_its_own_length(model_folder: str) -> None:
    short, whole = view_of(model_folder, max_tokens=2), view_of(model_folder)
    long_text = " ".join(TEXTS)
    before = whole.embed_documents([long_text])
    assert np.abs(short.embed_documents([long_text]) - before).max() > 1e-3
    np.testing.assert_array_equal(whole.embed_documents([long_text]), before)


def test_views_of_one_model_share_it_however_its_folder_is_written(
    model_folder: str, nothing_loaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(model_folder).parent)
    views = [view_of(model_folder, instruction=QUERIES), view_of("model"), view_of("../" + Path.cwd().name + "/model")]
    assert len({id(view._model()) for view in views}) == 1


def test_a_view_is_small_as_json_and_as_a_pickle_and_comes_back(model_folder: str) -> None:
    view = view_of(model_folder, instruction=QUERIES, max_tokens=64)
    vectors = view.embed_queries(TEXTS)
    assert len(pickle.dumps(view)) < 1000
    written = json.dumps(view.config.to_dict())
    assert len(written) < 1000
    again = EmbedderView(ViewConfig.from_dict(json.loads(written)))
    assert again.config == view.config
    for copied in (again, pickle.loads(pickle.dumps(view)), copy.deepcopy(view)):
        np.testing.assert_array_equal(copied.embed_queries(TEXTS), vectors)


def test_threads_get_the_vectors_that_one_thread_gets(model_folder: str, nothing_loaded: None) -> None:
    """The tokenizer refuses a second thread, and lengths and soft tokens are the model's own state."""
    views = [view_of(model_folder, instruction=f"Instruction {i % 4}", max_tokens=2 + i % 3) for i in range(12)]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda view: view.embed_queries(TEXTS * 3), views))
    assert len({id(view._model()) for view in views}) == 1
    for view, vectors in zip(views, together, strict=True):
        np.testing.assert_array_equal(view.embed_queries(TEXTS * 3), vectors)


async def test_the_event_loop_goes_on_while_a_view_computes(model_folder: str) -> None:
    view = view_of(model_folder, instruction=QUERIES)
    view.warm_up()
    longest, before = 0.0, time.perf_counter()
    computing = asyncio.gather(*(view.aembed_documents([f"{text} {i}" * 40 for text in TEXTS]) for i in range(8)))
    started = before
    while not computing.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
    assert longest < 0.5 * (before - started)
    np.testing.assert_array_equal((await computing)[3], view.embed_documents([f"{text} 3" * 40 for text in TEXTS]))


def test_models_that_nobody_uses_are_given_up_but_for_the_last_two(
    model_folder: str, tmp_path: Path, nothing_loaded: None
) -> None:
    import shutil

    from promptembedder.integrations.embedder_view import _models

    folders = [str(shutil.copytree(model_folder, tmp_path / str(i))) for i in range(3)]
    held = view_of(folders[0])
    held.warm_up()
    for folder in folders[1:]:
        view_of(folder).warm_up()
    view_of(model_folder).warm_up()
    names = sorted(Path(str(key[0])).name for key in _models)
    assert names == ["0", "2", "model"]  # held; the last two used


def test_a_folder_that_is_saved_anew_is_another_model(
    model_folder: str, plain: PromptEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "model")
    plain.save(folder)
    first = view_of(folder)
    before, name = first.embed_queries(TEXTS), first.cache_name(as_queries=True)
    monkeypatch.setitem(plain.prompts, "query", "Another")
    plain.compile_instructions(["Another"])
    plain.save(folder)
    second = view_of(folder)
    assert np.abs(second.embed_queries(TEXTS) - before).max() > 1e-3
    assert second.cache_name(as_queries=True) != name


def test_no_text_gives_no_vector(model_folder: str) -> None:
    view = view_of(model_folder)
    assert view.embed_documents([]).shape == (0, view.dim)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", " \n"], r"document 1 has no text, only ' \\n'. Remove it, or add text."),
        ([""], "document 0 has no text, only ''"),
    ],
)
def test_a_document_without_text_is_refused(model_folder: str, texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        view_of(model_folder).embed_documents(texts)


def test_an_empty_query_has_a_vector(model_folder: str) -> None:
    assert np.linalg.norm(view_of(model_folder).embed_queries([""])) == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instruction": " "}, "instruction is blank. Describe in words what to search for, or omit it"),
        ({"model": ""}, "model is blank. Give the folder or hub id"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0. Try 512."),
        ({"instrucion": "a"}, "unknown setting 'instrucion' of a view. Use: device, document_instruction, instruction"),
    ],
)
def test_a_setting_that_cannot_be_used_is_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViewConfig.from_dict({"model": "a", **settings})


def test_a_model_that_is_not_there_is_told_at_the_first_text(tmp_path: Path) -> None:
    view = view_of(str(tmp_path / "nothing"))
    with pytest.raises(ModelFormatError, match="nothing is not a saved model"):
        view.embed_queries(["a"])
