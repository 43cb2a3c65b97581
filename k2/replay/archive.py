"""What is committed, as replays read it: the newest snapshots of all kinds, pinned by offsets.

Replays have a DuckDB of their own: they and the queries do not take each other's memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from k2.errors import CatalogUnavailable, QueryTooLarge
from k2.lake.catalog import gaps_name, load_table, table_name
from k2.lake.offsets import MOVES_PROPERTY, OFFSETS_PROPERTY, Source, decode, decode_moves
from k2.query.coverage import told
from k2.query.rows import Stop
from k2.query.times import check_bounds
from k2.replay.cursor import Cursor, Pin, parse
from k2.replay.plan import Manifests
from k2.schemas import KINDS, Kind
from k2.settings import Settings

__all__ = ["Archive", "Moment", "Selection", "next_offsets", "readable", "view"]

_GLOB = frozenset("*?[{")


@dataclass(frozen=True, slots=True)
class Selection:
    """What is replayed: [start_ns, end_ns), by ts_event, of some kinds and symbols; None: any.

    Raises:
        BadQuery: names the parameter.
    """

    kinds: Sequence[Kind] = KINDS
    exchange: str | None = None
    symbols: Sequence[str] | None = None
    start_ns: int | None = None
    end_ns: int | None = None

    def __post_init__(self) -> None:
        check_bounds(self.start_ns, self.end_ns)

    def conditions(self, *, channels: bool = False) -> str:
        """Of SQL, over `parameters`. `channels`: also what has no symbol."""
        tests = []
        if self.exchange is not None:
            tests.append("exchange = $exchange")
        if self.symbols is not None:
            test = "list_contains($symbols, symbol)"
            tests.append(f"({test} OR symbol IS NULL)" if channels else test)
        return "".join(f" AND {test}" for test in tests)

    @property
    def parameters(self) -> dict[str, object]:
        given = {"exchange": self.exchange, "symbols": self.symbols and list(self.symbols)}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Moment:
    """The tables as they were loaded together, and the pin of their newest snapshots."""

    tables: Mapping[Kind, Table]
    pin: Pin
    snapshots: Mapping[str, int | None]  # by name of the kind their ids


class Archive:
    """The tables of trades, quotes and gaps; every method may be called from any thread."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog, self._settings = catalog, settings
        self.manifests = {kind: Manifests() for kind in KINDS}
        self.ledger = Manifests()
        spill = settings.data.resolve() / "spill" / f"replay-{os.getpid()}-{id(self):x}"
        spill.parent.mkdir(parents=True, exist_ok=True)  # DuckDB makes only the last part
        self._database = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": f"{settings.query_memory_max // 1024}KiB",
                "temp_directory": str(spill),
                "autoload_known_extensions": "false",
                "autoinstall_known_extensions": "false",
            },
        )

    def close(self) -> None:
        self._database.close()

    def cursor(self, stop: Stop) -> duckdb.DuckDBPyConnection:
        """A cursor of one's own, which `stop` interrupts."""
        stop.check()
        cursor = self._database.cursor()
        stop.watch(cursor)
        return cursor

    def now(self) -> Moment:
        """Load the tables.

        Raises:
            CatalogUnavailable: one cannot be loaded.
        """
        tables = {kind: self.table(kind) for kind in KINDS}
        following: dict[Source, int] = {}
        for table in tables.values():
            # Of what an operator moved back or made K2 forget, the rows that there were.
            following |= told(next_offsets(table), decode_moves(_said(table, MOVES_PROPERTY)))
        heads = {kind: table.current_snapshot() for kind, table in tables.items()}
        seen = tuple((head.sequence_number or 0) if head else 0 for head in heads.values())
        ids = {kind.name: head.snapshot_id if head else None for kind, head in heads.items()}
        return Moment(tables, Pin(following, seen), ids)

    def at(self, text: str, known: Iterable[Source] = ()) -> tuple[Moment, Cursor]:
        """Load the tables, and read a cursor of them.

        Args:
            known: further sources that there are, of which nothing may be committed yet.

        Raises:
            BadQuery: it is none of this lake.
            CatalogUnavailable: a table cannot be loaded, or is older than the cursor.
        """
        moment = self.now()
        cursor = parse(text, {*moment.pin.following, *known})
        if not cursor.pin.live:
            for source, offset in cursor.pin.following.items():
                if (found := moment.pin.following.get(source, 0)) < offset:
                    raise CatalogUnavailable(f"{source}: read up to {found}, not {offset}")
        return moment, cursor

    def table(self, kind: Kind) -> Table:
        """Load the table of a kind.

        Raises:
            CatalogUnavailable: it cannot be loaded.
        """
        return load_table(self._catalog, table_name(self._settings, kind))

    def gaps(self) -> Table | None:
        """Load the gap ledger, after the records' tables; None: there is none."""
        try:
            return load_table(self._catalog, gaps_name(self._settings))
        except CatalogUnavailable as exc:
            if isinstance(exc.__cause__, NoSuchTableError):
                return None
            raise


def next_offsets(table: Table) -> dict[Source, int]:
    """Where the newest snapshot of a table ends, by source."""
    return decode(_said(table, OFFSETS_PROPERTY))


def _said(table: Table, name: str) -> str | None:
    snapshot = table.current_snapshot()
    return None if snapshot is None or snapshot.summary is None else snapshot.summary[name]


def view(
    cursor: duckdb.DuckDBPyConnection, name: str, table: Table, schema: pa.Schema, paths: list[str]
) -> str:
    """What to select from for data files: an expression of SQL over the parameter of that name."""
    located = [PyArrowFileIO.parse_location(path) for path in paths]
    plain = [path for _, _, path in located]
    if all(s == "file" for s, _, _ in located) and not any(_GLOB & set(p) for p in plain):
        listed = ", ".join("'" + path.replace("'", "''") + "'" for path in plain)
        return f"read_parquet([{listed}], hive_partitioning = false)"
    files = table.io
    assert isinstance(files, PyArrowFileIO)
    scheme, netloc, _ = located[0]
    filesystem = files.fs_by_scheme(scheme, netloc)
    cursor.register(name, ds.dataset(plain, schema, "parquet", filesystem))
    return name


@contextmanager
def readable() -> Iterator[None]:
    """Wraps what DuckDB says while it reads data files.

    Raises:
        CatalogUnavailable: a file cannot be read.
        QueryTooLarge: it needs more memory than it may have.
    """
    try:
        yield
    except duckdb.OutOfMemoryException as exc:
        raise QueryTooLarge("the replay needs more memory than query_memory_max") from exc
    except (duckdb.IOException, OSError) as exc:
        raise CatalogUnavailable(f"data files: {exc}") from exc
