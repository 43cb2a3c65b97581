"""A digest of records in their order: the same for the same rows, however they were cut.

Of each kind each column has a hash of its own, of all values one behind the other, so that batches
of any size give the same; and so has the order in which the kinds follow each other. What the gap
ledger says is left out: an operator may accept a gap between two replays of one pin.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2.replay.records import FINDING, TYPES
from k2.schemas import COLUMNS

__all__ = ["Digest"]


class Digest:
    """Takes batches as they come; `text` of all so far."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys((*TYPES.values(), FINDING), 0))
        self._order = hashlib.sha256()
        self._columns = {(kind, name): _Column() for kind in TYPES for name in COLUMNS[kind]}

    def add(self, rows: pa.Table) -> None:
        """Take n >= 0 rows of a replay, in their order."""
        types = rows["type"].combine_chunks()
        order = np.zeros(rows.num_rows, np.uint8)
        for number, (kind, name) in enumerate(TYPES.items(), start=1):
            mine = pc.equal(types, name)
            count = pc.sum(mine).as_py() or 0
            self.counts[name] += count
            if not count:
                continue
            order[np.asarray(mine)] = number
            of = rows if count == rows.num_rows else rows.filter(mine)
            for column in COLUMNS[kind]:
                self._columns[kind, column].add(of[column])
        self.counts[FINDING] += int((order == 0).sum())
        self._order.update(order[order > 0].tobytes())

    @property
    def text(self) -> str:
        """`sha256:` and 64 hexadecimal digits."""
        whole = hashlib.sha256(self._order.digest())
        for column in self._columns.values():
            whole.update(column.digest())
        return f"sha256:{whole.hexdigest()}"


class _Column:
    """One column's values, and beside them which are null; of texts, how long each is."""

    def __init__(self) -> None:
        self._shape, self._values = hashlib.sha256(), hashlib.sha256()

    def add(self, column: pa.ChunkedArray) -> None:
        for chunk in column.chunks:
            full = chunk.drop_null()
            if pa.types.is_string(full.type):
                ends = _items(full, 1, 4, len(full) + 1)
                offsets = np.frombuffer(ends, "<i4")
                shape = np.full(len(chunk), -1, "<i4")
                shape[np.asarray(chunk.is_valid())] = np.diff(offsets)
                self._shape.update(shape.tobytes())
                if len(full) and offsets[-1] > offsets[0]:
                    self._values.update(memoryview(full.buffers()[2])[offsets[0] : offsets[-1]])
            else:
                self._shape.update(np.asarray(chunk.is_valid()).astype(np.uint8).tobytes())
                self._values.update(_items(full, 1, full.type.bit_width // 8, len(full)))

    def digest(self) -> bytes:
        return self._shape.digest() + self._values.digest()


def _items(array: pa.Array, buffer: int, width: int, count: int) -> memoryview:
    """The bytes of `count` items of a buffer, from where the array begins in it."""
    data = array.buffers()[buffer]
    if data is None:
        return memoryview(bytes(width * count))
    return memoryview(data)[array.offset * width : (array.offset + count) * width]
