"""The agent of trades: every batch topic `market.trades.*` into the trades and rejects tables."""

from __future__ import annotations

from typing import Any

from k2.agents.ingest import Ingest

from k2.app import app, trades_topic
from k2.codec import Decoder
from k2.lake.catalog import ensure_tables, open_catalog, rejects_name, trades_name
from k2.lake.commit import Sink
from k2.registry import open_registry
from k2.topics import cluster_id

__all__ = ["ingest", "trades"]


def _ingest() -> Ingest:
    settings = app.settings
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    return Ingest(
        app,
        Decoder(open_registry(settings)),
        Sink(catalog, trades_name(settings), settings),
        Sink(catalog, rejects_name(settings), settings),
        frozenset(settings.trades_topic(exchange) for exchange in settings.exchange_names),
        lambda: cluster_id(settings),
    )


ingest = app.batch_source = _ingest()


@app.agent(trades_topic, name="trades")
async def trades(stream: Any) -> None:
    """Hand each fetch to the pipeline; `put` waits when its bytes are used up."""
    async for event in stream.noack().events():
        await ingest.put(event)


@app.task
async def flush() -> None:
    """Commit when the buffer asks for it, as long as the worker lives."""
    await ingest.run()
