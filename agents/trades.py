"""The agent of trades: every topic `market.trades.*` into the tables of trades and rejects."""

from __future__ import annotations

from typing import Any

from k2.agents.worker import ingest

from k2.app import app, batch_topic
from k2.schemas import TRADES

__all__ = ["trades"]


@app.agent(batch_topic(TRADES), name="trades")
async def trades(stream: Any) -> None:
    """Hand each fetch to the ingest, which waits when its bytes are used up."""
    await ingest.follow(stream)
