"""Cutting a fetch response into record batches."""

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from k2.errors import UnsupportedFormat
from k2.transport.fetched import parse


def batch(
    base: int, values: list[bytes], codec: int = 0, producer: int = -1, transactional: bool = False
) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, int(transactional), producer, 0, 0, 1 << 20)
    for delta, value in enumerate(values):
        builder.append(delta, 1000 + delta, b"key", value, [])
    raw = bytearray(builder.build())
    raw[:8] = base.to_bytes(8, "big")  # the checksum does not cover the base offset
    return bytes(raw)


def test_batches_come_in_order_with_their_offsets() -> None:
    fetched = parse("t", 0, 10, batch(10, [b"a", b"b"]) + batch(12, [b"c"]))
    assert [(b.base_offset, b.count) for b in fetched.batches] == [(10, 2), (12, 1)]
    assert fetched.next_offset == 13


def test_incomplete_last_batch_is_left_for_the_next_fetch() -> None:
    raw = batch(0, [b"a"]) + batch(1, [b"b"])
    fetched = parse("t", 0, 0, raw[:-1])
    assert (len(fetched.batches), fetched.next_offset) == (1, 1)


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_compressed_body_equals_the_plain_one(codec: int) -> None:
    values = [b"x" * 50] * 20
    plain = parse("t", 0, 0, batch(0, values)).batches[0]
    packed = parse("t", 0, 0, batch(0, values, codec)).batches[0]
    assert bytes(packed.body) == bytes(plain.body)


def test_flipped_bit_fails_the_checksum() -> None:
    raw = bytearray(batch(7, [b"abc"]))
    raw[-2] ^= 1
    with pytest.raises(CorruptRecordException, match=r"t\[3\]@7"):
        parse("t", 3, 7, bytes(raw))


def test_aborted_transaction_is_left_out_and_its_offsets_passed() -> None:
    raw = batch(0, [b"a"], producer=5, transactional=True) + batch(
        1, [b"b"], producer=6, transactional=True
    )
    fetched = parse("t", 0, 0, raw, aborted=[(5, 0)])
    assert [b.base_offset for b in fetched.batches] == [1]
    assert fetched.next_offset == 2


def test_old_record_format_is_refused_by_name() -> None:
    builder = LegacyRecordBatchBuilder(1, 0, 1 << 20)
    builder.append(0, 1000, b"key", b"value" * 10)
    with pytest.raises(UnsupportedFormat, match="format v1"):
        parse("t", 0, 0, bytes(builder.build()))


@pytest.mark.parametrize("codec", [1, 2, 3, 4, 7])
def test_body_that_does_not_decompress_is_a_batch_with_a_problem(codec: int) -> None:
    """Its checksum is right, a producer wrote it so: the reader gets past it, with its bytes."""
    raw = bytearray(batch(7, [b"a"]))
    raw[22] |= codec  # the attributes' low byte: the plain body now claims a codec
    raw[17:21] = calc_crc32c(bytes(raw[21:])).to_bytes(4, "big")
    (only,) = parse("t", 3, 7, bytes(raw)).batches
    assert only.problem
    assert (only.base_offset, only.body) == (7, bytes(raw[61:]))
