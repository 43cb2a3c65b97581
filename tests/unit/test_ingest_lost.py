"""A fetch that was given to nobody: the partition is read again from what was accepted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from k2.agents.assignment import Partition
from k2.agents.ingest import Ingest
from k2.agents.lane import Lane
from k2.tables.segments import Segments

from k2.app import create_app
from k2.lake.catalog import ensure_tables, gaps_name, open_catalog, rejects_name, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.live import Live
from k2.schemas import TRADES
from k2.settings import Settings
from k2.transport import Fetched
from tests.by_hand import DECODER

TOPIC = TRADES.topic("SIM")
PLACE = TP(TOPIC, 0)


class Reader:
    """The consumer: only what moves it is of interest here."""

    def __init__(self) -> None:
        self.moves: list[tuple[TP, int, int, bool]] = []

    def next_seek(self) -> int:
        return 8

    async def move(self, tp: TP, offset: int, seek: int, *, hold: bool) -> None:
        self.moves.append((tp, offset, seek, hold))


@pytest.fixture
def ingest(tmp_path: Path) -> tuple[Ingest, Partition, Reader]:
    settings = Settings(data=tmp_path, exchanges="SIM")
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    sinks = [
        Sink(catalog, name, settings)
        for name in (table_name(settings, TRADES), rejects_name(settings), gaps_name(settings))
    ]
    lane, app, reader = Lane(TRADES, DECODER, sinks[0]), create_app(settings), Reader()
    app.consumer = reader  # type: ignore[assignment]
    made = Ingest(app, {TOPIC: lane}, *sinks[1:], lambda: "c")
    partition = Partition(
        source=Source("c", *PLACE),
        lane=lane,
        next_offset=10,
        accepted=10,
        log_end=0,
        records_at=10,
        rejects_at=None,
        gaps_at=None,
        sequences=Segments({}),
        live=Live(TRADES, 10, lambda name, copied: None),
        epoch="",
        topic_id=None,
        seek=7,
    )
    made._partitions[PLACE] = partition
    return made, partition, reader


def event(first: int, following: int, place: int, seek: int = 7) -> Any:
    return SimpleNamespace(value=Fetched(TOPIC, 0, first, following, (), 0, seek=seek, place=place))


async def finished(ingest: Ingest) -> None:
    for task in list(ingest._tasks):
        await task


async def test_a_lost_fetch_is_read_again(ingest: tuple[Ingest, Partition, Reader]) -> None:
    made, partition, reader = ingest
    await made.put(event(10, 20, 0))
    await made.put(event(30, 40, 2))  # 20 to 30 was given to nobody
    await finished(made)
    assert len(reader.moves) == 1
    (tp, offset, seek, hold) = reader.moves[0]
    assert (tp, seek, hold) == (PLACE, 8, False)
    # Whatever was accepted by then, nothing of it is read again, and nothing behind it is left out.
    assert offset == partition.accepted == partition.next_offset
    await made.put(event(40, 50, 3))  # on its way since before the move
    assert partition.next_offset == offset
    await made.put(event(offset, 60, 0, seek=8))
    await finished(made)
    assert partition.accepted == partition.next_offset == 60
    assert len(reader.moves) == 1


async def test_a_log_that_jumps_is_no_lost_fetch(
    ingest: tuple[Ingest, Partition, Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, reader = ingest
    said: list[BaseException] = []
    monkeypatch.setattr(made, "_fail", said.append)
    await made.put(event(20, 30, 0))
    assert [str(exc).split(":")[1] for exc in said] == [
        " expected offset 10, the broker went on at 20"
    ]
    assert reader.moves == []
