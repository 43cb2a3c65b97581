"""The simulated day is deterministic, and its journal is what a sequence check finds."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from k2.errors import FeedError
from k2.feeds import simulate
from k2.feeds.simulate import Simulation
from k2.schemas import KINDS, QUOTES, TRADES, Kind

FAULTS = {"gaps": 20, "duplicates": 15, "late": 25, "resets": 6}


def fold(tables: list[pa.Table], reset_window_ms: int = 60_000) -> dict[str, Any]:
    """The sequence rules in plain Python, one record at a time."""
    last: dict[str, int] = {}
    last_ts: dict[str, int] = {}
    missing: dict[str, set[int]] = {}
    verdicts: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    found: dict[str, list[tuple[str, int, int]]] = {k: [] for k in ("gap", "late", "reset", "dup")}
    for table in tables:
        columns = (table[n].to_pylist() for n in ("symbol", "sequence", "ts_event"))
        for symbol, seq, ts in zip(*columns, strict=True):
            before = last.get(symbol)
            fresh = True
            if before is None:
                assert seq == 1
            elif seq in missing[symbol]:
                missing[symbol].discard(seq)
                found["late"].append((symbol, seq, seq))
                fresh = False
            elif seq > before:
                if seq > before + 1:
                    found["gap"].append((symbol, before + 1, seq - 1))
                    missing[symbol] |= set(range(before + 1, seq))
            elif seq * 2 < before and ts - last_ts[symbol] > reset_window_ms * 1_000_000:
                assert before > 2
                found["reset"].append((symbol, seq, before))
                assert not missing[symbol]
            else:
                found["dup"].append((symbol, seq, seq))
                verdicts["duplicate"] += 1
                continue
            rows[symbol] += 1
            if fresh:
                last[symbol], last_ts[symbol] = seq, ts
                missing.setdefault(symbol, set())
    lost = sum(map(len, missing.values()))
    return {"rows": dict(rows), "lost": lost} | {k: sorted(v) for k, v in found.items()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("chunk_rows", [97, 131_072])
@pytest.mark.parametrize("seed", range(6))
def test_journal_is_what_a_scalar_check_finds(
    seed: int, chunk_rows: int, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gaps, late records, duplicates, resets and rows agree, whatever the chunks are."""
    monkeypatch.setattr(simulate, "CHUNK_ROWS", chunk_rows)
    simulation = Simulation(seed, symbols=20, rows=6000, **FAULTS, kind=kind)
    journal = simulation.journal
    found = fold(list(simulation))
    entries: dict[str, list[tuple[str, int, int]]] = {}
    for entry in journal.entries:
        entries.setdefault(entry.kind, []).append((entry.symbol, entry.first, entry.last))
        assert (entry.exchange, entry.session) == ("SIM", "2024-03-11")
    assert found["gap"] == journal.gaps()
    assert found["late"] == sorted(entries["late"])
    assert found["reset"] == sorted(entries["reset"])
    assert found["dup"] == sorted(entries["duplicate"])
    assert found["rows"] == journal.rows
    assert found["lost"] == sum(last - first + 1 for _, first, last in entries["gap"])
    counts = {kind: len(items) for kind, items in entries.items()}
    assert counts == {"gap": 20, "duplicate": 15, "late": 25, "reset": 6}
    assert journal.duplicates == 15


def test_many_faults_in_one_symbol_do_not_interfere() -> None:
    """Narrow slots: a fault in every eighth row or so is still told apart."""
    simulation = Simulation(3, symbols=1, rows=4000, gaps=60, duplicates=60, late=60, resets=1)
    found = fold(list(simulation))
    assert found["gap"] == simulation.journal.gaps()
    assert found["rows"] == simulation.journal.rows
    assert (len(found["dup"]), len(found["late"]), len(found["reset"])) == (60, 60, 1)


def test_a_repeated_record_is_the_same_record() -> None:
    """Every column of a duplicate equals those of the first sending."""
    simulation = Simulation(1, symbols=5, rows=3000, duplicates=10)
    rows = pa.concat_tables(simulation).to_pylist()
    assert len(rows) == 3010 == simulation.journal.sent
    assert len({tuple(row.items()) for row in rows}) == 3000


def test_equal_seeds_give_equal_days_and_other_seeds_others() -> None:
    """The stream is a function of its arguments."""
    first, again, other = (
        pa.concat_tables(Simulation(seed, 10, 2000, **FAULTS)) for seed in (7, 7, 8)
    )
    assert first.equals(again)
    assert not first.equals(other)


def test_a_clean_day_has_documented_columns() -> None:
    """Schema, order, ticks, lots, sides, auctions and receive times."""
    table = pa.concat_tables(Simulation(5, symbols=50, rows=20_000))
    table.validate(full=True)
    assert table.schema.equals(TRADES.columns)
    rows = table.to_pylist()
    times = [row["ts_event"] for row in rows]
    assert times == sorted(times)
    assert {dt.datetime.fromtimestamp(t / 1e9, dt.UTC).date() for t in times} == {
        dt.date(2024, 3, 11)
    }
    for row in rows:
        price = row["price"]
        tick = "0.001" if price < Decimal("0.1") else "0.005" if price < 2 else "0.01"
        assert price > 0
        assert price % Decimal(tick) == 0
        assert row["size"] > 0
        assert row["size"] % 100 == 0
        assert row["ts_recv"] > row["ts_event"]
        assert (row["side"] == "NONE") == (row["conditions"] is not None)
    assert {row["side"] for row in rows} == {"NONE", "BUY", "SELL"}
    conditions = [row["conditions"] for row in rows]
    assert conditions[:400] == ["OPEN_AUCTION"] * 400
    assert conditions[-400:] == ["CLOSE_AUCTION"] * 400
    assert len({row["trade_id"] for row in rows}) == 20_000
    activity = Counter(row["symbol"] for row in rows)
    assert activity["S00001"] > 5 * activity["S00010"]


def test_a_clean_day_of_quotes_has_documented_columns() -> None:
    """Bids below asks, ticks, lots, empty sides now and then, and price and size empty together."""
    table = pa.concat_tables(Simulation(5, symbols=50, rows=20_000, kind=QUOTES))
    table.validate(full=True)
    assert table.schema.equals(QUOTES.columns)
    rows = table.to_pylist()
    for row in rows:
        for side in ("bid", "ask"):
            price, size = row[f"{side}_price"], row[f"{side}_size"]
            assert (price is None) == (size is None)
            if price is not None:
                tick = "0.001" if price < Decimal("0.1") else "0.005" if price < 2 else "0.01"
                assert price > 0
                assert price % Decimal(tick) == 0
                assert size > 0
                assert size % 100 == 0
        if row["bid_price"] is not None and row["ask_price"] is not None:
            assert row["bid_price"] < row["ask_price"]
    for side in ("bid_price", "ask_price"):
        assert 0 < table[side].null_count < 200


def test_kinds_of_one_seed_are_days_of_their_own() -> None:
    """Times and symbols of the quotes are not those of the trades."""
    trades, quotes = (pa.concat_tables(Simulation(1, 5, 1000, kind=kind)) for kind in KINDS)
    assert trades["symbol"] != quotes["symbol"]
    assert trades["ts_event"] != quotes["ts_event"]


def test_journal_file_holds_all(tmp_path: Path) -> None:
    """to_json writes what the journal says."""
    journal = Simulation(2, symbols=5, rows=2000, gaps=2, late=1).journal
    journal.to_json(tmp_path / "journal.json")
    read = orjson.loads((tmp_path / "journal.json").read_bytes())
    assert len(read["entries"]) == 3
    assert read["rows"] == journal.rows
    assert (read["sent"], read["duplicates"]) == (journal.sent, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed: -1 is below 0"),
        ({"symbols": 0}, "symbols: 0 is below 1"),
        ({"symbols": 70_000}, "symbols: 70000 is above 65535"),
        ({"rows": 0}, "rows: 0 is below 1"),
        ({"gaps": -1}, "must not be negative"),
        ({"gaps": 1000}, "faults: 1000 asked"),
        ({"resets": 50}, "resets: 50 asked"),
        ({"resets": 1, "reset_window_ms": 86_400_000}, "does not fit into the day"),
    ],
)
def test_impossible_arguments_are_refused(change: dict[str, int], message: str) -> None:
    """Each names the argument and the limit."""
    arguments = {"seed": 1, "symbols": 2, "rows": 100} | change
    with pytest.raises(FeedError, match=message):
        Simulation(**arguments)


@pytest.mark.parametrize("trades", [1, 2, 49, 50])
def test_tiny_days_work(trades: int) -> None:
    """A day may hold less than an auction."""
    assert sum(table.num_rows for table in Simulation(1, 3, trades)) == trades
