"""Where the integration tests run: which broker, which lake."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from k2.dev import jars
from k2.dev.broker import Embedded
from k2.dev.kafka import Kafka
from k2.dev.seaweed import SeaweedFS
from k2.settings import Settings
from tests.integration.parts import QUICK


def need_kafka() -> None:
    """Skip where a part is missing; in CI that is a failure."""
    if reason := jars.missing():
        if os.environ.get("CI"):
            pytest.fail(f"Apache Kafka cannot run: {reason}")
        pytest.skip(f"Apache Kafka cannot run: {reason}")


@contextmanager
def on_kafka(data: Path, store: SeaweedFS, **kafka: Any) -> Iterator[tuple[Settings, Kafka]]:
    """Apache Kafka of one's own, and a namespace of one's own in the store."""
    need_kafka()
    with Kafka(data, **kafka) as broker:
        settings = Settings(
            data=data,
            broker=broker.address,
            exchanges="SIM",
            namespace=f"n{uuid.uuid4().hex}",
            **QUICK,
            **store.settings,
        )
        yield settings, broker


@contextmanager
def local(data: Path) -> Iterator[Settings]:
    """The embedded broker, and a folder with a SQLite catalog."""
    with Embedded(data) as broker:
        yield Settings(data=data, broker=broker.address, exchanges="SIM", **QUICK)
