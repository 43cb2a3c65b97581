"""Fixtures of the integration tests: real parts, each test with a broker and folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from k2.dev.broker import Embedded
from k2.dev.stack import init
from k2.settings import Settings
from tests.integration.parts import QUICK


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a broker, topics and tables that are there; workers are the test's own.

    Small fetches and buffers: a commit holds little, so that many lie between start and end.
    """
    data = tmp_path / "data"
    with Embedded(data) as broker:
        settings = Settings(
            data=data,
            broker=broker.address,
            exchanges="SIM",
            fetch_bytes_max=512 * 1024,
            buffer_rows_max=20_000,
            **QUICK,
        )
        init(settings)
        yield settings
