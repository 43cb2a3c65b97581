"""What the records of a simulated day say: prices on their ladder of ticks, sizes, sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2.feeds.faults import Rows
from k2.records import PRICE_PRECISION, PRICE_SCALE
from k2.schemas import QUOTES, TRADES, Kind

__all__ = ["COLUMNS", "DRAW", "Moves", "opening"]

LOT_SIZE = 100
_SPREAD_MAX = 5  # ticks between bid and ask
_EMPTY = 0.002  # of the quotes have no bid, and as many no ask


@dataclass(frozen=True, slots=True)
class Moves:
    """n rows of a market that moves; what a kind of record makes of it is up to the kind."""

    number: np.ndarray  # of the row in the day, from 0
    walk: np.ndarray  # step of the ladder after the row
    step: np.ndarray  # -1, 0 or 1: how the row moved it
    coin: np.ndarray  # random, 0..1
    auction: np.ndarray  # 0: none, 1: opening, 2: closing


def _trades(rng: np.random.Generator, at: Moves) -> Rows:
    buys = np.where(at.step == 0, at.coin < 0.5, at.step > 0)
    return {
        "price": _price(1 + np.abs(at.walk - 1)) * 100_000,
        "size": _size(rng, len(at.walk)),
        "side": np.where(at.auction > 0, 0, np.where(buys, 1, 2)).astype(np.int8),
        "trade": at.number + 1,
    }


def _quotes(rng: np.random.Generator, at: Moves) -> Rows:
    # The spread around the walk, its odd tick on a random side. 0 is an empty side.
    count = len(at.walk)
    spread = np.minimum(rng.geometric(0.6, count), _SPREAD_MAX)
    bid = 1 + np.abs(at.walk - 1 - (spread + (at.coin < 0.5)) // 2)
    has_bid, has_ask = rng.random((2, count)) >= _EMPTY
    return {
        "bid_price": _price(bid) * 100_000 * has_bid,
        "bid_size": _size(rng, count) * has_bid,
        "ask_price": _price(bid + spread) * 100_000 * has_ask,
        "ask_size": _size(rng, count) * has_ask,
    }


def _trade_columns(rows: Rows) -> dict[str, pa.Array]:
    number = pc.cast(pa.array(rows["trade"]), pa.string())
    return {
        "price": _decimals(rows["price"]),
        "size": _decimals(rows["size"]),
        "side": pa.array(["NONE", "BUY", "SELL"]).take(pa.array(rows["side"])),
        "trade_id": pc.binary_join_element_wise("T", number, ""),
    }


def _quote_columns(rows: Rows) -> dict[str, pa.Array]:
    names = ("bid_price", "bid_size", "ask_price", "ask_size")
    return {name: _decimals(rows[name], rows[name] == 0) for name in names}


#: How the records of a kind are drawn, in units of 1e-8, and how they become Arrow columns.
DRAW: dict[Kind, Callable[[np.random.Generator, Moves], Rows]] = {TRADES: _trades, QUOTES: _quotes}
COLUMNS: dict[Kind, Callable[[Rows], dict[str, pa.Array]]] = {
    TRADES: _trade_columns,
    QUOTES: _quote_columns,
}


def opening(rng: np.random.Generator, count: int) -> np.ndarray:
    """Steps of the ladder at which `count` symbols open: from cents to some hundreds."""
    return _rung(np.exp(rng.normal(1.5, 1.5, count)))


def _size(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.geometric(0.2, count).astype(np.int64) * LOT_SIZE * 10**8


def _price(rung: np.ndarray) -> np.ndarray:
    """Thousandths at a step of the ladder: ticks 0.001 to 0.10, 0.005 to 2.00, then 0.01."""
    middle = 100 + 5 * (rung - 100)
    return np.where(rung <= 100, rung, np.where(rung <= 480, middle, 2000 + 10 * (rung - 480)))


def _rung(price: np.ndarray) -> np.ndarray:
    """The step of the ladder at or below a price, at least 1."""
    above = np.where(price < 2, 100 + (price - 0.1) * 200, 480 + (price - 2) * 100)
    ladder = np.where(price < 0.1, price * 1000, above)
    return np.maximum(ladder.astype(np.int64), 1)


def _decimals(units: np.ndarray, null: np.ndarray | None = None) -> pa.Array:
    """int64 units of 1e-8, not negative, as decimal128(18, 8) without a copy per value."""
    words = np.zeros((len(units), 2), "<i8")
    words[:, 0] = units
    valid = None if null is None else pa.array(~null).buffers()[1]
    kind = pa.decimal128(PRICE_PRECISION, PRICE_SCALE)
    return pa.Array.from_buffers(kind, len(units), [valid, pa.py_buffer(words)])
