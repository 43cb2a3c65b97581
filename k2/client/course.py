"""The course of a replay: what came, where it goes on after a lost connection, and its digest.

No I/O, see `pages`. A cursor is behind one record: all that was taken up is given before anything
else is read, so going on with the last one misses nothing and repeats nothing. The one exception is
made good here: a live finding has the cursor of the record before it in its partition, and comes
again as long as nothing else has come of that partition.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from k2.client.arrow import Batches
from k2.client.ask import Ask
from k2.client.errors import ClientError, CutOff, DigestMismatch, Refused, ReplayBroken
from k2.client.pages import Give, Pause, Read, Steps, opened
from k2.client.told import Completed

if TYPE_CHECKING:
    from k2.replay.digest import Digest

__all__ = ["Course", "records"]

#: Nothing for so long, though there are heartbeats: the connection is dead.
SILENT_S = 30.0
#: Between two attempts: the first wait, doubled each time, and the longest.
PAUSE_S, PAUSE_MAX_S = 0.1, 10.0
ATTEMPTS = 10
_DATA = ("trade", "quote", "gap")
_GAP = "gap"
_SOURCE = ("kafka_topic", "kafka_partition")
_Source = tuple[Any, ...]
#: Of a finding: its id and revision.
_Id = tuple[str, int]


class Course:
    """One replay, over as many connections as it takes."""

    def __init__(self, ask: Ask, follow: bool, verify: bool, attempts: int) -> None:
        """
        Args:
            verify: compare records with the digest at the end.
            attempts: to go on, one after the other without anything that comes.
        """
        self._ask, self._follow, self._attempts = replace(ask, silent_s=SILENT_S), follow, attempts
        self._verify = verify
        self._cursor = ask.query.get("cursor")
        self._whole: Digest | None = None  # of all connections
        self._since: Digest | None = None  # of this one
        self._findings: dict[_Source, set[_Id]] = {}  # given behind the source's last record
        self._heard = False
        self.connections = 0
        self.completed: Completed | None = None

    @property
    def digest(self) -> str | None:
        """Of all trades and quotes given, until the history ended; None: none were counted."""
        return None if self._whole is None else self._whole.text

    def steps(self) -> Steps[pa.RecordBatch]:
        """Gives batches of trades, quotes and gaps.

        Raises:
            ReplayBroken: the worker says that it cannot go on, or could not be reached again.
            DigestMismatch: what came is not what was sent.
            ClientError: it could not begin.
        """
        failed = 0
        while True:
            self._heard = False
            try:
                yield from self._connected()
                return
            except ClientError as exc:
                failed = 1 if self._heard else failed + 1
                self._refuse(exc, failed)
                wait = min(PAUSE_MAX_S, PAUSE_S * 2 ** (failed - 1)) * random.uniform(0.5, 1)
                told = exc.retry_after_s if isinstance(exc, Refused) else None
            yield Pause(max(wait, told or 0.0))

    def _refuse(self, exc: ClientError, failed: int) -> None:
        """Raise, unless another attempt may help."""
        if not self.connections and not isinstance(exc, ReplayBroken):
            raise exc
        if not exc.retriable:
            if isinstance(exc, ReplayBroken | DigestMismatch):
                raise exc
            raise ReplayBroken(f"{self._ask.path}: {exc}", self._cursor, False) from exc
        if failed > self._attempts:
            raise ReplayBroken(
                f"{self._ask.path}: {self._attempts} attempts to go on have failed: {exc}; "
                "its cursor goes on from the last record",
                self._cursor,
                True,
            ) from exc

    def _connected(self) -> Steps[pa.RecordBatch]:
        """One connection, to the replay's end."""
        yield from opened(self._ask.but(cursor=self._cursor))
        self.connections += 1
        self._count_anew()
        rows, known = Batches(), frozenset().union(*self._findings.values())
        while data := (yield Read()):
            for batch in rows.feed(data):
                said = _said(batch)
                if said is None:
                    self._take(batch)
                    new = _without(batch, known)
                    if new.num_rows:
                        yield Give(new)
                elif self._hear(*said, batch["cursor"][0].as_py()):
                    return
        raise CutOff(f"{self._ask.path}: the replay ended before its end")

    def _count_anew(self) -> None:
        if not self._verify or self.completed is not None:
            return
        from k2.replay.digest import Digest  # only now: what it stands on takes time to import

        self._since = Digest()
        self._whole = self._since if self._whole is None else self._whole

    def _take(self, batch: pa.RecordBatch) -> None:
        """Count rows, and remember where they end."""
        self._heard = True
        if self._since is not None:
            rows = pa.Table.from_batches([batch])
            for digest in {self._since, self._whole or self._since}:
                digest.add(rows)
        self._cursor = batch["cursor"][-1].as_py()
        gaps = pc.equal(batch["type"], _GAP)
        if self._findings or pc.any(gaps).as_py():
            self._remember(batch, gaps)

    def _remember(self, batch: pa.RecordBatch, gaps: pa.BooleanArray) -> None:
        """Of each source the findings behind its last record: they would come again."""
        columns = {name: batch[name] for name in _SOURCE}
        rows = pa.table({**columns, "at": np.arange(batch.num_rows)}).filter(pc.invert(gaps))
        ends = rows.group_by(list(_SOURCE)).aggregate([("at", "max")]).to_pylist()
        last = {tuple(row[name] for name in _SOURCE): row["at_max"] for row in ends}
        for source in last:
            self._findings.pop(source, None)
        for at in pc.indices_nonzero(gaps).to_pylist():
            source = tuple(batch[name][at].as_py() for name in _SOURCE)
            if at > last.get(source, -1):
                self._findings.setdefault(source, set()).add(_id(batch["detail"][at].as_py()))

    def _hear(self, kind: str, detail: dict[str, Any], cursor: str) -> bool:
        """Take what K2 itself says; whether it was the last."""
        if kind == "error":
            raise ReplayBroken(f"{self._ask.path}: {detail['detail']}", cursor, detail["retriable"])
        if kind != "replay_started":
            self._heard = True
        self._cursor = cursor
        if kind != "replay_completed":
            return False
        done = Completed.read(detail, cursor)
        self._compare(done)
        self.completed, self._since = done, None
        return not self._follow

    def _compare(self, done: Completed) -> None:
        if self._since is None:
            return
        counts = self._since.counts
        found = (counts["trade"], counts["quote"], counts["gap"], self._since.text)
        told = (done.trades, done.quotes, done.gaps, done.digest)
        if found != told:
            raise DigestMismatch(f"{self._ask.path}: came {found}, sent {told}")


def records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows of a replay as records with the fields of their types; decimals are exact."""
    from k2.replay.records import FIELDS

    types = batch["type"].to_pylist()
    first = 0
    while first < len(types):
        end = first + 1
        while end < len(types) and types[end] == types[first]:
            end += 1
        yield from _alike(batch.slice(first, end - first), FIELDS[types[first]])
        first = end


def _alike(batch: pa.RecordBatch, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """Records of one type."""
    names = set(batch.schema.names)
    found: list[dict[str, Any]] = batch.select([f for f in fields if f in names]).to_pylist()
    if names.issuperset(fields):
        return found
    details = map(orjson.loads, batch["detail"].to_pylist())
    every = ({**record, **detail} for record, detail in zip(found, details, strict=True))
    return [{name: record[name] for name in fields} for record in every]


def _said(batch: pa.RecordBatch) -> tuple[str, dict[str, Any]] | None:
    """What K2 itself says; None: records. It stands in a batch of its own."""
    kind = batch["type"][0].as_py()
    if kind in _DATA:
        return None
    return kind, orjson.loads(batch["detail"][0].as_py())


def _without(batch: pa.RecordBatch, known: frozenset[_Id]) -> pa.RecordBatch:
    """Without the findings that are known."""
    if not known:
        return batch
    gaps = pc.equal(batch["type"], _GAP).to_pylist()
    details = batch["detail"]
    kept = [not (gap and _id(details[at].as_py()) in known) for at, gap in enumerate(gaps)]
    return batch.filter(pa.array(kept))


def _id(detail: str) -> _Id:
    finding = orjson.loads(detail)
    return finding["gap_id"], finding["revision"]
