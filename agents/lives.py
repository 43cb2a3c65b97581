"""What is known live of a partition's symbols at an assignment: as it is stored, or made anew."""

from __future__ import annotations

import logging

from k2.agents.lake import Lake
from k2.agents.lane import Lane
from k2.tables import symbols as table
from k2.tables.epochs import Stored

from k2.app import App
from k2.lake.lives import gather, gather_newest
from k2.lake.offsets import Carried, Source
from k2.live import Live, stored
from k2.live.segments import Name

__all__ = ["resume"]

log = logging.getLogger(__name__)

_EVERY_OFFSET = 1 << 62


async def resume(
    app: App,
    lake: Lake,
    lane: Lane,
    source: Source,
    epoch: str,
    before: Stored | None,
    watermark: int,
    records: Carried,
) -> Live:
    """Return what is known live of a partition.

    Stored segments are gone on with from their own mark, which is some seconds old: what the
    kind's table has behind it is read there, by its offsets. Where nothing is stored the table
    tells all of it, of all logs of the partition: a new one is often sent again what a former one
    held, and these records are duplicates then.

    Args:
        epoch: that the partition is about to write.
        before: the epoch before; None: it is not gone on with.
        watermark: where the sequence check goes on.
        records: what the kind's table carries.
    """
    former = before.epoch if before is not None else epoch

    def read(name: Name, copied: bool) -> bytes | None:
        return table.get(source, former if copied else epoch, name)

    what = (lane.sink.catalog, app.settings, lane.kind)
    end = records.offsets.get(source, watermark)
    segments = stored(before.segments) if before is not None else None
    if segments is not None and segments.end <= end:
        since = {source: (segments.end, end)}
        piece = await lake.patiently(gather, *what, since) if segments.end < end else None
        return Live(lane.kind, end, read, segments, piece)
    logs = {
        each: (0, end if each == source else _EVERY_OFFSET)
        for each in records.offsets
        if (each.topic, each.partition) == (source.topic, source.partition)
    }
    piece = await lake.patiently(gather_newest, *what, logs)
    if piece.latest.num_rows:
        log.warning(
            "%s: what is known live of %d symbols is made from the %s table",
            source,
            piece.latest.num_rows,
            lane.kind.name,
        )
    return Live(lane.kind, end, read, None, piece)
