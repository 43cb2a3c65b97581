"""Arrow's IPC stream, taken up as its bytes come.

Arrow's own reader pulls, and would block; so messages are told apart here, and it is given whole
ones. It then knows of dictionaries and all the rest.
"""

from __future__ import annotations

import struct

import pyarrow as pa

from k2.client.errors import ClientError

__all__ = ["Batches"]

#: A message: 0xFFFFFFFF, the length of its metadata, the metadata (a flatbuffer), its body.
_CONTINUES = b"\xff\xff\xff\xff"
_HEAD_BYTES = 8
#: Fields of the flatbuffer `Message`, by their place in its vtable.
_HEADER_TYPE, _BODY_LENGTH = 1, 3
_RECORD_BATCH = 3


class Batches:
    """Call `feed` with what comes; `ended` says whether the stream was whole."""

    def __init__(self) -> None:
        self.ended = False
        self.schema: pa.Schema | None = None
        self._bytes = bytearray()
        self._source = _Source()
        self._reader: pa.RecordBatchReader | None = None

    def feed(self, data: bytes) -> list[pa.RecordBatch]:
        """The batches that are whole now.

        Raises:
            ClientError: it is no such stream.
        """
        self._bytes += data
        found = []
        try:
            while (whole := self._whole()) is not None:
                message, holds_rows = whole
                self._source.add(message)
                if self._reader is None:
                    self._reader = pa.ipc.open_stream(self._source)
                    self.schema = self._reader.schema
                elif holds_rows:
                    found.append(self._reader.read_next_batch())
        except (pa.ArrowInvalid, struct.error, OSError) as exc:
            raise ClientError(f"the answer is no Arrow stream: {exc}") from exc
        return found

    def _whole(self) -> tuple[bytes, bool] | None:
        """The next message, and whether it is a batch; None: not all of it is there."""
        if self.ended or len(self._bytes) < _HEAD_BYTES:
            return None
        if self._bytes[:4] != _CONTINUES:
            raise pa.ArrowInvalid(f"begins with {bytes(self._bytes[:4])!r}")
        (length,) = struct.unpack_from("<i", self._bytes, 4)
        if length == 0:
            self.ended = True
            return None
        end = _HEAD_BYTES + length
        if len(self._bytes) < end:
            return None
        metadata = bytes(self._bytes[_HEAD_BYTES:end])
        end += _field(metadata, _BODY_LENGTH, "<q")
        if len(self._bytes) < end:
            return None
        message = bytes(memoryview(self._bytes)[:end])
        del self._bytes[:end]
        return message, _field(metadata, _HEADER_TYPE, "<B") == _RECORD_BATCH


def _field(flatbuffer: bytes, number: int, form: str) -> int:
    """A number of a flatbuffer's root table; 0 where it is not given."""
    (root,) = struct.unpack_from("<I", flatbuffer)
    (back,) = struct.unpack_from("<i", flatbuffer, root)
    vtable = root - back
    (size,) = struct.unpack_from("<H", flatbuffer, vtable)
    slot = 4 + 2 * number
    if slot >= size:
        return 0
    (at,) = struct.unpack_from("<H", flatbuffer, vtable + slot)
    return int(struct.unpack_from(form, flatbuffer, root + at)[0]) if at else 0


class _Source:
    """A file of the messages that are there."""

    closed = False

    def __init__(self) -> None:
        self._bytes, self._at = b"", 0

    def add(self, message: bytes) -> None:
        self._bytes, self._at = self._bytes[self._at :] + message, 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._bytes) if size < 0 else self._at + size
        data = self._bytes[self._at : end]
        self._at += len(data)
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True
