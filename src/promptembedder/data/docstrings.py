"""The built-in corpus: what a function of Python's standard library does -> its code.

It is read from the library that is installed here, parsed and never imported, so it needs no download.
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

__all__ = ["DocstringCorpus", "SearchTask", "docstring_corpus", "pairs_of_source", "search_task", "training_pairs"]

_logger = logging.getLogger(__name__)

# other people's code, tests, programs on top of the library, tables
_SKIPPED_FOLDERS = frozenset(
    "site-packages dist-packages test tests idlelib lib2to3 turtledemo ensurepip encodings pydoc_data".split()
)
_SKIPPED_MODULES = frozenset("_pydecimal _pydatetime _pyio".split())  # second copies of compiled modules

_MIN_WORDS, _MAX_WORDS = 4, 40
_MIN_PLAIN_SHARE = 0.6  # of the words of a description; grammars and tables of operators have fewer
_NO_DESCRIPTIONS = frozenset(  # first words of sentences that tell whose, when or instead of what, not what
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
    """Pairs (first sentence of a docstring, code without the docstring); no module is on both sides."""

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]

    @property
    def counts(self) -> dict[str, int]:
        """The number of pairs on each side."""
        return {"train": len(self.train), "test": len(self.test)}


@dataclass(frozen=True)
class SearchTask:
    """Queries, documents, and for each query the ids of the documents that answer it."""

    queries: dict[str, str]
    documents: dict[str, str]
    relevant: dict[str, set[str]]


def docstring_corpus(*, max_document_chars: int = 1200) -> DocstringCorpus:
    """The pairs that the standard library of the running Python holds, the same at every call.

    Whole top-level modules go to one side, about a fifth of them to the test side.

    Args:
        max_document_chars: Longer documents are cut at a line end.

    Raises:
        ConfigError: `max_document_chars` is not positive.
        DataError: The library is not installed as source.
    """
    if max_document_chars < 1:
        raise ConfigError(f"max_document_chars must be at least 1, got {max_document_chars}. Try 1200.")
    root = Path(sysconfig.get_path("stdlib"))
    pairs = [
        pair
        for module, file in _modules(root, "")
        for pair in pairs_of_source(_source_of(file), module, max_document_chars=max_document_chars)
    ]
    if not pairs:
        raise DataError(f"no documented function in {root}. Use a Python whose standard library is there as source.")
    sides: dict[bool, list[Pair]] = {True: [], False: []}
    for pair in _distinct(pairs):
        sides[_is_test_module(name_of(pair))].append(pair)
    corpus = DocstringCorpus(train=tuple(sides[False]), test=tuple(sides[True]))
    _logger.info("docstring corpus of %s: %s of %d documented functions", root, corpus.counts, len(pairs))
    return corpus


def training_pairs(corpus: DocstringCorpus, count: int, *, seed: int) -> list[Pair]:
    """`count` random pairs of the training side, in random order.

    Raises:
        ConfigError: `count` is more than there are, or not positive.
    """
    _check_count(count, len(corpus.train), "training pairs")
    return random.Random(seed).sample(corpus.train, count)


def search_task(corpus: DocstringCorpus, queries: int, *, documents: int, seed: int) -> SearchTask:
    """A search task of the test side: find the code of each of `queries` sentences among `documents`.

    The ids are qualified names, those of queries with a `?` behind: some evaluators drop a document whose id
    is the query's. The other documents come from the same modules.

    Raises:
        ConfigError: There are not as many, or fewer documents than queries are asked for.
    """
    _check_count(documents, len(corpus.test), "test documents")
    _check_count(queries, documents, "test queries")
    chosen = random.Random(seed).sample(corpus.test, documents)
    asked = {f"{name_of(pair)}?": pair for pair in chosen[:queries]}
    return SearchTask(
        queries={key: pair.anchor for key, pair in asked.items()},
        documents={name_of(pair): pair.positive for pair in sorted(chosen, key=name_of)},
        relevant={key: {name_of(pair)} for key, pair in asked.items()},
    )


def name_of(pair: Pair) -> str:
    """The qualified name with which the document of a pair of this corpus begins."""
    return pair.positive.partition("(")[0]


def pairs_of_source(source: str, module: str, *, max_document_chars: int) -> Iterator[Pair]:
    """The pairs of one module, in the order of its functions and methods; nothing if it does not parse."""
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
        with tokenize.open(file) as source:  # heeds the coding line
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
    """Name, signature and body; None where no code, or none within the limit, is left without the docstring."""
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
        and anchor[0].isupper()  # else it is mostly a usage line or a grammar
        and words[0].strip(".:,").lower() not in _NO_DESCRIPTIONS
        and _SIGNATURE.match(anchor) is None
        and sum(_PLAIN_WORD.fullmatch(word) is not None for word in words) >= _MIN_PLAIN_SHARE * len(words)
    )


def _distinct(pairs: list[Pair]) -> list[Pair]:
    """In order of names; without sentences that several functions share, repeated names and repeated bodies."""
    sentences = Counter(_words(pair.anchor) for pair in pairs)
    names: set[str] = set()
    bodies: set[str] = set()
    kept: list[Pair] = []
    for pair in sorted(pairs, key=name_of):
        name, body = name_of(pair), _words(pair.positive.partition("\n")[2])
        if sentences[_words(pair.anchor)] == 1 and name not in names and body not in bodies:
            kept.append(pair)
        names.add(name)
        bodies.add(body)
    return kept


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _is_test_module(name: str) -> bool:
    top = name.split(".")[0].lstrip("_")  # _strptime goes where strptime would go
    return zlib.crc32(top.encode()) % 5 == 2


def _check_count(count: int, available: int, what: str) -> None:
    if not 1 <= count <= available:
        raise ConfigError(f"cannot take {count} {what}: there are {available}. Ask for 1 to {available}.")
