"""What the owner of a partition knows live of its symbols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from k2.live.forms import BARS, LATEST, Form
from k2.live.packed import through, unpack
from k2.live.pieces import Piece, merge
from k2.live.segments import (
    BARS_AGE_MAX_NS,
    LATEST_SEGMENTS,
    RECENT,
    Families,
    Name,
    Writing,
)
from k2.schemas import TRADES, Kind

__all__ = ["Asked", "Live", "stored_whole"]

#: So many pieces are merged into one.
PIECES_MAX = 8

#: Reads a segment: of the epoch that this one follows, if told so, else of its own.
Read = Callable[[Name, bool], bytes | None]


class Live:
    """Segments in the table of symbols, and the pieces that came since the last checkpoint.

    On the event loop, but for what is said to belong into a thread. Memory: the pieces.
    """

    def __init__(
        self,
        kind: Kind,
        offset: int,
        read: Read,
        segments: Mapping[Name, bytes] | None = None,
        rebuilt: Piece | None = None,
    ) -> None:
        """Go on at an offset: records below it count already.

        Args:
            read: of the table of symbols.
            segments: all that there are of the epoch before, those of other kinds too.
            rebuilt: in place of segments, what the records below `offset` say.
        """
        self.kind, self.offset, self.next_offset = kind, offset, offset
        self._read = read
        self._families = Families(segments or {})
        self._copied = frozenset(self._families.all_names())  # not in this epoch yet
        self._pieces: list[Piece] = []
        self._taken: list[Piece] = []
        self._newest_ns: int | None = None
        recent = [unpack(BARS, (segments or {})[name]) for name in self._families.names(RECENT)]
        self._see(recent)
        if rebuilt is not None:
            self._see([rebuilt.bars])
            self._pieces.append(rebuilt)

    def add(self, piece: Piece, next_offset: int) -> None:
        """Take what a batch says; the records below `next_offset` count then."""
        self.next_offset = max(self.next_offset, next_offset)
        if piece.latest.num_rows:
            self._see([piece.bars])
            self._pieces.append(piece)

    def crowded(self) -> list[Piece]:
        """Pieces to be merged into one, in a thread; none, as long as they are few."""
        return list(self._pieces) if len(self._pieces) >= PIECES_MAX else []

    def condense(self, pieces: Sequence[Piece], merged: Piece) -> None:
        """Keep what pieces say together in their place, unless a checkpoint took them."""
        if self._pieces[:1] and self._pieces[0] is pieces[0]:
            self._pieces[: len(pieces)] = [merged]

    def merged(self, pieces: Sequence[Piece]) -> Piece:
        """What pieces say together; in a thread."""
        return Piece(
            merge(LATEST[self.kind], [piece.latest for piece in pieces]),
            merge(BARS, [piece.bars for piece in pieces]),
        )

    def take(self) -> None:
        """What came so far is what `writing` is about."""
        self._taken, self._pieces = self._taken + self._pieces, []

    def writing(self, end: int) -> Writing:
        """What a checkpoint at offset `end` writes of what was taken; in a thread."""
        # A rebuilt partition may count records that a checkpoint before the table's end does not.
        found = Writing(self._families, self._segment, max(end, self.offset))
        if self._taken:
            form = LATEST[self.kind]
            found.add(LATEST_SEGMENTS, form, merge(form, [piece.latest for piece in self._taken]))
            if self.kind is TRADES:
                found.add_bars(piece.bars for piece in self._taken)
        found.copy(self._copied)
        return found

    def written(self, writing: Writing) -> None:
        """It is in the table: call it in the same turn of the event loop."""
        self._families, self._copied, self._taken = writing.families, frozenset(), []

    def ask(self, exchange: str, symbol: str, bars: bool) -> Asked:
        """Put together what is known of a symbol now; its answer is made in a thread."""
        families = [LATEST_SEGMENTS]
        if bars:
            families += [family for family in self._families if family != LATEST_SEGMENTS]
        names = [self._families.name_for(family, exchange, symbol) for family in families]
        stored = [None if name is None else self._segment(name) for name in names]
        pieces = [*self._taken, *self._pieces]
        oldest_ns = None if self._newest_ns is None else self._newest_ns - BARS_AGE_MAX_NS
        return Asked(self.kind, exchange, symbol, stored, pieces, self.next_offset, oldest_ns)

    def _segment(self, name: Name) -> bytes:
        value = self._read(name, name in self._copied)
        if value is None:
            raise LookupError(f"{name}: written, and not there")
        return value

    def _see(self, tables: Sequence[pa.Table]) -> None:
        for table in tables:
            if table.num_rows:
                newest = pc.max(table.column("start")).as_py()
                self._newest_ns = max(newest, self._newest_ns or newest)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of one symbol of a partition, all of one moment."""

    kind: Kind
    exchange: str
    symbol: str
    stored: Sequence[bytes | None]  # segments: of latest rows, then of bars if they are asked for
    pieces: Sequence[Piece]
    next_offset: int  # all records below it are in
    oldest_ns: int | None  # bars that begin here or before are not kept

    def latest(self) -> pa.Table:
        """No row or one, of the form `LATEST[kind]`; in a thread."""
        form = LATEST[self.kind]
        return self._own(form, self.stored[:1], [piece.latest for piece in self.pieces])

    def bars(self, session: int) -> pa.Table:
        """The bars of a session, oldest first, of the form `BARS`; in a thread."""
        rows = self._own(BARS, self.stored[1:], [piece.bars for piece in self.pieces])
        if rows.num_rows and self.oldest_ns is not None:
            own = pc.equal(rows.column("session"), session)
            rows = rows.filter(pc.and_(own, pc.greater(rows.column("start"), self.oldest_ns)))
        return rows.sort_by("start")

    def _own(
        self, form: Form, stored: Sequence[bytes | None], pieces: Sequence[pa.Table]
    ) -> pa.Table:
        tables = [unpack(form, segment) for segment in stored if segment is not None]
        return merge(form, [self._of_symbol(rows) for rows in (*tables, *pieces)])

    def _of_symbol(self, rows: pa.Table) -> pa.Table:
        own = pc.equal(rows.column("symbol"), self.symbol)
        return rows.filter(pc.and_(own, pc.equal(rows.column("exchange"), self.exchange)))


def stored_whole(segments: Mapping[Name, bytes], watermark: int, expected: bool) -> bool:
    """Whether segments can be gone on with.

    Args:
        segments: of an epoch, those of other kinds too.
        watermark: the epoch's mark; a segment ahead of it comes of a checkpoint cut short.
        expected: whether symbols are known, so that there is something to be stored.

    Returns:
        False: a segment is ahead, so records behind the mark would count twice; or there is none.
    """
    families = Families(segments)
    if expected and LATEST_SEGMENTS not in families:
        return False
    return all(through(segments[name]) <= watermark for name in families.all_names())
