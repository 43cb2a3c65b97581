"""`k2 worker --role query`: a worker that answers, and is no member of the group.

It has no partitions, no tables of Faust's and no connection to Kafka: what is committed it reads,
what is live it asks the ingest workers for. So any number may come and go, and nobody rebalances.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from k2.errors import CatalogUnavailable, PeerUnavailable, SettingError
from k2.keys import require_keys
from k2.lake.catalog import load_table, open_catalog, table_name
from k2.process import ended, ending, settle
from k2.schemas import KINDS
from k2.server import application_options
from k2.settings import Settings
from k2.web import resources, silence
from k2.web.answers import in_thread
from k2.web.gate import protect
from k2.web.instruments import Asked
from k2.web.instruments import routes as instrument_routes
from k2.web.internal import NOTHING, Buffers
from k2.web.remote import Remote
from k2.web.symbols import Symbols

__all__ = ["Watch", "run", "site_of"]

LOOK_EVERY_S = 2.0

_LOG = logging.getLogger(__name__)


class Watch:
    """What the worker depends on, as the last look found it."""

    def __init__(self, remote: Remote, settings: Settings) -> None:
        self._remote, self._catalog = remote, open_catalog(settings)
        self._names = [table_name(settings, kind) for kind in KINDS]
        self.catalog: str | None = "not read yet"
        self.peers: str | None = "not asked yet"

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Ready: the tables can be read. What is committed needs no peers; what is live says so."""
        reasons = {"catalog": self.catalog, "peers": self.peers}
        return self.catalog is None, {name: why for name, why in reasons.items() if why}

    async def look(self) -> None:
        """Load the tables, and ask the peers who owns what."""
        before = self.ready()
        try:
            await in_thread(lambda: [load_table(self._catalog, name) for name in self._names])
            self.catalog = None
        except CatalogUnavailable as exc:
            self.catalog = str(exc)
        try:
            await self._remote.owners()
            self.peers = None
        except PeerUnavailable as exc:
            self.peers = str(exc)
        if (now := self.ready()) != before:
            _LOG.info("depends on: %s", now[1] or "all there")

    async def running(self, site: web.Application) -> AsyncIterator[None]:
        """Look again and again while the site is served."""

        async def go_on() -> None:
            while True:
                await self.look()
                await asyncio.sleep(LOOK_EVERY_S)

        task = asyncio.create_task(go_on())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def site_of(settings: Settings) -> web.Application:
    """The views of a query worker; to be made while an event loop runs."""
    site = web.Application(**application_options(settings))
    remote = Remote(settings)
    watch = Watch(remote, settings)
    buffers = Buffers(remote, NOTHING, settings)
    others = (
        Symbols(remote, lambda place: None, settings).routes(),
        instrument_routes(Asked(remote)),
        silence.routes(silence.of_owners(remote)),
    )
    protect(site, settings)
    resources.add(site, settings, watch.ready, buffers, others)
    site.cleanup_ctx.append(watch.running)
    site.on_cleanup.append(remote.close)
    return site


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        SettingError: anybody could ask it, or its port is in use.
    """
    require_keys(settings, settings.bind)
    asyncio.run(_serve(settings))
    ended(0)


async def _serve(settings: Settings) -> None:
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    patience_s = settings.shutdown_timeout_ms / 1000.0
    runner = web.AppRunner(site_of(settings), access_log=None, shutdown_timeout=patience_s)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, settings.bind, settings.port).start()
        except OSError as exc:
            raise SettingError(f"port: {settings.port} on {settings.bind}: {exc.strerror}") from exc
        settle()
        _LOG.info("answers at %s; asks %s", settings.url, settings.peers or "nobody (K2_PEERS)")
        await stopped.wait()
        ending(settings)
    finally:
        await runner.cleanup()
