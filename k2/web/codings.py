"""Compression of answers: which coding the Accept-Encoding header wants, and a stream in it."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import zstandard

from k2.web.formats import weigh

__all__ = ["CODINGS", "Packer", "coding_of"]

#: The better one first.
CODINGS = ("zstd", "gzip")
#: Of what a core can give, most goes into the query: the levels are the quick ones.
_ZSTD_LEVEL, _GZIP_LEVEL = 3, 4
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


def coding_of(accept: str) -> str | None:
    """The best coding by an Accept-Encoding header; "identity" for none, None if none will do."""
    weights = dict(weigh(part) for part in accept.split(",") if part.strip())
    others = weights.get("*")
    plain = weights.get("identity", others if others == 0 else None)
    wanted = {name: weights.get(name, others or 0.0) for name in CODINGS}
    best = max(CODINGS, key=lambda name: wanted[name])
    if wanted[best] > 0 and wanted[best] >= (plain or 0.0):
        return best
    return None if plain == 0 else "identity"


class Packer:
    """A stream in a coding. What is given is all to be read at once: each part is flushed."""

    def __init__(self, coding: str) -> None:
        self._pack, self._end = _coder(coding)

    def __call__(self, data: bytes) -> bytes:
        return self._pack(data) if data else data

    def end(self) -> bytes:
        return self._end()


def _coder(coding: str) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    if coding == "zstd":
        zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
        flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK
        return lambda data: zstd.compress(data) + zstd.flush(flush), zstd.flush
    if coding == "gzip":
        gzip = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW)
        return lambda data: gzip.compress(data) + gzip.flush(zlib.Z_SYNC_FLUSH), gzip.flush
    return lambda data: data, lambda: b""
