"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import hypothesis
import pytest

from k2.dev.broker import Embedded
from k2.dev.seaweed import SeaweedFS
from tests.integration.places import need_kafka

# An example that takes long shows how busy the machine is, and no defect.
hypothesis.settings.register_profile("k2", deadline=None)
hypothesis.settings.load_profile("k2")


@dataclass(frozen=True)
class Broker:
    address: str
    cluster_id: str


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One embedded broker for the whole run: use topics of your own. Mark the test `slow`."""
    with Embedded(tmp_path_factory.mktemp("broker")) as embedded:
        yield Broker(embedded.address, embedded.cluster_id)


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """One store for the whole run: use a namespace of your own."""
    need_kafka()
    with SeaweedFS(tmp_path_factory.mktemp("seaweed")) as store:
        yield store
