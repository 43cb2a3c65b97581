"""The Iceberg catalog and K2's tables, made from `k2.schemas`.

The default catalog is one SQLite file that any number of processes on the machine share. SQLite
allows one writer at a time: a connection waits for its turn (`timeout`), and whoever waits longer
than that tries again in `k2.lake.commit`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import TypeVar

import pyarrow as pa
from pyiceberg.catalog import PY_CATALOG_IMPL, Catalog, load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, TableAlreadyExistsError
from pyiceberg.io.pyarrow import pyarrow_to_schema
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.sorting import NullOrder, SortDirection, SortField, SortOrder
from pyiceberg.transforms import DayTransform, IdentityTransform
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from k2.errors import CatalogUnavailable, SchemaMismatch
from k2.lake.layouts import LAYOUTS, Layout
from k2.lake.rest import TIMEOUT_PROPERTY, RestCatalog
from k2.schemas import REPLAYS, Kind
from k2.settings import Settings

__all__ = [
    "arrow_with_ids",
    "ensure_replays",
    "ensure_tables",
    "gaps_name",
    "load_table",
    "open_catalog",
    "rejects_name",
    "replays_name",
    "table_name",
]

SQLITE_BUSY_TIMEOUT_S = 5
PREVIOUS_METADATA_MAX = 30
_ATTEMPTS_MAX = 20
_FIRST_PARTITION_FIELD_ID = 1000

#: Columns worth bounds in the manifests: what queries filter by. Bounds of the others would be
#: rewritten at every manifest merge and read at every plan, for nothing.
_BOUNDED = (
    "exchange", "symbol", "session", "event_time", "sequence", "seen_at", "from_ts", "to_ts",
    "kafka_topic", "kafka_partition", "kafka_offset", "ingest_time",
)  # fmt: skip

_TABLE_PROPERTIES = {
    "format-version": "2",
    "write.parquet.compression-codec": "zstd",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "25",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": str(PREVIOUS_METADATA_MAX),
    # PyIceberg's own retry would re-apply a commit without checking the offsets again.
    "commit.retry.num-retries": "0",
    "write.metadata.metrics.default": "none",
}

_REST = f"{RestCatalog.__module__}.{RestCatalog.__name__}"
_T = TypeVar("_T")


def table_name(settings: Settings, kind: Kind) -> str:
    return f"{settings.namespace}.{kind.name}"


def rejects_name(settings: Settings) -> str:
    return f"{settings.namespace}.rejects"


def gaps_name(settings: Settings) -> str:
    return f"{settings.namespace}.gaps"


def replays_name(settings: Settings) -> str:
    return f"{settings.namespace}.replays"


def open_catalog(settings: Settings) -> Catalog:
    """Open (or create) the catalog that `settings` name; SQLite in `settings.data` by default.

    The messages of all errors here are without secrets.

    Raises:
        CatalogUnavailable: it cannot be reached or created.
    """
    folder = settings.data.resolve()
    if bad := {"?", "#"} & set(str(folder)):
        raise CatalogUnavailable(f"catalog {folder}: a URI cannot hold {' '.join(bad)} in a path")
    # Not `as_uri`: PyIceberg takes paths as they stand, and "%20" would be another folder.
    warehouse = settings.warehouse or f"file://{folder / 'warehouse'}"
    properties = {"uri": settings.catalog_uri, "warehouse": warehouse, **_access(settings)}
    try:
        if not settings.catalog_uri:
            (folder / "warehouse").mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{folder / 'catalog.db'}?timeout={SQLITE_BUSY_TIMEOUT_S}"
            properties["uri"] = uri
        # Two processes that start at once both find no catalog tables; one of them is told so.
        catalog = _retry(lambda: load_catalog("k2", **properties), SQLAlchemyError)
        if isinstance(catalog, SqlCatalog) and catalog.engine.dialect.name == "sqlite":
            _retry(lambda: _use_wal(catalog), SQLAlchemyError)
    except Exception as exc:
        message = f"catalog {properties['uri'] or folder}: {type(exc).__name__}: {exc}"
        raise CatalogUnavailable(settings.hide(message)) from exc
    return catalog


def _access(settings: Settings) -> dict[str, str]:
    """PyIceberg's properties for a REST catalog and for S3; none for what is not set.

    PyArrow takes S3's request timeout for silence, tries thrice, and calls it an `OSError` then:
    after three timeouts and up to 3 s between them. It is the same on Linux, where its
    documentation says that the timeout is ignored.
    """
    timeout_s = f"{settings.lake_timeout_ms / 1000}"
    # Said although it is PyIceberg's default: it warns that this will not stay one.
    oauth = settings.catalog_oauth_url or f"{settings.catalog_uri.rstrip('/')}/v1/oauth/tokens"
    properties = {
        PY_CATALOG_IMPL: _REST if settings.uses_rest else "",
        TIMEOUT_PROPERTY: timeout_s,
        "s3.connect-timeout": timeout_s,
        "s3.request-timeout": timeout_s,
        "oauth2-server-uri": oauth if settings.catalog_credential else "",
        "credential": settings.catalog_credential,
        "token": settings.catalog_token,
        "s3.endpoint": settings.s3_endpoint,
        "s3.region": settings.s3_region,
        "s3.access-key-id": settings.s3_access_key,
        "s3.secret-access-key": settings.s3_secret_key,
        "s3.session-token": settings.s3_session_token,
        "s3.force-virtual-addressing": "" if settings.s3_path_style else "true",
    }
    return {name: value for name, value in properties.items() if value}


def ensure_tables(catalog: Catalog, settings: Settings) -> None:
    """Create the namespace and the tables unless they exist.

    Raises:
        CatalogUnavailable: the catalog does not answer, or refuses.
        SchemaMismatch: a table exists with other columns or types than `k2.schemas` has.
    """
    racing = (SQLAlchemyError, NamespaceAlreadyExistsError, TableAlreadyExistsError)
    try:
        _retry(lambda: catalog.create_namespace_if_not_exists(settings.namespace), *racing)
        for name, layout in LAYOUTS.items():
            full = f"{settings.namespace}.{name}"
            _retry(lambda: _ensure(catalog, full, layout), *racing)  # noqa: B023
    except SchemaMismatch:
        raise
    except Exception as exc:
        message = f"tables of {settings.namespace}: {type(exc).__name__}: {exc}"
        raise CatalogUnavailable(settings.hide(message)) from exc


def ensure_replays(catalog: Catalog, settings: Settings) -> None:
    """Create the table of replays unless it exists: the first replay does.

    Raises:
        CatalogUnavailable: the catalog does not answer, or refuses.
        SchemaMismatch: it exists with other columns or types than `k2.schemas` has.
    """
    name = replays_name(settings)
    schema = pyarrow_to_schema(arrow_with_ids(REPLAYS))
    try:
        if not catalog.table_exists(name):
            _retry(
                lambda: catalog.create_table_if_not_exists(
                    name, schema=schema, properties=_TABLE_PROPERTIES
                ),
                SQLAlchemyError,
                TableAlreadyExistsError,
            )
        found = catalog.load_table(name).schema()
    except Exception as exc:
        raise CatalogUnavailable(f"table {name}: {type(exc).__name__}: {exc}") from exc
    _check(name, found, schema)


def load_table(catalog: Catalog, name: str) -> Table:
    """Load a table's newest metadata. One handle a thread: a handle is not thread safe.

    Raises:
        CatalogUnavailable: the catalog does not answer, or has no such table.
    """
    try:
        # The catalog names a metadata file that later commits delete: a slow reader looks again.
        return _retry(lambda: catalog.load_table(name), SQLAlchemyError, FileNotFoundError)
    except Exception as exc:
        raise CatalogUnavailable(f"table {name}: {type(exc).__name__}: {exc}") from exc


def arrow_with_ids(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with Iceberg's field ids, as Parquet wants them.

    They are those that a catalog gives: 1..n in column order, then what the columns are made of.
    """
    return pa.schema(_with_ids(schema, count(1)))


def _with_ids(fields: Iterable[pa.Field], ids: Iterator[int]) -> list[pa.Field]:
    own = [field.with_metadata({"PARQUET:field_id": str(next(ids))}) for field in fields]
    return [field.with_type(_type_with_ids(field.type, ids)) for field in own]


def _type_with_ids(kind: pa.DataType, ids: Iterator[int]) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(*_with_ids([kind.value_field], ids))
    if pa.types.is_struct(kind):
        return pa.struct(_with_ids(kind, ids))
    return kind


def _ensure(catalog: Catalog, name: str, layout: Layout) -> None:
    schema = pyarrow_to_schema(arrow_with_ids(layout.schema))
    if catalog.table_exists(name):
        _check(name, catalog.load_table(name).schema(), schema)
        return
    spec = PartitionSpec(
        PartitionField(
            schema.find_field(layout.time_column).field_id,
            _FIRST_PARTITION_FIELD_ID,
            DayTransform(),
            f"{layout.time_column}_day",
        )
    )
    fields = [
        SortField(
            source_id=schema.find_field(column).field_id,
            transform=IdentityTransform(),
            direction=SortDirection.ASC,
            null_order=NullOrder.NULLS_FIRST,
        )
        for column in layout.order
    ]
    metrics = {
        f"write.metadata.metrics.column.{column}": "truncate(16)"
        for column in _BOUNDED
        if column in layout.schema.names
    }
    catalog.create_table(
        name,
        schema=schema,
        partition_spec=spec,
        sort_order=SortOrder(*fields),
        properties={**_TABLE_PROPERTIES, **metrics},
    )


def _check(name: str, found: Schema, wanted: Schema) -> None:
    have = {(f.field_id, f.name, str(f.field_type), f.required) for f in found.fields}
    want = {(f.field_id, f.name, str(f.field_type), f.required) for f in wanted.fields}
    if have != want:
        columns = ", ".join(sorted({field[1] for field in have ^ want}))
        raise SchemaMismatch(f"{name}: the existing table differs from k2.schemas in: {columns}")


def _use_wal(catalog: SqlCatalog) -> None:
    # With a write-ahead log readers do not lock writers out; the mode is kept in the file.
    with catalog.engine.connect() as connection:
        connection.execute(text("PRAGMA journal_mode=WAL"))


def _retry(call: Callable[[], _T], *errors: type[BaseException]) -> _T:
    for attempt in range(_ATTEMPTS_MAX):
        try:
            return call()
        except errors:
            if attempt + 1 == _ATTEMPTS_MAX:
                raise
            time.sleep(random.uniform(0.005, 0.05))
    raise AssertionError("unreachable")
