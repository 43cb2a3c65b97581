"""Where a round takes place: a broker, topics and tables of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from k2.dev.broker import Broker, Embedded
from k2.dev.seaweed import SeaweedFS
from k2.dev.stack import init
from k2.settings import Settings
from tests.integration.parts import QUICK
from tests.integration.places import on_kafka

__all__ = ["Lake", "Place", "embedded", "kafka"]


#: For the rounds that compact a topic.
QUICK_CLEANER = {"log.cleaner.backoff.ms": "100"}


@dataclass(frozen=True, slots=True)
class Lake:
    """What a scene can do something to."""

    settings: Settings
    broker: Broker


#: Makes a lake in a folder, with settings of the round's own.
Place = Callable[[Path, Mapping[str, int]], AbstractContextManager[Lake]]


@contextmanager
def embedded(folder: Path, own: Mapping[str, int]) -> Iterator[Lake]:
    """The embedded broker, and a folder with a SQLite catalog."""
    with Embedded(folder) as broker:
        yield _made(
            Settings(data=folder, broker=broker.address, exchanges="SIM", **QUICK), own, broker
        )


def kafka(store: SeaweedFS) -> Place:
    """Apache Kafka, and a namespace of the store's S3 and Iceberg REST catalog."""

    @contextmanager
    def place(folder: Path, own: Mapping[str, int]) -> Iterator[Lake]:
        with on_kafka(folder, store, options=QUICK_CLEANER) as (settings, broker):
            yield _made(settings, own, broker)

    return place


def _made(settings: Settings, own: Mapping[str, int], broker: Broker) -> Lake:
    settings = replace(settings, **own)
    init(settings)
    return Lake(settings, broker)
