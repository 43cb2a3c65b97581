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

__all__ = ["EXCHANGE", "Feed", "Plan", "Workload"]

EXCHANGE = "SIM"
MANY_EXCHANGE = "MANY"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. Equal seed, symbols and trades give equal bytes in Kafka."""

    trades: int
    faust_trades: int  # at its rate, all trades would take minutes a run: rates are compared
    runs: int
    seed: int
    symbols: int
    many_symbols: int  # of the second feed, of as many trades; few of them have none


@dataclass(frozen=True, slots=True)
class Feed:
    """A topic of `Plan.trades` trades."""

    exchange: str
    symbols: int  # that have a trade
    value_bytes: int  # of all values

    @property
    def topic(self) -> str:
        return TRADES.topic(self.exchange)


@dataclass(frozen=True, slots=True)
class Workload:
    """The trades as they are in Kafka."""

    plan: Plan
    broker: str
    feed: Feed
    many: Feed | None  # None: it was not asked for
    schema_id: int
    #: Symbol -> trades in the topic of stock Faust; without faults also its last sequence.
    faust_rows: dict[str, int]

    @classmethod
    def produce(cls, plan: Plan, broker: Embedded, folder: Path, many: bool) -> Workload:
        """Create the topics and fill them; `many`: that of many symbols too."""
        exchanges = [EXCHANGE, MANY_EXCHANGE] if many else [EXCHANGE]
        settings = Settings(
            data=folder,
            broker=broker.address,
            exchanges=",".join(exchanges),
            partitions=PARTITIONS,
        )
        folder.mkdir(parents=True)
        ensure_topics(settings)
        admin = AdminClient({"bootstrap.servers": broker.address})
        for created in admin.create_topics([NewTopic(FAUST_TOPIC, PARTITIONS, 1)]).values():
            created.result()
        feeds = []
        for exchange, symbols in zip(exchanges, (plan.symbols, plan.many_symbols), strict=False):
            simulation = Simulation(plan.seed, symbols, plan.trades, exchange)
            done = produce(simulation, TRADES.topic(exchange), settings)
            feeds.append(Feed(exchange, len(simulation.journal.rows), done.bytes))
        few = Simulation(plan.seed, plan.symbols, plan.faust_trades, EXCHANGE)
        produce(few, FAUST_TOPIC, settings)
        schema_id = open_registry(settings).register(f"{feeds[0].topic}-value", TRADES.avro)
        other = feeds[1] if many else None
        return cls(plan, broker.address, feeds[0], other, schema_id, few.journal.rows)
