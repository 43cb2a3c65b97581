"""`k2 trades`, `k2 bars` and `k2 status` over a real table: for people, for pipes, and in error."""

import csv
import datetime as dt
import io
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from k2.cli import cli
from k2.lake.catalog import ensure_tables, gaps_name, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.schemas import TRADES
from k2.settings import Settings

START = 1394409600_000_000_000  # 2014-03-10 00:00 UTC
SOURCE = Source("c", "market.trades.asx", 3)
ROWS = 30


def table(count: int, symbol: str = "BHP") -> pa.Table:
    moment = dt.datetime(2014, 3, 10, tzinfo=dt.UTC)
    row = {
        "exchange": "ASX", "symbol": symbol, "session": dt.date(2014, 3, 10), "event_time": moment,
        "ts_recv": START, "price": Decimal("36.667"), "size": Decimal("0.00000001"),
        "side": "NONE", "verdict": "ok", "kafka_cluster": SOURCE.cluster,
        "kafka_topic": SOURCE.topic, "kafka_partition": SOURCE.partition, "ingest_time": moment,
    }  # fmt: skip
    rows = [{**row, "ts_event": START + n, "sequence": n, "kafka_offset": n} for n in range(count)]
    return pa.Table.from_pylist(rows, TRADES.table)


def fill(data: Path, rows: pa.Table, times: int = 1) -> None:
    """Write `rows` once and list their file `times` times."""
    settings = Settings(data=data)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    sink.commit(sink.write(rows) * times, {SOURCE: None}, {SOURCE: rows.num_rows})
    catalog.close()


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Path:
    data = tmp_path_factory.mktemp("lake")
    fill(data, table(ROWS))
    return data


def k2(data: Path, *arguments: str, **environment: str) -> Result:
    return CliRunner(env={"K2_DATA": str(data), **environment}).invoke(cli, arguments)


def test_a_table_shows_the_first_rows_and_that_there_are_more(lake):
    """Times as dates to the ns, decimals to their last digit, 20 rows, and a note on stderr."""
    result = k2(lake, "trades")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines() if "BHP" in line]
    assert len(lines) == 20
    assert lines[1][0] == "2014-03-10T00:00:00.000000001Z"
    assert lines[1][3:5] == ["36.667", "0.00000001"]
    assert (
        result.stderr == "k2: only the first 20 rows; there are more (--limit, K2_QUERY_ROWS_MAX)\n"
    )


def test_json_is_every_row_an_object_a_line(lake):
    """No limit but the setting's; decimals as strings, times as whole ns; nothing on stderr."""
    result = k2(lake, "trades", "--json")
    rows = [orjson.loads(line) for line in result.stdout.splitlines()]
    assert [row["ts_event"] for row in rows] == [START + n for n in range(ROWS)]
    assert (rows[0]["price"], rows[0]["size"]) == ("36.667", "0.00000001")
    assert result.stderr == ""


def test_csv_has_a_header_and_exact_decimals(lake):
    """A limit cuts pipes too, and says so where the pipe does not see it."""
    result = k2(lake, "trades", "--csv", "--limit", "2")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [(row["ts_event"], row["size"]) for row in rows] == [
        (str(START), "0.00000001"),
        (str(START + 1), "0.00000001"),
    ]
    assert "only the first 2 rows" in result.stderr


@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["table", "json"])
def test_the_setting_limits_what_has_no_limit(lake, arguments):
    """A table's own limit gives way to it; the note is the same."""
    result = k2(lake, "trades", *arguments, K2_QUERY_ROWS_MAX="7")
    assert result.stdout.count("BHP") == 7
    assert "only the first 7 rows" in result.stderr


def test_a_range_is_iso_or_ns_and_half_open(lake):
    """The bounds are those of the HTTP views."""
    bounds = ("--start", "2014-03-10T00:00:00.000000001", "--end", str(START + 3))
    result = k2(lake, "trades", "--symbol", "BHP", "--exchange", "ASX", "--json", *bounds)
    assert [orjson.loads(line)["sequence"] for line in result.stdout.splitlines()] == [1, 2]


def test_symbols_are_repeated_and_matched_exactly(tmp_path):
    """Neither a prefix nor a pattern, and a name is never markup."""
    fill(tmp_path, pa.concat_tables([table(1, "[red]x"), table(1, "[red]xy"), table(1, "z")]))
    result = k2(tmp_path, "trades", "--symbol", "[red]x", "--symbol", "z")
    assert [line.split()[2] for line in result.stdout.splitlines() if "ASX" in line] == [
        "[red]x",
        "z",
    ]


def test_bars_sum_exactly(lake):
    """The whole table is one bar of a minute."""
    (bar,) = map(orjson.loads, k2(lake, "bars", "--symbol", "BHP", "--json").stdout.splitlines())
    assert bar == {
        "exchange": "ASX", "symbol": "BHP", "start": START,
        "open": "36.667", "high": "36.667", "low": "36.667", "close": "36.667",
        "volume": "0.0000003", "vwap": "36.667", "trades": ROWS,
    }  # fmt: skip


def test_bars_for_people_are_a_table(lake):
    """Columns named, the time readable."""
    lines = k2(lake, "bars", "--symbol", "BHP", "--interval", "1d").stdout.splitlines()
    cells = next(line.split() for line in lines if "36.667" in line)
    assert cells[:2] == ["ASX", "BHP"]
    assert (cells[2], cells[-1]) == ("2014-03-09T13:00:00.000000000Z", str(ROWS))


def test_bars_take_several_symbols_a_fill_and_conditions(lake):
    """A condition to be left out begins with a dash, like an option."""
    named = ("--symbol", "BHP", "--symbol", "RIO", "--exchange", "ASX", "--interval", "30m")
    span = ("--start", str(START), "--end", str(START + 3_600_000_000_000))
    result = k2(lake, "bars", *named, *span, "--fill", "null", "--conditions=-auction,-9", "--json")
    bars = [orjson.loads(line) for line in result.stdout.splitlines()]
    # Nobody knows when this file was whole: bars are filled up to the last trade.
    assert [(bar["symbol"], bar["trades"]) for bar in bars] == [("BHP", ROWS), ("RIO", 0)]
    assert k2(lake, "bars", *named, "--conditions", "auction", "--csv").stdout.count("\n") == 1
    refused = k2(lake, "bars", *named, "--conditions", ",")
    assert (refused.exit_code, "conditions" in refused.stderr) == (2, True)


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_no_rows_leave_pipes_empty_and_say_so(lake, form):
    """NDJSON of nothing is nothing, CSV of nothing is its header."""
    result = k2(lake, "trades", "--symbol", "NOPE", form)
    assert (result.exit_code, result.stderr) == (0, "k2: no rows\n")
    assert len(result.stdout.splitlines()) == (form == "--csv")


def test_status_counts_rows_and_names_the_next_offsets(lake):
    """What a script wants: one object, from metadata."""
    state = orjson.loads(k2(lake, "status", "--json").stdout)
    assert (state["rows"], state["files"], state["rejects"]) == (ROWS, 1, 0)
    assert state["offsets"] == [{**SOURCE._asdict(), "next_offset": ROWS}]
    assert 0 <= state["commit_age_seconds"] < 600
    assert "verdicts" not in state


def test_status_for_people_counts_verdicts_on_request(lake):
    """The same as a table."""
    shown = [line.split() for line in k2(lake, "status", "--verdicts").stdout.splitlines()]
    assert ["rows", str(ROWS)] in shown
    assert ["verdict", "ok", str(ROWS)] in shown
    assert [SOURCE.topic, "3", str(ROWS), "c"] in shown


def test_status_of_tables_without_a_commit_is_no_error(tmp_path):
    """Right after `k2 init`."""
    settings = Settings(data=tmp_path)
    ensure_tables(open_catalog(settings), settings)
    result = k2(tmp_path, "status")
    assert result.exit_code == 0
    assert "never" in result.stdout


@pytest.mark.parametrize(
    ("parameter", "arguments"),
    [
        ("start", ("trades", "--start", "yesterday")),
        ("start", ("trades", "--start", "2", "--end", "2")),
        ("end", ("bars", "--symbol", "BHP", "--end", "9223372036854775808")),
        ("limit", ("trades", "--limit", "0")),
        ("interval", ("bars", "--symbol", "BHP", "--interval", "1w")),
        ("csv", ("trades", "--json", "--csv")),
    ],
)
def test_a_bad_parameter_is_one_line_that_names_it(lake, parameter, arguments):
    """Exit code 2, nothing on stdout."""
    result = k2(lake, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"k2: {parameter}: ")
    assert result.stderr.count("\n") == 1


def test_status_says_that_there_is_no_gap_ledger(tmp_path):
    """The rest is shown: tables of a release before the ledger are there all the same."""
    fill(tmp_path, table(3))
    settings = Settings(data=tmp_path)
    catalog = open_catalog(settings)
    catalog.drop_table(gaps_name(settings))
    catalog.close()
    said = "k2: no gap ledger: nobody knows what waits (`k2 init` makes it)\n"
    result = k2(tmp_path, "status", "--json")
    assert (result.exit_code, result.stderr) == (0, said)
    state = orjson.loads(result.stdout)
    assert (state["rows"], state["paused"]) == (3, None)
    result = k2(tmp_path, "status")
    assert (result.exit_code, result.stderr) == (0, said)
    assert "market.trades" in result.stdout


@pytest.mark.parametrize("command", [("trades",), ("bars", "--symbol", "X"), ("status",)])
def test_a_folder_never_initialised_says_what_to_run_and_stays_empty(tmp_path, command):
    """A query in the wrong folder must not leave a catalog behind."""
    result = k2(tmp_path / "absent", *command)
    assert result.exit_code == 2
    assert f"no tables in {tmp_path / 'absent'}: run `k2 init`" in result.stderr
    assert not (tmp_path / "absent").exists()


def test_a_catalog_without_the_tables_says_what_to_run(tmp_path):
    """An `init` that was cut short looks like none."""
    open_catalog(Settings(data=tmp_path))
    result = k2(tmp_path, "trades")
    assert (result.exit_code, "run `k2 init`" in result.stderr) == (2, True)


def start(data: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own, with the pipes and signals of a shell's."""
    return subprocess.Popen(
        [sys.executable, "-m", "k2", *arguments],
        env={"K2_DATA": str(data), "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_a_closed_pipe_ends_quietly(tmp_path, form):
    """As with `k2 trades --json | head -1`, when far more than a pipe holds is to come."""
    fill(tmp_path, table(5000), 20)
    with start(tmp_path, "trades", form) as process:
        assert "ts_event" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_ctrl_c_stops_the_query_quietly(tmp_path):
    """In the middle of a sort of ten million rows: no answer, no traceback, 128 + SIGINT."""
    fill(tmp_path, table(10_000), 1000)
    with start(tmp_path, "trades", "--json") as process:
        time.sleep(3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.communicate(timeout=20) == ("", "")
        assert time.monotonic() - began < 3
    assert process.returncode == 130


@pytest.mark.parametrize("command", ["trades", "bars", "status"])
def test_the_help_has_an_example(command):
    """The help is the documentation."""
    result = CliRunner().invoke(cli, [command, "--help"])
    assert f"\n  k2 {command} " in result.stdout


def test_a_range_and_columns_of_ones_choice(lake):
    """The same grammar as over HTTP; the table shows these columns too."""
    span = ("--range", "2014-03-10T00:00:00.000000005:10ns")
    lines = k2(lake, "trades", *span, "--columns", "ts_event,price", "--csv").stdout.splitlines()
    assert lines[:2] == ["ts_event,price", f"{START + 5},36.667"]
    assert len(lines) == 11
    shown = k2(lake, "trades", *span, "--columns", "verdict,ts_event").stdout.split()
    assert shown[:3] == ["verdict", "time", "(UTC)"]
    result = k2(lake, "trades", *span, "--start", "now")
    assert (result.exit_code, "range: not together" in result.stderr) == (2, True)
    result = k2(lake, "bars", "--symbol", "BHP", "--range", "2014-03-10")
    assert (result.exit_code, "its end is missing" in result.stderr) == (2, True)


def test_snapshots_are_listed_and_one_of_them_is_read(tmp_path):
    """What the one command prints, the others take."""
    data = tmp_path / "lake"
    fill(data, table(3))
    settings = Settings(data=data)
    catalog = open_catalog(settings)
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    sink.commit(sink.write(table(2, "RIO")), {SOURCE: 3}, {SOURCE: 5})
    catalog.close()
    listed = [orjson.loads(line) for line in k2(data, "snapshots", "--json").stdout.splitlines()]
    assert [(one["table"], one["rows"], one["added"]) for one in listed] == [
        ("trades", 3, 3),
        ("trades", 5, 2),
    ]
    first = str(listed[0]["snapshot_id"])
    assert len(k2(data, "trades", "--as-of", first, "--json").stdout.splitlines()) == 3
    assert len(k2(data, "trades", "--json").stdout.splitlines()) == 5
    days = k2(data, "bars", "--symbol", "RIO", "--interval", "1d", "--as-of", first, "--json")
    assert days.stdout == ""
    people = k2(data, "snapshots", "--table", "trades", "--limit", "1")
    assert "committed (UTC)" in people.stdout
    assert first not in people.stdout
    assert "only the newest 1 rows; there are more" in people.stderr
    result = k2(data, "gaps", "--as-of", first)
    assert (result.exit_code, "gaps has no snapshot" in result.stderr) == (2, True)
