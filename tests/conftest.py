"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from k2.dev.broker import Embedded


@dataclass(frozen=True)
class Broker:
    address: str
    cluster_id: str


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One embedded broker for the whole run: use topics of your own. Mark the test `slow`."""
    with Embedded(tmp_path_factory.mktemp("broker")) as embedded:
        yield Broker(embedded.address, embedded.cluster_id)
