"""Formats: each turns a stream of Arrow batches into a stream of bytes, for the web and for pipes.

Decimals leave exactly: as strings without trailing zeros in JSON and NDJSON (a JSON number is a
double in most clients), plain in CSV, as decimal128 in Arrow and Parquet. Times are integers of ns
everywhere. A list is a JSON array, in CSV too. What is known of the rows stands behind them in
JSON, and in the metadata of Arrow's schema and of a Parquet file, of which a row group at a time is
in memory.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from k2.query.rows import Rows

__all__ = ["Encoder", "plain"]

#: A row group of Parquet is written as soon as it has one of these.
GROUP_ROWS_MIN, GROUP_BYTES_MIN = 131_072, 16 * 1024 * 1024


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
    """One answer as json, ndjson, csv, arrow or parquet: `begin`, `rows` for each batch, `end`.

    Not thread safe.
    """

    def __init__(self, form: str, rows: Rows) -> None:
        """`rows`: what they are; the batches come later."""
        self.count = 0
        self._form = form
        self._schema, self._told, self._end = rows.schema, rows.texts(), rows.plain()
        self._sink = _Sink()
        self._writer: Any = None
        self._group: list[pa.RecordBatch] = []  # of Parquet: what is not yet written

    def begin(self) -> bytes:
        if self._form == "json":
            return b'{"data":['
        if self._form == "arrow":
            self._writer = pa.ipc.new_stream(self._sink, self._schema.with_metadata(self._metadata))
            return self._sink.take()
        if self._form == "parquet":
            self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")
            return self._sink.take()
        if self._form == "csv":
            return (",".join(self._schema.names) + "\n").encode()
        return b""

    def rows(self, batch: pa.RecordBatch) -> bytes:
        first, self.count = self.count == 0, self.count + batch.num_rows
        if self._form == "arrow":
            self._writer.write_batch(batch)
            return self._sink.take()
        if self._form == "parquet":
            self._group.append(batch)
            if (
                sum(part.num_rows for part in self._group) >= GROUP_ROWS_MIN
                or sum(part.nbytes for part in self._group) >= GROUP_BYTES_MIN
            ):
                self._write_group()
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
        if self._form == "parquet":
            self._write_group()
            self._writer.add_key_value_metadata(self._metadata)
            self._writer.close()
            return self._sink.take()
        return b""

    @property
    def _metadata(self) -> dict[str, str]:
        return {f"k2.{name}": text for name, text in self._told.items()}

    def _write_group(self) -> None:
        if self._group:
            self._writer.write_table(pa.Table.from_batches(self._group))
            self._group = []


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
        self._written = 0

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._written += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        return self._written

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
