"""A broker that lost its log is sent everything again: nothing is stored twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from k2.dev.broker import free_port
from k2.dev.stack import Stack, init
from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.schemas import TRADES
from k2.settings import Settings
from tests.chaos.logs import Changelog
from tests.integration.oracle import same_as_stream, same_as_topics
from tests.integration.oracle.topic import Topics
from tests.integration.parts import QUICK, Worker, committed, until, verify
from tests.integration.places import local

pytestmark = pytest.mark.slow


def test_day_sent_again_to_a_new_cluster_is_all_duplicates(tmp_path: Path) -> None:
    """The states of the sequence check come from the trades table, three clusters in a row."""
    simulation = Simulation(5, 40, 20_000, gaps=10, late=10)
    stream, journal = list(simulation), simulation.journal
    settings = Settings(data=tmp_path, exchanges="SIM", port=free_port(), **QUICK)
    for number in range(3):
        with Stack(settings, embedded=True, tell=lambda line: None) as stack:
            own = stack.settings
            produce(stream, TRADES.topic("SIM"), own)
            until(lambda: committed(own) >= journal.sent, 60, "the trades")  # noqa: B023
            wanted = journal.sent * number
            until(lambda: committed(own, "rejects") >= wanted, 60, "the duplicates")  # noqa: B023
            verify(own)
            same_as_topics(own, Topics.read(own))
    same_as_stream(settings, stream, journal)


def test_states_lost_in_a_new_cluster_come_from_the_old_one_too(tmp_path: Path) -> None:
    """They are made of what both logs held: what is sent again is still known."""
    simulation = Simulation(6, 40, 20_000, gaps=10, late=10)
    stream, journal = list(simulation), simulation.journal
    part = stream[0].slice(0, 5_000)
    topic = TRADES.topic("SIM")

    def send(lake: Settings, tables: list[pa.Table], trades: int, rejects: int) -> str:
        """To a worker that ends when as many rows are there; its log."""
        with Worker(lake) as worker:
            produce(tables, topic, lake)
            for name, rows in (("trades", trades), ("rejects", rejects)):
                until(lambda: committed(lake, name) >= rows, 60, worker.tail)  # noqa: B023
            worker.terminate()
            return worker.log()

    with local(tmp_path) as old:
        init(old)
        send(old, stream, journal.sent, 0)
    with local(tmp_path) as new:
        init(new)
        send(new, [part], journal.sent, part.num_rows)
        shutil.rmtree(new.data / "tables" / "0")
        Changelog(new).cut(0.0)
        log = send(new, stream, journal.sent, part.num_rows + journal.sent)
        assert "is rebuilt from the trades table" in log
        verify(new)
        same_as_topics(new, Topics.read(new))
        same_as_stream(new, stream, journal)
