"""What a worker needs to know of a partition that it is assigned: where to go on, and with what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from faust.types import TP
from k2.agents.backlog import Backlog
from k2.agents.lake import Lake
from k2.agents.lane import Lane
from k2.agents.lives import resume
from k2.agents.reach import remedy, require_end, require_known
from k2.tables import symbols as table
from k2.tables.epochs import epoch_after, read_states, unfit
from k2.tables.segments import Name, Segments, Symbols

from k2.app import App
from k2.errors import LogTruncated
from k2.lake.commit import Sink
from k2.lake.offsets import Move, Source, together
from k2.lake.states import inherit, rebuild
from k2.live import Live
from k2.sequence import Rules
from k2.topics import topic_ids

__all__ = ["Assignment", "Partition"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Partition:
    """A partition that this worker owns."""

    source: Source
    lane: Lane
    next_offset: int  # of the next fetch
    accepted: int  # everything below is in the tables or in the buffer
    log_end: int  # when it was assigned: whoever had it before has read no further
    records_at: int | None  # the kind's table holds everything below; None: it never had any
    rejects_at: int | None  # the rejects table holds everything below; None: it never had any
    gaps_at: int | None  # so does the gap ledger's; both lag where they had nothing to write
    sequences: Segments
    live: Live
    epoch: str  # of the checkpointed state: this assignment's own
    topic_id: str | None  # the broker's, for the tables to carry; None: it names none
    through: int = 0  # ns: all that Kafka had before is below `accepted`; 0: not known
    seek: int = 0  # the reader's newest move: what was fetched under another number is ignored
    fetches: int = 0  # that were taken since
    told: int = 0  # what the ledger has, or the buffer for it, while records wait before it
    began: Move | None = None  # where the log began, if not at 0, when K2 first read it
    former: list[bytes] = field(default_factory=list)  # keys that the first checkpoint replaces
    event: Any = None  # the newest; keeps alive what Faust's table finds its store by
    backlog: Backlog = field(default_factory=Backlog)
    order: asyncio.Lock = field(default_factory=asyncio.Lock)  # FIFO: batches stay in order

    @property
    def gaps_from(self) -> int:
        """The ledger has been told of everything below.

        It is committed before the records: also by these, where it had nothing to write, or was
        not there yet. Ahead of them it is after a crash between the two commits, and where the
        partition waits behind a finding.
        """
        return max(self.gaps_at or 0, self.records_at or 0, self.told)

    def is_at(self, log_end: int | None) -> bool:
        """Whether `sequences` are those at the log's end; None: nobody knows where that is."""
        return log_end is not None and log_end <= self.next_offset == self.accepted

    def moved(self, seek: int) -> tuple[int, int]:
        """Go on at `next_offset` with what is fetched under another number; returns both."""
        self.seek, self.fetches = seek, 0
        return self.next_offset, seek

    def take_segments(self, *, last: bool) -> tuple[dict[Name, bytes], int]:
        """The segments of states that changed since the last time, and how many there are.

        What is known live is taken too, where it is due, or this is the last checkpoint.
        """
        self.live.take(last=last)
        return self.sequences.take(), len(self.sequences)


class Assignment:
    """Finds where to read partitions from: the smallest of what the sinks need."""

    def __init__(
        self,
        app: App,
        lake: Lake,
        lanes: Mapping[str, Lane],
        rejects: Sink,
        gaps: Sink,
        rules: Rules,
        cluster: Callable[[], str],
    ) -> None:
        """`lanes`: by topic."""
        self._app, self._lake, self._rules, self._cluster = app, lake, rules, cluster
        self._lanes, self._rejects, self._gaps = lanes, rejects, gaps

    async def plan(self, tps: set[TP], seek: int) -> dict[TP, Partition]:
        """Return the partitions, ready to be read from their `next_offset`.

        Raises:
            LogTruncated: a log does not reach from there; K2 never skips in silence.
            TopicRecreated: a topic is not the one of this name that Iceberg knows.
        """
        cluster = await asyncio.to_thread(self._cluster)
        topics = {tp.topic for tp in tps}
        ids = await asyncio.to_thread(topic_ids, self._app.settings, topics)
        lanes = {self._lanes[topic] for topic in topics}
        records = together([await self._lake.patiently(lane.sink.carried) for lane in lanes])
        rejects = await self._lake.patiently(self._rejects.carried)
        gaps = await self._lake.patiently(self._gaps.carried)
        # Both are committed first: of a worker that died in between only they know the id.
        known = {**rejects.topics, **gaps.topics, **records.topics}
        names = {
            topic: require_known(cluster, topic, ids.get(topic), known) for topic in sorted(topics)
        }
        sources = {tp: Source(names[tp.topic], tp.topic, tp.partition) for tp in tps}
        states, keys = table.load(set(sources.values()))
        starts = await self._app.consumer.earliest_offsets(*tps) if tps else {}
        ends = await self._app.consumer.highwaters(*tps) if tps else {}
        found: dict[TP, Partition] = {}
        for tp, source in sources.items():
            lane, stored, start = self._lanes[tp.topic], records.offsets.get(source), starts[tp]
            before = states.get(source)
            watermark, symbols = read_states(before)
            began = None
            if stored is None:
                # Nothing of this log is in Iceberg: begin where the log begins.
                stored = watermark = start
                symbols = await self._inherit(lane, source, list(records.offsets))
                began = _beginning(source, start)
            await self._require_reach(source, stored, start, ends.get(tp) or 0)
            basis = unfit(source, watermark, symbols, start, stored, records.moves)
            if basis is not None:
                first, symbols = basis
                if not symbols:
                    # From the beginning: what a log before this one held is known too.
                    others = [other for other in records.offsets if other != source]
                    symbols = await self._inherit(lane, source, others)
                symbols = await self._rebuild(lane, source, watermark, first, symbols, stored)
                watermark = stored
            assert watermark is not None  # a state without one is unfit
            epoch = epoch_after(before.epoch if before else None)
            # Not where the states begin anew: these stored ones are of another log or table.
            goes_on = source in records.offsets and (basis is None or basis[1])
            whole = before if goes_on else None
            live = await resume(
                self._app, self._lake, lane, source, epoch, whole, watermark, records
            )
            found[tp] = Partition(
                source=source,
                lane=lane,
                next_offset=watermark,
                accepted=watermark,
                log_end=ends.get(tp) or 0,
                records_at=records.offsets.get(source),
                rejects_at=rejects.offsets.get(source),
                gaps_at=gaps.offsets.get(source),
                sequences=Segments(symbols),
                live=live,
                seek=seek,
                epoch=epoch,
                topic_id=ids.get(tp.topic),
                began=began,
                former=keys[source],
            )
        return found

    async def _require_reach(self, source: Source, stored: int, start: int, end: int) -> None:
        if stored < start:
            raise LogTruncated(
                f"{source}: Iceberg needs the log from offset {stored}, but it starts at "
                f"{start}: did retention outrun the worker? {remedy(source, 'start')}"
            )
        if stored > end:
            await asyncio.to_thread(require_end, self._app.settings, source, stored)

    async def _inherit(self, lane: Lane, source: Source, known: list[Source]) -> Symbols:
        """Sequence states of a log that is new: those of the same partition in clusters before."""
        what = (lane.sink.catalog, self._app.settings, lane.kind, source, known, self._rules)
        return await self._lake.patiently(inherit, *what)

    async def _rebuild(
        self,
        lane: Lane,
        source: Source,
        watermark: int | None,
        first: int,
        states: Symbols,
        stored: int,
    ) -> Symbols:
        """Sequence states at `stored` from the kind's table: the log does not give them."""
        log.warning(
            "%s: the sequence state (at %s) is rebuilt from the %s table, offsets %d to %d",
            source,
            watermark,
            lane.kind.name,
            first,
            stored,
        )
        return await self._lake.patiently(
            rebuild,
            lane.sink.catalog,
            self._app.settings,
            lane.kind,
            source,
            states,
            first,
            stored,
            self._rules,
        )


def _beginning(source: Source, start: int) -> Move | None:
    """What tells the audit that nothing below was ever there to be read."""
    if start == 0:
        return None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Move(source, None, start, "k2", now, "the log began here when it was first read")
