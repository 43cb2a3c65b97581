"""API keys: who may ask a worker, and what; their file is read again as it changes.

A key is `k2_<id>_<secret>`: the id finds its line, the secret proves it. As long as there is no
file, keys are not needed; once there was one, they are until the process ends, even if it is
removed or has no line left.
"""

from __future__ import annotations

import datetime as dt
import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from k2.errors import SettingError, Unauthorized
from k2.keyfile import Key, hashed, read, shown
from k2.settings import Settings

__all__ = ["Keyring", "authorization", "is_loopback", "require_keys", "same_secret"]

LOOK_EVERY_S = 1.0

_LOG = logging.getLogger(__name__)
_FORM = re.compile(r"k2_([0-9a-f]{8})_([0-9a-f]{64})")
_NOBODY = hashed("")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def same_secret(given: str, known: str) -> bool:
    """Compare in a time that says nothing of `known`, nor of its length."""
    return hmac.compare_digest(hashed(given), hashed(known))


class Keyring:
    """The keys that are good now; on one thread."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], dt.datetime] = _now,
    ) -> None:
        """Read the file, if there is one.

        Args:
            clock: seconds, for when to look at the file again.
            now: UTC, for what has expired.

        Raises:
            SettingError: the file is damaged, or cannot be read.
        """
        self._path, self._clock, self._now = path, clock, now
        self._looked = clock()
        self._stamp = _stamp(path)
        self._needed = self._stamp is not None
        self._keys = self._read()

    @property
    def needed(self) -> bool:
        """Whether there has ever been a file: with none, whoever may connect may ask."""
        self._look()
        return self._needed

    def good(self) -> list[Key]:
        """Those that have not expired."""
        self._look()
        return [key for key in self._keys.values() if not key.is_expired(self._now())]

    def find(self, text: str) -> Key:
        """Return the key that `text` is.

        Raises:
            Unauthorized: there is none, or it has expired.
        """
        self._look()
        parts = _FORM.fullmatch(text)
        number, secret = parts.groups() if parts else ("", "")
        key = self._keys.get(number)
        # Compared also where no key has the id: the time does not tell which ids there are.
        proven = hmac.compare_digest(hashed(secret), key.hash if key else _NOBODY)
        if key is None or not proven:
            raise Unauthorized("the API key is unknown, or was revoked")
        if key.is_expired(self._now()):
            raise Unauthorized(f"the API key {key.id} expired at {shown(key.expires)}")
        return key

    def _read(self) -> dict[str, Key]:
        return {key.id: key for key in read(self._path)}

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._needed = True
        try:
            self._keys = self._read()
        except SettingError as exc:
            _LOG.error("%s: the %d keys read before stay good", exc, len(self._keys))
        else:
            _LOG.info("%s: read again: %d keys", self._path, len(self._keys))


def require_keys(settings: Settings, bind: str) -> None:
    """Refuse a worker that anybody could ask.

    Args:
        bind: the address of its web views.

    Raises:
        SettingError: it is no loopback address and no key is good, or the file is damaged.
    """
    path = settings.keys_path
    if settings.keys_file and not path.exists():
        raise SettingError(f"keys_file: {path} is no file: `k2 keys create` makes it")
    good = Keyring(path).good()
    if not good and not is_loopback(bind):
        raise SettingError(
            f"bind: {bind} is no loopback address and {path} has no API key that is good: make one "
            "with `k2 keys create --scope read` (K2_DATA names the folder)"
        )


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address; any name but localhost does not count."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address.lower() == "localhost"


def authorization(secret: str) -> dict[str, str]:
    """Headers with which a key, or a group's secret, is sent; none where it is empty."""
    return {"Authorization": f"Bearer {secret}"} if secret else {}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
