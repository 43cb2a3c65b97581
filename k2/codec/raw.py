"""Where the keys and values of records lie in their section, to be given out as they came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.transport.fetched import RecordBatch

__all__ = ["RAW", "Raw", "in_range", "timestamps"]

Ints = npt.NDArray[np.int64]

#: A record as it is in Kafka; `timestamp_ms` since the epoch.
RAW = pa.schema(
    [
        pa.field("timestamp_ms", pa.int64(), nullable=False),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
    ]
)

#: Years 1970 to 9999: what every reader of a timestamp can hold. Kafka writes -1 for none.
_TIMESTAMP_MS_MAX = 253_402_300_799_999


def in_range(timestamps_ms: Ints) -> Ints:
    """Broken timestamps, moved into the years 1970..9999."""
    return np.clip(timestamps_ms, 0, _TIMESTAMP_MS_MAX)


def timestamps(batches: Sequence[RecordBatch], counts: Ints, deltas: Ints) -> Ints:
    """Milliseconds since the epoch of n records, `counts` of each batch."""
    appended = np.repeat([batch.log_append_time for batch in batches], counts)
    newest = np.repeat([batch.max_timestamp for batch in batches], counts)
    oldest = np.repeat([batch.first_timestamp for batch in batches], counts)
    return np.where(appended, newest, oldest + deltas)


@dataclass(frozen=True, slots=True)
class Raw:
    """n records in the order of their bytes; arrays of n positions in `body`.

    A key or value that starts at -1 is null.
    """

    body: bytes
    timestamps_ms: Ints
    key_at: Ints
    key_end: Ints
    value_at: Ints
    value_end: Ints

    def take(self, rows: Ints) -> pa.Table:
        """The records of these ascending row numbers, schema RAW."""
        keys = _pieces(self.body, self.key_at[rows], self.key_end[rows])
        values = _pieces(self.body, self.value_at[rows], self.value_end[rows])
        times = pa.array(in_range(self.timestamps_ms[rows]))
        return pa.Table.from_arrays([times, keys, values], schema=RAW)


def _pieces(body: bytes, at: Ints, end: Ints) -> pa.Array:
    """n spans of `body`, ascending and apart, as binary values; a negative `at` is null."""
    pieces = pa.nulls(len(at), pa.large_binary())
    some = at >= 0
    if some.any():
        # As an array whose every other value is what lies between two spans: nothing is copied
        # before `take`.
        bounds = np.column_stack((at[some], end[some])).ravel()
        n = len(bounds) - 1
        spans = pa.Array.from_buffers(
            pa.large_binary(), n, [None, pa.py_buffer(bounds), pa.py_buffer(body)]
        )
        place = np.cumsum(some) * 2 - 2
        pieces = spans.take(pa.array(place, mask=~some))
    return pieces.cast(pa.binary())
