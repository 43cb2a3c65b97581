"""API keys: who may ask a worker, and what; kept hashed in a file that is read again as it changes.

A key is `k2_<id>_<secret>`: the id finds its line, the secret proves it. The file has one JSON
object a key and is replaced whole. As long as there is none, keys are not needed; once there was
one, they are until the process ends, even if it is removed or has no line left.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k2.errors import SettingError, Unauthorized
from k2.settings import Settings

__all__ = [
    "SCOPES", "Key", "Keyring", "authorization", "create", "is_loopback", "read", "require_keys",
    "revoke", "same_secret",
]  # fmt: skip

SCOPES = ("read", "sql", "admin")
LOOK_EVERY_S = 1.0

_LOG = logging.getLogger(__name__)
_FORM = re.compile(r"k2_([0-9a-f]{8})_([0-9a-f]{64})")
_HASH = re.compile(r"[0-9a-f]{64}")
_NOBODY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without its secret; times are UTC."""

    id: str
    hash: str
    scopes: frozenset[str]
    created: dt.datetime
    expires: dt.datetime | None
    note: str

    def is_expired(self, now: dt.datetime) -> bool:
        return self.expires is not None and self.expires <= now


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _hash(secret: str) -> str:
    # One round of SHA-256: a secret of 256 random bits cannot be guessed from it, however fast
    # guesses are. Slow hashes are for what people choose, and would cost time in every request.
    return hashlib.sha256(secret.encode()).hexdigest()


def same_secret(given: str, known: str) -> bool:
    """Compare in a time that says nothing of `known`, nor of its length."""
    return hmac.compare_digest(_hash(given), _hash(known))


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
        self._keys = _by_id(read(path))

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
        proven = hmac.compare_digest(_hash(secret), key.hash if key else _NOBODY)
        if key is None or not proven:
            raise Unauthorized("the API key is unknown, or was revoked")
        if key.is_expired(self._now()):
            raise Unauthorized(f"the API key {key.id} expired at {_text(key.expires)}")
        return key

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
            self._keys = _by_id(read(self._path))
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


def read(path: Path) -> list[Key]:
    """Return all keys of a file, none where there is no file.

    Raises:
        SettingError: a line is no key; names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as exc:
        raise SettingError(f"keys_file: {path}: {exc}") from exc
    keys = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            keys.append(_key(json.loads(line)))
        except (ValueError, LookupError, TypeError) as exc:
            raise SettingError(f"keys_file: {path}: line {number} is no key: {exc!r}") from exc
    if len(_by_id(keys)) < len(keys):
        raise SettingError(f"keys_file: {path}: an id is there twice")
    return keys


def create(
    path: Path, scopes: Iterable[str], expires: dt.datetime | None, note: str
) -> tuple[Key, str]:
    """Add a key; return it with its text, which is told once and kept nowhere.

    Times are whole seconds; what is below is cut off.

    Raises:
        SettingError: the file is damaged, or cannot be written.
    """
    with _edited(path) as keys:
        taken = {key.id for key in keys}
        number = next(n for n in iter(lambda: secrets.token_hex(4), "") if n not in taken)
        secret = secrets.token_hex(32)
        created = _now().replace(microsecond=0)
        ends = expires and expires.replace(microsecond=0)
        key = Key(number, _hash(secret), frozenset(scopes), created, ends, note)
        keys.append(key)
    return key, f"k2_{number}_{secret}"


def revoke(path: Path, ids: Iterable[str]) -> int:
    """Remove keys; return how many are left.

    Raises:
        SettingError: no key has one of the ids, and nothing is removed; or as `create`.
    """
    gone = set(ids)
    with _edited(path) as keys:
        if unknown := gone - {key.id for key in keys}:
            raise SettingError(f"{path}: no key has the id {', '.join(sorted(unknown))}")
        keys[:] = [key for key in keys if key.id not in gone]
        return len(keys)


@contextmanager
def _edited(path: Path) -> Iterator[list[Key]]:
    """The file's keys, to be changed; written at the end, unless an error comes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A lock of its own: the file itself is replaced under whoever waits for it.
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = read(path)
            yield keys
            _write(path, keys)
    except OSError as exc:
        raise SettingError(f"keys_file: {path}: {exc}") from exc


def _write(path: Path, keys: Iterable[Key]) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.unlink(missing_ok=True)
    # Made with its mode: opened first and closed off later, it could be read in between.
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(json.dumps(_line(key)) + "\n" for key in keys)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _line(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "hash": key.hash,
        "scopes": [scope for scope in SCOPES if scope in key.scopes],
        "created": _text(key.created),
        "expires": _text(key.expires),
        "note": key.note,
    }


def _key(line: dict[str, Any]) -> Key:
    scopes = line["scopes"]
    if not isinstance(scopes, list) or not set(scopes) <= set(SCOPES):
        raise ValueError(f"scopes: {scopes!r}")
    if not re.fullmatch("[0-9a-f]{8}", line["id"]) or not _HASH.fullmatch(line["hash"]):
        raise ValueError("id or hash")
    expires = line["expires"]
    return Key(
        line["id"],
        line["hash"],
        frozenset(scopes),
        _time(line["created"]),
        None if expires is None else _time(expires),
        str(line["note"]),
    )


def _time(text: str) -> dt.datetime:
    time = dt.datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return time


def _text(time: dt.datetime | None) -> str | None:
    return None if time is None else f"{time.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _by_id(keys: Iterable[Key]) -> dict[str, Key]:
    return {key.id: key for key in keys}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
