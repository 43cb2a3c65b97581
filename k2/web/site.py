"""K2's views on the worker's own web server, beside Faust's."""

from __future__ import annotations

from typing import Any

from k2.agents.worker import ingest
from k2.app import app
from k2.lake.catalog import open_catalog
from k2.query.engine import Engine
from k2.registry import open_registry
from k2.replay.archive import Archive
from k2.sandbox.pool import Pool
from k2.tables.instruments import Instruments, table
from k2.web import instruments, silence, sql
from k2.web.gate import protect
from k2.web.internal import Buffers, InHand
from k2.web.peers import Peers
from k2.web.replay import Replays
from k2.web.symbols import Symbols
from k2.web.views import routes

__all__ = ["peers"]

peers = Peers(app, ingest.topics, lambda topic: app.consumer.partitions_of(topic))


def ready() -> tuple[bool, dict[str, Any]]:
    """Ready: partitions are assigned, read from where Iceberg ends, none waits, commits work."""
    reasons: dict[str, Any] = {}
    if app.rebalancing:
        reasons["group"] = "rebalancing"
    elif not ingest.started:
        reasons["group"] = "waiting for an assignment"
    if paused := ingest.pauses.reasons():
        reasons["paused"] = paused
    if ingest.lake.trouble:
        reasons["lake"] = ingest.lake.trouble
    return not reasons, reasons


settings, site = app.settings, app.web.web_app
buffers = Buffers(peers, InHand(ingest.held, ingest.held_gaps), settings)
replays = Replays(Archive(open_catalog(settings), settings), settings, buffers.gather)
statements = Pool(open_catalog(settings), settings)

protect(site, settings)
for each in (
    routes(Engine(open_catalog(settings), settings), ready=ready, gather=buffers.gather),
    buffers.routes(),
    Symbols(peers, lambda: ingest.partitions, settings).routes(),
    instruments.routes(Instruments(table, open_registry(settings))),
    silence.routes(ingest.silence.report),
    replays.routes(),
    sql.routes(statements),
):
    site.router.add_routes(each)
site.on_shutdown.append(replays.close)
site.on_cleanup.append(sql.closing(statements))
