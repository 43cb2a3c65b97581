"""Batch transport for Faust: one event is one fetch of a partition, as raw record batches.

Registered as `k2` under the entry point `faust.transports`; used by a broker URL `k2://host:port`.
"""

from __future__ import annotations

from typing import ClassVar

from faust.transport.drivers.aiokafka import Transport as AIOKafkaTransport

from k2.transport.consumer import BatchConsumer, BatchSource
from k2.transport.fetched import Fetched, LogEnd, RecordBatch, joined

__all__ = [
    "BatchConsumer",
    "BatchSource",
    "Fetched",
    "LogEnd",
    "RecordBatch",
    "Transport",
    "joined",
]


class Transport(AIOKafkaTransport):
    """aiokafka's transport with the batch consumer."""

    Consumer: ClassVar[type] = BatchConsumer
