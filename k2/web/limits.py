"""How often a key may ask, and how much at once: a token bucket and a count for each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from k2.errors import TooManyRequests
from k2.settings import Settings

__all__ = ["Limits"]

#: Keys that are remembered without need.
ROOM = 1024


@dataclass(slots=True)
class _Use:
    """Requests that a key may still make at once, as of `at`; and those that are running."""

    tokens: float
    at: float
    running: int = 0


class Limits:
    """What each key has used; on one thread. What it keeps is bounded by the keys that ask."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        self._rate, self._burst = settings.key_rate_max, settings.key_burst_max
        self._running_max = settings.key_concurrency_max
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    @contextmanager
    def admit(self, key: str) -> Iterator[None]:
        """Let one request of a key run, inside.

        Raises:
            TooManyRequests: it has asked too often, or has too much running.
        """
        use = self._use(key)
        if use.tokens < 1.0:
            wait_s = math.ceil((1.0 - use.tokens) / self._rate)
            raise TooManyRequests(f"more than {self._rate} requests/s of the key {key}", wait_s)
        use.tokens -= 1.0
        if use.running >= self._running_max:
            raise TooManyRequests(f"{use.running} requests of the key {key} are running", 1)
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1

    def _use(self, key: str) -> _Use:
        now = self._clock()
        use = self._uses.get(key)
        if use is None:
            if len(self._uses) >= ROOM:
                self._forget(now)
            use = self._uses[key] = _Use(self._burst, now)
        use.tokens, use.at = self._tokens(use, now), now
        return use

    def _tokens(self, use: _Use, now: float) -> float:
        return min(self._burst, use.tokens + (now - use.at) * self._rate)

    def _forget(self, now: float) -> None:
        """Those of whom nothing is running and nothing used: they are as new."""
        self._uses = {
            key: use
            for key, use in self._uses.items()
            if use.running or self._tokens(use, now) < self._burst
        }
