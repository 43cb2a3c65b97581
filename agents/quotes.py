"""The agent of quotes: every topic `market.quotes.*` into the tables of quotes and rejects."""

from __future__ import annotations

from typing import Any

from k2.agents.worker import ingest

from k2.app import app, batch_topic
from k2.schemas import QUOTES

__all__ = ["quotes"]


@app.agent(batch_topic(QUOTES), name="quotes")
async def quotes(stream: Any) -> None:
    """Hand each fetch to the ingest, which waits when its bytes are used up."""
    await ingest.follow(stream)
