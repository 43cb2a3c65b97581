"""Records to Confluent-framed Avro values, a column at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2.codec.framing import varint_sizes, zigzag
from k2.codec.layout import DECIMAL, ENUM, FRAME_BYTES, LAYOUTS, OPTIONAL, OPTIONAL_DECIMAL
from k2.errors import SchemaMismatch
from k2.schemas import SIDES, Kind

__all__ = ["encode"]

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
#: Which rows are null; None: the field is never null.
Nulls = npt.NDArray[np.bool_] | None

_SIDES = pa.array(SIDES)


def encode(kind: Kind, table: pa.Table, schema_id: int) -> tuple[Bytes, Ints]:
    """Encode records as Confluent-framed values, as fastavro would byte for byte.

    Args:
        table: n rows with the columns of the kind, and perhaps more.
        schema_id: of `kind.avro`, unsigned 32 bits.

    Returns:
        One buffer, and n + 1 offsets: value i is buffer[offsets[i]:offsets[i + 1]].

    Raises:
        SchemaMismatch: a column is missing, of another type, or null where it must not be.
    """
    n = table.num_rows
    frame = np.frombuffer(b"\0" + schema_id.to_bytes(4, "big"), np.uint8)
    if n == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    parts: list[_Part] = [_Part(np.tile(frame, (n, 1)), np.full(n, FRAME_BYTES, np.int64))]
    for (_, word), field in zip(LAYOUTS[kind], kind.columns, strict=True):
        parts += _encode_column(field, word, table)
    sizes = parts[0].sizes.copy()
    for part in parts[1:]:
        sizes += part.sizes
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    out = np.empty(int(offsets[-1]), np.uint8)
    at = offsets[:-1].copy()
    for part in parts:
        part.write(out, at)
        at += part.sizes
    return out, offsets


class _Part:
    """n pieces of bytes: piece i is the first sizes[i] of matrix[i], or text from start[i]."""

    def __init__(self, data: Bytes, sizes: Ints, start: Ints | None = None) -> None:
        self.data, self.sizes, self.start = data, sizes, start

    def write(self, out: Bytes, at: Ints) -> None:
        if self.start is not None:
            # Text of any length: a position for each byte, from where its piece begins.
            total = int(self.sizes.sum())
            before = np.cumsum(self.sizes) - self.sizes
            step = np.arange(total)
            out[np.repeat(at - before, self.sizes) + step] = self.data[
                np.repeat(self.start - before, self.sizes) + step
            ]
            return
        everywhere = int(self.sizes.min())
        for j in range(self.data.shape[1]):
            if j < everywhere:
                out[at + j] = self.data[:, j]
            else:
                rows = np.flatnonzero(self.sizes > j)
                out[at[rows] + j] = self.data[rows, j]


def _encode_column(want: pa.Field, word: str, table: pa.Table) -> list[_Part]:
    name = want.name
    if name not in table.column_names or table.schema.field(name).type != want.type:
        raise SchemaMismatch(f"encode: column {name} must be {want.type}")
    array = pa.concat_arrays(table.column(name).chunks)
    if array.null_count and not want.nullable:
        raise SchemaMismatch(f"encode: column {name} has {array.null_count} nulls")
    if word == "long":
        return [_varints(array.to_numpy())]
    if word == ENUM:
        index = pc.index_in(array, _SIDES)
        if index.null_count:
            raise SchemaMismatch(f"encode: column {name} has values other than {', '.join(SIDES)}")
        return [_varints(index.to_numpy().astype(np.int64))]
    null = array.is_null().to_numpy(zero_copy_only=False) if want.nullable else None
    if word in (DECIMAL, OPTIONAL_DECIMAL):
        wide = np.frombuffer(array.buffers()[1], np.int64).reshape(-1, 2)
        return _encode_decimals(wide[array.offset : array.offset + len(array), 0], null)
    assert word in ("string", OPTIONAL), word
    return _encode_text(array, null)


def _varints(numbers: Ints) -> _Part:
    raw = zigzag(numbers)
    sizes = np.broadcast_to(varint_sizes(raw), raw.shape).astype(np.int64)
    width = int(sizes.max())
    matrix = np.empty((width, len(raw)), np.uint8)
    for j in range(width):
        matrix[j] = (raw >> np.uint64(7 * j)).astype(np.uint8) & 0x7F
        matrix[j] |= (sizes > j + 1).astype(np.uint8) << 7
    return _Part(matrix.T, sizes)


def _encode_decimals(numbers: Ints, null: Nulls) -> list[_Part]:
    # A byte more than needed for -128 and its like, as fastavro has it.
    sizes = np.ones(len(numbers), np.int64)
    for k in range(1, 8):
        sizes += np.abs(numbers) >= 1 << (8 * k - 1)
    left = numbers << (64 - 8 * sizes)
    matrix = left.astype(">i8").view(np.uint8).reshape(-1, 8)
    if null is not None:
        sizes = np.where(null, 0, sizes)
    return [_lengths(sizes, null), _Part(matrix, sizes)]


def _encode_text(array: Any, null: Nulls) -> list[_Part]:
    bounds = np.frombuffer(array.buffers()[1], np.int32)
    bounds = bounds[array.offset : array.offset + len(array) + 1].astype(np.int64)
    sizes = np.diff(bounds)
    if null is not None:
        sizes = np.where(null, 0, sizes)
    text = array.buffers()[2]
    data = np.frombuffer(text, np.uint8) if text is not None else np.empty(0, np.uint8)
    return [_lengths(sizes, null), _Part(data, sizes, bounds[:-1].astype(np.int64))]


def _lengths(sizes: Ints, null: Nulls) -> _Part:
    """What stands before each value: its length, and in a union with null the branch before it."""
    lengths = _varints(sizes)
    if null is None:
        return lengths
    branch = np.where(null, 0, 2).astype(np.uint8)
    return _Part(np.column_stack((branch, lengths.data)), np.where(null, 1, 1 + lengths.sizes))
