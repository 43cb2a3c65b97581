"""This worker's one ingest, which the agents of all kinds feed."""

from __future__ import annotations

import sys

from k2.agents.ingest import Ingest
from k2.agents.lane import Lane

from k2.app import app
from k2.codec import Decoder
from k2.lake.catalog import ensure_tables, gaps_name, open_catalog, rejects_name, table_name
from k2.lake.commit import Sink
from k2.registry import open_registry
from k2.schemas import KINDS
from k2.topics import cluster_id

__all__ = ["ingest"]

#: A thread that comes back from Arrow or numpy waits so long for one that runs Python; a batch does
#: so a hundred times. With Python's own 5 ms a busy worker keeps it waiting for tenths of a second.
SWITCH_INTERVAL_S = 0.0005


def _ingest() -> Ingest:
    settings = app.settings
    catalog, registry = open_catalog(settings), open_registry(settings)
    ensure_tables(catalog, settings)
    lanes: dict[str, Lane] = {}
    for kind in KINDS:
        sink = Sink(catalog, table_name(settings, kind), settings)
        lane = Lane(kind, Decoder(kind, registry), sink)
        lanes |= {kind.topic(exchange): lane for exchange in settings.exchange_names}
    rejects = Sink(catalog, rejects_name(settings), settings)
    gaps = Sink(catalog, gaps_name(settings), settings)
    return Ingest(app, lanes, rejects, gaps, lambda: cluster_id(settings))


sys.setswitchinterval(SWITCH_INTERVAL_S)
ingest = app.batch_source = _ingest()


@app.task
async def flush() -> None:
    """Commit when the buffer asks for it, as long as the worker lives."""
    await ingest.run()


@app.task
async def watch() -> None:
    """Let paused partitions go on when an operator says so."""
    await ingest.watch()


@app.task
async def listen() -> None:
    """Notice which symbols and topics fall silent."""
    await ingest.listen()
