"""An operator's hand on the offsets: the same fenced commit as a worker's, with the reason in it.

The reason stays in the summary of every later snapshot, so that the audit can tell a record that
was given up from one that was lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from pyiceberg.catalog import Catalog

from k2.errors import K2Error
from k2.lake.catalog import rejects_name, trades_name
from k2.lake.commit import Sink
from k2.lake.offsets import MOVES_MAX, Move, Source
from k2.lake.replays import operator
from k2.settings import Settings

__all__ = ["Offsets"]


class Offsets:
    """The next offsets in both tables, to be read and moved."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        """Load both tables.

        Raises:
            CatalogUnavailable: one cannot be loaded.
        """
        self._trades = Sink(catalog, trades_name(settings), settings)
        self._rejects = Sink(catalog, rejects_name(settings), settings)
        self.refresh()

    def refresh(self) -> None:
        """Read the newest snapshots."""
        self.trades, self.rejects = self._trades.offsets(), self._rejects.offsets()
        self.moves = self._trades.moves()

    @property
    def sources(self) -> list[Source]:
        """All that either table knows, sorted."""
        return sorted({*self.trades, *self.rejects})

    def move(self, source: Source, to: int, reason: str) -> None:
        """Let a source go on at `to`, in both tables.

        Raises:
            Fenced: an offset is no longer the one that was read: a worker is at it.
            CommitFailed: the catalog refused.
            K2Error: there have been too many moves.
        """
        self._commit([source], to, reason)

    def forget(self, sources: Sequence[Source], reason: str) -> None:
        """Drop the offsets of sources that no longer exist; their rows stay.

        Raises: as `move`.
        """
        self._commit(sources, None, reason)

    def _commit(self, sources: Sequence[Source], to: int | None, reason: str) -> None:
        if len(self.moves) + len(sources) > MOVES_MAX:
            raise K2Error(f"more than {MOVES_MAX} moves: each snapshot carries all of them")
        who, now = operator(), datetime.now(UTC).isoformat(timespec="seconds")
        # Rejects first, as a worker does: what died in between is repeated, and nothing is below
        # the trades' offset that is not accounted for.
        for sink, offsets in ((self._rejects, self.rejects), (self._trades, self.trades)):
            moved = [source for source in sources if to is not None or source in offsets]
            if moved:
                sink.commit(
                    [],
                    {source: offsets.get(source) for source in moved},
                    dict.fromkeys(moved, to),
                    [Move(source, offsets.get(source), to, who, now, reason) for source in moved],
                )
        self.refresh()
