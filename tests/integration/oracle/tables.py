"""The tables' rows, straight from the files of their newest snapshots."""

from __future__ import annotations

from typing import Any

import duckdb
from pyarrow.dataset import dataset
from pyarrow.fs import S3FileSystem
from pyiceberg.table import Table

from k2.settings import Settings
from tests.integration.parts import iceberg

__all__ = ["NAMES", "connect", "one"]

NAMES = ("trades", "rejects")


def connect(settings: Settings) -> duckdb.DuckDBPyConnection:
    """DuckDB with a view of each table over its files; those on S3 read by PyArrow."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for name in (*NAMES, "quotes", "gaps"):
        table = iceberg(settings, name)
        if not (paths := _files(table)):
            connection.register(name, table.schema().as_arrow().empty_table())
        elif settings.warehouse:
            found = dataset(paths, format="parquet", filesystem=_store(settings))
            connection.register(f"{name}_files", found)
            # Read once: a join asks for them in several threads, and often.
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM {name}_files")
        else:
            connection.from_parquet(paths).create_view(name)
    return connection


def one(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """The only value of a query's only row."""
    ((value,),) = connection.execute(sql).fetchall()
    return value


def _files(table: Table) -> list[str]:
    paths = [task.file.file_path for task in table.scan().plan_files()]
    return [path.removeprefix("file://").removeprefix("s3://") for path in paths]


def _store(settings: Settings) -> S3FileSystem:
    return S3FileSystem(
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        endpoint_override=settings.s3_endpoint,
        region=settings.s3_region,
    )
