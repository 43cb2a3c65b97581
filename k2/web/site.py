"""K2's views on the web server of a member of the group, beside Faust's."""

from __future__ import annotations

from typing import Any

from faust.types import TP

from k2.agents.worker import ingest
from k2.app import app
from k2.registry import open_registry
from k2.tables.instruments import Instruments, table
from k2.web import health, resources, silence
from k2.web.gate import protect
from k2.web.group import Group
from k2.web.instruments import Own
from k2.web.instruments import routes as instrument_routes
from k2.web.internal import Buffers, InHand
from k2.web.symbols import Symbols

__all__ = ["peers"]

peers = Group(app, ingest.topics, lambda topic: app.consumer.partitions_of(topic))


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


async def report(exchange: str | None) -> dict[str, Any]:
    """Who is silent in the partitions of this worker."""
    return ingest.silence.report(exchange)


settings, site = app.settings, app.web.web_app
buffers = Buffers(peers, InHand(ingest.held, ingest.held_gaps), settings)
symbols = Symbols(peers, lambda place: ingest.partitions.get(TP(*place)), settings)
instruments = Own(Instruments(table, open_registry(settings)))

protect(site, settings)
if settings.role == "all":
    others = (symbols.routes(), instrument_routes(instruments), silence.routes(report))
    resources.add(site, settings, ready, buffers, others)
else:
    site.router.add_routes(health.routes(ready))
for each in (
    peers.routes(),
    buffers.routes(),
    symbols.internal(),
    instruments.internal(),
    silence.internal(ingest.silence.report),
):
    site.router.add_routes(each)
