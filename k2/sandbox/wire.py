"""Messages between a worker and a sandbox process: JSON, bytes and one open file, over a socket."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any, NamedTuple

import orjson

__all__ = ["Channel", "Message"]

HEAD_BYTES_MAX = 64 * 1024 * 1024
BODY_BYTES_MAX = 256 * 1024 * 1024
_LENGTHS = struct.Struct(">II")


class Message(NamedTuple):
    """What came: `head` is JSON's; `file` is a descriptor that now belongs to the receiver."""

    head: dict[str, Any]
    body: bytes
    file: int | None


class Channel:
    """One end of a stream socket. Any thread may send; one receives.

    An end that is closed ends `receive` with EOFError, `send` with OSError.
    """

    def __init__(self, end: socket.socket, *, takes_files: bool = False) -> None:
        """`takes_files`: whether open files are accepted; else the kernel closes them unseen."""
        self._end, self._takes_files = end, takes_files
        self._sending = threading.Lock()

    def send(self, head: dict[str, Any], body: bytes = b"", file: int | None = None) -> None:
        text = orjson.dumps(head)
        lengths = _LENGTHS.pack(len(text), len(body))
        with self._sending:
            if file is None:
                self._end.sendall(lengths)
            else:
                socket.send_fds(self._end, [lengths], [file])
            self._end.sendall(text)
            if body:
                self._end.sendall(body)

    def receive(self) -> Message:
        """The next message.

        Raises:
            EOFError: the other end is closed, or says what no message is.
        """
        file = None
        if self._takes_files:
            first, files, _, _ = socket.recv_fds(self._end, _LENGTHS.size, 1)
            file = files[0] if files else None
            lengths = first + self._exactly(_LENGTHS.size - len(first)) if first else b""
        else:
            lengths = self._exactly(_LENGTHS.size)
        if not lengths:
            raise EOFError("closed")
        head, body = _LENGTHS.unpack(lengths)
        if head > HEAD_BYTES_MAX or body > BODY_BYTES_MAX:
            raise EOFError(f"a message of {head} + {body} bytes")
        try:
            known = dict(orjson.loads(self._exactly(head)))
        except (TypeError, ValueError) as exc:
            raise EOFError(f"a message that is no JSON object: {exc}") from exc
        return Message(known, self._exactly(body), file)

    def close(self) -> None:
        self._end.close()

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        view, have = memoryview(data), 0
        while have < size:
            got = self._end.recv_into(view[have:])
            if not got:
                raise EOFError("closed")
            have += got
        return bytes(data)
