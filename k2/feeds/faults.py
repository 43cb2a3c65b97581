"""Faults of a simulated day: planned by row, written down, and done to the stream.

They are placed by (symbol, row number), each in a stretch of rows of its own, so that none can hide
another. A reset happens at a trading halt longer than the reset window. The other faults of a
symbol stand after its last reset, so no open gap is forgotten by one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from k2.errors import FeedError

__all__ = ["Entry", "Faults", "Journal", "Rows"]

RUN_MAX = 50  # sequences a gap drops, and rows a late or repeated record waits, at most
_SLOT_ROWS = (128, 64, 32, 16, 8)

#: Columns by name: n values each.
Rows = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Entry:
    """One fault. `first`, `last` are inclusive sequences; of a reset the new and the former one."""

    kind: str  # gap | late | duplicate | reset
    exchange: str
    symbol: str
    session: str  # ISO date
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Journal:
    """What was injected, and what is to be found."""

    entries: tuple[Entry, ...]
    rows: dict[str, int]  # symbol -> records that arrive at least once
    duplicates: int  # records sent a second time

    @property
    def sent(self) -> int:
        """Records that the stream holds."""
        return sum(self.rows.values()) + self.duplicates

    def gaps(self) -> list[tuple[str, int, int]]:
        """Every gap to be reported, (symbol, first, last), sorted; a late record opens one too."""
        kinds = ("gap", "late")
        return sorted((e.symbol, e.first, e.last) for e in self.entries if e.kind in kinds)

    def to_json(self, path: str | Path, **others: Journal) -> None:
        """Write entries, rows, duplicates and sent to `path`; other journals under their names."""
        content = self._content() | {name: each._content() for name, each in others.items()}
        Path(path).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))

    def _content(self) -> dict[str, Any]:
        return asdict(self) | {"sent": self.sent}


class Faults:
    """What is injected into one day; `journal` says what is to be found.

    Args:
        rng: decides the places.
        names: of the symbols.
        counts: (symbols,) rows of each.
        before: (halts, symbols) rows of each before each halt.
        gaps, duplicates, late, resets: how many, not negative.

    Raises:
        FeedError: that many do not fit.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        exchange: str,
        date: dt.date,
        names: Sequence[str],
        counts: np.ndarray,
        before: np.ndarray,
        *,
        gaps: int,
        duplicates: int,
        late: int,
        resets: int,
    ) -> None:
        self._exchange, self._day, self._names = exchange, date.isoformat(), names
        self._entries: list[Entry] = []
        starts = self._plan_resets(rng, resets, counts, before)
        wanted = {"gap": gaps, "duplicate": duplicates, "late": late}
        self._plan_faults(rng, wanted, counts, starts)

    def _plan_resets(
        self, rng: np.random.Generator, resets: int, counts: np.ndarray, before: np.ndarray
    ) -> list[list[int]]:
        """Per symbol the row numbers (from 1, ascending) that start again at sequence 1."""
        starts: list[list[int]] = [[1] for _ in self._names]
        # Three rows since the halt before: whatever is chosen, the last sequence is above 2.
        since = np.diff(before, axis=0, prepend=0)
        places = np.argwhere((since >= 3) & (before < counts))
        if len(places) < resets:
            raise FeedError(f"resets: {resets} asked, {len(places)} fit; add rows or symbols")
        picked: Any = np.sort(rng.choice(len(places), resets, replace=False)) if resets else []
        chosen: list[list[int]] = [places[index].tolist() for index in picked]
        for halt, symbol in chosen:
            first = int(before[halt, symbol]) + 1
            self._note("reset", symbol, 1, first - starts[symbol][-1])
            starts[symbol].append(first)
        return starts

    def _note(self, kind: str, symbol: int, first: int, last: int) -> None:
        place = (self._exchange, self._names[symbol], self._day)
        self._entries.append(Entry(kind, *place, int(first), int(last)))

    def _slots(self, wanted: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """(n, 3) disjoint stretches (symbol, first row, last row), n >= wanted, as wide as fit."""
        room = np.maximum(high - low + 1, 0)
        for width in _SLOT_ROWS:
            each = np.where(room >= 8, np.maximum(room // width, 1), 0)
            if each.sum() >= wanted:
                break
        else:
            raise FeedError(f"faults: {wanted} asked, {each.sum()} fit; add rows")
        symbol = np.repeat(np.arange(len(each)), each)
        number = np.arange(len(symbol)) - np.repeat(np.cumsum(each) - each, each)
        size = (room // np.maximum(each, 1))[symbol]
        first = low[symbol] + number * size
        return np.stack([symbol, first, first + size - 1], axis=1)

    def _plan_faults(
        self,
        rng: np.random.Generator,
        wanted: dict[str, int],
        counts: np.ndarray,
        starts: list[list[int]],
    ) -> None:
        """Choose rows to drop, to withhold and to repeat; ends with the journal."""
        kinds = [kind for kind, count in wanted.items() for _ in range(count)]
        base = np.array([rows[-1] - 1 for rows in starts])
        dropped: list[int] = []
        held: list[tuple[int, int, bool]] = []  # key, key of the row to follow, withheld?
        lost = np.zeros(len(self._names), np.int64)
        if kinds:
            slots = self._slots(len(kinds), base + 2, counts)
            slots = slots[rng.choice(len(slots), len(kinds), replace=False)]
            for kind, (symbol, first, last) in zip(kinds, slots.tolist(), strict=True):
                if kind == "gap":
                    run = int(rng.integers(1, min(RUN_MAX, last - first - 3) + 1))
                    row = first + 1 + int(rng.integers(0, last - first - run))
                    dropped += [_key(symbol, row + step) for step in range(run)]
                    lost[symbol] += run
                else:
                    run = 1
                    row = first + 1 + int(rng.integers(0, last - first - 2))
                    # Not further than the sequence itself: a fall by more than half may be a reset.
                    most = min(RUN_MAX, row - int(base[symbol]), last - 1 - row)
                    delay = int(rng.integers(1, most + 1))
                    held.append((_key(symbol, row), _key(symbol, row + delay), kind == "late"))
                sequence = row - int(base[symbol])
                self._note(kind, symbol, sequence, sequence + run - 1)
        held.sort()
        self._dropped = np.array(sorted(dropped), np.int64)
        self._held = np.array([key for key, _, _ in held], np.int64)
        self._after = np.array([after for _, after, _ in held], np.int64)
        self._late = np.array([late for _, _, late in held], bool)
        self._starts = _start_keys(starts)
        rows = {n: int(c) for n, c in zip(self._names, counts - lost, strict=True) if c}
        self.journal = Journal(tuple(self._entries), rows, wanted["duplicate"])

    def numbered(self, symbols: np.ndarray, row: np.ndarray) -> Rows:
        """`key` and `sequence` of rows: n symbol indices, and each row's number in its symbol."""
        key = _key(symbols.astype(np.int64), row)
        origin = self._starts[np.searchsorted(self._starts, key, side="right") - 1]
        return {"key": key, "sequence": key - origin + 1}

    def inject(self, rows: Rows, waiting: Rows | None) -> tuple[Rows, Rows | None]:
        """Drop, withhold, repeat and release rows; returns them in sending order, and who waits."""
        if not len(self._dropped) and not len(self._held):
            return rows, None
        keys = rows["key"]
        keep = ~np.isin(keys, self._dropped)
        place = np.searchsorted(self._held, keys)
        hits = np.flatnonzero(np.isin(keys, self._held))
        plan = place[hits]
        keep[hits[self._late[plan]]] = False
        held = {name: column[hits] for name, column in rows.items()}
        held |= {"after": self._after[plan], "late": self._late[plan]}
        if waiting is not None:
            held = {name: np.concatenate([waiting[name], held[name]]) for name in held}
        by_key = np.argsort(keys)
        found = np.minimum(np.searchsorted(keys[by_key], held["after"]), len(keys) - 1)
        spot = by_key[found]
        due = keys[spot] == held["after"]
        # A late record is received when it arrives; a repeated one is the same record again.
        received = np.where(held["late"], rows["ts_recv"][spot] + 1000, held["ts_recv"])
        held["ts_recv"] = np.where(due, received, held["ts_recv"])
        position = np.concatenate([np.flatnonzero(keep), spot[due] + 0.5])
        order = np.argsort(position, kind="stable")
        out = {n: np.concatenate([rows[n][keep], held[n][due]])[order] for n in rows}
        return out, {name: column[~due] for name, column in held.items()}


def _key(symbol: Any, row: Any) -> Any:
    """One integer for (symbol, row number), in that order."""
    return (symbol << 40) | row


def _start_keys(starts: list[list[int]]) -> np.ndarray:
    keys = [_key(symbol, row) for symbol, rows in enumerate(starts) for row in rows]
    return np.array(keys, np.int64)
