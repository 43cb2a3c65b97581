"""What is known live of a partition's symbols at an assignment: as it is stored, or made anew."""

from __future__ import annotations

import logging

from k2.agents.lake import Lake
from k2.agents.lane import Lane
from k2.tables import symbols as table
from k2.tables.epochs import Stored
from k2.tables.segments import Symbols

from k2.app import App
from k2.lake.lives import gather
from k2.lake.offsets import Carried, Source
from k2.live import Live, stored_whole
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
    stored: Stored | None,
    states: Symbols,
    watermark: int,
    records: Carried,
) -> Live:
    """Return what is known live of a partition.

    Stored segments are gone on with where they say what the states of the sequence check say.
    Else the kind's table tells it, of all logs of the partition: a new one is often sent again what
    a former one held, and these records are duplicates then.

    Args:
        epoch: that the partition is about to write.
        stored: of the epoch before; None: it is not gone on with.
        states, watermark: of the sequence check, and where it goes on.
        records: what the kind's table carries.
    """
    former = stored.epoch if stored is not None else epoch

    def read(name: Name, copied: bool) -> bytes | None:
        return table.get(source, former if copied else epoch, name)

    ahead = any(state.offset >= watermark for state in states.values())
    if stored is not None and not ahead and stored_whole(stored.segments, watermark, bool(states)):
        return Live(lane.kind, watermark, read, stored.segments)
    offsets = {
        each: records.offsets[source] if each == source else _EVERY_OFFSET
        for each in records.offsets
        if (each.topic, each.partition) == (source.topic, source.partition)
    }
    what = (lane.sink.catalog, app.settings, lane.kind, offsets)
    piece = await lake.patiently(gather, *what)
    if piece.latest.num_rows:
        log.warning(
            "%s: what is known live of %d symbols is made from the %s table",
            source,
            piece.latest.num_rows,
            lane.kind.name,
        )
    return Live(lane.kind, offsets.get(source, watermark), read, None, piece)
