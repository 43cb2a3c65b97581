"""What the owner of a partition knows live of its symbols."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from k2.live.forms import BARS, LATEST, Form
from k2.live.packed import unpack
from k2.live.pieces import Piece, merge
from k2.live.segments import (
    BARS_AGE_MAX_NS,
    LATEST_SEGMENTS,
    RECENT,
    Families,
    Name,
    Writing,
)
from k2.live.stored import MARK, Stored, mark
from k2.schemas import TRADES, Kind

__all__ = ["LIVE_WRITE_S", "Asked", "Live"]

#: What came is written when its first piece is so old: what a crash leaves to be read again from
#: the table is a few seconds' worth of rows, however long that table is.
LIVE_WRITE_S = 10.0
#: Or when the pieces have so many rows: some 170 bytes of memory each.
PIECES_ROWS_MAX = 128 * 1024
#: More pieces, and the newest are merged into one, MERGED_MIN at least.
PIECES_MAX = 8
MERGED_MIN = 4

#: Reads a segment: of the epoch that this one follows, if told so, else of its own.
Read = Callable[[Name, bool], bytes | None]


class Live:
    """Segments in the table of symbols, and the pieces that came since these were written.

    Not every checkpoint writes them: see `take`. On the event loop, but for what is said to belong
    into a thread. Memory: the pieces.
    """

    def __init__(
        self,
        kind: Kind,
        offset: int,
        read: Read,
        stored: Stored | None = None,
        gathered: Piece | None = None,
    ) -> None:
        """Go on at an offset: records below it count already.

        Args:
            read: of the table of symbols.
            stored: what counts of the epoch before.
            gathered: what the records from `stored.end` to `offset` say; all below `offset`, where
                nothing is stored.
        """
        self.kind, self.offset, self.next_offset = kind, offset, offset
        self._read = read
        self._families = stored.families if stored is not None else Families()
        self._copied = frozenset(self._families.all_names())  # not in this epoch yet
        self._begun = False  # whether this epoch has a mark
        self._pieces: list[Piece] = []
        self._taken: list[Piece] | None = None
        self._since_s = 0.0  # when the first of the pieces came
        self._newest_ns: int | None = None
        self._see([unpack(BARS, self._segment(name)) for name in self._families.names(RECENT)])
        if gathered is not None:
            self._keep(gathered)

    def add(self, piece: Piece, next_offset: int) -> None:
        """Take what a batch says; the records below `next_offset` count then."""
        self.next_offset = max(self.next_offset, next_offset)
        self._keep(piece)

    def _keep(self, piece: Piece) -> None:
        if piece.latest.num_rows:
            self._see([piece.bars])
            if not self._pieces:
                self._since_s = time.monotonic()
            self._pieces.append(piece)

    def crowded(self) -> list[Piece]:
        """Pieces to be merged into one, in a thread; none, as long as they are few."""
        if len(self._pieces) < PIECES_MAX:
            return []
        # What is large already is left alone: so no row is merged again and again.
        first, rows = len(self._pieces), 0
        while first and (
            len(self._pieces) - first < MERGED_MIN or _rows(self._pieces[first - 1]) <= rows
        ):
            first -= 1
            rows += _rows(self._pieces[first])
        return self._pieces[first:]

    def condense(self, pieces: Sequence[Piece], merged: Piece) -> None:
        """Keep what pieces say together in their place, unless a checkpoint took them."""
        for first, piece in enumerate(self._pieces):
            if piece is pieces[0]:
                self._pieces[first : first + len(pieces)] = [merged]
                return

    def merged(self, pieces: Sequence[Piece]) -> Piece:
        """What pieces say together; in a thread."""
        return Piece(
            merge(LATEST[self.kind], [piece.latest for piece in pieces]),
            merge(BARS, [piece.bars for piece in pieces]),
        )

    @property
    def pending(self) -> bool:
        """Whether something came that is not written."""
        return bool(self._pieces)

    def take(self, *, last: bool = False) -> None:
        """What came so far is what this checkpoint writes, if it is due, or the last one.

        Due are an epoch's first checkpoint, pieces of LIVE_WRITE_S, and PIECES_ROWS_MAX rows.
        """
        due = last or not self._begun or time.monotonic() - self._since_s >= LIVE_WRITE_S
        if not self._begun or (
            self._pieces and (due or sum(map(_rows, self._pieces)) >= PIECES_ROWS_MAX)
        ):
            self._taken, self._pieces = [*(self._taken or ()), *self._pieces], []

    @property
    def count(self) -> int:
        """How many segments there are in this epoch, the mark among them."""
        return len(self._families.all_names()) + 1

    @property
    def taken(self) -> bool:
        """Whether there is something to be written."""
        return self._taken is not None

    def writing(self, end: int) -> Writing:
        """What a checkpoint at offset `end` writes of what was taken; in a thread."""
        # What was gathered may count records that a checkpoint before the table's end does not.
        end = max(end, self.offset)
        found = Writing(self._families, self._segment, end)
        if self._taken:
            form = LATEST[self.kind]
            found.add(LATEST_SEGMENTS, form, merge(form, [piece.latest for piece in self._taken]))
            if self.kind is TRADES:
                found.add_bars(piece.bars for piece in self._taken)
        found.copy(self._copied)
        if self._copied:
            found.removed = []  # of the epoch before: it goes as a whole
        found.changed[MARK] = mark(end, found.families)
        return found

    def written(self, writing: Writing) -> None:
        """It is in the table: call it in the same turn of the event loop."""
        self._families, self._copied, self._taken = writing.families, frozenset(), None
        self._begun = True

    def ask(self, exchange: str, symbol: str, bars: bool) -> Asked:
        """Put together what is known of a symbol now; its answer is made in a thread."""
        families = [LATEST_SEGMENTS]
        if bars:
            families += [family for family in self._families if family != LATEST_SEGMENTS]
        names = [self._families.name_for(family, exchange, symbol) for family in families]
        stored = [None if name is None else self._segment(name) for name in names]
        pieces = [*(self._taken or ()), *self._pieces]
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


def _rows(piece: Piece) -> int:
    return int(piece.latest.num_rows + piece.bars.num_rows)
