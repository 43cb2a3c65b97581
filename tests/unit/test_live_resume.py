"""An assignment reads of the table what came behind the live mark, and no more."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_lake_audit import A, Lake, lake
from test_live_lake import row, said

from k2.lake import lives
from k2.lake.offsets import Carried, Source
from k2.live import LATEST, Live
from k2.live.forms import BAR_NS
from k2.live.segments import FORM, Name
from k2.live.stored import MARK
from k2.schemas import TRADES

__all__ = ["lake"]

ROWS = [row(o, o // 50, o % 50 * BAR_NS, symbol=f"S{o % 7}") for o in range(100)]
MADE_ANEW = "is made from the trades table"


class Place:
    """A partition's segments in the table of symbols, and what is asked of the table of trades."""

    def __init__(self, lake: Lake, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("K2_DATA", str(data))  # the table's module makes the app at import
        self.segments: dict[str, dict[Name, bytes]] = {}
        self._lives = importlib.import_module("k2.agents.lives")
        self._lake = importlib.import_module("k2.agents.lake").Lake()
        self._epochs = importlib.import_module("k2.tables.epochs")
        self._app = SimpleNamespace(settings=lake.settings)
        self._lane = SimpleNamespace(kind=TRADES, sink=SimpleNamespace(catalog=lake.catalog))
        self.asked: list[tuple[int, int]] = []
        committed = lives.committed

        def seen(catalog: Any, settings: Any, kind: Any, source: Any, *what: Any) -> Any:
            self.asked.append((what[0], what[1]))
            return committed(catalog, settings, kind, source, *what)

        monkeypatch.setattr(lives, "committed", seen)
        monkeypatch.setattr(self._lives.table, "get", self._get)

    def _get(self, source: Source, epoch: str, name: Name) -> bytes | None:
        return self.segments[epoch].get(name)

    async def resume(self, epoch: str | None, watermark: int, end: int) -> Live:
        """Go on after an epoch, where the table of trades has everything below `end`."""
        before = None
        if epoch is not None:
            before = self._epochs.Stored(epoch, watermark, self.segments[epoch])
        own = self._epochs.epoch_after(epoch)
        self.segments[own], self.asked = {}, []
        self.epoch = own
        records = Carried({A: end}, {}, [])
        what = (self._app, self._lake, self._lane, A, own, before, watermark, records)
        found: Live = await self._lives.resume(*what)
        return found

    def write(self, live: Live, end: int, writes: int | None = None) -> None:
        """A live write; cut short after so many of its writes."""
        live.take(last=True)
        writing = live.writing(end)
        live.written(writing)
        self.segments[self.epoch] |= dict(list(writing.changed.items())[:writes])


@pytest.fixture
def place(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for first in range(0, 100, 10):
        lake.add(ROWS[first : first + 10], {A: first + 10})
    return Place(lake, tmp_path, monkeypatch)


def told(live: Live) -> list[dict[str, Any]]:
    """What it says of all symbols, by symbol."""
    rows = []
    for number in range(7):
        rows += live.ask("SIM", f"S{number}", bars=False).latest().to_pylist()
    return rows


def through(end: int) -> list[dict[str, Any]]:
    latest = said(ROWS[:end]).latest
    assert latest.schema == LATEST[TRADES].schema
    return list(latest.sort_by("symbol").to_pylist())


async def test_only_what_came_behind_the_mark_is_read(place: Place) -> None:
    """A worker killed between two live writes; its states' mark is ahead of the live one."""
    live = await place.resume(None, 0, 60)
    assert place.asked == [(0, 60), (0, 60)]
    place.write(live, 60)
    again = await place.resume(place.epoch, 70, 80)
    assert place.asked == [(60, 80)]
    assert (again.offset, again.next_offset) == (80, 80)
    assert told(again) == through(80)


async def test_after_a_drain_nothing_is_read(place: Place) -> None:
    place.write(await place.resume(None, 0, 60), 60)
    assert told(await place.resume(place.epoch, 60, 60)) == through(60)
    assert place.asked == []


async def test_a_live_write_cut_short_is_as_good_as_none(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it wrote before: the mark names the segments of the write before it."""
    place.write(await place.resume(None, 0, 60), 60)
    caplog.clear()
    for writes in (1, 2):
        live = await place.resume(place.epoch, 60, 60)
        place.write(live, 60)
        live.add(said(ROWS[60:90]), 90)
        whole = dict(place.segments[place.epoch])
        place.write(live, 90, writes)
        assert len(place.segments[place.epoch]) == len(whole) + writes
        again = await place.resume(place.epoch, 60, 90)
        assert place.asked == [(60, 90)]
        assert told(again) == through(90)
        place.segments[place.epoch] = whole
    assert MADE_ANEW not in caplog.text


@pytest.mark.parametrize("lost", ["mark", "segment", "ahead", "form"])
async def test_without_a_whole_mark_the_table_tells_all(
    place: Place, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not there, or names what is not; or the table was rolled back below it."""
    place.write(await place.resume(None, 0, 60), 60)
    caplog.clear()
    segments, end = place.segments[place.epoch], 60
    if lost == "mark":
        del segments[MARK]
    elif lost == "segment":
        del segments["live", FORM, 1, 0, 0]
    elif lost == "form":
        segments["live-mark", FORM - 1] = segments.pop(MARK)
    else:
        end = 50
    with caplog.at_level(logging.WARNING):
        again = await place.resume(place.epoch, 40, end)
    assert place.asked == [(0, end), (0, end)]
    assert told(again) == through(end)
    assert MADE_ANEW in caplog.text
