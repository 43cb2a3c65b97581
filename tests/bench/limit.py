"""The limit: a librdkafka consumer, set up like the loop's, that only counts messages."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from tests.bench.wire import CONSUMER, MESSAGES


def main() -> None:
    """The process: broker, group, topic, trades, file for the result."""
    address, group, topic, trades, result = sys.argv[1:]
    times = []

    def assigned(_: Consumer, partitions: list[TopicPartition]) -> None:
        if partitions:
            times.append(time.time())

    consumer = Consumer({**CONSUMER, "bootstrap.servers": address, "group.id": group})
    consumer.subscribe([topic], on_assign=assigned)
    count = 0
    while count < int(trades):
        count += len(consumer.consume(MESSAGES, timeout=0.05))
    end = time.time()
    partial = Path(f"{result}.part")
    partial.write_text(json.dumps({"assigned": times[0], "end": end, "count": count}))
    os.replace(partial, result)
    time.sleep(1.0)  # until the memory was sampled once more
    consumer.close()


if __name__ == "__main__":
    main()
