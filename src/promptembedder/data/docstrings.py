"""Built-in corpus of pairs (description of a function of Python's standard library, its code).

The corpus is extracted from the installed library, which is parsed and never imported, so it needs no download.
"""

import ast
import logging
import random
import re
import sysconfig
import textwrap
import tokenize
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from promptembedder.data.pairs import Pair
from promptembedder.data.texts import clean_text
from promptembedder.errors import ConfigError, DataError

__all__ = [
    "DocstringCorpus",
    "SearchTask",
    "build_search_task",
    "extract_pairs",
    "load_docstring_corpus",
    "sample_training_pairs",
]

_logger = logging.getLogger(__name__)

# third-party code, tests, applications, tables
_SKIPPED_FOLDERS = frozenset(
    "site-packages dist-packages test tests idlelib lib2to3 turtledemo ensurepip encodings pydoc_data".split()
)
_SKIPPED_MODULES = frozenset("_pydecimal _pydatetime _pyio".split())  # second copies of compiled modules

_MIN_WORDS, _MAX_WORDS = 4, 40
_MIN_PLAIN_SHARE = 0.6  # of the words of a description; grammars and tables of operators have fewer
_NO_DESCRIPTIONS = frozenset(  # first words of sentences that do not describe the function
    "abstract called constructor deprecated dummy equivalent helper internal just like not obsolete optional "
    "override overridden overrides private same see this todo used xxx".split()
)
_SENTENCE_END = re.compile(r"(?<!\.\w)(?<!\.)(?<!\b(?:ie|eg|vs|cf))(?<!\betc)[.!?](?=\s|$)")  # not that of "e.g."
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_SIGNATURE = re.compile(r"[\w.]+\(|.*(->|>>>|::|:$| = |\[)")
_PLAIN_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*[.,;:!?]?")

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class DocstringCorpus:
    """Pairs (first sentence of a docstring, code without the docstring). No module is in both splits."""

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of pairs of each split."""
        return {"train": len(self.train), "test": len(self.test)}


@dataclass(frozen=True)
class SearchTask:
    """Queries, documents, and for each query the ids of the documents that answer it."""

    queries: dict[str, str]
    documents: dict[str, str]
    relevant: dict[str, set[str]]


def load_docstring_corpus(*, max_document_chars: int = 1200) -> DocstringCorpus:
    """Extract the pairs of the standard library of the running Python. The result is deterministic.

    Each top-level module belongs to one split, about a fifth of them to the test split.

    Args:
        max_document_chars: Maximum document length in characters. Longer documents are cut at a line end.

    Raises:
        ConfigError: If `max_document_chars` is not positive.
        DataError: If the library is not installed as source.
    """
    if max_document_chars < 1:
        raise ConfigError(f"max_document_chars must be at least 1, got {max_document_chars}. Try 1200.")
    root = Path(sysconfig.get_path("stdlib"))
    pairs = [
        pair
        for module, file in _modules(root, "")
        for pair in extract_pairs(_source_of(file), module, max_document_chars=max_document_chars)
    ]
    if not pairs:
        raise DataError(
            f"no documented function in {root}. Use a Python whose standard library is installed as source."
        )
    sides: dict[bool, list[Pair]] = {True: [], False: []}
    for pair in _deduplicate(pairs):
        sides[_is_test_module(get_name(pair))].append(pair)
    corpus = DocstringCorpus(train=tuple(sides[False]), test=tuple(sides[True]))
    _logger.info("docstring corpus of %s: %s of %d documented functions", root, corpus.counts, len(pairs))
    return corpus


def sample_training_pairs(corpus: DocstringCorpus, count: int, *, seed: int) -> list[Pair]:
    """Sample `count` pairs of the training split, in random order.

    Raises:
        ConfigError: If `count` is not positive or exceeds the number of pairs.
    """
    _check_count(count, len(corpus.train), "training pairs")
    return random.Random(seed).sample(corpus.train, count)


def build_search_task(corpus: DocstringCorpus, queries: int, *, documents: int, seed: int) -> SearchTask:
    """Build a search task from the test split: find the code of each of `queries` sentences among `documents`.

    Ids are qualified names. Ids of queries end in `?`, because some evaluators drop a document with the id of the
    query. The other documents come from the same modules.

    Raises:
        ConfigError: If there are fewer test documents, or `documents` is smaller than `queries`.
    """
    _check_count(documents, len(corpus.test), "test documents")
    _check_count(queries, documents, "test queries")
    chosen = random.Random(seed).sample(corpus.test, documents)
    selected = {f"{get_name(pair)}?": pair for pair in chosen[:queries]}
    return SearchTask(
        queries={key: pair.anchor for key, pair in selected.items()},
        documents={get_name(pair): pair.positive for pair in sorted(chosen, key=get_name)},
        relevant={key: {get_name(pair)} for key, pair in selected.items()},
    )


def get_name(pair: Pair) -> str:
    """Return the qualified function name with which the document of a pair begins."""
    return pair.positive.partition("(")[0]


def extract_pairs(source: str, module: str, *, max_document_chars: int) -> Iterator[Pair]:
    """Yield the pairs of one module, in the order of its functions and methods. Yield none if it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes
        _logger.debug("skipped %s: %s", module, error)
        return
    lines = source.split("\n")  # not splitlines: it splits at form feeds, and ast does not
    for name, function in _functions(tree.body, module):
        anchor = _first_sentence(ast.get_docstring(function) or "")
        if not _is_description(anchor):
            continue
        document = _document(name, function, lines, max_document_chars=max_document_chars)
        if document is not None and _words(anchor) not in _words(document):
            yield Pair(anchor=anchor, positive=document)


def _modules(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):  # sorted: file systems list in any order
        name = entry.stem
        if entry.is_dir() and entry.name.isidentifier() and entry.name not in _SKIPPED_FOLDERS:
            yield from _modules(entry, f"{prefix}{entry.name}.")
        elif entry.suffix == ".py" and name.isidentifier() and name not in _SKIPPED_MODULES:
            yield (prefix.rstrip(".") if name == "__init__" else f"{prefix}{name}"), entry


def _source_of(file: Path) -> str:
    try:
        with tokenize.open(file) as source:  # respects the coding line
            return source.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        _logger.debug("skipped %s: %s", file, error)
        return ""


def _functions(nodes: Iterable[ast.AST], prefix: str) -> Iterator[tuple[str, _Function]]:
    for node in nodes:
        if isinstance(node, _Function):
            yield f"{prefix}.{node.name}", node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}.{node.name}")
        elif isinstance(node, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _functions(ast.iter_child_nodes(node), prefix)


def _document(name: str, function: _Function, lines: list[str], *, max_document_chars: int) -> str | None:
    """Return name, signature and body without the docstring. None if no code is left within the limit."""
    docstring, *body = function.body
    end = docstring.end_lineno or 0
    if not body or body[0].lineno <= end or all(_does_nothing(statement) for statement in body):
        return None
    head = f"{name}({ast.unparse(function.args)})"
    code = textwrap.dedent("\n".join(lines[end : function.end_lineno])).strip("\n")
    document = f"{head}\n{code}"
    if len(document) > max_document_chars:
        document = document[: max(0, document.rfind("\n", 0, max_document_chars + 1))].rstrip()
    return document if len(document) > len(head) else None


def _does_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr | ast.Return):
        value = statement.value
        return value is None or isinstance(value, ast.Constant) or ast.unparse(value) == "NotImplemented"
    return isinstance(statement, ast.Pass | ast.Raise)


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())
    plain = _ROLE.sub(r"\1", paragraph).replace("`", "").replace("**", "")
    end = _SENTENCE_END.search(plain)
    return clean_text(plain[: end.end()] if end else plain)


def _is_description(anchor: str) -> bool:
    words = anchor.split()
    return (
        _MIN_WORDS <= len(words) <= _MAX_WORDS
        and anchor.isascii()
        and anchor.isprintable()
        and anchor[0].isupper()  # otherwise it is mostly a usage line or a grammar
        and words[0].strip(".:,").lower() not in _NO_DESCRIPTIONS
        and _SIGNATURE.match(anchor) is None
        and sum(_PLAIN_WORD.fullmatch(word) is not None for word in words) >= _MIN_PLAIN_SHARE * len(words)
    )


def _deduplicate(pairs: list[Pair]) -> list[Pair]:
    """Sort by name, and drop sentences that several functions share, repeated names and repeated bodies."""
    sentences = Counter(_words(pair.anchor) for pair in pairs)
    names: set[str] = set()
    bodies: set[str] = set()
    distinct: list[Pair] = []
    for pair in sorted(pairs, key=get_name):
        name, body = get_name(pair), _words(pair.positive.partition("\n")[2])
        if sentences[_words(pair.anchor)] == 1 and name not in names and body not in bodies:
            distinct.append(pair)
        names.add(name)
        bodies.add(body)
    return distinct


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _is_test_module(name: str) -> bool:
    top = name.split(".")[0].lstrip("_")  # _strptime belongs to the split of strptime
    return zlib.crc32(top.encode()) % 5 == 2


def _check_count(count: int, available: int, what: str) -> None:
    if not 1 <= count <= available:
        raise ConfigError(f"cannot take {count} {what}: there are {available}. Choose 1 to {available}.")
