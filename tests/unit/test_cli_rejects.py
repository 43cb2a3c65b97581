"""`k2 rejects list` and `show` over real tables: for people, for pipes, and in error."""

import csv
import datetime as dt
import io
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from k2.cli import cli
from k2.lake.catalog import ensure_tables, open_catalog, rejects_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.lake.replays import Ledger, Note, Place
from k2.schemas import REJECTS
from k2.settings import Settings

SOURCE = Source("c", "market.trades.asx", 3)
START = dt.datetime(2026, 1, 2, 3, 0, tzinfo=dt.UTC)
START_NS = int(START.timestamp()) * 10**9
VALUE = b"\x00\x00\x00\x00\x2a" + bytes(range(40, 80))
DETAIL = "schema id 42 is not in the registry, and this is told at great length: " + "x" * 30


def reject(offset: int, **more: Any) -> dict[str, Any]:
    return {
        "kafka_cluster": SOURCE.cluster, "kafka_topic": SOURCE.topic,
        "kafka_partition": SOURCE.partition, "kafka_offset": offset, "kafka_time": START,
        "reason": "unknown_schema", "detail": DETAIL, "key": b"ASX.BHP", "value": VALUE,
        "ingest_time": START + dt.timedelta(minutes=offset), **more,
    }  # fmt: skip


ROWS = [
    *(reject(offset) for offset in range(20)),
    reject(20, reason="null_value", detail="no value", value=None, key=b"\xff\x00"),
    *(reject(offset, reason="duplicate", detail="sequence 7 again") for offset in range(21, 25)),
]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("lake")
    settings = Settings(data=data)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    sink = Sink(catalog, rejects_name(settings), settings)
    sink.commit(sink.write(pa.Table.from_pylist(ROWS, REJECTS)), {SOURCE: None}, {SOURCE: 25})
    ledger = Ledger(catalog, settings)
    places = [Place(*SOURCE, offset) for offset in (18, 19)]
    ledger.intend("one", places, "c", {SOURCE: 90}, force=False)
    note = Note("one", False, "c", 90, None, "")
    ledger.done({places[0]: 95}, {places[0]: note})
    catalog.close()
    return data


def k2(data: Path, *arguments: str) -> Result:
    return CliRunner(env={"K2_DATA": str(data)}).invoke(cli, ["rejects", *arguments])


def test_a_table_shows_the_newest_last_and_that_there_are_more(lake: Path) -> None:
    """Twenty rows, the place as one word, the detail cut, and what was replayed."""
    result = k2(lake, "list")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if SOURCE.topic in line]
    assert [line[1].rpartition("@")[2] for line in lines] == [str(n) for n in range(5, 25)]
    assert lines[0][:3] == ["2026-01-02T03:05:00.000000000Z", "market.trades.asx[3]@5",
                            "unknown_schema"]  # fmt: skip
    assert lines[0][-1] == str(len(VALUE))
    assert DETAIL not in result.stdout
    assert lines[13][-1] == "done"
    assert lines[14][-2:] == ["in", "doubt"]
    assert lines[15][-1] == "null"
    assert result.stderr == "k2: only the newest 20; there are more (--limit, --summary)\n"


def test_json_and_csv_are_every_row(lake: Path) -> None:
    """Times in ns, keys as text, no bytes of values."""
    rows = [orjson.loads(line) for line in k2(lake, "list", "--json").stdout.splitlines()]
    assert [row["kafka_offset"] for row in rows] == list(range(25))
    assert (rows[1]["rejected_at"], rows[1]["kafka_time"]) == (START_NS + 60 * 10**9, START_NS)
    assert (rows[1]["key"], rows[1]["value_bytes"]) == ("ASX.BHP", len(VALUE))
    assert (rows[20]["key"], rows[20]["value_bytes"]) == ("\\xFF\\x00", None)
    found = list(csv.DictReader(io.StringIO(k2(lake, "list", "--csv").stdout)))
    assert [row["reason"] for row in found] == [row["reason"] for row in ROWS]


def test_filters_are_reasons_topic_and_half_open_time(lake: Path) -> None:
    """Each by itself and together."""

    def offsets(*arguments: str) -> list[int]:
        lines = k2(lake, "list", "--json", *arguments).stdout.splitlines()
        return [orjson.loads(line)["kafka_offset"] for line in lines]

    assert offsets("--reason", "null_value", "--reason", "duplicate") == [20, 21, 22, 23, 24]
    assert offsets("--start", "2026-01-02T03:02", "--end", "2026-01-02T03:04") == [2, 3]
    assert offsets("--start", str(START_NS + 23 * 60 * 10**9 + 1)) == [24]
    assert offsets("--topic", "other") == offsets("--cluster", "other") == []
    assert offsets("--cluster", SOURCE.cluster) == list(range(25))
    assert offsets("--reason", "duplicate", "--limit", "2") == [23, 24]


def test_summary_counts_by_reason(lake: Path) -> None:
    """Most first, with what was replayed; as a table and for pipes."""
    rows = [orjson.loads(line) for line in k2(lake, "list", "--summary", "--json").stdout.split()]
    assert [(row["reason"], row["rejects"], row["replayed"]) for row in rows] == [
        ("unknown_schema", 20, 1),
        ("duplicate", 4, 0),
        ("null_value", 1, 0),
    ]
    shown = k2(lake, "list", "--summary").stdout
    assert ["duplicate", "4", "0", f"{4 * len(VALUE)}"] in [
        line.split()[:4] for line in shown.splitlines()
    ]


def test_show_tells_everything_and_bounds_the_bytes(lake: Path, tmp_path: Path) -> None:
    """The schema id, the key as text, the value as bytes, and a file on request."""
    raw = tmp_path / "value"
    result = k2(lake, "show", SOURCE.topic, "3", "7", "--raw", str(raw))
    assert result.exit_code == 0, result.output
    assert ["schema", "id", "42"] in [line.split() for line in result.stdout.splitlines()]
    assert "key: 7 bytes: ASX.BHP" in result.stdout
    assert DETAIL in result.stdout
    assert "00000000  00 00 00 00 2a 28 29" in result.stdout
    assert raw.read_bytes() == VALUE


def test_show_cuts_a_large_value_unless_asked_for_all(tmp_path: Path) -> None:
    """A broken batch's value may be megabytes."""
    settings = Settings(data=tmp_path)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    sink = Sink(catalog, rejects_name(settings), settings)
    rows = pa.Table.from_pylist([reject(0, value=b"\xfe" * 10_000)], REJECTS)
    sink.commit(sink.write(rows), {SOURCE: None}, {SOURCE: 1})
    catalog.close()
    cut, whole = (k2(tmp_path, "show", SOURCE.topic, "3", "0", *more) for more in ((), ("--all",)))
    assert "9,488 more (--all)" in cut.stdout
    assert len(whole.stdout.splitlines()) > 600


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        (("show", SOURCE.topic, "3", "99"), "offset"),
        (("show", SOURCE.topic, "3", "20", "--raw", "x"), "raw"),
        (("list", "--json", "--csv"), "csv"),
        (("list", "--start", "2", "--end", "1"), "start"),
        (("replay", "topic", "1"), "place"),
        (("replay", "topic", "one", "2"), "place"),
    ],
)
def test_a_bad_parameter_is_one_line_that_names_it(
    lake: Path, arguments: tuple[str, ...], parameter: str
) -> None:
    """Exit code 2 and nothing done."""
    result = k2(lake, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"k2: {parameter}: ")


def test_tables_without_rejects_are_no_error(tmp_path: Path) -> None:
    """Right after `k2 init`."""
    settings = Settings(data=tmp_path)
    ensure_tables(open_catalog(settings), settings)
    for arguments in (("list",), ("list", "--summary")):
        result = k2(tmp_path, *arguments)
        assert (result.exit_code, result.stderr) == (0, "k2: no rejects\n")


@pytest.mark.parametrize("command", ["list", "show", "replay"])
def test_the_help_has_an_example(command: str) -> None:
    """The help is the documentation."""
    result = CliRunner().invoke(cli, ["rejects", command, "--help"])
    assert f"\n  k2 rejects {command} " in result.stdout
