"""The resources under /v1, whoever serves them: a member of the group, or a query worker."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from k2.lake.catalog import open_catalog
from k2.query.engine import Engine
from k2.replay.archive import Archive
from k2.sandbox.pool import Pool
from k2.settings import Settings
from k2.web import docs, sql
from k2.web.health import Ready
from k2.web.internal import Buffers
from k2.web.replay import Replays
from k2.web.routes import Route
from k2.web.views import routes

__all__ = ["add"]


def add(
    site: web.Application,
    settings: Settings,
    ready: Ready,
    buffers: Buffers,
    others: Iterable[list[Route]],
) -> None:
    """Add what the tables answer, replays and SQL among it, `others`, and what says all that."""
    replays = Replays(Archive(open_catalog(settings), settings), settings, buffers.gather)
    statements = Pool(open_catalog(settings), settings)
    engine = Engine(open_catalog(settings), settings)
    public = [
        *routes(engine, ready=ready, gather=buffers.gather),
        *replays.routes(),
        *sql.routes(statements),
        *(route for each in others for route in each),
    ]
    site.router.add_routes([*public, *docs.routes(public, settings)])
    site.on_shutdown.append(replays.close)
    site.on_cleanup.append(sql.closing(statements))
