"""Which rows of a kind's table an answer is made of, and what is known of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
from pyiceberg.exceptions import NoSuchTableError

from k2.errors import BadQuery, CatalogUnavailable, PeerUnavailable
from k2.lake.catalog import gaps_name, table_name
from k2.lake.offsets import (
    MOVES_PROPERTY,
    OFFSETS_PROPERTY,
    THROUGH_PROPERTY,
    Move,
    Source,
    decode_moves,
    decode_through,
)
from k2.lake.offsets import decode as decode_offsets
from k2.query.coverage import KnownGaps, told
from k2.query.fresh import Fresh
from k2.query.index import Pin, Tables
from k2.query.pages import Cut
from k2.query.rows import Known
from k2.query.snapshots import AsOf, through
from k2.query.span import Span
from k2.schemas import KINDS, Kind
from k2.settings import Settings

__all__ = ["Basis", "Records", "next_offsets"]


@dataclass(frozen=True, slots=True)
class Basis:
    """The rows of one table that an answer is made of."""

    kind: Kind
    pin: Pin
    fresh: Fresh | None = None
    held: pa.Table | None = None  # of `fresh`: the rows that the snapshot does not have
    before: Cut | None = None  # what the pages before were made of
    below: Mapping[Source, int] | None = None  # only rows below these offsets; None: all

    @property
    def snapshot_id(self) -> int | None:
        """The snapshot that it is of: that of the first page, though a later one may be read."""
        named = None if self.before is None else self.before.snapshot_id
        return named or self.pin.snapshot_id

    @property
    def valid_through(self) -> int | None:
        """ns: it has all that Kafka had before; None: not known."""
        if self.before is not None:
            return self.before.through
        times = _times(self.pin)
        return through((times if self.fresh is None else self.fresh.through(times)).values())

    @property
    def bounds(self) -> Mapping[Source, int] | None:
        """Below which offsets all of it is; None: not said, as by another engine's commit."""
        if self.before is not None:
            return self.before.bounds
        offsets = next_offsets(self.pin)
        if self.fresh is not None:
            offsets = self.fresh.bounds(offsets)
        return None if not offsets and self.pin.snapshot is not None else offsets

    @property
    def cut(self) -> Cut:
        """What the next page is made of."""
        if self.before is not None:
            return self.before
        snapshot_id = None if self.fresh is not None else self.pin.snapshot_id
        return Cut(snapshot_id, self.bounds, len(_moves(self.pin)), self.valid_through)


class Records:
    """The tables of trades and quotes, beside the ledger; may be used from any thread."""

    def __init__(self, tables: Tables, settings: Settings) -> None:
        self._tables, self._settings = tables, settings
        self._gaps = KnownGaps()

    def basis(
        self,
        kind: Kind,
        fresh: Fresh | None = None,
        as_of: AsOf | None = None,
        before: Cut | None = None,
    ) -> Basis:
        """The table as it is now, or was, or as the pages before had it.

        Raises:
            BadQuery: of `as_of`, or of `cursor`: what is asked for has expired.
            CatalogUnavailable: the table cannot be loaded, or not as new as `fresh` wants it.
            PeerUnavailable: what the pages before had must be read again first.
        """
        if before is not None:
            return self._continued(kind, fresh, before)
        if fresh is not None and as_of is not None:
            raise BadQuery("as_of", "not together with fresh: these rows are in no snapshot")
        return Basis(kind, *self._pinned(kind, fresh, as_of))

    def _pinned(
        self, kind: Kind, fresh: Fresh | None, as_of: AsOf | None = None
    ) -> tuple[Pin, Fresh | None, pa.Table | None]:
        name = table_name(self._settings, kind)
        pin = self._tables.load(name, as_of)
        if fresh is None:
            return pin, None, None
        if fresh.stale(next_offsets(pin)):
            pin = self._tables.load(name)
        if stale := fresh.stale(next_offsets(pin)):
            raise CatalogUnavailable(
                f"{name}: the catalog gives an older table than it had: {stale}"
            )
        return pin, fresh, fresh.beyond(next_offsets(pin), kind)

    def _continued(self, kind: Kind, fresh: Fresh | None, before: Cut) -> Basis:
        """A table that has all rows of the pages before."""
        if fresh is None and before.snapshot_id is not None:
            name = table_name(self._settings, kind)
            with contextlib.suppress(BadQuery):
                pin = self._tables.load(name, AsOf.id(before.snapshot_id))
                return Basis(kind, pin, before=before)
        pin, _, held = self._pinned(kind, fresh)
        moves = _moves(pin)
        if (
            before.bounds is None
            or len(moves) != before.moves
            or told(before.bounds, moves) != before.bounds
        ):
            raise BadQuery("cursor", "what it goes on with has expired: ask anew")
        reached = next_offsets(pin)
        if fresh is not None:
            reached = fresh.bounds(reached)
        if any(reached.get(source, 0) < bound for source, bound in before.bounds.items()):
            raise PeerUnavailable("rows of the pages before are being read again")
        return Basis(kind, pin, fresh, held, before, before.bounds)

    def known(self, basis: Basis, span: Span) -> Known:
        """What is known of the rows of a span; the basis was made before this is called."""
        fresh, valid = basis.fresh, basis.valid_through
        try:
            ledger = self._tables.load(gaps_name(self._settings))
        except CatalogUnavailable as exc:
            if isinstance(exc.__cause__, NoSuchTableError):
                return Known(None, valid, fresh is not None)
            raise
        moves = _moves(basis.pin)
        bounds, held = told(next_offsets(basis.pin), moves), []
        if fresh is not None:
            bounds, held = fresh.bounds(bounds), [fresh.gaps]
        if basis.before is not None and basis.before.bounds is not None:
            bounds = told(basis.before.bounds, moves)
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


def _times(pin: Pin) -> dict[Source, int | None]:
    return decode_through(pin.said(THROUGH_PROPERTY))


def _moves(pin: Pin) -> list[Move]:
    return decode_moves(pin.said(MOVES_PROPERTY))


def next_offsets(pin: Pin) -> dict[Source, int]:
    """Where each source goes on behind a snapshot."""
    return decode_offsets(pin.said(OFFSETS_PROPERTY))
