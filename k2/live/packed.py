"""A segment: rows of one form as bytes, and the Kafka offset through which records are in them."""

from __future__ import annotations

from struct import Struct

import pyarrow as pa

from k2.live.forms import Form

__all__ = ["pack", "through", "unpack"]

_THROUGH = Struct("<q")
#: Of small columns: to wake threads for them costs more than they save.
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


def pack(rows: pa.Table, end: int) -> bytes:
    """Return rows, in which all records below offset `end` count, as they are stored."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=_OPTIONS) as writer:
        writer.write_table(rows)
    return _THROUGH.pack(end) + bytes(sink.getvalue())


def through(segment: bytes) -> int:
    """Return the offset below which all records count."""
    end: int = _THROUGH.unpack_from(segment)[0]
    return end


def unpack(form: Form, segment: bytes) -> pa.Table:
    """Return the rows.

    Raises:
        ValueError: the segment is not in this form.
    """
    try:
        with pa.ipc.open_stream(
            memoryview(segment)[_THROUGH.size :], options=_READ_OPTIONS
        ) as reader:
            rows = reader.read_all()
    except (pa.ArrowException, OSError) as exc:
        raise ValueError(f"no segment of live rows: {exc}") from exc
    if rows.schema != form.schema:
        raise ValueError(f"a segment of other columns: {rows.schema.names}")
    return rows
