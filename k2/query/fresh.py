"""Rows that are not committed yet: chosen from a worker's buffer, sent, joined with a snapshot.

A part is what one worker has of one source: all offsets from `first`, which it knows to be
committed, up to `following`, which it has not yet checked. Whoever asks gathers the parts before it
loads the table. So the snapshot's next offset N is `first` at least, unless the table was read from
something stale; rows from N on are added, those below are in the snapshot. Each source is then
exact up to the greater of N and `following`: no row twice, none missing in between.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2.errors import SchemaMismatch
from k2.lake.offsets import Source
from k2.query.room import Room
from k2.query.span import Span
from k2.schemas import GAPS, Kind

__all__ = ["Fresh", "Held", "Part", "choose", "decode", "encode"]

_PARTS = b"k2.parts"


class Held(NamedTuple):
    """What a worker's buffer holds of a source; as in `Part`, with the rows as they came."""

    source: Source
    first: int | None
    following: int
    through: int
    tables: Sequence[pa.Table]


@dataclass(frozen=True, slots=True)
class Part:
    """A source's rows of [first, following), ascending by offset; more below `first` do no harm."""

    source: Source
    first: int | None  # of its table, when the rows were looked at; None: nothing was committed
    following: int
    through: int  # ns: all that Kafka had before is below `following`; 0: not known
    rows: pa.Table  # of `kind.table`


@dataclass(frozen=True, slots=True)
class Fresh:
    """What the owners of all partitions of a kind have in hand: the chosen rows, all findings."""

    parts: Sequence[Part]
    gaps: pa.Table  # of GAPS; a row may be committed meanwhile

    def with_(self, parts: Sequence[Part], gaps: pa.Table) -> Fresh:
        """These and others."""
        return Fresh([*self.parts, *parts], pa.concat_tables([self.gaps, gaps]))

    def stale(self, offsets: Mapping[Source, int]) -> str | None:
        """Why these parts do not go on where a snapshot of these next offsets ends; None: they do.

        A worker commits before it tells of it: such a snapshot is an older one than it has seen.
        """
        for part in self.parts:
            found = offsets.get(part.source)
            if part.first is not None and (found is None or found < part.first):
                return f"{part.source}: read up to {found}, but committed up to {part.first}"
        return None

    def beyond(self, offsets: Mapping[Source, int], kind: Kind) -> pa.Table:
        """The rows that a snapshot of these next offsets does not have."""
        pieces = [_from(part.rows, offsets.get(part.source)) for part in self.parts]
        return pa.concat_tables([kind.table.empty_table(), *pieces])

    def through(self, times: Mapping[Source, int | None]) -> dict[Source, int | None]:
        """Through which times, ns, such a snapshot and the rows beyond it are valid together."""
        return {
            part.source: max(times.get(part.source) or 0, part.through) or None
            for part in self.parts
        }

    def bounds(self, offsets: Mapping[Source, int]) -> dict[Source, int]:
        """Next offsets of such a snapshot and the rows beyond it together."""
        reached = {part.source: part.following for part in self.parts}
        return {
            source: max(offsets.get(source, 0), reached.get(source, 0))
            for source in {**offsets, **reached}
        }


def _from(rows: pa.Table, offset: int | None) -> pa.Table:
    if offset is None:
        return rows
    at = int(np.searchsorted(rows["kafka_offset"].to_numpy(), offset))
    return rows.slice(at) if at else rows


def choose(
    kind: Kind,
    held: Iterable[Held],
    gaps: Sequence[pa.Table],
    span: Span,
    room: Room,
    after: Mapping[Source, int] | None = None,
) -> Fresh:
    """Choose rows from a buffer; in a thread, since a buffer may have a million of them.

    Args:
        gaps: all findings in the buffer.
        after: next offsets of what the asker has already; a part then has no rows below.

    Raises:
        QueryTooLarge: the chosen rows and findings take more than there is `room` for.
    """
    parts = []
    for source, first, following, through, tables in held:
        since = max(first or 0, (after or {}).get(source, 0))
        new = [t for t in tables if t.num_rows and t["kafka_offset"][-1].as_py() >= since]
        rows = span.of(_from(pa.concat_tables([kind.table.empty_table(), *new]), since))
        room.take(rows.nbytes)
        parts.append(Part(source, first, following, through, rows))
    topics = pa.array(sorted({part.source.topic for part in parts}), pa.string())
    found = [GAPS.empty_table()]
    for rows in gaps:
        found.append(rows.filter(pc.is_in(rows["kafka_topic"], topics)))
        room.take(found[-1].nbytes)
    return Fresh(parts, pa.concat_tables(found))


def encode(fresh: Fresh, kind: Kind) -> bytes:
    """Two Arrow streams, one behind the other: rows, with the parts as metadata, and findings."""
    told = [[*p.source, p.first, p.following, p.through, p.rows.num_rows] for p in fresh.parts]
    schema = kind.table.with_metadata({_PARTS: json.dumps(told)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        for part in fresh.parts:
            stream.write_table(part.rows)
    with pa.ipc.new_stream(sink, GAPS) as stream:
        stream.write_table(fresh.gaps)
    return bytes(sink.getvalue())


def decode(body: bytes | bytearray, kind: Kind) -> Fresh:
    """Read what `encode` wrote; the rows lie in `body`.

    Raises:
        SchemaMismatch: it is nothing of the kind: another release, or no worker of K2.
    """
    try:
        reader = pa.BufferReader(body)
        rows = pa.ipc.open_stream(reader).read_all()
        gaps = pa.ipc.open_stream(reader).read_all()
        told = json.loads((rows.schema.metadata or {})[_PARTS])
        rows = rows.replace_schema_metadata(None)
        parts, at = [], 0
        for cluster, topic, partition, first, following, through, count in told:
            source = Source(cluster, topic, partition)
            parts.append(Part(source, first, following, through, rows.slice(at, count)))
            at += count
    except (pa.ArrowInvalid, KeyError, ValueError, TypeError) as exc:
        raise SchemaMismatch(f"rows of another worker: {exc!r}") from exc
    if at != rows.num_rows or rows.schema != kind.table or gaps.schema != GAPS:
        raise SchemaMismatch(f"rows of another worker: not those of {kind.name}, or not all")
    return Fresh(parts, gaps)
