"""The limit: a librdkafka consumer, set up like the loop's, that only counts messages."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from bench.loop import CONSUMER, MESSAGES
from bench.measure import PATIENCE_S, CheckFailed, Process, Run, await_result
from bench.workload import Workload

__all__ = ["NAME", "run"]

NAME = "limit: consumer that only counts"
RATE_MIN = 5_000


def run(workload: Workload, broker: int, folder: Path, group: str) -> Run:
    """One process until all messages are counted."""
    trades = workload.plan.trades
    folder.mkdir(parents=True)
    result = folder / "result.json"
    argv = [
        "-m", "bench.limit", workload.broker, group, workload.topic, str(trades), str(result),
    ]  # fmt: skip
    with Process(NAME, argv, folder, broker, {}) as process:
        found = await_result(process, result, PATIENCE_S + trades / RATE_MIN)
        process.finish()
    if found["count"] != trades:
        raise CheckFailed(f"{NAME}: counted {found['count']}, wanted {trades}")
    return process.run(NAME, trades, found["assigned"], found["end"])


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
        count += sum(
            message.error() is None for message in consumer.consume(MESSAGES, timeout=0.05)
        )
    end = time.time()
    partial = Path(f"{result}.part")
    partial.write_text(json.dumps({"assigned": times[0], "end": end, "count": count}))
    os.replace(partial, result)
    time.sleep(1.0)  # until the memory was sampled once more
    consumer.close()


if __name__ == "__main__":
    main()
