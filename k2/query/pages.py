"""Cursors: behind which row a page ended, and which rows all pages of its answer are made of.

Tables are appended to, and a row never changes. So the rows of a snapshot are those whose offsets
are below its next ones, in every later snapshot too: a cursor outlives the snapshot that it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa

from k2.errors import BadQuery
from k2.lake.offsets import Source
from k2.query.scan import BATCH_ROWS_MAX, Scan
from k2.query.span import Span
from k2.query.times import NS_MAX, NS_MIN

__all__ = ["Cursor", "Cut", "Page", "Place", "Question", "counted", "digest"]

#: What rows are ordered by. A record that was read twice, since an operator moved the offset back,
#: is two rows of one key; their order is that of their ingestion.
KEY = ("ts_event", "kafka_topic", "kafka_partition", "kafka_offset", "kafka_cluster")
_TYPES = (int, str, int, int, str)
_ORDER = ", ".join((*KEY, "ingest_time"))
#: Pages up to this size are read at once, longer ones as they are sent.
PAGE_ROWS_MAX = BATCH_ROWS_MAX

#: A cursor must fit into a line of a request. What has more sources lives as long as its snapshot.
TEXT_MAX = 3500
_PLAIN_MAX = 1_000_000
_ROWS_MAX = 2**62


class Place(NamedTuple):
    """The end of a page: how many rows with the key of its last one were given."""

    key: tuple[Any, ...]  # KEY; of rows that are made of others none: then it counts all rows
    rows: int = 1


class Cut(NamedTuple):
    """Which rows of a table all pages are made of."""

    snapshot_id: int | None  # None: with rows that were in no snapshot yet
    bounds: Mapping[Source, int] | None  # they are below these offsets; None: not said
    moves: int  # how often an operator had moved offsets
    through: int | None  # ns: what they are valid through


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where an answer goes on."""

    asked: str  # a digest of what was asked for
    start_ns: int | None
    end_ns: int | None
    tables: tuple[Cut, ...]  # of one; of trades and quotes where these are joined
    last: Place

    def __str__(self) -> str:
        text = self._encoded()
        if len(text) <= TEXT_MAX:
            return text
        return replace(
            self, tables=tuple(cut._replace(bounds=None) for cut in self.tables)
        )._encoded()

    def _encoded(self) -> str:
        cuts = [(at, _listed(bounds), moves, valid) for at, bounds, moves, valid in self.tables]
        told = [self.asked, self.start_ns, self.end_ns, cuts, *self.last]
        plain = json.dumps(told, separators=(",", ":"), ensure_ascii=False)
        return base64.urlsafe_b64encode(zlib.compress(plain.encode(), 9)).decode().rstrip("=")

    @classmethod
    def read(cls, text: str, asked: str) -> Cursor:
        """A cursor of the question `asked`, from its text.

        Raises:
            BadQuery: it is none, or belongs to another question.
        """
        try:
            found = _decoded(text)
        except (ValueError, TypeError, RecursionError, zlib.error) as exc:
            raise BadQuery("cursor", "none of K2's, or not all of one") from exc
        if found.asked != asked:
            raise BadQuery("cursor", _ANOTHER)
        return found

    def of(self, table: int) -> Cut:
        """That of the first table, or of the second.

        Raises:
            BadQuery: it has no second one, and belongs to another question.
        """
        if table >= len(self.tables):
            raise BadQuery("cursor", _ANOTHER)
        return self.tables[table]


_ANOTHER = "of another query: only limit and format may differ"


def _decoded(text: str) -> Cursor:
    packed = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    unpacking = zlib.decompressobj()
    plain = unpacking.decompress(packed, _PLAIN_MAX)
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError("cut, or longer than any")
    asked, start, end, cuts, key, rows = json.loads(plain)
    tables = tuple(Cut(at, _bounds(listed), moves, valid) for at, listed, moves, valid in cuts)
    optional = [start, end, *(n for cut in tables for n in (cut.snapshot_id, cut.through))]
    typed = [(asked, str), (rows, int), *((n, int) for n in optional if n is not None)]
    typed += zip(key, _TYPES if key else (), strict=True)
    for cut in tables:
        typed.append((cut.moves, int))
        for source, bound in (cut.bounds or {}).items():
            typed += zip((*source, bound), (str, str, int, int), strict=True)
    if not tables or not all(isinstance(value, kind) for value, kind in typed):
        raise TypeError("of other types")
    if not 1 <= rows <= _ROWS_MAX or not all(
        NS_MIN <= n <= NS_MAX for n, kind in typed if kind is int
    ):
        raise ValueError("of other numbers")
    return Cursor(asked, start, end, tables, Place(tuple(key), rows))


def _listed(bounds: Mapping[Source, int] | None) -> list[list[str | int]] | None:
    return None if bounds is None else [[*source, bound] for source, bound in bounds.items()]


def _bounds(listed: Any) -> dict[Source, int] | None:
    return None if listed is None else {Source(c, t, p): n for c, t, p, n in listed}


def digest(resource: str, parameters: Mapping[str, str]) -> str:
    """What tells questions apart."""
    asked = json.dumps([resource, sorted(parameters.items())])
    return hashlib.blake2b(asked.encode(), digest_size=9).hexdigest()


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for, and which page of its answer."""

    span: Span
    most: int
    after: Cursor | None
    asked: str

    @property
    def last(self) -> Place | None:
        """Where the page before ended."""
        return None if self.after is None else self.after.last

    @property
    def rest(self) -> Span:
        """The span from the last row on."""
        return (
            self.span
            if not (self.last and self.last.key)
            else replace(self.span, start_ns=self.last.key[0])
        )

    @property
    def skip(self) -> int:
        """How many rows were given, where the rows are made of others."""
        return 0 if self.last is None else self.last.rows

    def cut(self, table: int = 0) -> Cut | None:
        """Which rows of a table the page before was made of."""
        return None if self.after is None else self.after.of(table)

    def behind(self, place: Place | None, *tables: Cut) -> str | None:
        """The cursor behind a place; None: there is nothing behind it."""
        if place is None:
            return None
        return str(Cursor(self.asked, self.span.start_ns, self.span.end_ns, tables, place))


class Page:
    """The first rows of a source, in their order, behind those of the pages before."""

    def __init__(
        self,
        source: str,
        most: int,
        behind: Place | None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            source: a SELECT of rows with KEY and `ingest_time`; of the rows of the key that the
                page before ended with, it has all or none.
            behind: where that page ended.
            parameters: of the source, beside the scan's.
        """
        self._most = most
        self._skip = 0 if behind is None else behind.rows
        self._behind = behind
        self.sql, self.parameters = source, dict(parameters or {})
        if behind is not None and behind.key:
            given = {f"key_{n}": value for n, value in enumerate(behind.key)}
            self.sql = f"SELECT * FROM ({source}) WHERE {_compared('>=', given)}"
            self.parameters |= given

    def rows(self, scan: Scan, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Its rows.

        Args:
            scan: what the source is made of.
            names: the columns.
        """
        given = {**self.parameters, "most": self._most, "skip": self._skip}
        return scan.run(f"SELECT {', '.join(names)} {self._ordered}", given)

    def read(
        self, scan: Scan, names: Sequence[str]
    ) -> tuple[Iterator[pa.RecordBatch], Place | None]:
        """Its rows, with further columns behind `names`, and its end."""
        if self._most > PAGE_ROWS_MAX or scan.rows_max <= self._most:
            end = self.end(scan)
            return self.rows(scan, names), end
        given = {**self.parameters, "most": self._most + 1, "skip": self._skip}
        chosen = f"SELECT {', '.join(names)}, {_KEYS} {self._ordered}"
        batches = list(scan.run(chosen, given))
        if sum(batch.num_rows for batch in batches) <= self._most:
            return iter(batches), None
        found = pa.Table.from_batches(batches).slice(0, self._most)
        return iter(found.to_batches()), self._last(found)

    def end(self, scan: Scan) -> Place | None:
        """The place of its last row; None: there are no rows behind it."""
        upto = self._skip + self._most
        if scan.rows_max <= self._most or not scan.exceeds(upto, self.sql, self.parameters):
            return None
        asked = {**self.parameters, "most": 1, "skip": upto - 1}
        (batch,) = scan.run(f"SELECT {_KEYS} {self._ordered}", asked)
        ends = {f"last_{name}": column[0].as_py() for name, column in zip(KEY, batch, strict=True)}
        # Not as a second condition: DuckDB makes both one BETWEEN, which it has not for tuples.
        counted = f"SELECT count(*) FILTER (WHERE {_compared('<', ends)}) FROM ({self.sql})"
        (batch,) = scan.run(counted, {**self.parameters, **ends})
        return Place(tuple(ends.values()), upto - batch.column(0)[0].as_py())

    @property
    def _ordered(self) -> str:
        return f"FROM ({self.sql}) ORDER BY {_ORDER} LIMIT $most OFFSET $skip"

    def _last(self, rows: pa.Table) -> Place:
        """The place of the last of some rows, whose last columns are KEY."""
        columns = rows.columns[-len(KEY) :]

        def key_at(at: int) -> tuple[Any, ...]:
            return tuple(column[at].as_py() for column in columns)

        last, same = key_at(rows.num_rows - 1), 1
        while same < rows.num_rows and key_at(rows.num_rows - 1 - same) == last:
            same += 1
        if same == rows.num_rows and self._behind is not None and self._behind.key == last:
            same += self._behind.rows
        return Place(last, same)


def counted(
    scan: Scan,
    statement: str,
    order: str,
    ask: Question,
    rows_max: int,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[Iterator[pa.RecordBatch], Place | None]:
    """A page of rows that are made of others: its end is their number.

    Args:
        rows_max: how many the statement has at most.
    """
    upto, given = ask.skip + ask.most, dict(parameters or {})
    cut = rows_max > upto and scan.exceeds(upto, statement, given)
    batches = scan.run(
        f"SELECT * FROM ({statement}) ORDER BY {order} LIMIT $most OFFSET $skip",
        {**given, "most": ask.most, "skip": ask.skip},
    )
    return batches, Place((), upto) if cut else None


_KEYS = ", ".join(f"{name} AS key_{name}" for name in KEY)


def _compared(sign: str, given: Mapping[str, Any]) -> str:
    """A condition: the key of a row is less, or not, than some values."""
    return f"({', '.join(KEY)}) {sign} ({', '.join(f'${name}' for name in given)})"
