"""The built-in corpus: what its pairs promise, how it is split, and that it is the same each time."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from promptembedder import data
from promptembedder.data import DocstringCorpus, Pair, docstrings, load_docstring_corpus, sample_training_pairs
from promptembedder.errors import ConfigError, DataError

DIGEST_PROGRAM = """
import hashlib
from promptembedder.data import load_docstring_corpus
print(hashlib.sha256(repr(load_docstring_corpus()).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def corpus() -> DocstringCorpus:
    return load_docstring_corpus()


def name_of(pair: Pair) -> str:
    return pair.positive.partition("(")[0]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def pairs_of(source: str, *, max_document_chars: int = 1200) -> list[Pair]:
    return list(docstrings.extract_pairs(dedent(source), "pkg.mod", max_document_chars=max_document_chars))


def function(docstring: str, body: str = "return x + 1") -> str:
    return f'def f(x):\n    """{docstring}"""\n    {body}\n'


def test_the_corpus_is_large_enough_to_train_on_and_a_fifth_is_for_tests(corpus: DocstringCorpus) -> None:
    counts = corpus.counts
    assert counts == {"train": len(corpus.train), "test": len(corpus.test)}
    assert counts["train"] > 1000
    assert 0.1 < counts["test"] / (counts["train"] + counts["test"]) < 0.35


def test_no_top_level_module_is_on_both_sides(corpus: DocstringCorpus) -> None:
    tops = [{name_of(pair).split(".")[0].lstrip("_") for pair in side} for side in (corpus.train, corpus.test)]
    assert not tops[0] & tops[1]


def test_no_sentence_stands_in_its_own_document(corpus: DocstringCorpus) -> None:
    for pair in corpus.train + corpus.test:
        assert f" {' '.join(words(pair.anchor))} " not in f" {' '.join(words(pair.positive))} "


def test_sentences_names_and_bodies_are_distinct(corpus: DocstringCorpus) -> None:
    pairs = corpus.train + corpus.test
    assert len({tuple(words(pair.anchor)) for pair in pairs}) == len(pairs)
    assert len({name_of(pair) for pair in pairs}) == len(pairs)
    assert len({pair.positive.partition("\n")[2] for pair in pairs}) == len(pairs)


def test_sentences_are_one_line_of_4_to_40_words_and_documents_keep_the_limit(corpus: DocstringCorpus) -> None:
    for pair in corpus.train + corpus.test:
        assert 4 <= len(pair.anchor.split()) <= 40
        assert pair.anchor.isascii()
        assert pair.anchor.isprintable()
        assert len(pair.positive) <= 1200
        assert pair.positive.partition("\n")[2].strip()
        assert pair.negative is None


@pytest.mark.integration
def test_the_corpus_is_the_same_in_a_process_with_another_hash_seed(corpus: DocstringCorpus) -> None:
    source_folder = str(Path(docstrings.__file__).parents[2])
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": source_folder}
    other = subprocess.run(
        [sys.executable, "-c", DIGEST_PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == hashlib.sha256(repr(corpus).encode()).hexdigest()


def test_the_corpus_does_not_depend_on_the_order_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(tmp_path, monkeypatch)
    before = load_docstring_corpus()
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(sorted(listed(self))))
    assert load_docstring_corpus() == before


def library(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    """A standard library of our own: `a__b` is the module b of the package a."""
    shared = {name: function(f"Return the next number after {name}.", f"return x + {name!r}") for name in "abc"}
    for name, source in (shared | modules).items():
        file = folder.joinpath(*name.split("__")).with_suffix(".py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(source, encoding="utf-8")
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: str(folder))


def names_of(corpus: DocstringCorpus) -> list[str]:
    return sorted(name_of(pair) for pair in corpus.train + corpus.test)


def test_corpus_includes_packages_and_excludes_tests_and_third_party_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped = ["test", "site-packages", "idlelib", "encodings"]
    library(
        tmp_path,
        monkeypatch,
        d__e=function("Return what is found in a package.", "return x + 4"),
        **{f"{folder}__m": function(f"Return what is skipped in {folder}.", "return x + 5") for folder in skipped},
        _pyio=function("Return a second copy of something.", "return x + 6"),
    )
    (tmp_path / "d" / "__init__.py").write_text(function("Return what the package itself holds.", "return x + 7"))
    assert names_of(load_docstring_corpus()) == ["a.f", "b.f", "c.f", "d.e.f", "d.f"]


def test_a_sentence_that_two_functions_share_is_dropped_from_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(
        tmp_path,
        monkeypatch,
        d=function("Return the same thing twice.", "return x + 4"),
        e=function("return The same\n    thing, twice", "return x + 5").replace('"""r', '"""R'),
    )
    assert names_of(load_docstring_corpus()) == ["a.f", "b.f", "c.f"]


def test_of_equal_bodies_only_the_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path, monkeypatch, d=function("Return a copy of another body.", "return x + 'a'"))
    assert names_of(load_docstring_corpus()) == ["a.f", "b.f", "c.f"]


def test_files_that_cannot_be_parsed_or_decoded_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path, monkeypatch, d="def (:", e="# coding: unheard-of\n", g="x = '\0'")
    (tmp_path / "h.py").write_bytes(b"x = '\xff'")
    assert names_of(load_docstring_corpus()) == ["a.f", "b.f", "c.f"]


def test_a_python_without_the_source_of_its_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: str(tmp_path / "python.zip"))
    with pytest.raises(DataError, match=r"no documented function in .*python\.zip"):
        load_docstring_corpus()


def test_a_limit_of_no_characters_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_document_chars must be at least 1, got 0"):
        load_docstring_corpus(max_document_chars=0)


def test_a_document_is_the_qualified_name_the_signature_and_the_body() -> None:
    source = '''
    class Box:
        async def get(self, key: str, *, default=None) -> object:
            """Return the thing that the key opens.

            More about it, which no document may hold.
            """
            # look first
            if key:
                return self.things[key]
            return default
    '''
    body = "# look first\nif key:\n    return self.things[key]\nreturn default"
    assert pairs_of(source) == [
        Pair("Return the thing that the key opens.", f"pkg.mod.Box.get(self, key: str, *, default=None)\n{body}")
    ]


def test_functions_under_conditions_are_found_and_those_inside_functions_are_not() -> None:
    source = '''
    try:
        import fast
    except ImportError:
        if True:
            def outer(x):
                """Return what the outer one does."""
                def inner(y):
                    """Return what the inner one does."""
                    return y + 1
                return inner(x)
    '''
    assert [name_of(pair) for pair in pairs_of(source)] == ["pkg.mod.outer"]


def test_a_form_feed_in_the_source_does_not_shift_the_lines() -> None:
    source = "\x0c\n" + function("Return the number that comes next.")
    assert pairs_of(source)[0].positive == "pkg.mod.f(x)\nreturn x + 1"


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the first of two.  Not the second.", "Return the first of two."),
        ("Return all, e.g. the first and i.e. the last. no more", "Return all, e.g. the first and i.e. the last."),
        ("Return a line\n    that was broken\n\n    Then more.", "Return a line that was broken"),
        ("Return `one` of ``two`` as :func:`~os.walk` does.", "Return one of two as os.walk does."),
        ("Return version 3.11 of it... or not! Or else.", "Return version 3.11 of it... or not!"),
    ],
)
def test_the_query_is_the_first_sentence_in_one_line(docstring: str, sentence: str) -> None:
    assert [pair.anchor for pair in pairs_of(function(docstring))] == [sentence]


@pytest.mark.parametrize(
    "docstring",
    [
        "Too few words.",
        "Word " * 41,
        "See the other function for this.",
        "Deprecated: use the other function.",
        "Internal: used by the other function.",
        "f(x) -> the number after x",
        "usage of the command in lower case",
        "Return the na\u00efve value of x.",
        "Mailbox = name-addr / addr-spec / nothing",
        "Addr * ( ) / % of things",
        "Options that are understood here:",
        "Return x + 1 if asked.\n\n    ",
        "",
    ],
)
def test_what_is_no_description_is_left_out(docstring: str) -> None:
    assert pairs_of(function(docstring, "return 'Return x + 1 if asked'")) == []


@pytest.mark.parametrize(
    "body",
    [
        "",
        "pass",
        "...",
        "raise NotImplementedError",
        "raise NotImplementedError('x')",
        "return",
        "return NotImplemented",
    ],
)
def test_a_function_that_does_nothing_is_left_out(body: str) -> None:
    assert pairs_of(function("Return the number that comes next.", body)) == []


def test_a_body_on_the_line_of_its_docstring_is_left_out() -> None:
    assert pairs_of('def f(x): "Return the number that comes next."; return x + 1') == []


def test_a_long_document_is_cut_at_a_line_end() -> None:
    body = "\n    ".join(f"x += {number}" for number in range(100))
    (pair,) = pairs_of(function("Return the sum of many numbers.", body), max_document_chars=39)
    assert pair.positive == "pkg.mod.f(x)\nx += 0\nx += 1\nx += 2"


def test_a_document_that_would_lose_its_whole_body_is_left_out() -> None:
    assert pairs_of(function("Return the number that comes next."), max_document_chars=20) == []


def test_training_pairs_are_a_seeded_subsample(corpus: DocstringCorpus) -> None:
    pairs = sample_training_pairs(corpus, 50, seed=1)
    assert pairs == sample_training_pairs(corpus, 50, seed=1)
    assert pairs != sample_training_pairs(corpus, 50, seed=2)
    assert len(set(pairs)) == 50
    assert set(pairs) <= set(corpus.train)


def test_a_search_task_holds_the_answer_of_every_query_among_test_documents(corpus: DocstringCorpus) -> None:
    task = data.build_search_task(corpus, 20, documents=90, seed=3)
    assert (
        task
        == data.build_search_task(corpus, 20, documents=90, seed=3)
        != data.build_search_task(corpus, 20, documents=90, seed=4)
    )
    assert (len(task.queries), len(task.documents), len(task.relevant)) == (20, 90, 20)
    by_anchor = {pair.anchor: pair.positive for pair in corpus.test}
    for key, query in task.queries.items():
        (answer,) = task.relevant[key]
        assert task.documents[answer] == by_anchor[query]
        assert query not in task.documents[answer]
    assert set(task.documents.values()) <= set(by_anchor.values())
    assert list(task.documents) == sorted(task.documents)  # the order does not tell which are answers
    assert not set(task.queries) & set(task.documents)  # evaluators drop documents that have the query's id


def test_more_than_there_is_cannot_be_asked_for(corpus: DocstringCorpus) -> None:
    available = corpus.counts
    with pytest.raises(ConfigError, match=f"there are {available['train']}. Choose 1 to {available['train']}"):
        sample_training_pairs(corpus, available["train"] + 1, seed=0)
    with pytest.raises(ConfigError, match="cannot take 0 training pairs"):
        sample_training_pairs(corpus, 0, seed=0)
    with pytest.raises(ConfigError, match=f"test documents: there are {available['test']}"):
        data.build_search_task(corpus, 1, documents=available["test"] + 1, seed=0)
    with pytest.raises(ConfigError, match="cannot take 8 test queries: there are 7"):
        data.build_search_task(corpus, 8, documents=7, seed=0)
