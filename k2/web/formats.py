"""Answer formats: each turns a stream of Arrow batches into a stream of bytes.

Decimals leave exactly: as strings without trailing zeros in JSON and NDJSON (a JSON number is a
double in most clients), plain in CSV, as decimal128 in Arrow. Times are integers of ns everywhere.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from k2.errors import BadQuery

__all__ = ["MEDIA_TYPES", "Encoder", "choose", "plain"]

MEDIA_TYPES = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv",
    "arrow": "application/vnd.apache.arrow.stream",
}
_BY_TYPE = {media: name for name, media in MEDIA_TYPES.items()} | {
    "*/*": "json",
    "application/*": "json",
    "text/*": "csv",
    "application/jsonl": "ndjson",
}


def choose(wanted: str | None, accept: str) -> str | None:
    """The format of `format=`, else the best of the Accept header; None if nothing fits it.

    Raises:
        BadQuery: `format` is not one of them.
    """
    if wanted is not None:
        if wanted not in MEDIA_TYPES:
            raise BadQuery("format", f"{wanted!r} is not one of {', '.join(MEDIA_TYPES)}")
        return wanted
    if not accept.strip():
        return "json"
    ranked = sorted((_weigh(part) for part in accept.split(",")), key=lambda pair: -pair[1])
    return next((_BY_TYPE[media] for media, q in ranked if q > 0 and media in _BY_TYPE), None)


def _weigh(part: str) -> tuple[str, float]:
    media, *rest = (piece.strip().lower() for piece in part.split(";"))
    weight = next((piece[2:] for piece in rest if piece.startswith("q=")), "1")
    try:
        return media, float(weight)
    except ValueError:
        return media, 0.0


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
    """One answer in one format: `begin`, `rows` for each batch, `end`. Not thread safe."""

    def __init__(
        self, form: str, schema: pa.Schema, snapshot_id: int | None, truncated: bool
    ) -> None:
        self.media_type = MEDIA_TYPES[form]
        self.count = 0
        self._form = form
        self._schema = schema
        self._end = {"snapshot_id": snapshot_id, "truncated": truncated}
        self._sink = _Sink()
        self._writer: Any = None

    def begin(self) -> bytes:
        if self._form == "json":
            return b'{"data":['
        if self._form == "arrow":
            self._writer = pa.ipc.new_stream(self._sink, self._schema)
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
