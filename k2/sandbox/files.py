"""The files of a plan as DuckDB sees them in the sandbox: `k2://0`, `k2://1`, ... and nothing else.

The process can open nothing by itself. It asks the worker, which hands over an open file, or reads
for it where the file is in an object store: so the process has no paths, no keys and no network.
"""

from __future__ import annotations

import collections
import datetime as dt
import os
import queue
import threading
from typing import Any

import fsspec

from k2.sandbox.wire import Channel, Message

__all__ = ["OPEN_MAX", "Asked", "PlannedFiles", "name_of"]

#: Files that stay open at once; of more the one that was read longest ago is asked for again.
OPEN_MAX = 64
_SCHEME = "k2://"
_MADE = dt.datetime(2000, 1, 1)


def name_of(number: int) -> str:
    """What DuckDB calls the planned file of a number."""
    return f"{_SCHEME}{number}"


class Asked:
    """Questions to the worker about files: one at a time, from any of DuckDB's threads."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._one = threading.Lock()
        self._answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.failed = False  # whether the worker could not read a file

    def answered(self, message: Message) -> None:
        """Whoever reads the channel says what came."""
        self._answers.put(message)

    def ask(self, question: dict[str, Any]) -> Message:
        with self._one:
            self._channel.send(question)
            message = self._answers.get()
        if "failed" in message.head:
            self.failed = True
            raise OSError(message.head["failed"])
        return message


class PlannedFiles(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A file system of the planned files of one statement, to be registered with DuckDB."""

    protocol = "k2"
    cachable = False

    def __init__(self, asked: Asked, **options: Any) -> None:
        super().__init__(**options)
        self._asked = asked
        self._lock = threading.Lock()
        self._sizes: dict[int, int] = {}
        #: Descriptors by number, the one used last at the end, and how many read from each now.
        self._open: dict[int, int] = {}
        self._using: collections.Counter[int] = collections.Counter()

    def open(self, path: str, mode: str = "rb", **_: Any) -> _File:
        if mode != "rb":
            raise PermissionError(f"{path}: only to be read")
        number = _number(path)
        with self._lock:
            if number not in self._sizes:
                self._take_in(number)
        return _File(self, number, self._sizes[number])

    def glob(self, path: str, **_: Any) -> list[str]:
        return [path]

    def exists(self, path: str, **_: Any) -> bool:
        return _number(path) >= 0

    def isfile(self, path: str) -> bool:
        return _number(path) >= 0

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": self._sizes[_number(path)], "type": "file"}

    def modified(self, path: str) -> dt.datetime:
        return _MADE

    def created(self, path: str) -> dt.datetime:
        return _MADE

    def read(self, number: int, at: int, size: int) -> bytes:
        """Bytes of a file that has been opened."""
        with self._lock:
            file = self._open.pop(number, None)
            if file is None:
                file = self._take_in(number)
            if file is not None:
                self._open[number] = file
                self._using[number] += 1
        if file is None:
            return self._asked.ask({"read": [number, at, size]}).body
        try:
            return os.pread(file, size, at)
        finally:
            with self._lock:
                self._using[number] -= 1

    def close(self) -> None:
        """Forget all files: DuckDB closes those that it opened late, or never."""
        with self._lock:
            files, self._open = self._open, {}
        for file in files.values():
            os.close(file)

    def _take_in(self, number: int) -> int | None:
        """Ask for a file; None: the worker reads from it. Called with the lock."""
        idle = [known for known in self._open if not self._using[known]]
        if len(self._open) >= OPEN_MAX and idle:
            os.close(self._open.pop(idle[0]))
        answer = self._asked.ask({"open": number})
        self._sizes[number] = answer.head["size"]
        if answer.file is not None:
            self._open[number] = answer.file
        return answer.file


def _number(path: str) -> int:
    text = path.removeprefix(_SCHEME)
    if not text.isdecimal():
        raise FileNotFoundError(path)
    return int(text)


class _File:
    """A place in a file; DuckDB gives each of its threads one of its own."""

    mode = "rb"

    def __init__(self, files: PlannedFiles, number: int, size: int) -> None:
        self._files, self._number = files, number
        self.size, self._at = size, 0

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self.size - self._at)
        data = self._files.read(self._number, self._at, rest if size < 0 else min(size, rest))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def close(self) -> None: ...
