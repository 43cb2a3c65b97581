"""The thread in which catalog and warehouse are used, and patience with both."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from k2.errors import CatalogUnavailable, CommitFailed

__all__ = ["Lake"]

T = TypeVar("T")
log = logging.getLogger(__name__)

RETRY_S = 1.0


class Lake:
    """One thread: a table's handle belongs to whoever uses it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="k2-lake")
        self.trouble = ""  # why nothing can be read or committed now

    async def patiently(self, call: Callable[..., T], *args: Any) -> T:
        """Call until catalog and warehouse let it succeed.

        What is in hand is kept meanwhile; the buffer is bounded, so fetching waits too.
        """
        while True:
            try:
                result = await asyncio.get_running_loop().run_in_executor(self._pool, call, *args)
            except (CatalogUnavailable, CommitFailed) as exc:
                self.trouble = str(exc)
                log.error("trying on: %s", exc)  # noqa: TRY400 - expected, a trace says nothing
                await asyncio.sleep(RETRY_S)
            else:
                self.trouble = ""
                return result
