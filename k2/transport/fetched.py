"""What one fetch of one partition holds: Kafka v2 record batches, checked, not yet decoded.

Format: the record batch of Kafka's message format v2 (KIP-98): a 61-byte header, then the records
section, compressed as a whole or plain.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from aiokafka import codec as compression
from aiokafka.errors import CorruptRecordException
from aiokafka.record.util import calc_crc32c

from k2.errors import UnsupportedFormat

__all__ = ["Fetched", "LogEnd", "RecordBatch", "joined", "parse"]

# base offset, length, leader epoch, magic, crc, attributes, last offset delta, first and max
# timestamp, producer id, producer epoch, base sequence, record count
_HEADER = struct.Struct(">qiibIhiqqqhii")
_LOG_OVERHEAD = 12  # base offset and length, which `length` does not count
_CRC_END = 21  # the checksum covers everything behind itself
_MAGIC_AT = 16

_CODEC_MASK, _LOG_APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_DECOMPRESS = {
    1: compression.gzip_decode,
    2: compression.snappy_decode,
    3: compression.lz4_decode,
    4: compression.zstd_decode,
}
_ABORT = b"\x00\x00\x00\x00"  # key of a control record: version 0, type 0


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """One record batch: decompressed, its checksum verified, neither control nor aborted."""

    base_offset: int
    last_offset_delta: int
    count: int
    first_timestamp: int  # ms since the epoch
    max_timestamp: int  # ms since the epoch
    log_append_time: bool
    body: bytes | memoryview  # the records section: `count` records
    problem: str = ""  # why the section could not be decompressed; `body` is then as it came


class LogEnd(NamedTuple):
    """Where a log ends for whoever reads committed records: all that it had then is below."""

    offset: int = 0
    asked_at: int = 0  # ns since the epoch, when the broker was asked; 0: it was not


@dataclass(frozen=True, slots=True)
class Fetched:
    """The value of one Faust event: all that one fetch returned for one partition."""

    topic: str
    partition: int
    first_offset: int  # records below it are to be skipped: a broker may return a batch's middle
    next_offset: int  # behind the last one, control records included
    batches: tuple[RecordBatch, ...]
    nbytes: int  # of the fetch response
    log_end: int = 0  # the partition's end as the broker gave it with the response
    end: LogEnd = LogEnd()  # the same without what open transactions hold back
    seek: int = 0  # the number of the reader's newest move to where the sinks are: see `tap`
    place: int = 0  # how many fetches of the partition the reader gave out since that move


def joined(fetches: Sequence[Fetched]) -> Fetched:
    """Return n >= 1 fetches as if they were one: each goes on where the one before it ended."""
    first, last = fetches[0], fetches[-1]
    return replace(
        last,
        first_offset=first.first_offset,
        batches=tuple(batch for fetched in fetches for batch in fetched.batches),
        nbytes=sum(fetched.nbytes for fetched in fetches),
        place=first.place,
    )


def parse(
    topic: str,
    partition: int,
    first_offset: int,
    raw: bytes,
    aborted: Sequence[tuple[int, int]] = (),
) -> Fetched:
    """Cut a fetch response into record batches; what a transaction aborted is left out.

    Args:
        raw: the partition's records as fetched; a last, incomplete batch is ignored.
        aborted: (producer id, first offset) of aborted transactions in it, any order.

    Raises:
        CorruptRecordException: a checksum is wrong.
        UnsupportedFormat: a batch is older than format v2.
    """
    view = memoryview(raw)
    pending = sorted(aborted, key=lambda transaction: transaction[1])
    aborting: set[int] = set()
    batches: list[RecordBatch] = []
    position, next_offset = 0, first_offset
    while position + _HEADER.size <= len(raw):
        length = int.from_bytes(view[position + 8 : position + 12], "big")
        end = position + _LOG_OVERHEAD + length
        if end > len(raw):
            break
        if raw[position + _MAGIC_AT] != 2:
            raise UnsupportedFormat(
                f"{topic}[{partition}]@{next_offset}: record batch format "
                f"v{raw[position + _MAGIC_AT]}; K2 reads v2 (Kafka 0.11 and newer)"
            )
        (base, _, _, _, crc, attributes, last_delta, first_ts, max_ts, producer, _, _, count) = (
            _HEADER.unpack_from(raw, position)
        )
        if calc_crc32c(view[position + _CRC_END : end]) != crc:
            raise CorruptRecordException(f"{topic}[{partition}]@{base}: checksum of a record batch")
        body: bytes | memoryview = view[position + _HEADER.size : end]
        position = end
        if base + last_delta < first_offset:
            continue
        next_offset = base + last_delta + 1
        while pending and pending[0][1] <= base:
            aborting.add(pending.pop(0)[0])
        if attributes & _CONTROL:
            # The key follows length, attributes, timestamp delta, offset delta and its own
            # length, a byte each in a control record.
            if bytes(body[5:9]) == _ABORT:
                aborting.discard(producer)
            continue
        if attributes & _TRANSACTIONAL and producer in aborting:
            continue
        if count <= 0 and not body:
            continue  # compaction removed every record and kept the header
        problem = ""
        if codec := attributes & _CODEC_MASK:
            body, problem = _decompressed(codec, body)
        batches.append(
            RecordBatch(
                base_offset=base,
                last_offset_delta=last_delta,
                count=max(count, 1),  # what is there must be accounted for
                first_timestamp=first_ts,
                max_timestamp=max_ts,
                log_append_time=bool(attributes & _LOG_APPEND_TIME),
                body=body,
                problem=problem,
            )
        )
    return Fetched(topic, partition, first_offset, next_offset, tuple(batches), len(raw))


def _decompressed(codec: int, body: bytes | memoryview) -> tuple[bytes, str]:
    """The section, or the bytes as they are and what is wrong with them."""
    data = bytes(body)
    if codec not in _DECOMPRESS:
        return data, f"compression type {codec} is not known"
    try:
        return _DECOMPRESS[codec](data), ""
    except Exception as exc:  # each codec has errors of its own
        return data, f"cannot be decompressed: {type(exc).__name__}: {exc}"
