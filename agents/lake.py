"""The thread in which catalog and warehouse are used, and patience with both."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from k2.errors import CatalogUnavailable, CommitFailed

__all__ = ["Lake"]

T = TypeVar("T")
log = logging.getLogger(__name__)

RETRY_S = 1.0


class Lake:
    """One thread: a table's handle belongs to whoever uses it.

    It is a daemon, for which no process waits at its end, as it does for those of an executor: a
    request may hang for longer than a shutdown may take. What comes of a commit that is left
    behind is as open as after a kill, and is found out in the same way.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self.trouble = ""  # why nothing can be read or committed now
        threading.Thread(target=self._serve, name="k2-lake", daemon=True).start()

    async def patiently(self, call: Callable[..., T], *args: Any) -> T:
        """Call until catalog and warehouse let it succeed.

        What is in hand is kept meanwhile; the buffer is bounded, so fetching waits too.
        """
        while True:
            future: Future[T] = Future()
            self._calls.put((future, partial(call, *args)))
            try:
                result = await asyncio.wrap_future(future)
            except (CatalogUnavailable, CommitFailed) as exc:
                self.trouble = str(exc)
                log.error("trying on: %s", exc)  # noqa: TRY400 - expected, a trace says nothing
                await asyncio.sleep(RETRY_S)
            else:
                self.trouble = ""
                return result

    def _serve(self) -> None:
        while True:
            future, call = self._calls.get()
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as exc:
                    future.set_exception(exc)
                else:
                    future.set_result(result)
            del future, call  # else they hold a commit's rows until the next one
