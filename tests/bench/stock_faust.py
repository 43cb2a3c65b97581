"""Stock Faust: its own transport, one event a trade, the last sequence in a RocksDB table.

There is no Iceberg, no sort and no commit of rows here, which favours it. Tuned: fetches of up to
8 MiB, changelog records sent in batches (linger), the value decoded as the loop does it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import faust
from fastavro import schemaless_reader

from tests.bench.wire import FAUST_TOPIC, PARTITIONS, SESSION_TIMEOUT_MS, frame, trade_schema


def _worker() -> Any:
    """Make the app; in the contestant's own process."""
    folder = Path(os.environ["BENCH_FOLDER"])
    trades = int(os.environ["BENCH_TRADES"])
    expected = frame(int(os.environ["BENCH_SCHEMA_ID"]))
    schema = trade_schema()
    app = faust.App(
        os.environ["BENCH_GROUP"],
        broker=f"kafka://{os.environ['BENCH_BROKER']}",
        store="rocksdb://",
        datadir=str(folder / "faust"),
        topic_partitions=PARTITIONS,
        topic_disable_leader=True,
        consumer_max_fetch_size=8 * 2**20,
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=SESSION_TIMEOUT_MS / 1000,
        broker_heartbeat_interval=1.0,
        producer_linger=0.02,
        web_port=int(os.environ["BENCH_PORT"]),
        web_host="127.0.0.1",
        web_bind="127.0.0.1",
    )
    topic = app.topic(
        FAUST_TOPIC, key_serializer="raw", value_serializer="raw", partitions=PARTITIONS
    )
    table = app.Table("last", key_type=str, value_type=int, partitions=PARTITIONS)
    times: list[float] = []

    @app.agent(topic)
    async def check(stream: Any) -> None:
        count = gaps = 0
        async for value in stream:
            if not count:
                times.append(time.time())
            if value[:5] != expected:
                raise ValueError("another schema")
            datum = BytesIO(value)
            datum.seek(5)
            trade = schemaless_reader(datum, schema)
            symbol = trade["symbol"]
            before = table.get(symbol)
            if before is not None and trade["sequence"] != before + 1:
                gaps += 1
            table[symbol] = trade["sequence"]
            count += 1
            if count == trades:
                _note(folder, times[0], time.time(), count, dict(table.items()))

    return app


def _note(folder: Path, first: float, end: float, count: int, sequences: dict[str, int]) -> None:
    partial = folder / "result.json.part"
    content = {"first": first, "end": end, "count": count, "sequences": sequences}
    partial.write_text(json.dumps(content))
    os.replace(partial, folder / "result.json")


if __name__ == "__main__":
    sys.argv[1:] = ["worker", "-l", "info"]
    _worker().main()
