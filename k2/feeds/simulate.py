"""A seeded trading day: trades or quotes of many symbols in event order, and faults among them.

The day is drawn in chunks of a fixed number of rows, each from its own generator, so memory stays
bounded and equal arguments give equal records. The constructor counts the rows of every symbol and
places the faults (`faults`); the Journal says what a sequence check must find. Trades and quotes of
one seed open at the same prices; from there on each walk by themselves.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from k2.errors import FeedError
from k2.feeds.faults import Faults, Journal, Rows
from k2.feeds.market import COLUMNS, DRAW, Moves, opening
from k2.schemas import KINDS, TRADES, Kind

__all__ = ["Journal", "Simulation"]

CHUNK_ROWS = 131_072
HALTS_MAX = 8
_SECOND = 10**9
_OPEN_HOUR, _OPEN_SECONDS, _CLOSE_AFTER = 10, 6 * 3600, 600


class Simulation:
    """Iterate for chunks of `kind.columns`; `journal` is known beforehand.

    Args:
        seed: not negative; with the other arguments it decides every byte.
        symbols: 1..65535 symbols named S00001.., activity by Zipf's law.
        rows: records made; gaps take from them, duplicates come on top.
        exchange: the exchange of every row.
        date: the trading date, which is also the session.
        zone: time zone of the exchange's opening hours; as K2's setting has it.
        reset_window_ms: as K2's setting has it; halts are a second longer.
        gaps, duplicates, late, resets: faults to inject.
        kind: what is made.

    Raises:
        FeedError: an argument is impossible, or that many faults do not fit.
    """

    def __init__(
        self,
        seed: int,
        symbols: int,
        rows: int,
        exchange: str = "SIM",
        date: dt.date = dt.date(2024, 3, 11),
        zone: str = "UTC",
        reset_window_ms: int = 60_000,
        gaps: int = 0,
        duplicates: int = 0,
        late: int = 0,
        resets: int = 0,
        kind: Kind = TRADES,
    ) -> None:
        for name, value, low in (("seed", seed, 0), ("symbols", symbols, 1), ("rows", rows, 1)):
            if value < low:
                raise FeedError(f"{name}: {value} is below {low}")
        if symbols > 65_535:
            raise FeedError(f"symbols: {symbols} is above 65535")
        if min(gaps, duplicates, late, resets) < 0:
            raise FeedError("gaps, duplicates, late and resets must not be negative")
        self.seed, self.rows, self.exchange, self.date, self.kind = seed, rows, exchange, date, kind
        self.names = [f"S{number:05d}" for number in range(1, symbols + 1)]
        self._stream = KINDS.index(kind)  # kinds of one seed differ in all that is drawn
        weights = 1.0 / np.arange(1, symbols + 1)
        self._cdf = np.cumsum(weights / weights.sum())[:-1]
        opening_hour = dt.datetime(
            date.year, date.month, date.day, _OPEN_HOUR, tzinfo=ZoneInfo(zone)
        )
        self._open_ns = int(opening_hour.timestamp()) * _SECOND
        self._halt_ns = (reset_window_ms + 1000) * 1_000_000
        self._halts = self._place_halts(resets)
        self._auction = max(rows // 50, 0)  # rows of each of the two auctions
        self._faults = Faults(
            np.random.default_rng([seed, (1 << 32) + 2 * self._stream]),
            exchange,
            date,
            self.names,
            *self._count(),
            gaps=gaps,
            duplicates=duplicates,
            late=late,
            resets=resets,
        )
        self.journal = self._faults.journal

    def _place_halts(self, resets: int) -> np.ndarray:
        """Row numbers (ascending) before which trading halts."""
        room = (13 * 3600 * _SECOND) // 2 // self._halt_ns  # what is left of the date, halved
        count = min(resets, HALTS_MAX, room)
        if resets and not count:
            raise FeedError(
                f"resets: a halt of {self._halt_ns // 10**6} ms does not fit into the day"
            )
        return self.rows * np.arange(1, count + 1) // (count + 1)

    def _symbols(self, chunk: int, count: int) -> np.ndarray:
        draws = np.random.default_rng([self.seed, chunk, 2 * self._stream]).random(count)
        return np.searchsorted(self._cdf, draws, side="right").astype(np.uint16)

    def _chunks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(chunk, first row number, symbol index of each row)."""
        for chunk, start in enumerate(range(0, self.rows, CHUNK_ROWS)):
            yield chunk, start, self._symbols(chunk, min(CHUNK_ROWS, self.rows - start))

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

    def __iter__(self) -> Iterator[pa.Table]:
        size = len(self.names)
        done = np.zeros(size, np.int64)
        rung = opening(np.random.default_rng([self.seed, 1 << 33]), size)
        waiting: Rows | None = None
        for chunk, start, symbols in self._chunks():
            rows = self._draw(chunk, start, symbols, done, rung)
            rows, waiting = self._faults.inject(rows, waiting)
            if len(rows["symbol"]):
                yield self._table(rows)

    def _draw(
        self, chunk: int, start: int, symbols: np.ndarray, done: np.ndarray, rung: np.ndarray
    ) -> Rows:
        """The rows of one chunk; `done` (rows so far) and `rung` (walk) change in place."""
        count = len(symbols)
        rng = np.random.default_rng([self.seed, chunk, 2 * self._stream + 1])
        number = np.arange(start, start + count)
        first_auction = number < self._auction
        last_auction = number >= self.rows - self._auction
        step = rng.choice(np.array([-1, 0, 0, 0, 0, 1], np.int64), count)
        step[first_auction | last_auction] = 0
        coin = rng.random(count)
        order = np.argsort(symbols, kind="stable")
        sorted_symbols = symbols[order]
        first = np.searchsorted(sorted_symbols, sorted_symbols, side="left")
        total = np.concatenate([[0], np.cumsum(step[order])])
        row, walk = np.empty(count, np.int64), np.empty(count, np.int64)
        row[order] = done[sorted_symbols] + np.arange(count) - first + 1
        walk[order] = rung[sorted_symbols] + total[1:] - total[first]
        done += np.bincount(symbols, minlength=len(done))
        np.add.at(rung, symbols[step != 0], step[step != 0])
        ts_event = self._times(rng, number, first_auction, last_auction)
        auction = np.where(first_auction, 1, np.where(last_auction, 2, 0)).astype(np.int8)
        return {
            "symbol": symbols,
            **self._faults.numbered(symbols, row),
            "ts_event": ts_event,
            "ts_recv": ts_event + 20_000 + (rng.exponential(200_000, count)).astype(np.int64),
            "auction": auction,
            **DRAW[self.kind](rng, Moves(number, walk, step, coin, auction)),
        }

    def _times(
        self, rng: np.random.Generator, number: np.ndarray, opening: np.ndarray, closing: np.ndarray
    ) -> np.ndarray:
        """ns since the epoch, ascending: auctions within a second each, the rest in a U."""
        # One draw within each row's own share of the day keeps the whole day sorted.
        share = (number + rng.random(len(number))) / self.rows
        grid = np.linspace(0.0, 1.0, 1025)
        mass = np.cumsum(1.0 + 3.0 * (2.0 * grid - 1.0) ** 2)
        mass = (mass - mass[0]) / (mass[-1] - mass[0])
        day = (1 + np.interp(share, mass, grid) * (_OPEN_SECONDS - 2)) * _SECOND
        day = np.where(opening, share * _SECOND, day)
        day = np.where(closing, (_OPEN_SECONDS + _CLOSE_AFTER + share) * _SECOND, day)
        halted = np.searchsorted(self._halts, number, side="right") * self._halt_ns
        return self._open_ns + day.astype(np.int64) + halted

    def _table(self, rows: Rows) -> pa.Table:
        count = len(rows["symbol"])
        conditions = pa.array([None, "OPEN_AUCTION", "CLOSE_AUCTION"])
        columns = {
            "exchange": pa.repeat(self.exchange, count),
            "symbol": pa.array(self.names).take(pa.array(rows["symbol"])),
            **{name: pa.array(rows[name]) for name in ("sequence", "ts_event", "ts_recv")},
            "conditions": conditions.take(pa.array(rows["auction"])),
            "venue": pa.nulls(count, pa.string()),
            **COLUMNS[self.kind](rows),
        }
        schema = self.kind.columns
        return pa.table([columns[name] for name in schema.names], schema=schema)
