"""Fixtures of the integration tests: real parts, each test with a broker and folder of its own.

Most tests run in two places: "local", the embedded broker and a folder with SQLite; "kafka",
Apache Kafka, with a warehouse on S3 behind a REST catalog. Where Kafka cannot run, its tests are
skipped, but not in CI.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from k2.dev.kafka import Kafka
from k2.dev.seaweed import SeaweedFS
from k2.dev.stack import init
from k2.settings import Settings
from tests.integration.places import local, on_kafka


@pytest.fixture(params=["local", "kafka"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a running broker and lake, in which nothing is made yet."""
    data = tmp_path / "data"
    if request.param == "local":
        with local(data) as settings:
            yield settings
    else:
        with on_kafka(data, request.getfixturevalue("seaweed")) as (settings, _):
            yield settings


@pytest.fixture
def lake(place: Settings) -> Settings:
    """Settings of a broker, topics and tables that are there; workers are the test's own."""
    return _made(place)


@pytest.fixture
def kafka(tmp_path: Path, seaweed: SeaweedFS) -> Iterator[tuple[Settings, Kafka]]:
    """As `lake`, on Apache Kafka only, and the broker, for tests that do something to it."""
    with on_kafka(tmp_path / "data", seaweed) as (settings, broker):
        yield _made(settings), broker


def _made(settings: Settings) -> Settings:
    # Small fetches and buffers: a commit holds little, so that many lie between start and end.
    small = replace(settings, fetch_bytes_max=512 * 1024, buffer_rows_max=20_000)
    init(small)
    return small
