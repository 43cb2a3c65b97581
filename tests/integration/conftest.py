"""Fixtures of the integration tests: real parts, each test with a broker and folder of its own.

Each place is a broker and a lake: "local", the embedded broker and a folder with SQLite; "kafka",
Apache Kafka, with a warehouse on S3 behind a REST catalog. Where Kafka cannot run, its tests are
skipped, but not in CI.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from k2.dev import jars
from k2.dev.broker import Embedded
from k2.dev.kafka import Kafka
from k2.dev.seaweed import SeaweedFS
from k2.dev.stack import init
from k2.settings import Settings
from tests.integration.parts import QUICK


def need_kafka() -> None:
    """Skip where a part is missing; in CI that is a failure."""
    if reason := jars.missing():
        if os.environ.get("CI"):
            pytest.fail(f"Apache Kafka cannot run: {reason}")
        pytest.skip(f"Apache Kafka cannot run: {reason}")


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """One store for the whole run: use a namespace of your own."""
    with SeaweedFS(tmp_path_factory.mktemp("seaweed")) as store:
        yield store


@contextmanager
def _on_kafka(data: Path, request: pytest.FixtureRequest) -> Iterator[Settings]:
    need_kafka()
    store: SeaweedFS = request.getfixturevalue("seaweed")
    with Kafka(data) as broker:
        yield Settings(
            data=data,
            broker=broker.address,
            namespace=f"n{uuid.uuid4().hex}",
            **QUICK,
            **store.settings,
        )


@contextmanager
def _local(data: Path) -> Iterator[Settings]:
    with Embedded(data) as broker:
        yield Settings(data=data, broker=broker.address, **QUICK)


@pytest.fixture(params=["local", "kafka"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a running broker and lake, in which nothing is made yet."""
    data = tmp_path / "data"
    with _local(data) if request.param == "local" else _on_kafka(data, request) as settings:
        yield settings


@pytest.fixture
def lake(place: Settings) -> Settings:
    """Settings of a broker, topics and tables that are there; workers are the test's own.

    Small fetches and buffers: a commit holds little, so that many lie between start and end.
    """
    settings = replace(place, exchanges="SIM", fetch_bytes_max=512 * 1024, buffer_rows_max=20_000)
    init(settings)
    return settings
