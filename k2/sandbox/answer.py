"""The answer to a statement: an Arrow stream in a nameless file, complete before it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa

from k2.query.rows import Known, Rows
from k2.sandbox.plain import plain, plain_schema

__all__ = ["Answer", "Pinned"]


@dataclass(frozen=True, slots=True)
class Pinned(Known):
    """The snapshots that a statement read, by table; None: nothing had been committed."""

    snapshots: dict[str, int | None] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return {"snapshots": self.snapshots}

    def texts(self) -> dict[str, str]:
        named = (f"{name}={number or 'none'}" for name, number in self.snapshots.items())
        return {"snapshots": "; ".join(named)} if self.snapshots else {}


class Answer(Rows):
    """Rows of a statement as a format wants them; close it, or read it to its end.

    `truncated`: `sql_rows_max` cut rows off.
    """

    def __init__(
        self, file: BinaryIO, form: str, truncated: bool, snapshots: dict[str, int | None]
    ) -> None:
        """`file`: at its begin; it is closed with the answer.

        Raises:
            pa.ArrowInvalid: it holds no Arrow stream.
        """
        self._file = file
        reader = pa.ipc.open_stream(file)
        known = Pinned(None, None, snapshots=snapshots)
        schema = plain_schema(reader.schema, form)
        super().__init__(schema, _batches(reader, form), None, truncated, known=known)

    def close(self) -> None:
        super().close()
        self._file.close()


def _batches(reader: pa.RecordBatchReader, form: str) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        batch.validate()
        yield plain(batch, form)
