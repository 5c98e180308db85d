"""Files to read, on this machine or in an object store."""

import gzip
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec

from promptembedder.errors import DataError

__all__ = ["ENDINGS", "SourceFile", "find_sources"]

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")  # each also with .gz; and .parquet


@dataclass(frozen=True)
class SourceFile:
    """File by its path or URL, cheap to send to another process.

    Attributes:
        location: Local path, or a URL that fsspec supports, such as `s3://bucket/texts.parquet`.
        delimiter: Character between the values of CSV. If None, detected in the header row.
        encoding: Encoding of lines of text.
    """

    location: str
    delimiter: str | None = None
    encoding: str = "utf-8"

    def __str__(self) -> str:
        return self.location

    @property
    def path(self) -> Path | None:
        """Local path. None for a URL."""
        return None if "://" in self.location else Path(self.location)

    @property
    def name(self) -> str:
        """Last part of the location."""
        return self.location.rstrip("/").rpartition("/")[2]

    @property
    def ending(self) -> str | None:
        """File ending that determines the format, without .gz. None if it is unknown."""
        name = self.name.lower()
        if name.endswith(".parquet"):
            return ".parquet"
        return next((ending for ending in ENDINGS if name.removesuffix(".gz").endswith(ending)), None)

    def open(self, *, unpacked: bool = True) -> io.BufferedReader:
        """Open the file as a seekable stream of bytes.

        Args:
            unpacked: Decompress a file that ends in .gz.

        Raises:
            OSError: If the file cannot be opened.
        """
        packed = unpacked and self.name.lower().endswith(".gz")
        if self.path is None:
            compression = "gzip" if packed else None
            return io.BufferedReader(fsspec.open(self.location, "rb", compression=compression).open())
        # GzipFile's readline is slow
        return io.BufferedReader(gzip.open(self.path, "rb")) if packed else self.path.open("rb")

    def check(self) -> None:
        """Check that this is a readable, non-empty file of a known format.

        Raises:
            DataError: If it does not exist, is a folder or empty, its ending is unknown, its store is unreachable, or
                its delimiter or encoding cannot be used.
        """
        self._check_format()
        if self.ending is None:
            raise DataError(
                f"{self} has an ending that no reader knows. "
                f"Use one of {', '.join(ENDINGS)} (each also with .gz) or .parquet, and name the file for what it "
                "holds."
            )
        if self.path is None:
            self._check_url()
            return
        if not self.path.exists():
            raise DataError(f"{self} does not exist. Check the path.")
        if self.path.is_dir():
            raise DataError(f"{self} is a folder. Give one of the files in it.")
        if self.path.is_file() and self.path.stat().st_size == 0:
            raise DataError(f"{self} is empty (0 bytes). Write it again, or leave it out.")

    def _check_format(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise DataError(f"the delimiter {self.delimiter!r} is not a single character. Give one, such as ';'.")
        try:
            splits_lines = "\n".encode(self.encoding.removesuffix("-sig")) == b"\n"
        except LookupError:
            splits_lines = False
        if not splits_lines:
            raise DataError(f"the encoding {self.encoding!r} cannot be read. Use utf-8, cp1252 or another of one byte.")

    def _check_url(self) -> None:
        try:
            with self.open(unpacked=False):
                pass
        except FileNotFoundError as error:
            raise DataError(f"{self} does not exist. Check the URL.") from error
        except (OSError, ImportError, ValueError) as error:  # ImportError: the store's own package is missing
            raise DataError(f"{self} cannot be opened ({error}). Check the URL and your access.") from error


def find_sources(patterns: Sequence[str | Path]) -> list[SourceFile]:
    """Find the files that paths, folders, globs and URLs match, sorted by name within each pattern.

    A folder matches all files of known formats in and below it.

    Raises:
        DataError: If a pattern matches nothing, a file is named twice, or its store is unreachable.
    """
    found = [source for pattern in patterns for source in _matching(str(pattern))]
    if not found:
        raise DataError("there are no files to read. Name at least one.")
    seen = set[str]()
    for source in found:
        if source.location in seen:
            raise DataError(f"{source} is named twice. Name it once.")
        seen.add(source.location)
    return found


def _matching(pattern: str) -> Iterator[SourceFile]:
    is_url = "://" in pattern
    if not is_url and Path(pattern).exists() and not Path(pattern).is_dir():
        yield SourceFile(pattern)  # also a name with a * in it, and a pipe
        return
    try:
        files, place = fsspec.url_to_fs(pattern)
        if files.isdir(place):
            inside = [path for path in files.find(place) if SourceFile(path).ending is not None]
            names = [path for path in inside if not _is_hidden(path[len(place) :])]
        elif any(sign in place for sign in "*?["):
            names = [path for path in files.glob(place) if files.isfile(path)]
        else:
            names = [place]
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{pattern} cannot be listed ({error}). Check the URL and your access.") from error
    if not names:
        raise DataError(f"{pattern} stands for no file that a reader knows. Check the path.")
    for name in sorted(names):
        if is_url:
            yield SourceFile(files.unstrip_protocol(name))
        else:
            yield SourceFile(name if len(names) > 1 or name != _absolute(pattern) else pattern)


def _absolute(pattern: str) -> str:
    return str(Path(pattern).absolute())


def _is_hidden(below: str) -> bool:
    """Return True if a part of the path starts with a dot or an underscore, as unfinished files do."""
    return any(part.startswith((".", "_")) for part in below.split("/"))
