"""A seeded trading day: trades of many symbols in event order, and faults that are written down.

The day is drawn in chunks of a fixed number of rows, each from its own generator, so memory stays
bounded and equal arguments give equal records. The constructor counts the rows of every symbol,
then places the faults by (symbol, row number): each in a stretch of rows of its own, so that none
can hide another. The Journal says what a sequence check must find.

A reset happens at a trading halt longer than the reset window. The other faults of a symbol stand
after its last reset, so no open gap is forgotten by one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from k2.errors import FeedError
from k2.schemas import TRADE_BATCH

__all__ = ["Entry", "Journal", "Simulation"]

CHUNK_ROWS = 131_072
LOT_SIZE = 100
RUN_MAX = 50  # sequences a gap drops, and rows a late or repeated record waits, at most
HALTS_MAX = 8
_SECOND = 10**9
_OPEN_HOUR, _OPEN_SECONDS, _CLOSE_AFTER = 10, 6 * 3600, 600
_SLOT_ROWS = (128, 64, 32, 16, 8)
_COLUMNS = TRADE_BATCH.remove(TRADE_BATCH.get_field_index("kafka_offset"))

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
    rows: dict[str, int]  # symbol -> trades that arrive at least once
    duplicates: int  # records sent a second time

    @property
    def sent(self) -> int:
        """Records that the stream holds."""
        return sum(self.rows.values()) + self.duplicates

    def gaps(self) -> list[tuple[str, int, int]]:
        """Every gap to be reported, (symbol, first, last), sorted; a late record opens one too."""
        kinds = ("gap", "late")
        return sorted((e.symbol, e.first, e.last) for e in self.entries if e.kind in kinds)

    def to_json(self, path: str | Path) -> None:
        """Write entries, rows, duplicates and sent to `path`."""
        content = asdict(self) | {"sent": self.sent}
        Path(path).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


class Simulation:
    """Iterate for chunks of TRADE_BATCH without `kafka_offset`; `journal` is known beforehand.

    Args:
        seed: not negative; with the other arguments it decides every byte.
        symbols: 1..65535 symbols named S00001.., activity by Zipf's law.
        trades: trades made; gaps take from them, duplicates come on top.
        exchange: the exchange of every row.
        date: the trading date, which is also the session.
        zone: time zone of the exchange's opening hours; as K2's setting has it.
        reset_window_ms: as K2's setting has it; halts are a second longer.
        gaps, duplicates, late, resets: faults to inject.

    Raises:
        FeedError: an argument is impossible, or that many faults do not fit.
    """

    def __init__(
        self,
        seed: int,
        symbols: int,
        trades: int,
        exchange: str = "SIM",
        date: dt.date = dt.date(2024, 3, 11),
        zone: str = "UTC",
        reset_window_ms: int = 60_000,
        gaps: int = 0,
        duplicates: int = 0,
        late: int = 0,
        resets: int = 0,
    ) -> None:
        for name, value, low in (("seed", seed, 0), ("symbols", symbols, 1), ("trades", trades, 1)):
            if value < low:
                raise FeedError(f"{name}: {value} is below {low}")
        if symbols > 65_535:
            raise FeedError(f"symbols: {symbols} is above 65535")
        if min(gaps, duplicates, late, resets) < 0:
            raise FeedError("gaps, duplicates, late and resets must not be negative")
        self.seed, self.trades, self.exchange, self.date = seed, trades, exchange, date
        self.names = [f"S{number:05d}" for number in range(1, symbols + 1)]
        weights = 1.0 / np.arange(1, symbols + 1)
        self._cdf = np.cumsum(weights / weights.sum())[:-1]
        opening = dt.datetime(date.year, date.month, date.day, _OPEN_HOUR, tzinfo=ZoneInfo(zone))
        self._open_ns = int(opening.timestamp()) * _SECOND
        self._halt_ns = (reset_window_ms + 1000) * 1_000_000
        self._halts = self._place_halts(resets)
        self._auction = max(trades // 50, 0)  # rows of each of the two auctions
        rng = np.random.default_rng([seed, 1 << 32])
        counts, before = self._count()
        reset_at = self._plan_resets(rng, resets, counts, before)
        self._plan_faults(
            rng, {"gap": gaps, "duplicate": duplicates, "late": late}, counts, reset_at
        )

    # -- the plan ------------------------------------------------------------------------------

    def _place_halts(self, resets: int) -> np.ndarray:
        """Row numbers (ascending) before which trading halts."""
        room = (13 * 3600 * _SECOND) // 2 // self._halt_ns  # what is left of the date, halved
        count = min(resets, HALTS_MAX, room)
        if resets and not count:
            raise FeedError(
                f"resets: a halt of {self._halt_ns // 10**6} ms does not fit into the day"
            )
        return self.trades * np.arange(1, count + 1) // (count + 1)

    def _symbols(self, chunk: int, count: int) -> np.ndarray:
        draws = np.random.default_rng([self.seed, chunk, 0]).random(count)
        return np.searchsorted(self._cdf, draws, side="right").astype(np.uint16)

    def _chunks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(chunk, first row number, symbol index of each row)."""
        for chunk, start in enumerate(range(0, self.trades, CHUNK_ROWS)):
            yield chunk, start, self._symbols(chunk, min(CHUNK_ROWS, self.trades - start))

    def _count(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows per symbol: in all, and (halts, symbols) before each halt."""
        size = len(self.names)
        counts = np.zeros(size, np.int64)
        before = np.zeros((len(self._halts), size), np.int64)
        for _, start, symbols in self._chunks():
            for index, row in enumerate(self._halts):
                inside = symbols[: max(0, row - start)]
                before[index] += np.bincount(inside, minlength=size)
            counts += np.bincount(symbols, minlength=size)
        return counts, before

    def _plan_resets(
        self, rng: np.random.Generator, resets: int, counts: np.ndarray, before: np.ndarray
    ) -> list[list[int]]:
        """Per symbol the row numbers (from 1, ascending) that start again at sequence 1."""
        starts: list[list[int]] = [[1] for _ in self.names]
        # Three rows since the halt before: whatever is chosen, the last sequence is above 2.
        since = np.diff(before, axis=0, prepend=0)
        places = np.argwhere((since >= 3) & (before < counts))
        if len(places) < resets:
            raise FeedError(f"resets: {resets} asked, {len(places)} fit; add trades or symbols")
        picked: Any = np.sort(rng.choice(len(places), resets, replace=False)) if resets else []
        chosen: list[list[int]] = [places[index].tolist() for index in picked]
        self._entries: list[Entry] = []
        for halt, symbol in chosen:
            first = int(before[halt, symbol]) + 1
            self._note("reset", symbol, 1, first - starts[symbol][-1])
            starts[symbol].append(first)
        return starts

    def _note(self, kind: str, symbol: int, first: int, last: int) -> None:
        name, day = self.names[symbol], self.date.isoformat()
        self._entries.append(Entry(kind, self.exchange, name, day, int(first), int(last)))

    def _slots(self, wanted: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """(n, 3) disjoint stretches (symbol, first row, last row), n >= wanted, as wide as fit."""
        room = np.maximum(high - low + 1, 0)
        for width in _SLOT_ROWS:
            each = np.where(room >= 8, np.maximum(room // width, 1), 0)
            if each.sum() >= wanted:
                break
        else:
            raise FeedError(f"faults: {wanted} asked, {each.sum()} fit; add trades")
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
        lost = np.zeros(len(self.names), np.int64)
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
        rows = {n: int(c) for n, c in zip(self.names, counts - lost, strict=True) if c}
        self.journal = Journal(tuple(self._entries), rows, wanted["duplicate"])

    # -- the stream ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[pa.Table]:
        size = len(self.names)
        done = np.zeros(size, np.int64)
        rng = np.random.default_rng([self.seed, 1 << 33])
        # Opening prices from cents to some hundreds, as steps on the tick ladder.
        rung = _rung(np.exp(rng.normal(1.5, 1.5, size)))
        waiting: Rows | None = None
        for chunk, start, symbols in self._chunks():
            rows = self._draw(chunk, start, symbols, done, rung)
            rows, waiting = self._inject(rows, waiting)
            if len(rows["symbol"]):
                yield self._table(rows)

    def _draw(
        self, chunk: int, start: int, symbols: np.ndarray, done: np.ndarray, rung: np.ndarray
    ) -> Rows:
        """The trades of one chunk; `done` (rows so far) and `rung` (walk) change in place."""
        count = len(symbols)
        rng = np.random.default_rng([self.seed, chunk, 1])
        number = np.arange(start, start + count)
        opening = number < self._auction
        closing = number >= self.trades - self._auction
        fixed = opening | closing
        step = rng.choice(np.array([-1, 0, 0, 0, 0, 1], np.int64), count)
        step[fixed] = 0
        buys = np.where(step == 0, rng.random(count) < 0.5, step > 0)
        order = np.argsort(symbols, kind="stable")
        sorted_symbols = symbols[order]
        first = np.searchsorted(sorted_symbols, sorted_symbols, side="left")
        total = np.concatenate([[0], np.cumsum(step[order])])
        row, walk = np.empty(count, np.int64), np.empty(count, np.int64)
        row[order] = done[sorted_symbols] + np.arange(count) - first + 1
        walk[order] = rung[sorted_symbols] + total[1:] - total[first]
        done += np.bincount(symbols, minlength=len(done))
        np.add.at(rung, symbols[step != 0], step[step != 0])
        ts_event = self._times(rng, number, opening, closing)
        key = _key(symbols.astype(np.int64), row)
        origin = self._starts[np.searchsorted(self._starts, key, side="right") - 1]
        return {
            "symbol": symbols,
            "key": key,
            "sequence": key - origin + 1,
            "ts_event": ts_event,
            "ts_recv": ts_event + 20_000 + (rng.exponential(200_000, count)).astype(np.int64),
            "price": _price(1 + np.abs(walk - 1)) * 100_000,
            "size": rng.geometric(0.2, count).astype(np.int64) * LOT_SIZE * 10**8,
            "side": np.where(fixed, 0, np.where(buys, 1, 2)).astype(np.int8),
            "auction": np.where(opening, 1, np.where(closing, 2, 0)).astype(np.int8),
            "trade": number + 1,
        }

    def _times(
        self, rng: np.random.Generator, number: np.ndarray, opening: np.ndarray, closing: np.ndarray
    ) -> np.ndarray:
        """ns since the epoch, ascending: auctions within a second each, the rest in a U."""
        # One draw within each row's own share of the day keeps the whole day sorted.
        share = (number + rng.random(len(number))) / self.trades
        grid = np.linspace(0.0, 1.0, 1025)
        mass = np.cumsum(1.0 + 3.0 * (2.0 * grid - 1.0) ** 2)
        mass = (mass - mass[0]) / (mass[-1] - mass[0])
        day = (1 + np.interp(share, mass, grid) * (_OPEN_SECONDS - 2)) * _SECOND
        day = np.where(opening, share * _SECOND, day)
        day = np.where(closing, (_OPEN_SECONDS + _CLOSE_AFTER + share) * _SECOND, day)
        halted = np.searchsorted(self._halts, number, side="right") * self._halt_ns
        return self._open_ns + day.astype(np.int64) + halted

    def _inject(self, rows: Rows, waiting: Rows | None) -> tuple[Rows, Rows | None]:
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

    def _table(self, rows: Rows) -> pa.Table:
        count = len(rows["symbol"])
        conditions = pa.array([None, "OPEN_AUCTION", "CLOSE_AUCTION"])
        trade = pc.cast(pa.array(rows["trade"]), pa.string())
        columns = {
            "exchange": pa.repeat(self.exchange, count),
            "symbol": pa.array(self.names).take(pa.array(rows["symbol"])),
            "sequence": pa.array(rows["sequence"]),
            "ts_event": pa.array(rows["ts_event"]),
            "ts_recv": pa.array(rows["ts_recv"]),
            "price": _decimals(rows["price"]),
            "size": _decimals(rows["size"]),
            "side": pa.array(["NONE", "BUY", "SELL"]).take(pa.array(rows["side"])),
            "trade_id": pc.binary_join_element_wise("T", trade, ""),
            "conditions": conditions.take(pa.array(rows["auction"])),
            "venue": pa.nulls(count, pa.string()),
        }
        return pa.table([columns[name] for name in _COLUMNS.names], schema=_COLUMNS)


def _key(symbol: Any, row: Any) -> Any:
    """One integer for (symbol, row number), in that order."""
    return (symbol << 40) | row


def _start_keys(starts: list[list[int]]) -> np.ndarray:
    keys = [_key(symbol, row) for symbol, rows in enumerate(starts) for row in rows]
    return np.array(keys, np.int64)


def _price(rung: np.ndarray) -> np.ndarray:
    """Thousandths at a step of the ladder: ticks 0.001 to 0.10, 0.005 to 2.00, then 0.01."""
    middle = 100 + 5 * (rung - 100)
    return np.where(rung <= 100, rung, np.where(rung <= 480, middle, 2000 + 10 * (rung - 480)))


def _rung(price: np.ndarray) -> np.ndarray:
    """The step of the ladder at or below a price, at least 1."""
    above = np.where(price < 2, 100 + (price - 0.1) * 200, 480 + (price - 2) * 100)
    ladder = np.where(price < 0.1, price * 1000, above)
    return np.maximum(ladder.astype(np.int64), 1)


def _decimals(units: np.ndarray) -> pa.Array:
    """int64 units of 1e-8, not negative, as decimal128(18, 8) without a copy per value."""
    words = np.zeros((len(units), 2), "<i8")
    words[:, 0] = units
    kind = _COLUMNS.field("price").type
    return pa.Array.from_buffers(kind, len(units), [None, pa.py_buffer(words)])
