"""A broker that lost its log is sent everything again: nothing is stored twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from k2.dev.broker import free_port
from k2.dev.stack import Stack
from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.schemas import TRADES
from k2.settings import Settings
from tests.integration.oracle import same_as_stream, same_as_topics
from tests.integration.oracle.topic import Topics
from tests.integration.parts import QUICK, committed, until, verify

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
