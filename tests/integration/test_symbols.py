"""What is known live of symbols: as the tables have it, from whichever worker, through kills."""

from __future__ import annotations

import datetime as dt
import json
from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

import pyarrow as pa
import pytest

from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.schemas import QUOTES, TRADES
from k2.settings import Settings
from tests.chaos.rounds import ChaosWorker
from tests.integration.parts import (
    Feed,
    Worker,
    committed,
    environment,
    get,
    iceberg,
    k2,
    until,
)

pytestmark = pytest.mark.slow

SYMBOLS = 40
ROWS = 150_000
RATE = 25_000.0
FAULTS = {"gaps": 40, "duplicates": 60, "late": 40}
#: What a worker logs whose live knowledge no checkpoint tells.
MADE_ANEW = "is made from the trades table"
MINUTE_NS = 60 * 10**9
DAYS = [dt.date(2024, 3, 11), dt.date(2024, 3, 12)]


def test_either_worker_says_of_each_symbol_what_the_tables_say(lake: Settings) -> None:
    """Two sessions; a worker killed in mid-stream, its partitions taken over, and given back."""
    days = [Simulation(3 + i, SYMBOLS, ROWS, date=day, **FAULTS) for i, day in enumerate(DAYS)]
    quotes = Simulation(3, SYMBOLS, ROWS // 3, date=DAYS[1], kind=QUOTES, **FAULTS)
    first, second = (pa.concat_tables(day) for day in days)
    trades = sum(sum(day.journal.rows.values()) for day in days)
    cut = second.num_rows // 2
    with Worker(lake, "a") as killed, Worker(lake, "b") as staying:
        killed.await_ready()
        staying.await_ready()
        with (
            Feed([first, second.slice(0, cut)], TRADES.topic("SIM"), lake, RATE) as feed,
            Feed([pa.concat_tables(quotes)], QUOTES.topic("SIM"), lake, RATE) as quoted,
        ):
            until(killed.ingested, 60, lambda: f"a share of the trades:\n{killed.tail()}")
            until(lambda: committed(lake) > ROWS, 60, "most of the first session")
            killed.kill()
            feed.done.result(timeout=120)
            quoted.done.result(timeout=120)
        killed.start()
        killed.await_ready()
        staying.await_ready()
        with Feed([second.slice(cut)], TRADES.topic("SIM"), lake, 4 * RATE) as feed:
            feed.done.result(timeout=120)
        _await_rows(lake, "trades", trades, staying)
        _await_rows(lake, "quotes", sum(quotes.journal.rows.values()), staying)
        ends = _ends(staying)
        expected = _told_by_the_tables(lake)
        assert len(expected) > SYMBOLS // 2
        for symbol, told in expected.items():
            answer = _answer(killed, symbol, "?bars=true")
            assert answer == _answer(staying, symbol, "?bars=true")
            _require(answer, told)
        _require_sequences(staying, days[1])
        assert get(f"{killed.url}/v1/symbols/SIM/NONE")[0] == 404
        assert get(f"{killed.url}/v1/symbols/NONE/{next(iter(expected))}")[0] == 404
        _require_command(killed, next(iter(expected)))

        killed.terminate()
        staying.await_ready()
        until(lambda: _ends(staying) == ends, 60, "all read again")
        for symbol, told in expected.items():
            _require(_answer(staying, symbol, "?bars=true"), told)
        staying.terminate()


def test_what_is_forgotten_is_made_from_the_tables(lake: Settings) -> None:
    """As after an upgrade, or a checkpoint cut short: the answers are what they were."""
    day = Simulation(5, SYMBOLS, ROWS // 10, date=DAYS[0], **FAULTS)
    produce(iter(day), TRADES.topic("SIM"), lake)
    rows = sum(day.journal.rows.values())
    # The embedded broker calls a group stable also when all workers have left.
    sure = ("--yes",) if lake.catalog_uri else ("--yes", "--force")
    with Worker(lake) as worker:
        worker.await_ready()
        _await_rows(lake, "trades", rows, worker)
        before = {s: _known(worker, s) for s in day.journal.rows}
        worker.terminate()
        assert MADE_ANEW not in worker.log()
        worker.start()
        worker.await_ready()
        assert before == {s: _known(worker, s) for s in day.journal.rows}
        worker.terminate()
        assert MADE_ANEW not in worker.log()
        done = k2(environment(lake), "state", "rebuild", *sure)
        assert done.returncode == 0, done.stderr
        worker.start()
        worker.await_ready()
        assert before == {s: _known(worker, s) for s in day.journal.rows}
        assert MADE_ANEW in worker.log()
        worker.terminate()


@pytest.mark.parametrize("place", ["local"], indirect=True)
@pytest.mark.parametrize("put", [79, 100, 103])
def test_a_checkpoint_cut_short_counts_nothing_twice(lake: Settings, put: int) -> None:
    """Killed between two segments of one of many checkpoints: some are ahead of the mark.

    Only what came since the last live write is read in the table.
    """
    day = Simulation(6, SYMBOLS, ROWS // 10, date=DAYS[0], **FAULTS)
    mark = lake.data / "hit"
    chaos = {
        "CHAOS_POINT": "mid-table-flush",
        "CHAOS_ACTION": "kill",
        "CHAOS_FIRST": str(put),
        "CHAOS_TIMES": "1",
        "CHAOS_MARK": str(mark),
    }
    with ChaosWorker(lake, "a", chaos) as victim:
        victim.await_ready()
        with Feed([pa.concat_tables(day)], TRADES.topic("SIM"), lake, RATE / 10) as feed:
            until(lambda: victim.child.poll() is not None, 60, lambda: f"dead:\n{victim.tail()}")
            assert mark.read_text() == f"{put}\n", victim.tail()
            feed.done.result(timeout=60)
    with Worker(lake, "a") as worker:  # its folder has them, the changelog not yet
        worker.await_ready()
        _await_rows(lake, "trades", sum(day.journal.rows.values()), worker)
        for symbol, told in _told_by_the_tables(lake).items():
            _require(_answer(worker, symbol, "?bars=true"), told)
        _require_sequences(worker, day)
        assert MADE_ANEW not in worker.log()
        worker.terminate()


def _known(worker: Worker, symbol: str) -> dict[str, Any]:
    """The answer without the counters of the check, which forget duplicates."""
    answer = _answer(worker, symbol, "?bars=true")
    del answer["sequences"]
    return answer


def _answer(worker: Worker, symbol: str, more: str = "") -> dict[str, Any]:
    status, _, body = get(f"{worker.url}/v1/symbols/SIM/{symbol}{more}")
    assert status == 200, body.decode()
    answer: dict[str, Any] = json.loads(body)
    return answer


def _await_rows(lake: Settings, name: str, rows: int, worker: Worker) -> None:
    until(
        lambda: committed(lake, name) >= rows,
        90,
        lambda: f"{rows} {name}, but {committed(lake, name)}:\n{worker.tail()}",
    )


def _ends(worker: Worker) -> dict[tuple[str, int], int]:
    """How far each partition is known; a symbol that nobody knows is asked of all of them."""
    ends = {}
    for number in range(1, SYMBOLS + 1):
        status, _, body = get(f"{worker.url}/v1/symbols/SIM/S{number:05d}")
        if status == 200:
            for part in json.loads(body)["as_of"]:
                ends[part["topic"], part["partition"]] = part["next_offset"]
    return ends


def _told_by_the_tables(lake: Settings) -> dict[str, dict[str, Any]]:
    """Of each symbol with trades the answer, by plain arithmetic over the committed rows."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in ("trades", "quotes"):
        of_symbol: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in iceberg(lake, name).scan().to_arrow().to_pylist():
            of_symbol[row["symbol"]].append(row)
        rows[name] = of_symbol
    return {s: _told(own, rows["quotes"].get(s, [])) for s, own in rows["trades"].items()}


def _told(trades: list[dict[str, Any]], quotes: list[dict[str, Any]]) -> dict[str, Any]:
    session = max(row["session"] for row in [*trades, *quotes])
    by_minute: dict[int, list[dict[str, Any]]] = defaultdict(list)
    own = sorted((row for row in trades if row["session"] == session), key=_place)
    for row in own:
        by_minute[row["ts_event"] // MINUTE_NS * MINUTE_NS].append(row)
    told: dict[str, Any] = {
        "session": session.isoformat(),
        "trades": len(own),
        "quotes": sum(row["session"] == session for row in quotes),
    }
    if own:
        told |= _statistics(own)
        told["first_ts"], told["last_ts"] = own[0]["ts_event"], own[-1]["ts_event"]
    return {
        "trade": _last(trades),
        "quote": _last(quotes),
        "session": told,
        "bars": [
            {"start": start, **_statistics(bar), "trades": len(bar)}
            for start, bar in sorted(by_minute.items())
        ],
    }


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["session"], row["ts_event"], row["sequence"], row["kafka_offset"]


def _last(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    return max(rows, key=_place) if rows else None


def _statistics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    prices = [row["price"] for row in rows]
    with localcontext(prec=60):
        volume = sum((row["size"] for row in rows), Decimal(0))
        notional = sum((row["price"] * row["size"] for row in rows), Decimal(0))
        vwap = (notional / volume).quantize(Decimal("1e-8"), ROUND_HALF_UP)
    return {
        "open": prices[0],
        "high": max(prices),
        "low": min(prices),
        "close": prices[-1],
        "volume": volume,
        "vwap": vwap,
    }


def _require(answer: dict[str, Any], told: dict[str, Any]) -> None:
    """Every number that the tables tell is in the answer, decimals as strings."""
    assert (answer["exchange"], answer["symbol"]) == ("SIM", told["trade"]["symbol"])
    for name in ("trade", "quote"):
        if told[name] is None:
            assert answer[name] is None
            continue
        for column, value in answer[name].items():
            assert _same(value, told[name][column]), f"{name}: {column}"
    for found, expected in [
        (answer["session"], told["session"]),
        *zip(answer["bars"], told["bars"], strict=True),
    ]:
        assert {k: _same(found[k], v) for k, v in expected.items()} == dict.fromkeys(expected, True)


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Decimal):
        return isinstance(found, str) and "E" not in found and Decimal(found) == expected
    return bool(found == (expected.isoformat() if isinstance(expected, dt.date) else expected))


def _missing(day: Simulation) -> dict[str, list[tuple[int, int]]]:
    """By symbol the gaps that nothing fills."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for entry in day.journal.entries:
        if entry.kind == "gap":
            found[entry.symbol].append((entry.first, entry.last))
    return found


def _require_sequences(worker: Worker, day: Simulation) -> None:
    """Health and open gaps are those of the running session."""
    missing = _missing(day)
    assert missing
    for symbol, rows in day.journal.rows.items():
        sequences = _answer(worker, symbol)["sequences"]["trades"]
        gaps = [(gap["missing_first"], gap["missing_last"]) for gap in sequences["gaps"]]
        assert gaps == sorted(missing[symbol]), symbol
        assert sequences["health"] == ("gaps" if gaps else "complete")
        assert sequences["open_gaps"] == len(gaps)
        assert sequences["missing"] == sum(last - first + 1 for first, last in gaps)
        assert sequences["session"] == day.date.isoformat()
        assert sequences["last_sequence"] == rows + sequences["missing"]


def _require_command(worker: Worker, symbol: str) -> None:
    """`k2 symbol` prints the answer, for people and for programs."""
    env = environment(worker.settings)
    done = k2(env, "symbol", "SIM", symbol, "--json", "--bars")
    assert done.returncode == 0, done.stderr
    answer = _answer(worker, symbol, "?bars=true")
    assert json.loads(done.stdout) == answer
    shown = k2(env, "symbol", "SIM", symbol)
    assert shown.returncode == 0, shown.stderr
    for value in (answer["trade"]["price"], answer["session"]["volume"], answer["session"]["vwap"]):
        assert value in shown.stdout
    unknown = k2(env, "symbol", "SIM", "NONE")
    assert unknown.returncode == 2
    assert "no record of 'SIM.NONE' is known" in unknown.stderr
