"""The index of data files: a manifest is read once, no file is left out that a query needs."""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from pyiceberg.manifest import ManifestFile

from k2.errors import CatalogUnavailable
from k2.lake.catalog import ensure_tables, open_catalog, table_name
from k2.lake.commit import Sink
from k2.query.index import Bound, Files, Index, Tables
from k2.schemas import TRADES
from k2.settings import Settings
from tests.unit.test_query_engine import START, row


@pytest.fixture
def lake(tmp_path: Path) -> Any:
    settings = Settings(data=tmp_path)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    sink = Sink(catalog, table_name(settings, TRADES), settings)

    def append(*rows: dict[str, Any]) -> None:
        sink.commit(sink.write(pa.Table.from_pylist(list(rows), TRADES.table)), {}, {})

    return Tables(catalog), table_name(settings, TRADES), append


def test_bounds_are_those_of_the_rows(lake: Any) -> None:
    tables, name, append = lake
    append(row(0, START, symbol="BHP"), row(1, START + 5_000, symbol="RIO"))
    (file,) = tables.load(name).files().frame.to_dicts()
    assert (file["rows"], file["low_symbol"], file["high_symbol"]) == (2, "BHP", "RIO")
    assert (file["low_event_time"], file["high_event_time"]) == (START // 1000, START // 1000 + 5)
    day = (dt.date(2014, 3, 10) - dt.date(1970, 1, 1)).days
    assert (file["low_session"], file["high_session"]) == (day, day)
    assert (file["low_kafka_offset"], file["high_kafka_offset"]) == (0, 1)


def test_each_manifest_is_read_once(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when they are merged: what one more commit costs does not follow how many there were."""
    tables, name, append = lake
    read: list[str] = []
    stock = ManifestFile.fetch_manifest_entry

    def fetch(self: ManifestFile, *args: Any, **kwargs: Any) -> Any:
        read.append(self.manifest_path)
        return stock(self, *args, **kwargs)

    append(row(0, START))
    monkeypatch.setattr(ManifestFile, "fetch_manifest_entry", fetch)
    for n in range(1, 6):
        own: list[str] = []
        read.clear()
        for _ in range(3):
            pin = tables.load(name)
            assert pin.files().frame.height == n
            own += read
            read.clear()
        assert len(own) == 1
        append(row(n, START + n))


def test_a_former_snapshot_keeps_its_files(lake: Any) -> None:
    tables, name, append = lake
    pins = [tables.load(name)]
    for n in range(8):
        append(row(n, START + n))
        pins.append(tables.load(name))
    assert [pin.files().frame.height for pin in pins] == list(range(9))
    assert pins[0].snapshot_id is None


def test_memory_is_bounded_by_a_number_of_files(lake: Any) -> None:
    tables, name, append = lake
    little = Index(files_kept_max=3)
    for n in range(8):
        append(row(n, START + n))
        pin = tables.load(name)
        assert little.files(pin.table, pin.snapshot).frame.height == n + 1
    assert little._kept <= 3


def test_a_manifest_that_is_gone_is_named(lake: Any) -> None:
    tables, name, append = lake
    append(row(0, START))
    pin = tables.load(name)
    (manifest,) = pin.snapshot.manifests(pin.table.io)
    Path(manifest.manifest_path.removeprefix("file://")).unlink()
    with pytest.raises(CatalogUnavailable, match="manifests"):
        pin.files()


@pytest.mark.parametrize("seed", range(50))
def test_no_file_is_left_out_that_has_a_row(seed: int) -> None:
    """Against each file's rows looked at one by one; unknown bounds are as wide as can be."""
    rng = random.Random(seed)
    held, files = [], []
    for number in range(40):
        rows = [(rng.choice("ABCDEFGH"), rng.randrange(100)) for _ in range(rng.randrange(1, 4))]
        symbols, times = zip(*rows, strict=True)
        known = rng.random() < 0.9
        held.append(rows)
        files.append(
            {
                "path": str(number),
                "rows": len(rows),
                "low_symbol": min(symbols) if known else "",
                "high_symbol": max(symbols) if known else "\U0010ffff",
                "low_event_time": min(times),
                "high_event_time": max(times),
            }
        )
    index = Files(pl.DataFrame(files))
    for _ in range(20):
        wanted = rng.sample("ABCDEFGHXYZ", rng.randrange(1, 5))
        start = rng.randrange(100)
        end = start + rng.randrange(30)
        bounds = [Bound("symbol", wanted), Bound("event_time", None, start, end)]
        chosen = set(index.among([*bounds, Bound("price", [Decimal(1)])])["path"])
        for number, rows in enumerate(held):
            if any(symbol in wanted and start <= time <= end for symbol, time in rows):
                assert str(number) in chosen
            low, high = files[number]["low_symbol"], files[number]["high_symbol"]
            if not any(low <= symbol <= high for symbol in wanted):
                assert str(number) not in chosen
