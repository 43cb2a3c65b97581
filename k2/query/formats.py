"""Formats: each turns a stream of Arrow batches into a stream of bytes, for the web and for pipes.

Decimals leave exactly: as strings without trailing zeros in JSON and NDJSON (a JSON number is a
double in most clients), plain in CSV, as decimal128 in Arrow. Times are integers of ns everywhere.
A list is a JSON array, in CSV too. What is known of the rows stands behind them in JSON, and in the
metadata of Arrow's schema.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from k2.query.rows import Rows

__all__ = ["Encoder", "plain"]


def plain(column: pa.Array) -> pa.Array:
    """Decimals as strings: no exponent, no zeros at the end (`36.667`, `20000`, `0.00000001`)."""
    text = column.cast(pa.string())
    if pc.any(pc.match_substring(text, "E")).as_py():
        # Arrow writes small numbers with an exponent; these are rare.
        values = [None if v is None else _plain(v) for v in column.to_pylist()]
        return pa.array(values, pa.string())
    if column.type.scale > 0:
        text = pc.utf8_rtrim(pc.utf8_rtrim(text, "0"), ".")
    return text


def _plain(value: Decimal) -> str:
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


class Encoder:
    """One answer as json, ndjson, csv or arrow: `begin`, `rows` for each batch, `end`.

    Not thread safe.
    """

    def __init__(self, form: str, rows: Rows) -> None:
        """`rows`: what they are; the batches come later."""
        self.count = 0
        self._form = form
        self._schema, self._known = rows.schema, rows.known
        self._end: dict[str, Any] = {"snapshot_id": rows.snapshot_id, "truncated": rows.truncated}
        if rows.known is not None:
            self._end |= rows.known.plain()
        self._sink = _Sink()
        self._writer: Any = None

    def begin(self) -> bytes:
        if self._form == "json":
            return b'{"data":['
        if self._form == "arrow":
            known = self._known.texts() if self._known is not None else {}
            metadata = {f"k2.{name}": text for name, text in known.items()}
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
        text = _textual(batch)
        if self._form == "csv":
            text = _flat(text)
            # Polars quotes only where it must; pyarrow quotes every string, decimals too.
            frame = pl.DataFrame(pa.Table.from_batches([text]))
            return frame.write_csv(include_header=False).encode()
        lines = (orjson.dumps(row) for row in text.to_pylist())
        if self._form == "ndjson":
            return b"".join(line + b"\n" for line in lines)
        return (b"" if first else b",") + b",".join(lines)

    def end(self) -> bytes:
        if self._form == "json":
            return b"]," + orjson.dumps({**self._end, "count": self.count})[1:]
        if self._form == "arrow":
            self._writer.close()
            return self._sink.take()
        return b""


def _textual(batch: pa.RecordBatch) -> pa.RecordBatch:
    arrays = [
        plain(column) if pa.types.is_decimal(column.type) else column for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _flat(batch: pa.RecordBatch) -> pa.RecordBatch:
    arrays = [
        pa.array([orjson.dumps(value).decode() for value in column.to_pylist()], pa.string())
        if pa.types.is_list(column.type)
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


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
