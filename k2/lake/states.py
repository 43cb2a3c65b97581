"""The sequence states as the trades table tells them, where the log cannot any more.

A state is what the check makes of a source's rows in the order of their offsets. Duplicates are
not in the table and change no state but its counters.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyiceberg.expressions
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import PyArrowFileIO

from k2.errors import CatalogUnavailable
from k2.lake.catalog import load_table, trades_name
from k2.lake.offsets import Source
from k2.schemas import TRADE_BATCH
from k2.sequence import Rules, SymbolState, check
from k2.settings import Settings

__all__ = ["rebuild"]

#: Untyped: the annotations of these pydantic classes know their keywords only.
_iceberg: Any = pyiceberg.expressions

BATCH_ROWS = 128 * 1024
_COLUMNS = ("exchange", "symbol", "sequence", "ts_event", "kafka_offset")
_SCHEMA = pa.schema([TRADE_BATCH.field(name) for name in _COLUMNS])

Symbols = dict[tuple[str, str], SymbolState]


def rebuild(
    catalog: Catalog,
    settings: Settings,
    source: Source,
    states: Mapping[tuple[str, str], SymbolState],
    first: int,
    end: int,
    rules: Rules,
) -> Symbols:
    """Advance states over the committed trades of one source, in bounded memory.

    Args:
        settings: `query_memory_max` for the sort, which spills to `data`.
        states: those at offset `first`; none at the beginning.
        first, end: the trades with offsets first..end-1 are applied.

    Raises:
        CatalogUnavailable: the table or a data file cannot be read.
    """
    table = load_table(catalog, trades_name(settings))
    bounds = _iceberg.And(
        _iceberg.EqualTo("kafka_topic", source.topic),
        _iceberg.GreaterThanOrEqual("kafka_offset", first),
        _iceberg.LessThan("kafka_offset", end),
    )
    paths = [task.file.file_path for task in table.scan(row_filter=bounds).plan_files()]
    found: Symbols = dict(states)
    if not paths:
        return found
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
            "trades",
            ds.dataset(files, format="parquet", filesystem=io.fs_by_scheme(scheme, netloc)),
        )
        reader = connection.sql(
            f"SELECT {', '.join(_COLUMNS)} FROM trades"
            " WHERE kafka_cluster = $c AND kafka_topic = $t AND kafka_partition = $p"
            " AND kafka_offset >= $first AND kafka_offset < $end ORDER BY kafka_offset",
            params={
                "c": source.cluster,
                "t": source.topic,
                "p": source.partition,
                "first": first,
                "end": end,
            },
        ).to_arrow_reader(BATCH_ROWS)
        for batch in reader:
            rows = pa.table([batch.column(f.name).cast(f.type) for f in _SCHEMA], schema=_SCHEMA)
            found.update(check(found, rows, rules).states)
    except (duckdb.Error, pa.ArrowException, OSError) as exc:
        raise CatalogUnavailable(f"{source}: states from trades: {exc}") from exc
    finally:
        connection.close()
        shutil.rmtree(spill, ignore_errors=True)
    return found
