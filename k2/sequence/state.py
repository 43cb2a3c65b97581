"""What is remembered of a symbol's sequences, and what the check reports of them.

A chain is the sequence of one session: the highest number seen and the intervals still missing
below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

__all__ = ["Chain", "Gap", "Rules", "SymbolState"]


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

    `gaps` are inclusive, ascending, disjoint intervals below `last`. At or below
    `forgotten_through` it can no longer be proven that a sequence was seen.
    """

    last: int
    gaps: list[tuple[int, int]] = field(default_factory=list)
    forgotten_through: int | None = None


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
        earlier = [
            (session, chain.last, chain.gaps, chain.forgotten_through)
            for session, chain in sorted(self.earlier.items())
        ]
        chain = (self.last, self.gaps, self.forgotten_through)
        counters = (self.rows, self.gaps_found, self.missing, self.late, self.duplicates)
        more = (self.resets, self.gaps_forgotten)
        place = (self.session, self.last_ts, self.offset)
        return orjson.dumps((*chain, *place, earlier, *counters, *more))

    @classmethod
    def from_bytes(cls, data: bytes) -> SymbolState:
        """Restore what `to_bytes` wrote.

        Raises:
            ValueError: `data` is not such an array.
        """
        last, gaps, forgotten, session, last_ts, offset, earlier, *counters = orjson.loads(data)
        rows, gaps_found, missing, late, duplicates, resets, gaps_forgotten = counters
        return cls(
            last,
            [(a, b) for a, b in gaps],
            forgotten,
            session=session,
            last_ts=last_ts,
            offset=offset,
            earlier={
                former: Chain(seq, [(a, b) for a, b in missed], through)
                for former, seq, missed, through in earlier
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
        return SymbolState(
            self.last,
            self.gaps.copy(),
            self.forgotten_through,
            session=self.session,
            last_ts=self.last_ts,
            offset=self.offset,
            earlier={
                session: Chain(chain.last, chain.gaps.copy(), chain.forgotten_through)
                for session, chain in self.earlier.items()
            },
            rows=self.rows,
            gaps_found=self.gaps_found,
            missing=self.missing,
            late=self.late,
            duplicates=self.duplicates,
            resets=self.resets,
            gaps_forgotten=self.gaps_forgotten,
        )
