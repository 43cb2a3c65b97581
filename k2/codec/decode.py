"""Values of a fetch to rows, without Python per row; on any doubt record by record.

`block` reads all record batches of a fetch at once and proves that nothing was misread. Where that
fails, each batch is tried by itself, and one that fails again is read record by record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2 import metrics
from k2.codec.block import read_block
from k2.codec.fields import attempt
from k2.codec.framing import first_record
from k2.codec.layout import FRAME_BYTES
from k2.codec.raw import Raw
from k2.codec.records import Ask, RecordReader, Reject, is_ours
from k2.schemas import Kind
from k2.transport.fetched import Fetched, RecordBatch

__all__ = ["Decoded", "Decoder", "WriterSchemas"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Rows (`Kind.batch`) and rejects of one fetch, both in offset order."""

    rows: pa.Table
    rejects: list[Reject]
    _raw: tuple[Raw, ...]
    _skipped: int  # rows of the first Raw that stand before `rows`

    def raw(self, rows: Ints) -> pa.Table:
        """Return the records behind these ascending row numbers as they came, schema RAW."""
        tables, below = [], -self._skipped
        for raw in self._raw:
            above = below + len(raw.key_at)
            own = rows[(rows >= below) & (rows < above)] - below
            tables.append(raw.take(own))
            below = above
        return pa.concat_tables(tables)


class WriterSchemas(Protocol):
    """Where the schemas that values were written with come from."""

    def get(self, schema_id: int) -> dict[str, Any] | None:
        """Return the schema; None: the id is unknown. Raises RegistryUnavailable."""


class Decoder:
    """Decodes fetches of one kind; may be used from several threads at once."""

    def __init__(self, kind: Kind, schemas: WriterSchemas) -> None:
        self._kind, self._schemas = kind, schemas
        self._singly = RecordReader(kind)

    def decode(self, fetched: Fetched) -> Decoded:
        """Decode every record with an offset of at least `fetched.first_offset`.

        Raises:
            RegistryUnavailable: a schema id is not cached and the registry does not answer.
        """
        rejects: list[Reject] = []
        # A registry is asked once a fetch for an id, be it unknown, however many records name it.
        ask = cache(self._schemas.get)
        with metrics.decode_seconds.time():
            whole = _block(self._kind, fetched.batches, ask)
            parts = [whole] if whole is not None else []
            for batch in fetched.batches if whole is None else ():
                part = _block(self._kind, (batch,), ask) if len(fetched.batches) > 1 else None
                if part is None:
                    metrics.decoded_batches_total.labels(path="records").inc()
                    table, raw, refused = self._singly.read(batch, fetched.first_offset, ask)
                    part = table, raw
                    rejects += refused
                parts.append(part)
        empty = self._kind.batch.empty_table()
        rows = pa.concat_tables([empty, *(table for table, _ in parts)])
        offsets = rows.column("kafka_offset").to_numpy()
        skipped = int(np.searchsorted(offsets, fetched.first_offset))
        return Decoded(rows.slice(skipped), rejects, tuple(raw for _, raw in parts), skipped)


def _block(kind: Kind, batches: Sequence[RecordBatch], ask: Ask) -> tuple[pa.Table, Raw] | None:
    """Read whole batches as one block; None: that cannot be proven right."""
    if not batches or any(batch.problem for batch in batches):
        return None
    first = first_record(batches[0].body)
    if first is None or first.value is None:
        return None
    frame = bytes(batches[0].body[first.value])[:FRAME_BYTES]
    if not is_ours(kind, frame, ask):
        return None
    block = attempt(read_block, kind, batches, frame[1:], first.key is not None)
    if block is not None:
        metrics.decoded_batches_total.labels(path="block").inc(len(batches))
    return block
