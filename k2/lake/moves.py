"""An operator's hand on the offsets: the same fenced commit as a worker's, with the reason in it.

The reason stays in the summary of every later snapshot, so that the audit can tell a record that
was given up from one that was lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pyiceberg.catalog import Catalog

from k2.errors import BadQuery, K2Error
from k2.lake.catalog import gaps_name, rejects_name, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import MOVES_MAX, Move, Source, Topic, together
from k2.lake.replays import operator
from k2.schemas import KINDS, Kind, kind_of
from k2.settings import Settings

__all__ = ["Offsets"]


class Offsets:
    """The next offsets in all tables, to be read and moved."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        """Load the tables.

        Raises:
            CatalogUnavailable: one cannot be loaded.
        """
        self._sinks = {kind: Sink(catalog, table_name(settings, kind), settings) for kind in KINDS}
        self._rejects = Sink(catalog, rejects_name(settings), settings)
        self._gaps = Sink(catalog, gaps_name(settings), settings)
        self.refresh()

    def refresh(self) -> None:
        """Read the newest snapshots."""
        rejects, gaps = self._rejects.carried(), self._gaps.carried()
        records = together(sink.carried() for sink in self._sinks.values())
        #: By source: in the table of its kind, in that of rejects, and in the gap ledger.
        self.records, self.rejects, self.gaps = records.offsets, rejects.offsets, gaps.offsets
        self.topics = {**rejects.topics, **gaps.topics, **records.topics}
        self.moves = records.moves

    @property
    def sources(self) -> list[Source]:
        """All that any table knows, sorted."""
        return sorted({*self.records, *self.rejects, *self.gaps})

    def move(self, source: Source, to: int, reason: str) -> None:
        """Let a source go on at `to`, in the table of its kind, in rejects and in the gap ledger.

        Raises:
            Fenced: an offset is no longer the one that was read: a worker is at it.
            CommitFailed: the catalog refused.
            BadQuery: a topic of no feed.
            K2Error: there have been too many moves.
        """
        self._commit({source: to}, {source: to}, {}, reason)

    def forget(self, sources: Sequence[Source], reason: str, *, topics: bool = False) -> None:
        """Drop the offsets of sources that no longer exist; their rows stay.

        Args:
            topics: forget the ids of their topics too.

        Raises: as `move`.
        """
        gone: dict[Source, int | None] = dict.fromkeys(sources)
        ids: dict[Topic, str | None] = {}
        if topics:
            ids = dict.fromkeys(Topic(*source[:2]) for source in sources)
        self._commit(gone, gone, ids, reason)

    def accept(
        self, topic: Topic, topic_id: str, starts: Mapping[Source, int], reason: str
    ) -> None:
        """Let a topic that was made anew be read, from its start: its sources have no offsets yet.

        Args:
            topic: as it will be kept, `k2.lake.offsets.anew`.
            starts: by source the first offset of its log.

        Raises: as `move`.
        """
        self._commit(starts, {}, {topic: topic_id}, reason)

    def _commit(
        self,
        after: Mapping[Source, int | None],
        advance: Mapping[Source, int | None],
        topics: Mapping[Topic, str | None],
        reason: str,
    ) -> None:
        """Note `after` as moves; let the offsets be `advance`."""
        if len(self.moves) + len(after) > MOVES_MAX:
            raise K2Error(f"more than {MOVES_MAX} moves: each snapshot carries all of them")
        who, now = operator(), datetime.now(UTC).isoformat(timespec="seconds")
        # Records last, as a worker does: what died in between is repeated, and nothing is below
        # their offset that is not accounted for.
        names = {source.topic for source in after} | {topic.topic for topic in topics}
        kinds = {name: _kind(name) for name in names}
        steps: list[tuple[Sink, dict[Source, int], tuple[Kind, ...]]]
        steps = [(self._rejects, self.rejects, KINDS), (self._gaps, self.gaps, KINDS)]
        steps += [(sink, self.records, (kind,)) for kind, sink in self._sinks.items()]
        for sink, offsets, own in steps:
            moved = {
                s: to
                for s, to in after.items()
                if kinds[s.topic] in own and (to is not None or s in offsets)
            }
            ids = {topic: number for topic, number in topics.items() if kinds[topic.topic] in own}
            if moved or ids:
                sink.commit(
                    [],
                    {source: offsets.get(source) for source in moved},
                    {source: to for source, to in advance.items() if source in moved},
                    [Move(s, offsets.get(s), to, who, now, reason) for s, to in moved.items()],
                    ids,
                )
        self.refresh()


def _kind(topic: str) -> Kind:
    if (kind := kind_of(topic)) is None:
        raise BadQuery("topic", f"{topic} is no topic of a feed")
    return kind
