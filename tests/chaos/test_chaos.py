"""A seeded part of `make chaos`, and whether the oracle sees what a missing guard lets through."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from k2.dev.seaweed import SeaweedFS
from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.schemas import TRADES
from tests.chaos.faults import FAULTS
from tests.chaos.lakes import embedded, kafka
from tests.chaos.mutations import GUARDED, MUTATIONS, PROOF, misread_cases
from tests.chaos.rounds import SMALL, ChaosWorker, Fault, Outcome, run
from tests.integration.oracle import check as oracle
from tests.integration.parts import Worker, committed, until, verify

pytestmark = pytest.mark.slow

SEED = 3
IN_TESTS = ("killed mid-table-flush", "killed in recovery", "changelog behind", "disk full")
ON_KAFKA = ("killed after swap", "transactions aborted, killed")


def fault(name: str) -> Fault:
    (found,) = [each for each in FAULTS if each.name == name]
    return found


@pytest.mark.parametrize("name", IN_TESTS)
def test_fault_loses_and_doubles_nothing(name: str) -> None:
    _clean(run(fault(name), SEED, "embedded", embedded))


@pytest.mark.parametrize("name", ON_KAFKA)
def test_fault_on_kafka_and_s3_loses_and_doubles_nothing(name: str, seaweed: SeaweedFS) -> None:
    _clean(run(fault(name), SEED, "kafka", kafka(seaweed)))


def _clean(outcome: Outcome) -> None:
    assert not outcome.wrong, outcome.wrong
    assert outcome.rows > 0


@pytest.mark.parametrize("guard", GUARDED)
def test_without_a_guard_the_oracle_objects(guard: str) -> None:
    """Else the rounds above would show nothing."""
    outcome = run(fault(GUARDED[guard]), SEED, "embedded", embedded, guard)
    assert outcome.doubled > 0, outcome.wrong


def test_without_the_framing_proof_the_fuzz_objects() -> None:
    """Damaged values are then read as rows."""
    assert misread_cases(200) > 0


def test_second_signal_leaves_at_once_and_loses_nothing(tmp_path: Path) -> None:
    """The first one waits for a commit that hangs; what is not committed is read again."""
    simulation = Simulation(SEED, 10, 5000)
    stream, journal = list(simulation), simulation.journal
    mark = tmp_path / "hit"
    armed = {
        "CHAOS_POINT": "at swap",
        "CHAOS_ACTION": "hang",
        "CHAOS_FIRST": "1",
        "CHAOS_TIMES": "1",
        "CHAOS_MARK": str(mark),
    }
    with embedded(tmp_path / "data", SMALL) as lake:
        settings = lake.settings
        topic = TRADES.topic("SIM")
        with ChaosWorker(settings, "a", armed) as worker:
            worker.await_ready()
            produce(stream, topic, settings)
            until(mark.exists, 30, lambda: f"a commit; {worker.tail()}")
            worker.child.signal(signal.SIGTERM)
            until(lambda: "stopping" in worker.log(), 10, lambda: f"a stop; {worker.tail()}")
            worker.child.signal(signal.SIGTERM)
            until(lambda: worker.child.poll() is not None, 2, lambda: f"its end; {worker.tail()}")
            assert worker.child.poll() == 128 + signal.SIGTERM
        with Worker(settings, "a") as again:
            until(lambda: committed(settings) == journal.sent, 60, lambda: again.tail())
            again.terminate()
        verify(settings)
        oracle(settings, stream, journal)


def test_every_guard_that_can_be_taken_out_is_tested() -> None:
    assert set(MUTATIONS) == {*GUARDED, PROOF}
