"""What is committed, in event-time order by one clock over all symbols.

Read in windows of time of about as many rows each, so that memory stays the same however long the
span is. The order is `(ts_event, topic, partition, offset)`; a finding of the gap ledger stands
behind the record before what is missing, or behind the first of a run.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from k2.query.rows import Stop
from k2.query.times import NS_MAX, NS_MIN
from k2.replay.archive import Archive, Moment, Selection, readable, view
from k2.replay.cursor import START, Pin, Position, cursors
from k2.replay.digest import Digest
from k2.replay.plan import US_MAX, US_MIN, Windows
from k2.replay.records import finding_columns, record_columns
from k2.schemas import GAPS, KINDS

__all__ = ["History"]

#: Rows that a window is to have, about; one read gives three times as many at most.
WINDOW_ROWS = 131_072
#: By how much more than is wanted a window may promise where few rows are chosen.
_WIDEN_MAX = 256

_ORDER = "ts_event, place, kafka_offset, source, rank"


class History:
    """The rows of a pin behind a position: `read` until it gives None. For one thread at a time."""

    def __init__(
        self,
        archive: Archive,
        moment: Moment,
        pin: Pin,
        which: Selection,
        after: Position,
        stop: Stop,
        rows: int = WINDOW_ROWS,
    ) -> None:
        """`moment`: of the pin or any later one; `rows`: of a window, about.

        Raises:
            CatalogUnavailable: a manifest, or a file of the ledger, cannot be read.
        """
        self.digest = Digest()
        self._moment, self._pin, self._which = moment, pin, which
        self._after, self._rows, self._most = after, rows, 3 * rows
        self._cursor = archive.cursor(stop)
        self._stop = stop
        sources = _sources(pin)
        self._cursor.register("sources", sources)
        most = max(pin.following.values(), default=0)
        self._files = {
            kind: archive.manifests[kind].files(moment.tables[kind], most, pin.seen[number])
            for number, kind in enumerate(KINDS)
            if kind in which.kinds
        }
        self._has_findings = self._find(archive)
        start = US_MIN if which.start_ns is None else which.start_ns // 1000
        end = US_MAX if which.end_ns is None else -(-which.end_ns // 1000)
        self._low = max(start, after.ts_event // 1000)
        self._high, self._end = self._low, end
        self._windows = Windows(list(self._files.values()), start, end)
        self._whole = True  # nothing of the window is left
        self._widen = 1

    def read(self) -> pa.Table | None:
        """The next rows; None: there are no more.

        They have the columns of `FIELDS` of all their types, and are at most three times as many
        as a window's.

        Raises:
            CatalogUnavailable: a data file cannot be read.
            QueryTooLarge: there is not enough memory.
        """
        while True:
            if self._whole:
                if self._high >= self._end:
                    return None
                self._low = self._high
                self._high = self._windows.after(self._low, self._rows * self._widen)
            rows = self._select()
            self._whole = rows.num_rows < self._most
            if not self._whole:
                self._widen = max(1, self._widen // 2)
            elif rows.num_rows < self._rows // 4:
                self._widen = min(_WIDEN_MAX, self._widen * 2)
            if rows.num_rows:
                return self._finished(rows)

    def close(self) -> None:
        self._cursor.close()

    def _select(self) -> pa.Table:
        low, high = max(NS_MIN, self._low * 1000), self._high * 1000 - 1
        given = self._which
        if given.start_ns is not None:
            low = max(low, given.start_ns)
        high = min(high, NS_MAX if given.end_ns is None else given.end_ns - 1)
        parts = []
        for kind, files in self._files.items():
            if paths := files.within(self._low, self._high):
                table = self._moment.tables[kind]
                rows = view(self._cursor, kind.name, table, kind.table, paths)
                parts.append(
                    f"SELECT {record_columns(kind)}, source, place, 0::USMALLINT AS rank "
                    f"FROM {rows} JOIN sources ON kafka_partition = of_partition "
                    "AND kafka_topic = of_topic AND kafka_cluster = of_cluster "
                    "AND kafka_offset < following "
                    f"WHERE ts_event BETWEEN $low AND $high{given.conditions()}"
                )
        if self._has_findings:
            parts.append("SELECT * FROM findings WHERE ts_event BETWEEN $low AND $high")
        if not parts:
            return _NOTHING
        parameters = {"low": low, "high": high, **given.parameters}
        rows = " UNION ALL BY NAME ".join(parts)
        if (at := self._after) != START and at.ts_event >= low:
            # What was sent up to, in the same order; the first test lets files be skipped.
            rows = f"SELECT * FROM ({rows}) WHERE ts_event >= {at.ts_event} AND ({_ORDER}) > (" + (
                f"{at.ts_event}, {self._place(at.source)}, {at.offset}, {at.source}, {at.rank})"
            )
        statement = f"SELECT * FROM ({rows}) ORDER BY {_ORDER} LIMIT {self._most}"
        self._stop.check()
        with readable():
            # A statement must not be given parameters that it does not name.
            named = {name: value for name, value in parameters.items() if f"${name}" in rows}
            found: pa.Table = self._cursor.sql(statement, params=named).to_arrow_table()
        return found

    def _finished(self, rows: pa.Table) -> pa.Table:
        ts, offset, source, rank = (
            rows[name].to_numpy() for name in ("ts_event", "kafka_offset", "source", "rank")
        )
        self._after = Position(int(ts[-1]), int(offset[-1]), int(source[-1]), int(rank[-1]))
        made = rows.drop_columns(["source", "place", "rank"]).append_column(
            "cursor", cursors(self._pin, ts, offset, source, rank)
        )
        self.digest.add(made)
        return made

    def _place(self, source: int) -> int:
        return int(_places(self._pin)[source])

    def _find(self, archive: Archive) -> bool:
        """Make the table of findings: those whose span of time and that of the replay meet."""
        table = archive.gaps()
        if table is None or table.current_snapshot() is None or not self._pin.following:
            return False
        paths = [task.file.file_path for task in table.scan().plan_files()]
        if not paths:
            return False
        given = self._which
        low = NS_MIN if given.start_ns is None else given.start_ns
        high = NS_MAX if given.end_ns is None else given.end_ns - 1
        kinds = " OR ".join(f"starts_with(kafka_topic, '{kind.topic('')}')" for kind in given.kinds)
        rows = view(self._cursor, "ledger", table, GAPS, paths)
        newest = (
            f"SELECT * FROM {rows} JOIN sources ON kafka_partition = of_partition AND "
            "kafka_topic = of_topic AND kafka_cluster = of_cluster AND kafka_offset < following "
            f"WHERE ({kinds}){given.conditions(channels=True)} QUALIFY row_number() OVER "
            "(PARTITION BY gap_id ORDER BY revision DESC, ingest_time DESC) = 1"
        )
        place = f"greatest({low}, least({high}, from_ts))"
        statement = (
            f"SELECT {finding_columns(place)}, from_offset AS kafka_offset, source, place, "
            f"(row_number() OVER (PARTITION BY {place}, source, from_offset ORDER BY gap_id))"
            f"::USMALLINT AS rank FROM ({newest}) WHERE "
            "(kind <> 'gap' OR remaining_count > 0) "
            f"AND (from_ts >= {low} OR to_ts >= {low}) AND (from_ts <= {high} OR to_ts <= {high})"
        )
        self._stop.check()
        with readable():
            found = self._cursor.sql(statement, params=given.parameters).to_arrow_table()
        self._cursor.register("findings", found)
        return bool(found.num_rows)


_NOTHING = pa.table({})


def _places(pin: Pin) -> np.ndarray:
    """By source the rank of its topic and partition: logs of one name come together."""
    names = [source[1:] for source in pin.sources]
    ranks = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([ranks[name] for name in names], np.int32)


def _sources(pin: Pin) -> pa.Table:
    clusters, topics, partitions = zip(*pin.sources, strict=True) if pin.sources else ((), (), ())
    return pa.table(
        {
            "of_cluster": pa.array(clusters, pa.string()),
            "of_topic": pa.array(topics, pa.string()),
            "of_partition": pa.array(partitions, pa.int32()),
            "source": pa.array(range(len(pin.sources)), pa.int32()),
            "place": pa.array(_places(pin)),
            "following": pa.array([pin.following[s] for s in pin.sources], pa.int64()),
        }
    )
