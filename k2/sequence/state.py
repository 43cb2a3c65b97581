"""What is remembered of a symbol's sequences, and what the check reports of them.

A chain is the sequence of one session: the highest number seen and the intervals still missing
below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import orjson

__all__ = ["INT64_MIN", "Chain", "Gap", "Rules", "SymbolState"]

INT64_MIN = -(2**63)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the check needs of the settings; exchanges absent from `zones` trade in UTC dates."""

    zones: dict[str, str] = field(default_factory=dict)
    reset_window_ms: int = 60_000
    gaps_open_max: int = 1000

    def __post_init__(self) -> None:
        if self.gaps_open_max < 1:
            raise ValueError(f"gaps_open_max: {self.gaps_open_max} < 1")


@dataclass(frozen=True, slots=True)
class Gap:
    """Sequences `missing_first`..`missing_last` (inclusive) were skipped by the row at `offset`."""

    exchange: str
    symbol: str
    session: int  # days since the epoch, in the exchange's zone
    missing_first: int
    missing_last: int
    offset: int
    ts_event: int  # ns since the epoch, UTC


@dataclass(slots=True)
class Chain:
    """What was seen of one session.

    `gaps` are the sequences not seen below `last`: inclusive, ascending, disjoint intervals. Those
    below `first`, the chain's first row, are not known to be missing, but a row of them was not
    seen either. At or below `forgotten_through` it can no longer be proven that one was.
    """

    first: int
    last: int
    gaps: list[tuple[int, int]]
    forgotten_through: int | None = None

    @staticmethod
    def unseen_below(first: int) -> list[tuple[int, int]]:
        """The gaps of a chain that begins at `first`."""
        return [(INT64_MIN, first - 1)] if first > INT64_MIN else []


@dataclass(slots=True, kw_only=True)
class SymbolState(Chain):
    """The newest session's chain, a few former ones, and counters since the start.

    Treat a state as a value: `check` returns new ones, which may share lists with the old.
    """

    session: int  # days since the epoch, in the exchange's zone
    last_ts: int  # ns, ts_event of the row that set `last`
    offset: int  # applied through this Kafka offset, inclusive
    earlier: dict[int, Chain] = field(default_factory=dict)
    rows: int = 0
    gaps_found: int = 0
    missing: int = 0  # sequences in all gaps found; saturates at 2**63 - 1
    late: int = 0
    duplicates: int = 0
    resets: int = 0
    gaps_forgotten: int = 0

    def to_bytes(self) -> bytes:
        """Serialise as a JSON array; `from_bytes` is the inverse."""
        earlier = [(session, *_flat(chain)) for session, chain in sorted(self.earlier.items())]
        counters = (self.rows, self.gaps_found, self.missing, self.late, self.duplicates)
        more = (self.resets, self.gaps_forgotten)
        place = (self.session, self.last_ts, self.offset)
        return orjson.dumps((*_flat(self), *place, earlier, *counters, *more))

    @classmethod
    def from_bytes(cls, data: bytes) -> SymbolState:
        """Restore what `to_bytes` wrote.

        Raises:
            ValueError: `data` is not such an array.
        """
        first, last, gaps, forgotten, session, last_ts, offset, *more = orjson.loads(data)
        earlier, rows, gaps_found, missing, late, duplicates, resets, gaps_forgotten = more
        return cls(
            first,
            last,
            [(a, b) for a, b in gaps],
            forgotten,
            session=session,
            last_ts=last_ts,
            offset=offset,
            earlier={
                former: Chain(begin, end, [(a, b) for a, b in unseen], through)
                for former, begin, end, unseen, through in earlier
            },
            rows=rows,
            gaps_found=gaps_found,
            missing=missing,
            late=late,
            duplicates=duplicates,
            resets=resets,
            gaps_forgotten=gaps_forgotten,
        )

    def copy(self) -> SymbolState:
        """Copy deeply enough that changing the copy leaves this one as it is."""
        earlier = {
            session: replace(chain, gaps=chain.gaps.copy())
            for session, chain in self.earlier.items()
        }
        return replace(self, gaps=self.gaps.copy(), earlier=earlier)


def _flat(chain: Chain) -> tuple[int, int, list[tuple[int, int]], int | None]:
    return chain.first, chain.last, chain.gaps, chain.forgotten_through
