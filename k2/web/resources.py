"""The resources under /v1, whoever serves them: a member of the group, or a query worker."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from k2.lake.catalog import open_catalog
from k2.query.engine import Engine
from k2.replay.archive import Archive
from k2.sandbox.pool import Pool
from k2.settings import Settings
from k2.web import sql
from k2.web.health import Ready
from k2.web.internal import Buffers
from k2.web.replay import Replays
from k2.web.views import routes

__all__ = ["add"]


def add(
    site: web.Application,
    settings: Settings,
    ready: Ready,
    buffers: Buffers,
    others: Iterable[list[web.RouteDef]],
) -> None:
    """Add what the tables answer, replays and SQL among it, and `others`."""
    replays = Replays(Archive(open_catalog(settings), settings), settings, buffers.gather)
    statements = Pool(open_catalog(settings), settings)
    engine = Engine(open_catalog(settings), settings)
    for each in (
        routes(engine, ready=ready, gather=buffers.gather),
        replays.routes(),
        sql.routes(statements),
        *others,
    ):
        site.router.add_routes(each)
    site.on_shutdown.append(replays.close)
    site.on_cleanup.append(sql.closing(statements))
