"""When records are due, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from typing import Any

import pyarrow as pa
import pytest

from k2.errors import BadQuery
from k2.replay.archive import Archive, Selection
from k2.replay.control import REFUSED_MAX, Control, speed_of
from k2.replay.pace import SPEED_MAX, STEP_S, Pace
from k2.replay.play import Play
from k2.schemas import TRADES
from tests.lakes import START, Lake, source

SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_event_time_passes_as_many_times_as_fast_as_time() -> None:
    clock = Clock()
    pace = Pace(10, clock)
    assert pace.due(5) == 5
    clock.now += 0.5
    assert pace.due(6) == 5 + 5 * SECOND
    assert pace.until(5 + 25 * SECOND) == pytest.approx(2)
    assert pace.until(5 + 5 * SECOND + 1) == STEP_S
    pace.change(1)
    clock.now += 1
    assert pace.due(7) == 5 + 6 * SECOND
    pace.change(0)
    assert pace.due(8) is None
    pace.change(2)
    assert pace.due(9) == 9
    pace.rest()
    clock.now += 50
    assert pace.due(10) == 10


def test_slow_reader_stops_the_clock() -> None:
    clock = Clock()
    pace = Pace(1, clock)
    pace.due(0)
    clock.now += 3
    pace.sent(3)
    assert pace.due(0) == pytest.approx(STEP_S * SECOND, abs=10)
    pace.sent(STEP_S)  # no more than its time
    assert pace.due(0) == pytest.approx(STEP_S * SECOND, abs=10)


def test_orders_are_taken_or_refused() -> None:
    control = Control(end_ns=50)
    for text in ('{"op":"pause"}', '{"op":"speed","speed":2.5}', '{"op":"seek","to":7}'):
        control.take(text)
    assert (control.paused, control.speed, control.seek, control.refused) == (True, 2.5, 7, [])
    for wrong, why in (
        ("x", "not JSON"),
        ("[]", "op: None is not one of"),
        ('{"op":"stop"}', "op: 'stop' is not one of"),
        ('{"op":"speed","speed":"fast"}', "speed: 'fast' is not within"),
        ('{"op":"speed","speed":true}', "speed: True is not within"),
        ('{"op":"seek","to":1.5}', "to: 1.5 is not a time"),
        ('{"op":"seek","to":50}', "start: 50 is not before end 50"),
    ):
        control.take(wrong)
        assert why in control.refused.pop()
    assert (control.paused, control.speed, control.seek) == (True, 2.5, 7)
    for _ in range(100):
        control.take("x")
    assert len(control.refused) == REFUSED_MAX


@pytest.mark.parametrize("wrong", ["-1", "nan", "inf", "", "x", None, SPEED_MAX + 1])
def test_impossible_speed_is_named(wrong: Any) -> None:
    with pytest.raises(BadQuery, match=r"speed: .* is not within 0..1000000"):
        speed_of(wrong)


class Listener:
    """Takes what it is sent, and does something after each."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.took: list[tuple[float, Any]] = []
        self.then: Any = lambda what: None

    async def rows(self, rows: pa.Table) -> None:
        for ts in rows["ts_event"].to_pylist():
            self.took.append((self.clock.now, ts - START))
            self.then(ts - START)

    async def say(self, what: dict[str, Any]) -> None:
        self.took.append((self.clock.now, what["type"]))
        self.then(what["type"])

    def of(self, *kinds: type) -> list[Any]:
        return [what for _, what in self.took if isinstance(what, kinds)]


@pytest.fixture
def lake(tmp_path: Any) -> Lake:
    made = Lake(tmp_path)
    made.commit(TRADES, {source(TRADES, 0): [(n * SECOND // 10, "A") for n in range(40)]})
    return made


async def played(lake: Lake, speed: float, prepare: Any = None) -> tuple[Listener, Play]:
    archive, clock = Archive(lake.catalog, lake.settings), Clock()
    play = Play(archive, Selection(), speed, clock=clock)
    listener = Listener(clock)

    async def wait(seconds: float) -> None:
        clock.now += seconds
        await asyncio.sleep(0)

    play.control.wait = wait  # type: ignore[method-assign]
    if prepare:
        prepare(listener, play)
    await play.prepare()
    await play.run(listener)
    archive.close()
    return listener, play


async def test_records_come_when_they_are_due(lake: Lake) -> None:
    for speed, lasts in ((1.0, 3.9), (10.0, 0.39), (0.0, 0.0)):
        listener, _ = await played(lake, speed)
        assert listener.of(int) == [n * SECOND // 10 for n in range(40)]
        assert [listener.of(str)[0], listener.of(str)[-1]] == ["replay_started", "replay_completed"]
        assert listener.took[-1][0] - 100 == pytest.approx(lasts, abs=2 * STEP_S)
        if speed:
            for at, what in listener.took:
                if isinstance(what, int):
                    late = at - 100 - what / speed / SECOND
                    assert -1e-6 < late < 2 * STEP_S


async def test_pause_speed_and_seek_while_it_runs(lake: Lake) -> None:
    def prepare(listener: Listener, play: Play) -> None:
        waits = play.control.wait

        async def wait(seconds: float) -> None:
            await waits(seconds)
            if play.control.paused and listener.clock.now > 150:
                play.control.take('{"op":"resume"}')

        play.control.wait = wait  # type: ignore[method-assign]

        def then(what: Any) -> None:
            if what == SECOND and not play.control.paused and "paused" not in listener.of(str):
                play.control.take('{"op":"pause"}')
            if what == 2 * SECOND:
                play.control.take('{"op":"speed","speed":100}')
            if what == 3 * SECOND and listener.of(str).count("replay_started") == 1:
                play.control.take(f'{{"op":"seek","to":{START + SECOND // 2}}}')

        listener.then = then

    listener, _ = await played(lake, 1.0, prepare)
    said = [what for what in listener.of(str) if what != "heartbeat"]
    assert said == [
        "replay_started", "paused", "resumed", "speed", "replay_started", "speed",
        "replay_completed",
    ]  # fmt: skip
    tenths = [what * 10 // SECOND for what in listener.of(int)]
    assert tenths[:31] == [*range(31)]  # and what was of the same step
    assert tenths[-35:] == [*range(5, 40)]
    assert len(tenths) <= 40 + 35
    resumed = next(at for at, what in listener.took if what == "resumed")
    assert resumed > 150
    assert next(at for at, what in listener.took if what == 11 * SECOND // 10) > 150


async def test_slow_reader_loses_nothing_and_is_not_hurried(lake: Lake) -> None:
    def prepare(listener: Listener, play: Play) -> None:
        play._pace.sent = lambda seconds: Pace.sent(play._pace, 1.0)  # type: ignore[method-assign]
        listener.then = lambda what: setattr(listener.clock, "now", listener.clock.now + 1.0)

    listener, _ = await played(lake, 10.0, prepare)
    assert listener.of(int) == [n * SECOND // 10 for n in range(40)]
