"""Statements in a real sandbox process over a real Iceberg table."""

import os
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path

import duckdb
import psutil
import pytest

from k2.errors import BadSql, CatalogUnavailable, SandboxDied, SqlLimit
from k2.lake.catalog import load_table
from k2.lake.commit import Sink
from k2.query.engine import Engine
from k2.query.rows import Stop
from k2.sandbox.files import OPEN_MAX
from k2.sandbox.pool import Pool
from k2.sandbox.surroundings import environment
from k2.schemas import TRADES
from tests.statements import SECOND, START, TRADES_EACH, lake


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    catalog, settings = lake(Path(tmp_path_factory.mktemp("lake")))
    yield catalog, settings
    catalog.close()


@pytest.fixture(scope="module")
def pool(place):
    pool = Pool(*place)
    yield pool
    pool.close()


@pytest.fixture
def ask(pool):
    def call(sql, parameters=(), form="arrow", stop=None):
        given = parameters if isinstance(parameters, dict) else list(parameters)
        return pool.run(sql, given, form, stop or Stop())

    return call


def test_asof_join_gives_each_trade_the_quote_before_it(ask):
    """A quote every ten seconds: the trade of second 25 has that of second 20."""
    rows = ask(
        "SELECT t.ts_event, t.price, q.ts_event AS quoted, q.bid_price FROM trades t "
        "ASOF JOIN quotes q ON t.exchange = q.exchange AND t.symbol = q.symbol "
        "AND t.ts_event >= q.ts_event WHERE t.symbol = 'RIO' ORDER BY t.ts_event"
    ).read_all()
    assert rows.num_rows == TRADES_EACH
    assert rows.to_pylist()[25] == {
        "ts_event": START + 25 * SECOND,
        "price": Decimal("30.25000000"),
        "quoted": START + 20 * SECOND,
        "bid_price": Decimal("29.20000000"),
    }


def test_time_bucket_groups_by_utc(ask):
    rows = ask(
        "SELECT time_bucket(INTERVAL '5 minutes', event_time) AS bucket, count(*) AS n "
        "FROM trades GROUP BY ALL ORDER BY bucket",
        form="json",
    )
    assert rows.read_all().to_pylist() == [
        {"bucket": "2014-03-10T00:00:00.000000Z", "n": 600},
        {"bucket": "2014-03-10T00:05:00.000000Z", "n": 600},
    ]


def test_bars_are_those_of_the_view_of_bars(place, ask):
    """The same minutes, prices, volumes and vwaps as `Engine.bars` has."""
    engine = Engine(*place)
    wanted = engine.bars("ASX", "BHP", None, None, 60 * SECOND).read_all()
    engine.close()
    columns = ", ".join(wanted.schema.names)
    found = ask(f"SELECT {columns} FROM bars WHERE symbol = 'BHP' ORDER BY start").read_all()
    assert found.to_pylist() == wanted.to_pylist()
    assert found.schema.types == wanted.schema.types


def test_gaps_are_the_findings_as_they_stand(ask):
    (row,) = ask("SELECT gap_id, status, revision, seen_at FROM gaps").read_all().to_pylist()
    assert row == {"gap_id": "g1", "status": "filled", "revision": 1, "seen_at": START}


def test_snapshots_name_what_the_other_tables_were_read_from(ask):
    """The id that an answer over trades names is the current one of `snapshots`."""
    answer = ask("SELECT * FROM trades LIMIT 1")
    pinned = answer.known.snapshots["trades"]
    answer.close()
    rows = ask("SELECT * FROM snapshots WHERE \"table\" = 'trades'").read_all().to_pylist()
    assert [(row["snapshot_id"], row["rows"], row["current"]) for row in rows] == [
        (pinned, 2 * TRADES_EACH, True)
    ]


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("SELECT 1", []),
        ("SELECT * FROM bars", ["trades"]),
        ("SELECT * FROM Trades, main.quotes LIMIT 1", ["trades", "quotes"]),
        ("WITH a AS (SELECT * FROM quotes) SELECT * FROM a, (SELECT 1) AS gaps", ["quotes"]),
        ("SELECT (SELECT count(*) FROM gaps)", ["gaps"]),
    ],
)
def test_only_what_is_named_is_planned(ask, sql, named):
    answer = ask(sql)
    answer.close()
    assert list(answer.known.snapshots) == named


@pytest.mark.parametrize(
    ("sql", "parameters", "wanted"),
    [
        ("SELECT count(*) AS n FROM trades WHERE symbol = ?", ["BHP"], TRADES_EACH),
        ("SELECT count(*) AS n FROM trades WHERE symbol = $s", {"s": "BHP"}, TRADES_EACH),
        ("SELECT count(*) AS n FROM trades WHERE price = $1", ["30.25"], 2),
        ("SELECT count(*) AS n FROM trades WHERE price = $1", [30.25], 2),
        ("SELECT count(*) AS n FROM trades WHERE ts_event >= $1", [START + 599 * SECOND], 2),
        ("SELECT count(*) AS n FROM trades WHERE list_contains($1, symbol)", [["RIO"]], 600),
        ("SELECT $1 AS n", ["'; DROP VIEW trades; --"], "'; DROP VIEW trades; --"),
        ("SELECT $1 IS NULL AS n", [None], True),
    ],
)
def test_parameters_are_bound(ask, sql, parameters, wanted):
    assert ask(sql, parameters).read_all()["n"].to_pylist() == [wanted]


@pytest.mark.parametrize(
    ("sql", "line", "column"),
    [
        ("SELEC 1", 1, 1),
        ("SELECT *\nFROM trades\nWHERE", 3, 1),
        ("SELECT 'ä',\n prise FROM trades", 2, 2),
        ("SELECT 'äöü' AS a, foo(1)", 1, 20),
        ("SELECT * FROM\ntrade", 2, 1),
        ("SELECT 'x'::INT", 1, 11),
        ("SELECT price FROM trades WHERE symbol = 5 + prise", 1, 45),
    ],
)
def test_an_error_says_where(ask, sql, line, column):
    """Lines and columns count characters, from 1."""
    with pytest.raises(BadSql) as caught:
        ask(sql)
    position = caught.value.position
    assert (position["line"], position["column"]) == (line, column)
    lines = sql.split("\n")
    assert position["offset"] == sum(len(each) + 1 for each in lines[: line - 1]) + column - 1


def test_an_error_of_a_row_is_one_of_the_statement(ask):
    """It comes late, but before the answer begins."""
    with pytest.raises(BadSql, match="boo"):
        ask("SELECT CASE WHEN sequence = 599 THEN error('boo') END FROM trades")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("1.50::DECIMAL(10, 2)", "1.5"),
        ("170141183460469231731687303715884105727::HUGEINT", "1.7e38"),
        ("sum(n) FROM (VALUES (1), (2)) AS t(n)", "3"),
        ("'nan'::DOUBLE", None),
        ("'ab'::BLOB", "6162"),
        ("INTERVAL '1 month 2 days 3.5 seconds'", "P1M2DT3.5S"),
        ("DATE '2014-03-10'", "2014-03-10"),
        ("TIME '10:00:00'", "10:00:00.000000"),
        ("TIMESTAMP '2014-03-10 10:00:00'", "2014-03-10T10:00:00.000000"),
        ("TIMESTAMPTZ '2014-03-10 10:00:00+11'", "2014-03-09T23:00:00.000000Z"),
        ("make_timestamp_ns(1394409600000000001)", "2014-03-10T00:00:00.000000001"),
        ("[1.5::DECIMAL(3, 1), NULL]", ["1.5", None]),
        ("{'a': DATE '2014-03-10', 'b': [1]}", {"a": "2014-03-10", "b": [1]}),
        ("MAP {'a': 1}", [{"key": "a", "value": 1}]),
        ("'a'::ENUM ('a', 'b')", "a"),
        ("NULL", None),
        ("true", True),
    ],
)
def test_every_type_has_a_form_in_json(ask, value, wanted):
    select = value if " FROM " in value else f"{value} AS v"
    (found,) = ask(f"SELECT {select}", form="json").read_all().columns[0].to_pylist()
    if wanted == "1.7e38":
        assert found.startswith("1701411834604692")
    else:
        assert found == wanted


def test_columns_of_one_name_are_told_apart(ask):
    rows = ask("SELECT 1 AS a, 2 AS a, 3 AS a_1").read_all()
    assert rows.schema.names == ["a", "a_1", "a_1_1"]


def test_a_statement_is_stopped_by_another_thread(pool, ask):
    """As when its client has gone: the process stays, and takes the next one."""
    assert ask("SELECT 1").read_all().num_rows == 1
    (pid,) = pool.pids()
    stop = Stop()
    threading.Timer(0.3, stop.now).start()
    begun = time.monotonic()
    with pytest.raises(duckdb.InterruptException):
        ask("SELECT count(*) FROM range(10000000) a, range(10000000) b", stop=stop)
    assert time.monotonic() - begun < 5
    assert ask("SELECT 1").read_all().num_rows == 1
    assert pool.pids() == [pid]


def test_one_that_does_not_hear_is_killed_and_replaced(pool, ask):
    """levenshtein looks at no interrupt for many seconds."""
    assert ask("SELECT 1").read_all().num_rows == 1
    (pid,) = pool.pids()
    stop = Stop()
    threading.Timer(0.3, stop.now).start()
    begun = time.monotonic()
    with pytest.raises(duckdb.InterruptException):
        ask("SELECT sum(levenshtein(repeat('ab', 90000), repeat('ba', 90000)))", stop=stop)
    assert time.monotonic() - begun < 5
    assert not psutil.pid_exists(pid)
    assert ask("SELECT 1").read_all().num_rows == 1
    assert pid not in pool.pids()


def test_a_process_that_died_is_replaced(pool, ask):
    """Between two statements nobody sees it; within one the statement fails, and says why."""
    ask("SELECT 1").close()
    (pid,) = pool.pids()
    psutil.Process(pid).kill()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, which nobody has seen yet
    assert ask("SELECT 2 AS n").read_all()["n"].to_pylist() == [2]
    (pid,) = pool.pids()
    threading.Timer(0.3, psutil.Process(pid).kill).start()
    with pytest.raises(SandboxDied, match="signal 9"):
        ask("SELECT count(*) FROM range(10000000) a, range(10000000) b")
    assert ask("SELECT 3 AS n").read_all()["n"].to_pylist() == [3]


def descriptors(pid) -> tuple[int, int]:
    """Of the process and of this one; the fewest of a while, in which it makes ready for the next
    statement: for that DuckDB opens files and closes them."""
    begun, fewest = time.monotonic(), sys.maxsize
    while time.monotonic() - begun < 0.5:
        fewest = min(fewest, psutil.Process(pid).num_fds())
    return fewest, len(os.listdir("/proc/self/fd"))


def test_a_process_holds_nothing_between_statements(pool, ask):
    """Its descriptors are as many after thirty statements, good and bad."""
    ask("SELECT * FROM trades, gaps LIMIT 1").close()
    (pid,) = pool.pids()
    before = descriptors(pid)
    for _ in range(10):
        ask("SELECT max(price) FROM trades").close()
        ask("SELECT * FROM bars").close()
        with pytest.raises(BadSql):
            ask("SELECT prise FROM trades")
    assert pool.pids() == [pid]
    assert descriptors(pid) == before


def test_a_plan_may_have_more_files_than_stay_open(tmp_path):
    """Each is asked for again when it is read again; all rows are there."""
    catalog, settings = lake(tmp_path)
    sink = Sink(catalog, "market.trades", settings)
    rows = load_table(catalog, "market.trades").scan().to_arrow()
    rows = rows.cast(TRADES.table)
    files = [file for _ in range(OPEN_MAX + 20) for file in sink.write(rows.slice(0, 10))]
    sink.commit(files, {}, {})
    pool = Pool(catalog, settings)
    sql = "SELECT count(*) AS n, sum(price) AS p FROM trades AS a WHERE kafka_offset >= 0"
    (row,) = pool.run(sql, [], "arrow", Stop()).read_all().to_pylist()
    pool.close()
    catalog.close()
    assert row["n"] == 2 * TRADES_EACH + 10 * (OPEN_MAX + 20)


def test_a_file_that_is_gone_is_a_fault_of_the_lake(tmp_path):
    catalog, settings = lake(tmp_path)
    (task,) = load_table(catalog, "market.quotes").scan().plan_files()
    Path(task.file.file_path.removeprefix("file://")).unlink()
    pool = Pool(catalog, settings)
    with pytest.raises(CatalogUnavailable, match="data files"):
        pool.run("SELECT * FROM quotes", [], "arrow", Stop())
    rows = pool.run("SELECT count(*) AS n FROM trades", [], "arrow", Stop()).read_all()
    pool.close()
    catalog.close()
    assert rows["n"].to_pylist() == [2 * TRADES_EACH]


def test_the_processes_end_with_the_pool_and_leave_no_folder(tmp_path):
    catalog, settings = lake(tmp_path)
    pool = Pool(catalog, settings)
    pool.run("SELECT 1", [], "arrow", Stop()).close()
    (pid,) = pool.pids()
    pool.close()
    catalog.close()
    assert not psutil.pid_exists(pid)
    assert list((tmp_path / "spill").iterdir()) == []


_WORKER = """
import sys
from pathlib import Path
from k2.lake.catalog import open_catalog
from k2.query.rows import Stop
from k2.sandbox.pool import Pool
from k2.settings import Settings
settings = Settings(data=Path(sys.argv[1]))
pool = Pool(open_catalog(settings), settings)
pool.run("SELECT 1", [], "arrow", Stop()).close()
print(*pool.pids(), flush=True)
pool.run("SELECT pg_sleep(25)", [], "arrow", Stop())
"""


def test_a_process_does_not_outlive_a_worker_that_is_killed(place):
    """Not even within a statement; and the next worker removes the folder that it left."""
    catalog, settings = place
    argv = [sys.executable, "-c", _WORKER, str(settings.data)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as worker:
        process = psutil.Process(int(worker.stdout.readline()))
        folder = Path(process.cwd())
        worker.kill()
    assert process.wait(10) is None or not process.is_running()
    assert folder.exists()
    pool = Pool(catalog, settings)
    pool.run("SELECT 1", [], "arrow", Stop()).close()
    pool.close()
    assert not folder.exists()


def test_a_process_inherits_no_secret(monkeypatch):
    monkeypatch.setenv("K2_S3_SECRET_KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    given = environment()
    assert given["PYTHONPATH"] == "somewhere"
    assert "secret" not in given.values()


def test_limits_are_named_with_their_value(tmp_path):
    limits = {"sql_timeout_ms": 500, "sql_bytes_max": 1 << 20, "sql_memory_max": 64 << 20}
    catalog, settings = lake(tmp_path, sql_rows_max=10, **limits)
    pool = Pool(catalog, settings)
    for sql, said in (
        ("SELECT pg_sleep(9)", "sql_timeout_ms, 500:"),
        ("SELECT repeat('x', 2000000)", "sql_bytes_max, 1,048,576:"),
        ("SELECT range(100000000)", "sql_memory_max, 67,108,864:"),
    ):
        with pytest.raises(SqlLimit, match=said):
            pool.run(sql, [], "arrow", Stop())
    exact = pool.run("SELECT * FROM range(10)", [], "arrow", Stop())
    more = pool.run("SELECT * FROM range(11)", [], "arrow", Stop())
    assert (exact.truncated, more.truncated) == (False, True)
    assert (exact.read_all().num_rows, more.read_all().num_rows) == (10, 10)
    pool.close()
    catalog.close()
