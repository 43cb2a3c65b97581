"""Queries over real Iceberg tables: what they give, in which order, to the last digit."""

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from decimal import ROUND_HALF_UP, Decimal, localcontext
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from k2.errors import BadQuery, CatalogUnavailable, QueryTooLarge
from k2.lake.catalog import ensure_tables, load_table, open_catalog, table_name
from k2.lake.commit import Sink
from k2.query.bars import DAY_NS
from k2.query.engine import Engine
from k2.query.rows import Stop
from k2.query.times import iso, time_ns
from k2.schemas import TRADES
from k2.settings import Settings

START = 1394409600_000_000_000  # 2014-03-10 00:00 UTC, 11:00 in Sydney
SECOND = 1_000_000_000


def row(
    offset: int, ts_event: int, price: str = "36.667", size: str = "100", **more: object
) -> dict:
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=ts_event // 1000)
    return {
        "exchange": "ASX",
        "symbol": "BHP",
        "session": dt.date(2014, 3, 10),
        "event_time": moment,
        "sequence": offset,
        "ts_event": ts_event,
        "ts_recv": ts_event,
        "price": Decimal(price),
        "size": Decimal(size),
        "side": "NONE",
        "verdict": "ok",
        "kafka_cluster": "c",
        "kafka_topic": "market.trades.asx",
        "kafka_partition": 0,
        "kafka_offset": offset,
        "ingest_time": moment,
        **more,
    }


@pytest.fixture
def lake(tmp_path: Path):
    settings = Settings(data=tmp_path)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    engine = Engine(catalog, settings)

    def append(*rows: dict) -> None:
        table = load_table(catalog, table_name(settings, TRADES))
        table.append(pa.Table.from_pylist(list(rows), TRADES.table))

    yield engine, append
    engine.close()


def test_an_empty_table_gives_empty_results(lake):
    engine, _ = lake
    assert engine.records(TRADES, "ASX", "BHP").read_all().num_rows == 0
    assert engine.bars("ASX", "BHP", None, None, SECOND).read_all().num_rows == 0
    assert engine.symbols().read_all().num_rows == 0
    assert engine.status()["rows"] == 0


def test_an_absent_symbol_gives_no_rows(lake):
    engine, append = lake
    append(row(0, START))
    assert engine.records(TRADES, "ASX", "NOPE").read_all().num_rows == 0
    assert engine.bars(None, "NOPE", None, None, SECOND).read_all().num_rows == 0


def test_a_range_is_half_open_to_the_nanosecond(lake):
    engine, append = lake
    append(*(row(n, START + n) for n in range(5)))
    got = engine.records(TRADES, "ASX", "BHP", START + 1, START + 4).read_all()
    assert got["ts_event"].to_pylist() == [START + 1, START + 2, START + 3]


def test_rows_of_several_commits_come_by_ts_event_then_source(lake):
    engine, append = lake
    append(row(9, START + 5), row(3, START))
    append(row(1, START), row(2, START, kafka_partition=1), row(0, START + DAY_NS))
    got = engine.records(TRADES).read_all()
    order = zip(got["ts_event"].to_pylist(), got["kafka_offset"].to_pylist(), strict=True)
    assert list(order) == [(START, 1), (START, 3), (START, 2), (START + 5, 9), (START + DAY_NS, 0)]


def test_a_limit_that_cuts_says_so_and_one_that_fits_does_not(lake):
    engine, append = lake
    append(*(row(n, START + n) for n in range(5)))
    assert engine.records(TRADES, limit=4).truncated
    assert not engine.records(TRADES, limit=5).truncated
    assert engine.bars("ASX", "BHP", None, None, 1_000_000, limit=1).truncated is False


def test_a_name_with_quotes_is_only_a_name(lake):
    engine, append = lake
    append(row(0, START, symbol="x'; DROP"), row(1, START))
    assert engine.records(TRADES, None, ["x'; DROP"]).read_all().num_rows == 1
    assert engine.records(TRADES, None, ["x'; DROP", "BHP"]).read_all().num_rows == 2


def test_bars_take_open_and_close_in_venue_order(lake):
    engine, append = lake
    append(row(5, START, "3", sequence=1), row(4, START, "2", sequence=2))
    append(row(6, START + 1, "9"), row(2, START + SECOND, "1"))
    got = engine.bars(None, "BHP", None, None, SECOND).read_all().to_pylist()
    assert [(b["start"], b["open"], b["high"], b["low"], b["close"], b["trades"]) for b in got] == [
        (START, 3, 9, 2, 9, 3),
        (START + SECOND, 1, 1, 1, 1, 1),
    ]


def test_vwap_is_exact_for_the_largest_amounts(lake):
    engine, append = lake
    amounts = [("9999999999.99999999", "9999999999.99999997")] * 300 + [("0.00000001", "7.5")]
    append(*(row(n, START + n, p, s) for n, (p, s) in enumerate(amounts)))
    (bar,) = engine.bars("ASX", "BHP", None, None, SECOND).read_all().to_pylist()
    with localcontext(prec=100):
        volume = sum(Decimal(s) for _, s in amounts)
        notional = sum(Decimal(p) * Decimal(s) for p, s in amounts)
        vwap = (notional / volume).quantize(Decimal("1e-8"), ROUND_HALF_UP)
    assert (bar["volume"], bar["vwap"]) == (volume, vwap)


def test_vwap_of_no_volume_is_null(lake):
    engine, append = lake
    append(row(0, START, size="0"))
    assert engine.bars("ASX", "BHP", None, None, SECOND).read_all()["vwap"].to_pylist() == [None]


def test_daily_bars_start_at_the_exchanges_midnight(lake):
    engine, append = lake
    append(row(0, START), row(1, START + DAY_NS, session=dt.date(2014, 3, 11)))
    got = engine.bars("ASX", "BHP", None, None, DAY_NS).read_all()["start"].to_pylist()
    assert got == [START - 11 * 3600 * SECOND, START + 13 * 3600 * SECOND]


def test_bars_before_the_epoch_are_aligned_downwards(lake):
    engine, append = lake
    append(row(0, -1))
    assert engine.bars("ASX", "BHP", None, None, SECOND).read_all()["start"].to_pylist() == [
        -SECOND
    ]


def test_bars_of_a_symbol_on_two_exchanges_need_the_exchange(lake):
    engine, append = lake
    append(row(0, START), row(1, START, exchange="SIM"))
    with pytest.raises(BadQuery, match="ASX, SIM"):
        engine.bars(None, "BHP", None, None, SECOND)


@pytest.mark.parametrize(
    ("parameter", "call"),
    [
        ("interval", lambda e: e.bars("ASX", "BHP", None, None, 999_999)),
        ("interval", lambda e: e.bars("ASX", "BHP", None, None, DAY_NS + 1_000_000)),
        ("start", lambda e: e.records(TRADES, start_ns=1, end_ns=1)),
        ("end", lambda e: e.records(TRADES, end_ns=2**63)),
        ("limit", lambda e: e.records(TRADES, limit=0)),
        ("columns", lambda e: e.records(TRADES, columns=["1; --"])),
    ],
)
def test_an_impossible_value_names_its_parameter(lake, parameter, call):
    with pytest.raises(BadQuery) as caught:
        call(lake[0])
    assert caught.value.parameter == parameter


def test_concurrent_queries_do_not_disturb_each_other(lake):
    engine, append = lake
    append(*(row(n, START + n) for n in range(2000)))
    with ThreadPoolExecutor(8) as pool:
        counts = pool.map(
            lambda n: engine.records(TRADES, start_ns=START + n).read_all().num_rows, range(24)
        )
        assert list(counts) == [2000 - n for n in range(24)]


def test_symbols_count_trades_and_sessions(lake):
    engine, append = lake
    append(row(0, START), row(1, START + DAY_NS, session=dt.date(2014, 3, 11)))
    assert engine.symbols().read_all().to_pylist() == [
        {
            "exchange": "ASX",
            "symbol": "BHP",
            "trades": 2,
            "first_ts_event": START,
            "last_ts_event": START + DAY_NS,
            "sessions": 2,
        }
    ]


@pytest.fixture
def large(tmp_path):
    """An engine with little memory over a million rows: one file, listed often."""
    settings = Settings(data=tmp_path, query_memory_max=64 * 1024 * 1024)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    rows = pa.Table.from_pylist([row(n, START + n) for n in range(5000)], TRADES.table)
    sink.commit(sink.write(rows) * 200, {}, {})
    engine = Engine(catalog, settings)
    yield engine
    engine.close()


def test_a_sort_beyond_the_memory_spills_to_the_data_folder(large, tmp_path):
    """More than DuckDB may hold; every row comes all the same."""
    batches = large.records(
        TRADES,
    )
    first = next(batches)
    spilled = [path for path in (tmp_path / "spill").rglob("*") if path.is_file()]
    assert spilled
    assert first.num_rows + sum(batch.num_rows for batch in batches) == 1_000_000


def test_a_query_beyond_memory_and_disk_says_what_to_do(large):
    """DuckDB's own words name neither the setting nor the way out."""
    large._database.execute("SET max_temp_directory_size = '1MiB'")
    with pytest.raises(QueryTooLarge, match="K2_QUERY_MEMORY_MAX"):
        large.records(
            TRADES,
        ).read_all()


def test_a_data_file_that_is_gone_is_an_error_that_names_it(lake, tmp_path):
    """Not an empty answer, and not an error of DuckDB's."""
    engine, append = lake
    append(row(0, START))
    (file,) = (tmp_path / "warehouse").rglob("*.parquet")
    file.unlink()
    with pytest.raises(CatalogUnavailable, match=file.name):
        engine.records(TRADES).read_all()


def test_a_query_stopped_while_it_plans_never_runs(lake):
    """DuckDB has nothing to interrupt yet; the stop is seen before the first statement."""
    engine, append = lake
    append(row(0, START))
    stop = Stop()
    stop.now()
    with pytest.raises(duckdb.InterruptException):
        engine.records(TRADES, stop=stop)


def test_a_stop_after_the_end_is_nothing(lake):
    """Whoever stops a query cannot know that it has just ended by itself."""
    engine, append = lake
    append(row(0, START))
    stop = Stop()
    assert engine.records(TRADES, stop=stop).read_all().num_rows == 1
    stop.now()


@pytest.mark.parametrize("ns", [-(2**63), -1, 0, 1, START + 999_999_999, 2**63 - 1])
def test_a_time_for_people_reads_back_to_the_nanosecond(ns):
    """What a table shows can be given as a bound."""
    assert time_ns("start", iso(ns)) == ns
