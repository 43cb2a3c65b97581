"""The workload: one seeded trading day in an embedded broker, produced before any clock starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from k2.dev.broker import Embedded
from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.registry import open_registry
from k2.schemas import TRADES
from k2.settings import Settings
from k2.topics import ensure_topics
from tests.bench.wire import FAUST_TOPIC, PARTITIONS

__all__ = ["EXCHANGE", "Plan", "Workload"]

EXCHANGE = "SIM"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. Equal seed, symbols and trades give equal bytes in Kafka."""

    trades: int
    faust_trades: int  # at its rate, all trades would take minutes a run: rates are compared
    runs: int
    seed: int
    symbols: int


@dataclass(frozen=True, slots=True)
class Workload:
    """The trades as they are in Kafka."""

    plan: Plan
    broker: str
    topic: str
    value_bytes: int  # of all values in `topic`
    schema_id: int
    #: Symbol -> trades in the topic of stock Faust; without faults also its last sequence.
    faust_rows: dict[str, int]

    @classmethod
    def produce(cls, plan: Plan, broker: Embedded, folder: Path) -> Workload:
        """Create both topics and fill them."""
        settings = Settings(
            data=folder, broker=broker.address, exchanges=EXCHANGE, partitions=PARTITIONS
        )
        folder.mkdir(parents=True)
        ensure_topics(settings)
        admin = AdminClient({"bootstrap.servers": broker.address})
        for created in admin.create_topics([NewTopic(FAUST_TOPIC, PARTITIONS, 1)]).values():
            created.result()
        topic = TRADES.topic(EXCHANGE)
        done = produce(Simulation(plan.seed, plan.symbols, plan.trades, EXCHANGE), topic, settings)
        few = Simulation(plan.seed, plan.symbols, plan.faust_trades, EXCHANGE)
        produce(few, FAUST_TOPIC, settings)
        schema_id = open_registry(settings).register(f"{topic}-value", TRADES.avro)
        return cls(plan, broker.address, topic, done.bytes, schema_id, few.journal.rows)
