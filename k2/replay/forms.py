"""What a replay is written as: NDJSON, server-sent events or an Arrow stream.

No Python time a record: polars writes the JSON of a whole batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import orjson
import polars as pl
import pyarrow as pa

from k2.replay.records import FIELDS, FINDING, FOUND, schema
from k2.schemas import Kind

__all__ = ["MEDIA_TYPES", "Form", "form"]

MEDIA_TYPES = {
    "ndjson": "application/x-ndjson",
    "sse": "text/event-stream",
    "arrow": "application/vnd.apache.arrow.stream",
}

#: Of Arrow's IPC format: a message of no length.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class Form(ABC):
    """One stream of bytes. Not thread safe."""

    def begin(self) -> bytes:
        """What stands before everything."""
        return b""

    @abstractmethod
    def rows(self, rows: pa.Table) -> bytes:
        """Records of a history or of what is live, with their cursors."""

    @abstractmethod
    def say(self, what: dict[str, Any]) -> bytes:
        """What K2 itself says; it has a `type` and a `cursor`."""

    def end(self) -> bytes:
        """What stands behind everything."""
        return b""


class _Ndjson(Form):
    def rows(self, rows: pa.Table) -> bytes:
        lines, _ = _lines(rows)
        return _joined(pl.select(pl.concat_str(lines, pl.lit("\n"))).to_series())

    def say(self, what: dict[str, Any]) -> bytes:
        return orjson.dumps(what) + b"\n"


class _Events(Form):
    def rows(self, rows: pa.Table) -> bytes:
        lines, cursors = _lines(rows)
        text = pl.concat_str(pl.lit("id: "), cursors, pl.lit("\ndata: "), lines, pl.lit("\n\n"))
        return _joined(pl.select(text).to_series())

    def say(self, what: dict[str, Any]) -> bytes:
        return b"id: %s\ndata: %s\n\n" % (what["cursor"].encode(), orjson.dumps(what))


class _Arrow(Form):
    def __init__(self, kinds: Sequence[Kind]) -> None:
        self._schema = schema(kinds)

    def begin(self) -> bytes:
        return bytes(self._schema.serialize())

    def rows(self, rows: pa.Table) -> bytes:
        names = set(rows.column_names)
        columns = [
            rows[field.name].cast(field.type)
            if field.name in names
            else pa.nulls(rows.num_rows, field.type)
            for field in self._schema
            if field.name != "detail"
        ]
        place = self._schema.get_field_index("detail")
        columns.insert(place, _details(rows))
        return _batches(pa.table(columns, schema=self._schema))

    def say(self, what: dict[str, Any]) -> bytes:
        rest = {name: value for name, value in what.items() if name not in ("type", "cursor")}
        row = {
            "type": what["type"],
            "cursor": what["cursor"],
            "detail": orjson.dumps(rest).decode(),
        }
        return _batches(pa.Table.from_pylist([row], self._schema))

    def end(self) -> bytes:
        return _END_OF_STREAM


def form(name: str, kinds: Sequence[Kind]) -> Form:
    """The form of one of MEDIA_TYPES."""
    if name == "arrow":
        return _Arrow(kinds)
    return _Events() if name == "sse" else _Ndjson()


def _batches(rows: pa.Table) -> bytes:
    return b"".join(batch.serialize() for batch in rows.to_batches())


def _lines(rows: pa.Table) -> tuple[pl.Series, pl.Series]:
    """The JSON of each row, and the cursor of each."""
    frame = pl.DataFrame(rows)
    types = frame["type"]
    found = types.unique().to_list()
    cursors = frame["cursor"]
    if len(found) == 1:
        return _json(frame, found[0]), cursors
    frame = frame.with_row_index("k2_row")
    parts, order = [], []
    for name in found:
        of = frame.filter(types == name)
        parts.append(_json(of, name))
        order.append(of["k2_row"])
    return pl.concat(parts).gather(pl.concat(order).arg_sort()), cursors


def _json(frame: pl.DataFrame, name: str) -> pl.Series:
    """Objects with the fields of a type; decimals exact, as `k2.query.formats` has them."""
    columns = frame.select(FIELDS[name]).with_columns(
        pl.col(pl.Decimal).cast(pl.String).str.strip_chars_end("0").str.strip_chars_end(".")
    )
    return columns.select(pl.struct(pl.all()).struct.json_encode()).to_series()


def _details(rows: pa.Table) -> pa.ChunkedArray:
    """The JSON of what only findings have; null for other records."""
    if "gap_id" not in rows.column_names:
        return pa.chunked_array([pa.nulls(rows.num_rows, pa.string())])
    frame = pl.DataFrame(rows.select(["type", *FOUND]))
    text = pl.struct(*FOUND).struct.json_encode()
    details = frame.select(pl.when(pl.col("type") == FINDING).then(text)).to_series()
    return pa.chunked_array([details.to_arrow().cast(pa.string())])


def _joined(texts: pl.Series) -> bytes:
    """Texts, one behind the other."""
    array: Any = texts.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = array.cast(pa.large_string()).buffers()
    ends = memoryview(offsets).cast("q")
    first, last = ends[array.offset], ends[array.offset + len(array)]
    return bytes(memoryview(data)[first:last])
