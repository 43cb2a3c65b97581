"""Which rows of a kind's table an answer is made of, and what is known of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
from pyiceberg.exceptions import NoSuchTableError

from k2.errors import BadQuery, CatalogUnavailable, PeerUnavailable
from k2.lake.catalog import gaps_name, table_name
from k2.lake.offsets import (
    MOVES_PROPERTY,
    OFFSETS_PROPERTY,
    THROUGH_PROPERTY,
    Source,
    decode_moves,
    decode_through,
)
from k2.lake.offsets import decode as decode_offsets
from k2.query.coverage import KnownGaps, told
from k2.query.fresh import Fresh
from k2.query.index import Pin, Tables
from k2.query.pages import Cursor, Place
from k2.query.rows import Known
from k2.query.snapshots import AsOf, through
from k2.query.span import Span
from k2.schemas import KINDS, Kind
from k2.settings import Settings

__all__ = ["Records", "cursor_behind", "next_offsets"]


class Records:
    """The tables of trades and quotes, beside the ledger; may be used from any thread."""

    def __init__(self, tables: Tables, settings: Settings) -> None:
        self._tables, self._settings = tables, settings
        self._gaps = KnownGaps()

    def pinned(
        self, kind: Kind, fresh: Fresh | None, as_of: AsOf | None
    ) -> tuple[Pin, pa.Table | None]:
        """The table as it is now, or was, and the rows that it does not have."""
        name = table_name(self._settings, kind)
        if fresh is not None and as_of is not None:
            raise BadQuery("as_of", "not together with fresh: these rows are in no snapshot")
        table = self._tables.load(name, as_of)
        if fresh is None:
            return table, None
        if fresh.stale(next_offsets(table)):
            table = self._tables.load(name)
        if stale := fresh.stale(next_offsets(table)):
            raise CatalogUnavailable(
                f"{name}: the catalog gives an older table than it had: {stale}"
            )
        return table, fresh.beyond(next_offsets(table), kind)

    def continued(
        self, kind: Kind, fresh: Fresh | None, after: Cursor
    ) -> tuple[Pin, pa.Table | None, Mapping[Source, int] | None]:
        """A table that has all rows of a cursor's answer, and below which offsets they are."""
        if fresh is None and after.snapshot_id is not None:
            name = table_name(self._settings, kind)
            with contextlib.suppress(BadQuery):
                return self._tables.load(name, AsOf.id(after.snapshot_id)), None, None
        pin, rows = self.pinned(kind, fresh, None)
        moves = decode_moves(pin.said(MOVES_PROPERTY))
        if (
            after.bounds is None
            or len(moves) != after.moves
            or told(after.bounds, moves) != after.bounds
        ):
            raise BadQuery("cursor", "what it goes on with has expired: ask anew")
        reached = next_offsets(pin)
        if fresh is not None:
            reached = fresh.bounds(reached)
        if any(reached.get(source, 0) < bound for source, bound in after.bounds.items()):
            raise PeerUnavailable("rows of the pages before are being read again")
        return pin, rows, after.bounds

    def known(
        self, pin: Pin, span: Span, fresh: Fresh | None, after: Cursor | None = None
    ) -> Known:
        """What is known of the records of a scan, which has been planned before this is called."""
        times = _times(pin) if fresh is None else fresh.through(_times(pin))
        valid = through(times.values()) if after is None else after.through
        try:
            ledger = self._tables.load(gaps_name(self._settings))
        except CatalogUnavailable as exc:
            if isinstance(exc.__cause__, NoSuchTableError):
                return Known(None, valid, fresh is not None)
            raise
        moves = decode_moves(pin.said(MOVES_PROPERTY))
        bounds, held = told(next_offsets(pin), moves), []
        if fresh is not None:
            bounds, held = fresh.bounds(bounds), [fresh.gaps]
        if after is not None and after.bounds is not None:
            bounds = told(after.bounds, moves)
        coverage = self._gaps.coverage(ledger, span, bounds, held)
        return Known(coverage, valid, fresh is not None)

    def told_through(self, as_of: AsOf | None) -> int | None:
        """Through which time, ns, the ledger tells of the records; before it is loaded.

        It is committed before them, so it knows of all that their tables have by now.
        """
        if as_of is not None:
            return None
        pins = [self._tables.load(table_name(self._settings, kind)) for kind in KINDS]
        return through(through(_times(pin).values()) for pin in pins)


def cursor_behind(
    place: Place | None,
    after: Cursor | None,
    asked: str,
    span: Span,
    pin: Pin,
    fresh: Fresh | None,
    known: Known,
) -> str | None:
    """The cursor behind a place."""
    if place is None:
        return None
    if after is not None:
        return str(replace(after, last=place))
    bounds, moves = next_offsets(pin), decode_moves(pin.said(MOVES_PROPERTY))
    if fresh is not None:
        bounds = fresh.bounds(bounds)
    times = (span.start_ns, span.end_ns, known.valid_through)
    snapshot_id = None if fresh is not None else pin.snapshot_id
    return str(Cursor(asked, *times, snapshot_id, bounds or None, len(moves), place))


def _times(pin: Pin) -> dict[Source, int | None]:
    return decode_through(pin.said(THROUGH_PROPERTY))


def next_offsets(pin: Pin) -> dict[Source, int]:
    """Where each source goes on behind a snapshot."""
    return decode_offsets(pin.said(OFFSETS_PROPERTY))
