"""Formats: each turns a stream of Arrow batches into a stream of bytes, for the web and for pipes.

Decimals leave exactly: as strings without trailing zeros in JSON and NDJSON (a JSON number is a
double in most clients), plain in CSV, as decimal128 in Arrow. Times are integers of ns everywhere.
A list is a JSON array, in CSV too. What is known of the rows stands behind them in JSON, and in the
metadata of Arrow's schema.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import orjson
import polars as pl
import pyarrow as pa

from k2.query.rows import Rows

__all__ = ["Encoder", "plain"]


def plain(column: pa.Array) -> pa.Array:
    """Decimals as strings: no exponent, no zeros at the end (`36.667`, `20000`, `0.00000001`)."""
    return _plain(pl.Series(column)).to_arrow().cast(pa.string())


def _plain(column: pl.Series) -> pl.Series:
    # Not by Arrow's cast, which writes small numbers with an exponent.
    text = column.cast(pl.String)
    kind = column.dtype
    if isinstance(kind, pl.Decimal) and kind.scale > 0:
        return text.str.strip_chars_end("0").str.strip_chars_end(".")
    return text


class Encoder:
    """One answer as json, ndjson, csv or arrow: `begin`, `rows` for each batch, `end`.

    Not thread safe.
    """

    def __init__(self, form: str, rows: Rows) -> None:
        """`rows`: what they are; the batches come later."""
        self.count = 0
        self._form = form
        self._schema, self._told, self._end = rows.schema, rows.texts(), rows.plain()
        self._sink = _Sink()
        self._writer: Any = None

    def begin(self) -> bytes:
        if self._form == "json":
            return b'{"data":['
        if self._form == "arrow":
            metadata = {f"k2.{name}": text for name, text in self._told.items()}
            self._writer = pa.ipc.new_stream(self._sink, self._schema.with_metadata(metadata))
            return self._sink.take()
        if self._form == "csv":
            return (",".join(self._schema.names) + "\n").encode()
        return b""

    def rows(self, batch: pa.RecordBatch) -> bytes:
        first, self.count = self.count == 0, self.count + batch.num_rows
        if self._form == "arrow":
            self._writer.write_batch(batch)
            return self._sink.take()
        text, sink = _textual(batch), BytesIO()
        if self._form == "csv":
            # Polars quotes only where it must; pyarrow quotes every string, decimals too.
            _flat(text).write_csv(sink, include_header=False)
            return sink.getvalue()
        text.write_ndjson(sink)
        if self._form == "ndjson":
            return sink.getvalue()
        # In JSON a string has no bare end of line: each is that of a row.
        return (b"" if first else b",") + sink.getvalue()[:-1].replace(b"\n", b",")

    def end(self) -> bytes:
        if self._form == "json":
            return b"]," + orjson.dumps({**self._end, "count": self.count})[1:]
        if self._form == "arrow":
            self._writer.close()
            return self._sink.take()
        return b""


def _textual(batch: pa.RecordBatch) -> pl.DataFrame:
    frame = pl.DataFrame(pa.Table.from_batches([batch]))
    return frame.with_columns(_plain(c) for c in frame if isinstance(c.dtype, pl.Decimal))


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Lists as the JSON that they are in NDJSON."""
    lists = [column for column in frame if isinstance(column.dtype, pl.List)]
    return frame.with_columns(_array(column) for column in lists)


def _array(column: pl.Series) -> pl.Series:
    # Polars encodes structs only: of `{"":[...]}` what is around the list is cut off.
    row = pl.struct(column.alias("")).struct.json_encode()
    return pl.select(row.str.slice(len('{"":')).str.head(-1)).to_series().alias(column.name)


class _Sink:
    """A file to write to whose bytes are taken out as they come."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken
