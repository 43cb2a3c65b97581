"""What every request passes before a view, every answer on its way out, and who is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from k2.keys import Keyring
from k2.settings import Settings
from k2.web.answers import middlewares
from k2.web.cors import Cors
from k2.web.keys import Guard
from k2.web.limits import Limits
from k2.web.problems import answer_no_http
from k2.web.problems import on_prepare as as_problem
from k2.web.slow import Slow

__all__ = ["protect"]

#: How often it is looked who is cut off.
LOOK_EVERY_S = 1.0


def protect(site: web.Application, settings: Settings) -> None:
    """Add errors as problems, CORS, keys, and limits of rate, size and time to an application.

    Raises:
        SettingError: the file of the keys is damaged.
    """
    cors, slow = Cors(settings.origins), Slow(settings)
    guard = Guard(Keyring(settings.keys_path), Limits(settings), settings)
    # In this order: browsers ask without a key, and nobody's body is read who has none.
    inward = (cors.middleware(), guard.middleware(), slow.middleware())
    site.middlewares.extend([*middlewares(), *inward])
    site.on_response_prepare.extend([as_problem, cors.on_prepare, slow.on_prepare])
    answer_no_http()

    async def watched(site: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(_forever(guard.look, slow.look))
        yield
        task.cancel()
        await asyncio.wait([task])

    site.cleanup_ctx.append(watched)


async def _forever(*looks: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        for look in looks:
            look()
