"""What every request passes before a view, and every answer on its way out."""

from __future__ import annotations

from aiohttp import web

from k2.keys import Keyring
from k2.settings import Settings
from k2.web.answers import middlewares
from k2.web.cors import Cors
from k2.web.keys import Guard
from k2.web.limits import Limits
from k2.web.slow import Slow

__all__ = ["protect"]


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
    site.on_response_prepare.extend([cors.on_prepare, slow.on_prepare])
    site.cleanup_ctx.append(slow.watch)
