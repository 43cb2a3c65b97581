"""What is remembered of a counter's sequences.

States are kept packed, as the bytes that are stored: 20,000 of them are turned into columns at
once, cost the garbage collector nothing, and are checkpointed as they are. Only where a sequence
does not simply continue is a state unpacked, into a `Memory`.

A chain is the sequence of one session: the highest number seen, and the gaps still open below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

__all__ = [
    "HEADER",
    "HEADER_BYTES",
    "INT64_MAX",
    "INT64_MIN",
    "Chain",
    "Gap",
    "Interval",
    "Memory",
    "Run",
    "SymbolState",
    "header_columns",
]

#: What every row changes, or the check asks of every symbol: the packed state's first bytes.
HEADER = np.dtype(
    [
        ("form", "<i4"),  # _FORM
        ("outside", "<i4"),  # 1 if the last row was out of session
        ("session", "<i8"),  # days since the epoch; 0 where sequences never start again
        ("first", "<i8"),
        ("last", "<i8"),
        ("last_ts", "<i8"),
        ("last_offset", "<i8"),
        ("offset", "<i8"),  # applied through this Kafka offset, inclusive
        ("rows", "<i8"),
    ]
)
HEADER_BYTES = HEADER.itemsize
_HEADER = Struct("<2i7q")  # the same, of one state
#: Another number with each change of the form.
_FORM = 2

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

Interval = tuple[int, int]  # inclusive


class Gap(NamedTuple):
    """Sequences `first`..`last` were skipped by the record at `offset`; some may have come since.

    What lies below a chain's first row is such an interval too, with `offset` -1: a row of it was
    not seen, but nothing says that it is missing, and the ledger does not hear of it.
    """

    first: int
    last: int
    missing: tuple[Interval, ...]  # what has not come: ascending, disjoint, not empty
    session: int = 0  # days since the epoch
    from_offset: int = -1  # of the record before the gap: its sequence is `first` - 1
    from_ts: int = 0  # ns, its ts_event
    offset: int = -1
    ts: int = 0  # ns, ts_event of the record at `offset`
    seen_at: int = 0  # ns, its ts_recv
    filled_at: int | None = None  # ns, ts_recv of the newest record that filled some of it

    @property
    def reported(self) -> bool:
        return self.offset >= 0


class Run(NamedTuple):
    """Records of one kind and session that followed each other; offsets and times are theirs."""

    session: int
    first: int  # lowest sequence
    last: int  # highest sequence
    records: int
    from_offset: int
    from_ts: int
    seen_at: int  # ns, ts_recv of the first
    to_offset: int
    to_ts: int


@dataclass(slots=True)
class Chain:
    """What was seen of one session.

    `gaps` are what was not seen below `last`, ascending and disjoint. At or below
    `forgotten_through` it can no longer be proven that a row was seen.
    """

    first: int
    last: int
    last_ts: int  # ns, ts_event of the row that set `last`
    last_offset: int  # of that row
    gaps: list[Gap]
    forgotten_through: int | None = None
    width: int = field(init=False, compare=False)  # intervals in all gaps: what is bounded

    def __post_init__(self) -> None:
        self.width = sum(len(gap.missing) for gap in self.gaps)

    @classmethod
    def begin(cls, seq: int, ts: int, offset: int) -> Chain:
        return cls(seq, seq, ts, offset, cls.unseen_below(seq))

    @staticmethod
    def unseen_below(first: int) -> list[Gap]:
        """The gaps of a chain that begins at `first`."""
        if first == INT64_MIN:
            return []
        return [Gap(INT64_MIN, first - 1, ((INT64_MIN, first - 1),))]


@dataclass(slots=True)
class Memory:
    """A state unpacked: the newest session's chain, a few former ones, and counters."""

    session: int  # days since the epoch; 0 where sequences never start again
    chain: Chain
    offset: int  # applied through this Kafka offset, inclusive
    rows: int = 0
    earlier: dict[int, Chain] = field(default_factory=dict)  # by session
    repeated: Run | None = None  # the run of duplicates that the next one may continue
    outside: Run | None = None  # the run of records out of session, if the last row was one
    gaps_found: int = 0
    missing: int = 0  # sequences in all gaps found; saturates at 2**63 - 1
    late: int = 0
    duplicates: int = 0
    resets: int = 0
    gaps_forgotten: int = 0

    def pack(self) -> SymbolState:
        """Return the state as it is kept and stored."""
        chain = self.chain
        place = (chain.first, chain.last, chain.last_ts, chain.last_offset)
        own = (_FORM, self.outside is not None, self.session, *place, self.offset, self.rows)
        header = _HEADER.pack(*own)
        earlier = [(day, *_flat(former)) for day, former in sorted(self.earlier.items())]
        runs = [run and tuple(run) for run in (self.repeated, self.outside)]
        counters = (self.gaps_found, self.missing, self.late, self.duplicates)
        more = (self.resets, self.gaps_forgotten)
        if not (any(counters) or any(more) or any(runs) or earlier):
            return SymbolState(header)
        gaps = [_flat_gap(gap) for gap in chain.gaps]
        rest = (gaps, chain.forgotten_through, earlier, *runs, *counters, *more)
        return SymbolState(header + orjson.dumps(rest))


class SymbolState(bytes):
    """A state packed: `HEADER`, then a JSON array, absent while all rows simply continued."""

    __slots__ = ()

    @classmethod
    def from_bytes(cls, data: bytes) -> SymbolState:
        """Take what was stored.

        Raises:
            ValueError: `data` is of another form.
        """
        if len(data) < HEADER_BYTES or _HEADER.unpack_from(data)[0] != _FORM:
            raise ValueError(f"no sequence state of form {_FORM}: {bytes(data[:HEADER_BYTES])!r}")
        return cls(data)

    @property
    def offset(self) -> int:
        """Applied through this Kafka offset, inclusive."""
        return _HEADER.unpack_from(self)[7]  # type: ignore[no-any-return]

    def at(self, offset: int) -> SymbolState:
        """The same state, applied through another offset: of another log."""
        *others, _, rows = _HEADER.unpack_from(self)
        return SymbolState(_HEADER.pack(*others, offset, rows) + self[HEADER_BYTES:])

    def unpack(self) -> Memory:
        """Return a copy to work on."""
        _, _, session, first, last, last_ts, last_offset, offset, rows = _HEADER.unpack_from(self)
        place = (first, last, last_ts, last_offset)
        if len(self) == HEADER_BYTES:
            return Memory(session, Chain(*place, Chain.unseen_below(first)), offset, rows)
        gaps, forgotten, earlier, *runs, a, b, c, d, e, f = orjson.loads(self[HEADER_BYTES:])
        repeated, outside = (run and Run(*run) for run in runs)
        former = {day: _chain(*chain) for day, *chain in earlier}
        chain = _chain(*place, gaps, forgotten)
        return Memory(session, chain, offset, rows, former, repeated, outside, a, b, c, d, e, f)


def header_columns(states: Sequence[SymbolState]) -> npt.NDArray[np.void]:
    """Return the headers of n states as n rows of `HEADER`, a few ms for 20,000."""
    whole = b"".join(states)
    if len(whole) > HEADER_BYTES * len(states):
        whole = b"".join([state[:HEADER_BYTES] for state in states])
    return np.frombuffer(whole, HEADER)


def _flat(chain: Chain) -> tuple[Any, ...]:
    gaps = [_flat_gap(gap) for gap in chain.gaps]
    place = (chain.first, chain.last, chain.last_ts, chain.last_offset)
    return (*place, gaps, chain.forgotten_through)


def _flat_gap(gap: Gap) -> tuple[Any, ...]:
    """A gap's bounds are not said twice: untouched, `missing` is 0, and with no record, no more."""
    whole = gap.missing == ((gap.first, gap.last),)
    missing = 0 if whole else gap.missing
    return (gap.first, gap.last, missing, *(gap[3:] if gap.reported else ()))


def _gap(first: int, last: int, missing: Any, *record: Any) -> Gap:
    intervals = tuple((a, b) for a, b in missing) if missing else ((first, last),)
    return Gap(first, last, intervals, *record)


def _chain(
    first: int, last: int, ts: int, offset: int, gaps: list[list[Any]], forgotten: int | None
) -> Chain:
    return Chain(first, last, ts, offset, [_gap(*gap) for gap in gaps], forgotten)
