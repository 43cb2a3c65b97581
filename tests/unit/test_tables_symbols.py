"""What is stored of symbols: epochs of several owners stay apart, and a checkpoint's order."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any

import orjson
import pytest
from faust.types import TP
from k2.tables.epochs import epoch_after, mark

from k2.errors import BrokerUnavailable
from k2.lake.offsets import Source
from k2.settings import Settings

SOURCE = Source("c", "market.trades.sim", 2)


@pytest.fixture
def symbols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("K2_DATA", str(tmp_path))  # the module makes the app at import
    module = importlib.import_module("k2.tables.symbols")
    monkeypatch.setattr(module, "table", {})
    return module


def put(symbols: Any, epoch: str, watermark: int | None, missing: int = 0, **values: int) -> None:
    """Write an epoch; its mark says that there are `missing` more segments."""
    for kind, value in values.items():
        symbols.table[orjson.dumps((*SOURCE, epoch, kind, 3))] = b"%d" % value
    if watermark is not None:
        symbols.table[orjson.dumps((*SOURCE, epoch))] = mark(watermark, len(values) + missing)


def test_late_records_of_a_former_owner_change_nothing(symbols: Any) -> None:
    """The former owner's states, come after its successor's, are in an epoch of their own."""
    put(symbols, "2-b", 50, A=40, B=41)
    put(symbols, "1-a", 20, A=10, B=11)
    stored, keys = symbols.load({SOURCE})
    assert (stored[SOURCE].epoch, stored[SOURCE].watermark) == ("2-b", 50)
    assert stored[SOURCE].segments == {("A", 3): b"40", ("B", 3): b"41"}
    assert len(keys[SOURCE]) == 6


def test_epoch_without_watermark_is_torn_and_not_used(symbols: Any) -> None:
    put(symbols, "9-a", 20, A=10)
    put(symbols, "10-b", None, A=40)
    stored, _ = symbols.load({SOURCE})
    assert (stored[SOURCE].epoch, stored[SOURCE].watermark) == ("9-a", 20)


def test_epoch_that_lacks_a_segment_is_not_used(symbols: Any) -> None:
    """A quiet symbol that is not there would begin anew, and its next gap go unseen."""
    put(symbols, "1-a", 20, A=10, B=11)
    put(symbols, "2-b", 50, missing=1, A=40)
    stored, _ = symbols.load({SOURCE})
    assert (stored[SOURCE].epoch, stored[SOURCE].watermark) == ("1-a", 20)


def test_epochs_count_as_numbers_and_equal_ones_by_their_watermark(symbols: Any) -> None:
    put(symbols, "9-a", 90)
    put(symbols, "10-b", 60)
    put(symbols, "10-c", 70)
    stored, _ = symbols.load({SOURCE})
    assert stored[SOURCE].epoch == "10-c"
    assert epoch_after("10-c").startswith("11-")
    assert epoch_after(None) != epoch_after(None)


def test_other_sources_are_left_out(symbols: Any) -> None:
    put(symbols, "1-a", 5, A=4)
    stored, keys = symbols.load({Source("c", "market.trades.sim", 1)})
    assert stored == {}
    assert list(keys.values()) == [[]]


class Changelog:
    """A table whose records are delivered when the test says so; keeps their order."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.sent: list[tuple[int, bytes, bytes | None]] = []
        self.futures: list[asyncio.Future[None]] = []

    def send_changelog(
        self, partition: int, key: bytes, value: bytes | None, value_serializer: str | None = None
    ) -> asyncio.Future[None]:
        assert (value is None) == (value_serializer == "raw")
        self.sent.append((partition, key, value))
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    def deliver(self, count: int) -> None:
        for future in self.futures[:count]:
            future.set_result(None)
        del self.futures[:count]


class Event:
    """What Faust finds a store by."""


NEW = {("sequences", 16, 1): b"1", ("live", 1): b"2"}


def checkpointing(symbols: Any, timeout_s: float) -> asyncio.Task[None]:
    removed = [("bars", 1, 1416529200)]
    what = (SOURCE, "2-b", Event(), NEW, removed, 2, 50, [b"old"], timeout_s)
    return asyncio.create_task(symbols.checkpoint(*what))


async def test_nothing_is_deleted_before_the_changelog_has_the_mark(symbols: Any) -> None:
    """Cut short wherever it may be, an epoch is whole: the former one, or this one."""
    symbols.table = changelog = Changelog()
    bar = orjson.dumps((*SOURCE, "2-b", "bars", 1, 1416529200))
    changelog.data = {b"old": b"o", bar: b"b"}
    task = checkpointing(symbols, 10)
    await asyncio.sleep(0)
    keys = [orjson.dumps((*SOURCE, "2-b", *name)) for name in (*NEW, ())]
    assert changelog.sent == list(zip([2] * 3, keys, [b"1", b"2", mark(50, 2)], strict=True))
    changelog.deliver(2)
    await asyncio.sleep(0.01)
    assert changelog.data.keys() == {*keys, b"old", bar}
    changelog.deliver(1)
    await asyncio.sleep(0.01)
    assert changelog.sent[3:] == [(2, b"old", None), (2, bar, None)]
    assert (changelog.data.keys(), task.done()) == (set(keys), False)
    changelog.deliver(2)
    await task


async def test_a_changelog_that_takes_nothing_is_named(symbols: Any) -> None:
    """Neither what was written, nor what was deleted then."""
    symbols.table = changelog = Changelog()
    changelog.data = dict.fromkeys((b"old", orjson.dumps((*SOURCE, "2-b", "bars", 1, 1416529200))))
    task = checkpointing(symbols, 0.05)
    await asyncio.sleep(0)
    changelog.deliver(1)
    with pytest.raises(BrokerUnavailable, match=r"2 of 3 changelog records not taken in 0.05 s"):
        await task
    task = checkpointing(symbols, 0.05)
    await asyncio.sleep(0)
    changelog.deliver(len(changelog.futures))
    with pytest.raises(BrokerUnavailable, match=r"2 of 2 changelog records not taken in 0.05 s"):
        await task


def test_a_segment_is_read_without_an_event(
    symbols: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of the partition's own database; a partition that is not ours is not opened."""
    app = importlib.import_module("k2.app").create_app(Settings(data=tmp_path))
    table = app.Table("symbols", key_type=bytes, value_type=bytes, partitions=4)
    monkeypatch.setattr(symbols, "table", table)
    app.conf.tabledir.mkdir(parents=True, exist_ok=True)
    other = Source(*SOURCE[:2], 3)
    for source, value in ((SOURCE, b"ours"), (other, b"theirs")):
        database = table.data._db_for_partition(source.partition)
        database[orjson.dumps((*source, "2-b", "live", 1))] = value
    assert symbols.get(SOURCE, "2-b", ("live", 1)) == b"ours"
    assert symbols.get(SOURCE, "2-b", ("live", 2)) is None
    assert symbols.get(SOURCE, "1-a", ("live", 1)) is None
    table.data.revoke_partitions(table, {TP(table.changelog_topic_name, 3)})
    assert symbols.get(other, "2-b", ("live", 1)) is None
    assert symbols.get(Source(*SOURCE[:2], 0), "2-b", ("live", 1)) is None
    assert not table.data.partition_path(0).exists()
