"""A worker notices who has fallen silent, and says so by HTTP, metrics, log and command."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.schemas import TRADES
from k2.settings import Settings
from tests.integration.parts import Worker, environment, get, k2, metric, until

pytestmark = pytest.mark.slow

TOPIC = TRADES.topic("SIM")
LABELS = '{exchange="SIM",kind="trades"}'


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_symbol_and_then_the_topic_fall_silent_and_speak_again(lake: Settings) -> None:
    """Silence is no reason to be called not ready."""
    settings = replace(lake, silence_limits="SIM=2:6")
    rows = pa.concat_tables(Simulation(5, 2, 400))
    of = {s: rows.filter(pc.field("symbol") == s) for s in ("S00001", "S00002")}
    sent = dict.fromkeys(of, 0)

    def speak(symbol: str) -> None:
        now = pa.array([time.time_ns()], pa.int64())
        row = of[symbol].slice(sent[symbol], 1)
        for name in ("ts_event", "ts_recv"):
            row = row.set_column(row.schema.get_field_index(name), row.schema.field(name), now)
        sent[symbol] += 1
        produce([row], TOPIC, settings)

    with Worker(settings) as worker:
        worker.await_ready()

        def silent() -> tuple[list[str], list[str]]:
            said = json.loads(get(f"{worker.url}/v1/silence?exchange=SIM")[2])
            return [r["topic"] for r in said["topics"]], [r["symbol"] for r in said["symbols"]]

        speak("S00002")
        until(worker.ingested, 30, worker.tail)

        def only_the_other() -> bool:
            speak("S00001")
            return silent() == ([], ["S00002"])

        until(only_the_other, 20, worker.tail)
        assert metric(worker.url, f"k2_silent_symbols{LABELS}") == 1
        assert metric(worker.url, f"k2_silent_topics{LABELS}") == 0
        until(lambda: silent() == ([TOPIC], ["S00001", "S00002"]), 20, lambda: f"{silent()}")
        assert metric(worker.url, f"k2_silent_topics{LABELS}") == 1
        assert worker.is_ready()
        shown = k2(environment(settings), "silence", "--url", worker.url)
        assert shown.returncode == 0, shown.stderr
        assert f"all of {TOPIC}" in shown.stdout
        assert "S00002" in shown.stdout
        speak("S00002")
        until(lambda: silent()[0] == [], 20, lambda: f"{silent()}")
        worker.terminate()
        assert worker.log().count(f"{TOPIC} is silent") == 1
        assert worker.log().count(f"{TOPIC} speaks again") == 1
