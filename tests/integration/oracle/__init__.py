"""What must be in the tables: read from the topics, the files and the simulation, not by K2.

Nothing of K2's transport, codec, query engine, audit or sequence check is used: the topics are read
with librdkafka, the values with fastavro, the tables with PyIceberg's metadata and DuckDB.
"""

from __future__ import annotations

import pyarrow as pa

from k2.feeds.simulate import Journal
from k2.settings import Settings
from tests.integration.oracle.files import same_files
from tests.integration.oracle.records import same_as_topics
from tests.integration.oracle.snapshots import same_offsets
from tests.integration.oracle.stream import same_as_stream
from tests.integration.oracle.tables import connect
from tests.integration.oracle.topic import Topics
from tests.integration.oracle.wrong import Wrong

__all__ = ["Wrong", "check", "check_topics", "connect", "same_as_stream", "same_as_topics"]


def check(settings: Settings, stream: list[pa.Table], journal: Journal) -> None:
    """The tables hold what was sent, exactly once, with exactly the journal's verdicts.

    No worker may be at work, and everything sent must have been committed.

    Args:
        stream: the simulation's chunks, in sending order.

    Raises:
        Wrong: says what, and how many rows were lost and doubled.
    """
    check_topics(settings)
    same_as_stream(settings, stream, journal)


def check_topics(settings: Settings) -> None:
    """The tables hold what is in the topics of the exchanges, whoever sent it.

    Raises: as `check`.
    """
    same_files(settings)
    topics = Topics.read(settings)
    same_as_topics(settings, topics)
    same_offsets(settings, topics)
