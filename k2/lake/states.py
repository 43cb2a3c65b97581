"""The sequence states as the table of a kind tells them, where the log cannot any more.

A state is what the check makes of a source's rows in the order of their offsets. Duplicates are
not in the table and change no state but its counters.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyiceberg.expressions
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import PyArrowFileIO

from k2.errors import CatalogUnavailable
from k2.lake.catalog import load_table, table_name
from k2.lake.offsets import Source
from k2.schemas import TRADES, Kind
from k2.sequence import Key, Rules, Symbols, SymbolState, check
from k2.settings import Settings

__all__ = ["committed", "count", "inherit", "rebuild"]

#: Untyped: the annotations of these pydantic classes know their keywords only.
_iceberg: Any = pyiceberg.expressions
_ALWAYS = _iceberg.AlwaysTrue()

BATCH_ROWS = 128 * 1024
_COLUMNS = ("exchange", "symbol", "sequence", "ts_event", "ts_recv", "kafka_offset")
_SCHEMA = pa.schema([TRADES.batch.field(name) for name in _COLUMNS])  # alike in all kinds


def inherit(
    catalog: Catalog,
    settings: Settings,
    kind: Kind,
    source: Source,
    offsets: Iterable[Source],
    rules: Rules,
) -> Symbols:
    """States for a log of which nothing is in the table: those of the same partition before.

    A topic made anew, or a broker that lost its log, is often sent again what it held: without the
    former states it would all be taken for new.

    Args:
        kind: what the log holds.
        offsets: all sources that its table knows.

    Raises:
        CatalogUnavailable: the table or a data file cannot be read.
    """
    former = [s for s in offsets if (s.topic, s.partition) == (source.topic, source.partition)]
    states: Symbols = {}
    for before in _by_age(catalog, settings, kind, former):
        # Offsets of one log say nothing about those of another.
        own = {name: state.at(-1) for name, state in states.items()}
        states = rebuild(catalog, settings, kind, before, own, 0, 1 << 62, rules)
    return {name: state.at(-1) for name, state in states.items()}


def _by_age(
    catalog: Catalog, settings: Settings, kind: Kind, sources: list[Source]
) -> list[Source]:
    """The sources by their last row's time of ingest."""
    if len(sources) < 2:
        return sources
    table = load_table(catalog, table_name(settings, kind))
    condition = _iceberg.In("kafka_cluster", {source.cluster for source in sources})
    scan = table.scan(row_filter=condition, selected_fields=("kafka_cluster", "ingest_time"))
    last: dict[str, Any] = {}
    try:
        for batch in scan.to_arrow_batch_reader():
            grouped = pa.table(batch).group_by("kafka_cluster").aggregate([("ingest_time", "max")])
            for row in grouped.to_pylist():
                name, newest = row["kafka_cluster"], row["ingest_time_max"]
                last[name] = max(last.get(name, newest), newest)
    except (pa.ArrowException, OSError) as exc:
        raise CatalogUnavailable(f"ages of {len(sources)} former logs: {exc}") from exc
    return sorted((s for s in sources if s.cluster in last), key=lambda s: last[s.cluster])


def rebuild(
    catalog: Catalog,
    settings: Settings,
    kind: Kind,
    source: Source,
    states: Mapping[Key, SymbolState],
    first: int,
    end: int,
    rules: Rules,
) -> Symbols:
    """Advance states over the committed rows of one source, in bounded memory.

    Args:
        settings: `query_memory_max` for the sort, which spills to `data`.
        kind: what the source holds.
        states: those at offset `first`; none at the beginning.
        first, end: the rows with offsets first..end-1 are applied.

    Raises:
        CatalogUnavailable: the table or a data file cannot be read.
    """
    found: Symbols = dict(states)
    with committed(catalog, settings, kind, source, first, end) as select:
        if select is None:
            return found
        rows_in_order = select(", ".join(_COLUMNS), "ORDER BY kafka_offset")
        for batch in rows_in_order.to_arrow_reader(BATCH_ROWS):
            rows = pa.table([batch.column(f.name).cast(f.type) for f in _SCHEMA], schema=_SCHEMA)
            found.update(check(found, rows, rules).states)
    return found


def count(
    catalog: Catalog, settings: Settings, kind: Kind, source: Source, first: int, end: int
) -> int:
    """Return how many rows `rebuild` would apply.

    Raises:
        CatalogUnavailable: the table or a data file cannot be read.
    """
    with committed(catalog, settings, kind, source, first, end) as select:
        return int(select("count(*)", "").fetchall()[0][0]) if select is not None else 0


@contextmanager
def committed(
    catalog: Catalog,
    settings: Settings,
    kind: Kind,
    source: Source,
    first: int,
    end: int,
    also: Any = _ALWAYS,
) -> Iterator[Callable[[str, str], duckdb.DuckDBPyRelation] | None]:
    """What selects columns of a source's rows with offsets first..end-1; None: no file holds any.

    Args:
        also: files without a row of this condition are left out.

    Raises:
        CatalogUnavailable: the table or a data file cannot be read, inside of the block too.
    """
    table = load_table(catalog, table_name(settings, kind))
    bounds = _iceberg.And(
        _iceberg.EqualTo("kafka_topic", source.topic),
        _iceberg.GreaterThanOrEqual("kafka_offset", first),
        _iceberg.LessThan("kafka_offset", end),
        also,
    )
    try:
        paths = [task.file.file_path for task in table.scan(row_filter=bounds).plan_files()]
    except OSError as exc:
        raise CatalogUnavailable(f"{source}: which files hold its rows: {exc}") from exc
    if not paths:
        yield None
        return
    io = table.io
    assert isinstance(io, PyArrowFileIO)
    scheme, netloc, _ = io.parse_location(paths[0])
    spill = settings.data.resolve() / "spill" / f"states-{os.getpid()}"
    spill.parent.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect()
    try:
        connection.execute(f"SET memory_limit = '{settings.query_memory_max // 1024}KiB'")
        connection.execute("SET temp_directory = ?", [str(spill)])
        files = [io.parse_location(path)[2] for path in paths]
        connection.register(
            "committed",
            ds.dataset(files, format="parquet", filesystem=io.fs_by_scheme(scheme, netloc)),
        )
        params = {**source._asdict(), "first": first, "end": end}
        yield lambda columns, order: connection.sql(
            f"SELECT {columns} FROM committed"
            " WHERE kafka_cluster = $cluster AND kafka_topic = $topic"
            " AND kafka_partition = $partition"
            f" AND kafka_offset >= $first AND kafka_offset < $end {order}",
            params=params,
        )
    except (duckdb.Error, pa.ArrowException, OSError) as exc:
        raise CatalogUnavailable(f"{source}: states from {kind.name}: {exc}") from exc
    finally:
        connection.close()
        shutil.rmtree(spill, ignore_errors=True)
