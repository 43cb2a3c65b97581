"""Many records as one Avro block: read by Polars in one pass, then proven.

An uncompressed records section whose records have no headers is, byte for byte, the body of one
Avro block. So the sections of a fetch are read as one block, and every length and every integer
must have its one shortest encoding, and together they must fill the section.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from k2.codec.framing import FramingError, container, varint_sizes, zigzag
from k2.codec.layout import DECIMAL, ENUM, FRAME_BYTES, LAYOUT, OPTIONAL
from k2.codec.raw import Raw
from k2.records import PRICE_PRECISION, PRICE_SCALE
from k2.schemas import SIDES, TRADE_BATCH
from k2.transport.fetched import RecordBatch

__all__ = ["read_block"]

Ints = npt.NDArray[np.int64]

_RECORD_BYTES_MIN = 7  # length, attributes, two deltas, two lengths, header count
_LIMIT = 10**PRICE_PRECISION
_SIDES = pa.array(SIDES)
_READ_AS = {DECIMAL: "bytes", ENUM: "long", OPTIONAL: ["null", "string"]}


def _block_fields(keyed: bool) -> list[dict[str, Any]]:
    # What must be zero is read as a long: 0 has one shortest encoding. The schema id is read
    # as a float, which is any four bytes. A null key is the length -1 alone.
    kinds: list[tuple[str, Any]] = [
        ("k.length", "long"),
        ("k.attributes", "long"),
        ("k.timestamp", "long"),
        ("k.offset", "long"),
        ("k.key", "bytes" if keyed else "long"),
        ("k.value", "long"),
        ("k.magic", "long"),
        ("k.schema", "float"),
        *((name, _READ_AS.get(kind, kind)) for name, kind in LAYOUT),
        ("k.headers", "long"),
    ]
    return [{"name": name.replace(".", "__"), "type": kind} for name, kind in kinds]


_FIELDS = {keyed: _block_fields(keyed) for keyed in (True, False)}


def _require(holds: Any) -> None:
    if not np.all(holds):
        raise FramingError


def _sizes(numbers: Ints) -> Ints | np.int64:
    sizes = varint_sizes(zigzag(numbers))
    # A varint of 10 bytes has bits to spare, which Polars drops: it is not the only encoding.
    _require(sizes < 10)
    return sizes


def read_block(
    batches: Sequence[RecordBatch], schema_id: bytes, keyed: bool
) -> tuple[pa.Table, Raw]:
    """Read n records of one schema as one block and prove that nothing was misread.

    Returns:
        n rows of TRADE_BATCH, and where their keys and values lie.

    The proof: `ends`, summed from the lengths that were read, hits the end of every batch. Polars
    has used at least the shortest encoding of each number it returned, and a record's parts in
    their shortest encoding fill its length; were one encoding longer, Polars would have needed
    more bytes than there are. So, from the first record on, each field lies where it was read.

    Raises:
        FramingError, or what Polars raises: it cannot be proven.
    """
    body = b"".join(batch.body for batch in batches)
    counts = np.array([batch.count for batch in batches], np.int64)
    _require(counts > 0)
    n = int(counts.sum())
    _require(n * _RECORD_BYTES_MIN <= len(body))
    frame = pl.read_avro(io.BytesIO(container(_FIELDS[keyed], body, n)))
    _require(frame.height == n)
    data = np.frombuffer(body, np.uint8)

    def ints(name: str) -> Ints:
        return frame[name].to_numpy()

    length, value = ints("k__length"), ints("k__value")
    _require((length > 0) & (length <= len(body)) & (value >= FRAME_BYTES) & (value <= length))
    ends = np.cumsum(length + _sizes(length))
    closing = np.cumsum(counts) - 1
    _require(ends[closing] == np.cumsum([len(batch.body) for batch in batches]))
    for zero in ("k__attributes", "k__magic", "k__headers"):
        _require(ints(zero) == 0)
    _require(frame["k__schema"].to_numpy().view("V4") == np.void(schema_id))

    delta = ints("k__offset")
    opening = closing - counts + 1
    rising = np.diff(delta) > 0
    rising[opening[1:] - 1] = True
    _require(rising)
    _require(delta[opening] >= 0)
    _require(delta[closing] <= [batch.last_offset_delta for batch in batches])

    timestamp = ints("k__timestamp")
    if keyed:
        key = frame["k__key"].bin.size().cast(pl.Int64).to_numpy()
        head: Any = _sizes(key)
    else:
        _require(ints("k__key") == -1)
        key, head = np.zeros(n, np.int64), 1
    # One byte of attributes before, one of the header count behind.
    _require(length == 2 + _sizes(timestamp) + _sizes(delta) + head + key + _sizes(value) + value)

    at = ends - 1 - value + FRAME_BYTES
    columns: list[Any] = []
    branches: list[tuple[Any, Any]] = []
    decimals: list[tuple[int, Any, Any]] = []
    for name, kind in LAYOUT:
        series = frame[name]
        if kind in ("long", ENUM):
            numbers = series.to_numpy()
            at = at + _sizes(numbers)
            columns.append(_sides(numbers) if kind == ENUM else pa.array(numbers))
        elif kind == DECIMAL:
            width = series.bin.size().cast(pl.Int64).to_numpy()
            _require((width > 0) & (width <= 8))
            at = at + 1 + width
            decimals.append((len(columns), at, width))
            columns.append(None)
        else:
            size = series.str.len_bytes().cast(pl.Int64)
            if kind == OPTIONAL:
                null = series.is_null().to_numpy()
                branches.append((at, null))
                size = size.fill_null(0)
                # The branch, then for a string its length too.
                text = size.to_numpy()
                at = at + 1 + np.where(null, 0, _sizes(text) + text)
            else:
                text = size.to_numpy()
                at = at + _sizes(text) + text
            columns.append(series.to_arrow(compat_level=pl.CompatLevel.newest()).cast(pa.string()))
    _require(at == ends - 1)

    # From here on the positions are proven, and may be read. Polars takes any branch but 0 for
    # a string.
    for branch_at, null in branches:
        _require(data[branch_at] == np.where(null, 0, 2))
    words = np.ndarray((len(body) - 7,), "V8", body, strides=(1,))
    for i, end, width in decimals:
        columns[i] = _decimals(words[end - 8], width)
    base = np.array([batch.base_offset for batch in batches], np.int64)
    columns.append(pa.array(np.repeat(base, counts) + delta))
    value_at = ends - 1 - value
    key_end = value_at - _sizes(value)
    raw = Raw(
        body,
        _timestamps(batches, counts, timestamp),
        key_end - key if keyed else np.full(n, -1),
        key_end,
        value_at,
        ends - 1,
    )
    return pa.Table.from_arrays(columns, schema=TRADE_BATCH), raw


def _timestamps(batches: Sequence[RecordBatch], counts: Ints, delta: Ints) -> Ints:
    appended = np.repeat([batch.log_append_time for batch in batches], counts)
    newest = np.repeat([batch.max_timestamp for batch in batches], counts)
    oldest = np.repeat([batch.first_timestamp for batch in batches], counts)
    return np.where(appended, newest, oldest + delta)


def _sides(index: Ints) -> Any:
    _require((index >= 0) & (index < len(SIDES)))
    return _SIDES.take(pa.array(index))


def _decimals(words: Any, width: Ints) -> Any:
    """(n,) words of eight bytes, whose last `width` are a big-endian number, to decimals."""
    shift = 64 - 8 * width
    numbers = (words.view(">i8").astype(np.int64) << shift) >> shift
    _require((numbers < _LIMIT) & (numbers > -_LIMIT))
    wide = np.empty((len(numbers), 2), np.int64)
    wide[:, 0] = numbers
    np.right_shift(numbers, 63, out=wide[:, 1])
    amount = pa.decimal128(PRICE_PRECISION, PRICE_SCALE)
    return pa.Array.from_buffers(amount, len(numbers), [None, pa.py_buffer(wide)])
