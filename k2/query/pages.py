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
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from k2.errors import BadQuery
from k2.lake.offsets import Source
from k2.query.scan import BATCH_ROWS_MAX, Scan

__all__ = ["ORDER", "Cursor", "Place", "digest", "page"]

#: What rows are ordered by. A record that was read twice, since an operator moved the offset back,
#: is two rows of one key; their order is that of their ingestion.
KEY = ("ts_event", "kafka_topic", "kafka_partition", "kafka_offset", "kafka_cluster")
_TYPES = (int, str, int, int, str)
ORDER = ", ".join((*KEY, "ingest_time"))
#: Pages up to this size are read at once, longer ones as they are sent.
PAGE_ROWS_MAX = BATCH_ROWS_MAX

#: A cursor must fit into a line of a request. What has more sources lives as long as its snapshot.
TEXT_MAX = 3500
_PLAIN_MAX = 1_000_000


class Place(NamedTuple):
    """The end of a page: how many rows with the key of its last one were given."""

    key: tuple[Any, ...]  # KEY; of rows that are made of others none: then it counts all rows
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where an answer goes on."""

    asked: str  # a digest of what was asked for
    start_ns: int | None
    end_ns: int | None
    through: int | None  # ns: what the answer is valid through
    snapshot_id: int | None  # None: with rows that were in no snapshot yet
    bounds: Mapping[Source, int] | None  # its rows are below these offsets; None: not said
    moves: int  # how often an operator had moved offsets
    last: Place

    def __str__(self) -> str:
        text = self._encoded(self.bounds)
        return text if len(text) <= TEXT_MAX else self._encoded(None)

    def _encoded(self, bounds: Mapping[Source, int] | None) -> str:
        listed = None if bounds is None else [[*source, bounds[source]] for source in bounds]
        state = [self.asked, self.start_ns, self.end_ns, self.through, self.snapshot_id, listed]
        told = [*state, self.moves, *self.last]
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
        except (ValueError, TypeError, zlib.error) as exc:
            raise BadQuery("cursor", "none of K2's, or not all of one") from exc
        if found.asked != asked:
            raise BadQuery("cursor", "of another query: only limit and format may differ")
        return found


def _decoded(text: str) -> Cursor:
    packed = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    unpacking = zlib.decompressobj()
    plain = unpacking.decompress(packed, _PLAIN_MAX)
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError("cut, or longer than any")
    asked, start, end, through, snapshot_id, listed, moves, key, rows = json.loads(plain)
    numbers = [n for n in (start, end, through, snapshot_id) if n is not None]
    typed = [(asked, str), *((n, int) for n in (*numbers, moves, rows))]
    typed += zip(key, _TYPES if key else (), strict=True)
    bounds = None if listed is None else {Source(c, t, p): n for c, t, p, n in listed}
    for source, bound in (bounds or {}).items():
        typed += zip((*source, bound), (str, str, int, int), strict=True)
    if not all(isinstance(value, kind) for value, kind in typed):
        raise TypeError("of other types")
    place = Place(tuple(key), rows)
    return Cursor(asked, start, end, through, snapshot_id, bounds, moves, place)


def digest(resource: str, parameters: Mapping[str, str]) -> str:
    """What tells questions apart."""
    asked = json.dumps([resource, sorted(parameters.items())])
    return hashlib.blake2b(asked.encode(), digest_size=9).hexdigest()


def page(
    scan: Scan, names: Sequence[str], most: int, behind: Place | None
) -> tuple[Iterator[pa.RecordBatch], Place | None]:
    """The first `most` rows of a scan, in their order.

    Args:
        names: the columns; there may be further ones behind them.
        behind: where the page before ended; the scan begins with the rows of that key.

    Returns:
        Batches, and the last row's place; None: there are no rows behind it.
    """
    source, skip, given = scan.sql, 0, dict[str, Any]()
    if behind is not None:
        skip, given = behind.rows, {f"key_{n}": value for n, value in enumerate(behind.key)}
    if given:
        source = f"SELECT * FROM ({scan.sql}) WHERE {_compared('>=', given)}"
    chosen, key = ", ".join(names), ", ".join(f"{name} AS key_{name}" for name in KEY)
    rest = f"FROM ({source}) ORDER BY {ORDER} LIMIT $most OFFSET $skip"
    if most <= PAGE_ROWS_MAX and scan.rows_max > most:
        asked = {**given, "most": most + 1, "skip": skip}
        batches = list(scan.run(f"SELECT {chosen}, {key} {rest}", asked))
        if sum(batch.num_rows for batch in batches) <= most:
            return iter(batches), None
        rows = pa.Table.from_batches(batches).slice(0, most)
        return iter(rows.to_batches()), _last(rows, behind)
    last = None
    if scan.rows_max > most and scan.exceeds(skip + most, source, given):
        asked = {**given, "most": 1, "skip": skip + most - 1}
        (batch,) = scan.run(f"SELECT {key} {rest}", asked)
        ends = {f"last_{name}": column[0].as_py() for name, column in zip(KEY, batch, strict=True)}
        # Not as a second condition: DuckDB makes both one BETWEEN, which it has not for tuples.
        counted = f"SELECT count(*) FILTER (WHERE {_compared('<', ends)}) FROM ({source})"
        (batch,) = scan.run(counted, {**given, **ends})
        last = Place(tuple(ends.values()), skip + most - batch.column(0)[0].as_py())
    return scan.run(f"SELECT {chosen} {rest}", {**given, "most": most, "skip": skip}), last


def _compared(sign: str, given: Mapping[str, Any]) -> str:
    """A condition: the key of a row is less, or not, than some values."""
    return f"({', '.join(KEY)}) {sign} ({', '.join(f'${name}' for name in given)})"


def _last(rows: pa.Table, behind: Place | None) -> Place:
    """The place of the last of some rows, whose last columns are KEY."""
    columns = rows.columns[-len(KEY) :]

    def key_at(at: int) -> tuple[Any, ...]:
        return tuple(column[at].as_py() for column in columns)

    last, same = key_at(rows.num_rows - 1), 1
    while same < rows.num_rows and key_at(rows.num_rows - 1 - same) == last:
        same += 1
    if same == rows.num_rows and behind is not None and behind.key == last:
        same += behind.rows
    return Place(last, same)
