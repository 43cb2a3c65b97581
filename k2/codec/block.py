"""Many records as one Avro block: read by Polars in one pass, then proven.

An uncompressed records section whose records have no headers is, byte for byte, the body of one
Avro block. So the sections of a fetch are read as one block, and every length and every integer
must have its one shortest encoding, and together they must fill the section.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from k2.codec.fields import FIELDS, read_fields, require, sizes
from k2.codec.framing import container
from k2.codec.layout import FRAME_BYTES
from k2.codec.raw import Raw, timestamps
from k2.schemas import Kind
from k2.transport.fetched import RecordBatch

__all__ = ["read_block"]

Ints = npt.NDArray[np.int64]

_RECORD_BYTES_MIN = 7  # length, attributes, two deltas, two lengths, header count


@cache
def _block_fields(kind: Kind, keyed: bool) -> list[dict[str, Any]]:
    # What must be zero is read as a long: 0 has one shortest encoding. The schema id is read
    # as a float, which is any four bytes. A null key is the length -1 alone.
    types = {
        "k__length": "long",
        "k__attributes": "long",
        "k__timestamp": "long",
        "k__offset": "long",
        "k__key": "bytes" if keyed else "long",
        "k__value": "long",
        "k__magic": "long",
        "k__schema": "float",
    }
    framing = [{"name": name, "type": each} for name, each in types.items()]
    return [*framing, *FIELDS[kind], {"name": "k__headers", "type": "long"}]


def read_block(
    kind: Kind, batches: Sequence[RecordBatch], schema_id: bytes, keyed: bool
) -> tuple[pa.Table, Raw]:
    """Read n records of one schema as one block and prove that nothing was misread.

    Returns:
        n rows of `kind.batch`, and where their keys and values lie.

    The proof: `ends`, summed from the lengths that were read, hits the end of every batch. Polars
    has used at least the shortest encoding of each number it returned, and a record's parts in
    their shortest encoding fill its length; were one encoding longer, Polars would have needed
    more bytes than there are. So, from the first record on, each field lies where it was read.

    Raises:
        FramingError, or what Polars raises: it cannot be proven.
    """
    body = b"".join(batch.body for batch in batches)
    counts = np.array([batch.count for batch in batches], np.int64)
    require(counts > 0)
    n = int(counts.sum())
    require(n * _RECORD_BYTES_MIN <= len(body))
    frame = pl.read_avro(io.BytesIO(container(_block_fields(kind, keyed), body, n)))
    require(frame.height == n)

    def ints(name: str) -> Ints:
        return frame[name].to_numpy()

    length, value = ints("k__length"), ints("k__value")
    require((length > 0) & (length <= len(body)) & (value >= FRAME_BYTES) & (value <= length))
    ends = np.cumsum(length + sizes(length))
    closing = np.cumsum(counts) - 1
    require(ends[closing] == np.cumsum([len(batch.body) for batch in batches]))
    for zero in ("k__attributes", "k__magic", "k__headers"):
        require(ints(zero) == 0)
    require(frame["k__schema"].to_numpy().view("V4") == np.void(schema_id))

    delta = ints("k__offset")
    opening = closing - counts + 1
    rising = np.diff(delta) > 0
    rising[opening[1:] - 1] = True
    require(rising)
    require(delta[opening] >= 0)
    require(delta[closing] <= [batch.last_offset_delta for batch in batches])

    timestamp = ints("k__timestamp")
    if keyed:
        key = frame["k__key"].bin.size().cast(pl.Int64).to_numpy()
        head: Any = sizes(key)
    else:
        require(ints("k__key") == -1)
        key, head = np.zeros(n, np.int64), 1
    # One byte of attributes before, one of the header count behind.
    require(length == 2 + sizes(timestamp) + sizes(delta) + head + key + sizes(value) + value)

    columns = read_fields(kind, frame, body, ends - 1 - value + FRAME_BYTES, ends - 1)
    base = np.array([batch.base_offset for batch in batches], np.int64)
    columns.append(pa.array(np.repeat(base, counts) + delta))
    value_at = ends - 1 - value
    key_end = value_at - sizes(value)
    raw = Raw(
        body,
        timestamps(batches, counts, timestamp),
        key_end - key if keyed else np.full(n, -1),
        key_end,
        value_at,
        ends - 1,
    )
    return pa.Table.from_arrays(columns, schema=kind.batch), raw
