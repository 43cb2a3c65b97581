"""A segment: rows of one form as bytes, and the Kafka offset through which records are in them.

Whole numbers are stored byte by byte: first the lowest byte of all rows, then the next one. Most of
the higher bytes are zero, and more are where a number is written as its distance from its
neighbour: so half of the bytes are left of what LZ4 makes of the plain columns, in less time.
"""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa

from k2.live.forms import Form

__all__ = ["pack", "through", "unpack"]

#: Offset, bytes of the whole numbers as they are stored; these, and an Arrow stream of all else.
_HEAD = struct.Struct("<qq")
_LZ4 = pa.Codec("lz4")
#: Of small columns: to wake threads for them costs more than they save.
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)
#: Column -> that from which its distance is stored. In the order in which they are read again.
_FROM = {
    "first_ts": "start",
    "last_ts": "first_ts",
    "last_sequence": "first_sequence",
    "last_offset": "first_offset",
    "high": "open",
    "low": "open",
    "close": "open",
}


def pack(rows: pa.Table, end: int) -> bytes:
    """Return rows, in which all records below offset `end` count, as they are stored."""
    rows = rows.combine_chunks()
    numbers = _numbers(rows.schema)
    matrix = np.empty((len(numbers), rows.num_rows), np.int64)
    for own, name in enumerate(numbers):
        np.copyto(matrix[own], rows.column(name).to_numpy())
    for own, of in reversed(_distances(numbers)):
        matrix[own] -= matrix[of]  # what overflows comes back by the sum
    planes = matrix.view(np.uint8).reshape(*matrix.shape, 8).transpose(0, 2, 1)
    stored = _LZ4.compress(np.ascontiguousarray(planes).reshape(-1)).to_pybytes()
    sink = pa.BufferOutputStream()
    others = rows.select(_others(rows.schema))
    with pa.ipc.new_stream(sink, _schema(rows.schema), options=_OPTIONS) as writer:
        writer.write_table(others)
    return b"".join((_HEAD.pack(end, len(stored)), stored, sink.getvalue()))


def through(segment: bytes) -> int:
    """Return the offset below which all records count."""
    end: int = _HEAD.unpack_from(segment)[0]
    return end


def unpack(form: Form, segment: bytes) -> pa.Table:
    """Return the rows.

    Raises:
        ValueError: the segment is not in this form.
    """
    numbers, others = _numbers(form.schema), _others(form.schema)
    try:
        _, nbytes = _HEAD.unpack_from(segment)
        stored = memoryview(segment)[_HEAD.size :]
        with pa.ipc.open_stream(stored[nbytes:], options=_READ_OPTIONS) as reader:
            read = reader.read_all()
        if not read.schema.equals(_schema(form.schema), check_metadata=True):
            raise ValueError(f"a segment of other columns: {read.schema.names}")
        raw = _LZ4.decompress(stored[:nbytes], 8 * len(numbers) * read.num_rows)
    except (pa.ArrowException, OSError, struct.error) as exc:
        raise ValueError(f"no segment of live rows: {exc}") from exc
    planes = np.frombuffer(raw, np.uint8).reshape(len(numbers), 8, read.num_rows)
    matrix = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(np.int64)[..., 0]
    for own, of in _distances(numbers):
        matrix[own] += matrix[of]
    columns = dict(zip(others, read.columns, strict=True))
    columns |= {name: pa.array(matrix[own]) for own, name in enumerate(numbers)}
    return pa.table([columns[name] for name in form.schema.names], schema=form.schema)


def _numbers(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if field.type == pa.int64()]


def _others(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if field.type != pa.int64()]


def _schema(schema: pa.Schema) -> pa.Schema:
    """Of the Arrow stream; it says which whole numbers there are."""
    others = [schema.field(name) for name in _others(schema)]
    return pa.schema(others, {"numbers": ",".join(_numbers(schema))})


def _distances(numbers: list[str]) -> list[tuple[int, int]]:
    place = {name: own for own, name in enumerate(numbers)}
    return [(place[a], place[b]) for a, b in _FROM.items() if a in place and b in place]
