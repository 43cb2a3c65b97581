"""The benchmark's checks find trades that are missing, doubled or wrongly judged."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from k2.lake.catalog import ensure_tables, load_table, open_catalog, table_name
from k2.schemas import TRADES
from k2.settings import Settings
from tests.bench.measure import CheckFailed, assigned_by_faust, check_table
from tests.bench.queries.asking import require_alike


def _table(folder: Path, offsets: list[int], verdicts: list[str]) -> Settings:
    settings = Settings(data=folder)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    if not offsets:
        return settings
    now = dt.datetime(2024, 3, 11, 10, tzinfo=dt.UTC)
    other = {
        "string": "x",
        "int64": 1,
        "int32": 0,
        "date32[day]": now.date(),
        "decimal128(18, 8)": Decimal(1),
        "timestamp[us, tz=UTC]": now,
    }
    columns = {f.name: [other[str(f.type)]] * len(offsets) for f in TRADES.table}
    columns |= {"kafka_offset": offsets, "verdict": verdicts}
    load_table(catalog, table_name(settings, TRADES)).append(pa.table(columns, schema=TRADES.table))
    return settings


def test_every_trade_once_passes(tmp_path: Path) -> None:
    """Three rows at three offsets of one symbol are what was wanted."""
    check_table("it", _table(tmp_path, [0, 1, 2], ["first", "ok", "ok"]), 3, 1)


@pytest.mark.parametrize(
    ("offsets", "verdicts"),
    [
        ([], []),
        ([0, 1], ["first", "ok"]),
        ([0, 1, 1], ["first", "ok", "ok"]),
        ([0, 1, 2], ["first", "ok", "gap"]),
    ],
    ids=["nothing", "missing", "doubled", "verdict"],
)
def test_a_wrong_table_fails(tmp_path: Path, offsets: list[int], verdicts: list[str]) -> None:
    """A table that is not exactly the workload ends the benchmark."""
    with pytest.raises(CheckFailed, match="it: the table has"):
        check_table("it", _table(tmp_path, offsets, verdicts), 3, 1)


def test_assignment_is_the_first_that_faust_logs(tmp_path: Path) -> None:
    """The clock starts at the first assignment; without one the run fails."""
    log = tmp_path / "process.log"
    lines = [
        f"[2024-03-11 10:00:0{second},250] [1] [INFO] Executing _on_partitions_assigned \n"
        for second in (1, 2)
    ]
    log.write_text("".join(lines))
    wanted = dt.datetime(2024, 3, 11, 10, 0, 1, 250_000, dt.UTC).timestamp()
    assert assigned_by_faust(log) == pytest.approx(wanted)

    log.write_text("[2024-03-11 10:00:01,250] [1] [INFO] Ready\n")
    with pytest.raises(CheckFailed, match="no assignment"):
        assigned_by_faust(log)


def test_answers_that_differ_end_the_benchmark_of_queries(tmp_path: Path) -> None:
    """Rows of one side that the other has not, or has otherwise, are no equal answers."""
    rows = pa.table({"a": pa.array([1, 2], pa.int64()), "b": pa.array(["x", "y"])})
    others = (rows.slice(1), rows.set_column(1, "b", pa.array(["x", "z"])))

    require_alike("it", rows, rows.set_column(0, "a", rows["a"].cast(pa.int32())))

    for other in others:
        with pytest.raises(CheckFailed, match="it: the answers differ"):
            require_alike("it", rows, other)
