"""Table rows from a file of texts, embedded while they are read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from promptembedder.data import COLUMN_KINDS, TextRow, convert_value, read_rows, read_texts
from promptembedder.errors import DataError
from promptembedder.model import Encoder
from promptembedder.search.table_schema import TableMetadata, row_batch

__all__ = ["CorpusRows"]


@dataclass(frozen=True, kw_only=True)
class CorpusRows:
    """Texts of a file with their vectors and metadata columns.

    Attributes:
        path: File in a format of `read_texts`. Must be a regular file, because it is read more than once.
        load_encoder: Loads the encoder. Called when the first vector is needed, after all rows have been validated.
        table_metadata: Identity of the encoder, and the instruction for the texts.
        metadata: Type of each metadata column, by name.
        text_column: Column of the text, as in `read_texts`.
        id_column: Column of the id, as in `read_texts`.
        chunk_rows: Number of rows held in memory and embedded together.
        on_rows: Called after each chunk with the number of its rows.
    """

    path: Path
    load_encoder: Callable[[], Encoder]
    table_metadata: TableMetadata
    metadata: Mapping[str, str] = field(default_factory=dict)
    text_column: str | None = None
    id_column: str | None = None
    chunk_rows: int = 512
    on_rows: Callable[[int], None] = lambda _: None

    def ids(self) -> Iterator[Sequence[str]]:
        """Iterate over the ids, one chunk at a time, and validate the rows.

        Raises:
            DataError: As in `read_texts`; if the file is a pipe, a row lacks a metadata column, or a value does not
                have the type of its column.
        """
        for chunk in self._chunks():
            yield [row.id for row, _ in chunk]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Iterate over the rows as record batches, with vectors normalized to length 1.

        Raises:
            DataError: As in `ids`; or if a vector is not finite, or zero.
        """
        encoder = self.load_encoder()
        for chunk in self._chunks():
            texts = [row.text for row, _ in chunk]
            vectors = np.asarray(
                encoder.encode(texts, prompt=self.table_metadata.instruction, show_progress_bar=False), dtype=np.float32
            )
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.where(lengths == 0, 1, lengths)
            columns = {
                name: pa.array([values[name] for _, values in chunk], type=COLUMN_KINDS[kind])
                for name, kind in self.metadata.items()
            }
            yield row_batch([row.id for row, _ in chunk], vectors, pa.array(texts, type=pa.string()), columns)
            self.on_rows(len(chunk))

    def _chunks(self) -> Iterator[list[tuple[TextRow, dict[str, Any]]]]:
        if self.path.exists() and not self.path.is_file() and not self.path.is_dir():
            raise DataError(
                f"{self.path} is not a regular file, and it is read more than once. Save it as a file first."
            )
        texts = read_texts(self.path, text_column=self.text_column, id_column=self.id_column)
        # a second pass in parallel: read_texts returns no other columns
        values = (self._values(row, number) for number, row in enumerate(read_rows(self.path), start=1))
        rows = zip(texts, values, strict=True)
        while chunk := list(islice(rows, self.chunk_rows)):
            yield chunk

    def _values(self, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        values = {}
        for name, kind in self.metadata.items():
            location = f"{self.path}, row {number}"
            if name not in row:
                raise DataError(
                    f"{location} has no column {name!r} for the metadata: found {', '.join(row) or 'no columns'}. "
                    "Correct the row, or name another column."
                )
            try:
                values[name] = convert_value(row[name], kind)
            except (ValueError, TypeError) as error:
                value = f"{str(row[name])[:40]!r} ({type(row[name]).__name__})"
                raise DataError(
                    f"{location}: column {name!r} contains {value}, which is not of type {kind}. "
                    f"Correct the row, or name another type: --metadata {name}:TYPE."
                ) from error
        return values
