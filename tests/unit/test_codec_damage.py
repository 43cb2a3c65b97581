"""Record batches whose framing is broken: nothing is lost in silence, nothing else moves."""

from __future__ import annotations

import pytest

from k2.codec import Decoded, RawRecord, raw_values
from k2.transport.fetched import RecordBatch
from tests.by_hand import DECODER, GOOD, batch, fetch, record, varint


def offsets(decoded: Decoded) -> list[int]:
    return decoded.rows.column("kafka_offset").to_pylist()


#: Three records, the one in the middle cut short after its offset, and named in its whole.
HALF = b"\0" + varint(5) + varint(1) + varint(3) + b"ke"
RECORDS = [record(delta, GOOD) for delta in range(3)]


@pytest.mark.parametrize(
    "inside",
    [
        HALF,
        b"",
        b"\0" + varint(5) + varint(1) + varint(2**62) + b"key" + varint(-1) + b"\0",
        b"\0" + varint(5) + varint(1) + varint(-2) + varint(-1) + b"\0",
        b"\0" + varint(5) + varint(1) + varint(-1) + varint(-1) + varint(-1),
        b"\0" + varint(5) + varint(1) + varint(-1) + varint(-1) + varint(2**62),
        b"\0" + varint(5) + varint(1) + varint(-1) + varint(-1) + b"\0" + b"more",
    ],
)
def test_record_whose_parts_do_not_add_up_is_one_reject_with_all_its_bytes(inside: bytes) -> None:
    """Its length is right, so the records behind it are where they should be."""
    body = RECORDS[0] + varint(len(inside)) + inside + RECORDS[2]
    decoded = DECODER.decode(fetch(batch(body, 3)))
    assert offsets(decoded) == [100, 102]
    (reject,) = decoded.rejects
    assert (reject.offset, reject.reason) == (101, "invalid_value")
    assert (reject.key, reject.value) == (None, inside)


BROKEN_ENDS = [
    (varint(10**6) + b"abc", 3),  # a length that leads beyond the section
    (varint(-5) + b"abc", 3),
    (b"\xff" * 12, 3),
    (b"", 3),  # fewer records than the header says
    (b"\x80", 3),
    (RECORDS[2], 2),  # more records than the header says
    (b"\0", 2),
]


@pytest.mark.parametrize(("rest", "count"), BROKEN_ENDS)
def test_records_before_the_damage_are_kept_and_the_rest_is_reported(
    rest: bytes, count: int
) -> None:
    """What cannot be cut into records is refused at the first offset behind what could."""
    body = RECORDS[0] + RECORDS[1] + rest
    decoded = DECODER.decode(fetch(RecordBatch(100, 2, count, 0, 0, False, body)))
    assert offsets(decoded) == [100, 101]
    (reject,) = decoded.rejects
    assert (reject.offset, reject.reason) == (102, "truncated")
    assert reject.detail


def test_damaged_batch_leaves_the_batches_around_it_alone() -> None:
    """Each batch has a length and a checksum of its own."""
    middle = batch(RECORDS[0] + varint(10**6), 2, base=200)
    whole = b"".join(RECORDS)
    decoded = DECODER.decode(fetch(batch(whole, 3), middle, batch(whole, 3, base=300)))
    assert offsets(decoded) == [100, 101, 102, 200, 300, 301, 302]
    assert [reject.offset for reject in decoded.rejects] == [201]


def test_offset_that_does_not_rise_is_refused_at_the_next_free_one() -> None:
    """The value is kept in the reject; no offset is given twice."""
    body = record(0, GOOD) + record(0, GOOD) + record(2, GOOD)
    decoded = DECODER.decode(fetch(batch(body, 3)))
    assert offsets(decoded) == [100, 102]
    (reject,) = decoded.rejects
    assert (reject.offset, reject.reason) == (101, "invalid_value")
    assert (reject.key, reject.value) == (b"key", GOOD)


def test_offset_beyond_its_batch_is_refused_within_it() -> None:
    """The next batch may hold that offset for another record."""
    body = record(0, GOOD) + record(7, GOOD) + record(2, GOOD)
    decoded = DECODER.decode(fetch(batch(body, 3)))
    assert offsets(decoded) == [100, 102]
    assert [reject.offset for reject in decoded.rejects] == [101]


@pytest.mark.parametrize(("rest", "count"), [pair for pair in BROKEN_ENDS if pair[0]])
def test_bytes_that_cannot_be_cut_into_records_are_in_the_reject(rest: bytes, count: int) -> None:
    """Someone who repairs the damage by hand needs them; Kafka will not keep them for ever."""
    body = RECORDS[0] + RECORDS[1] + rest
    decoded = DECODER.decode(fetch(RecordBatch(100, 2, count, 0, 0, False, body)))
    assert [reject.value for reject in decoded.rejects] == [rest]


def test_damage_below_the_first_offset_is_reported_when_wanted_records_are_behind_it() -> None:
    """Offsets 101 to 109 are wanted and unreadable: that is a loss, and needs a reject."""
    body = record(0, GOOD) + varint(10**6)
    damaged = RecordBatch(100, 9, 10, 0, 0, False, body)
    decoded = DECODER.decode(fetch(damaged, first_offset=105))
    assert decoded.rows.num_rows == 0
    (reject,) = decoded.rejects
    assert 105 <= reject.offset <= 109


def test_raw_values_before_the_damage_can_be_had() -> None:
    """A duplicate before the damage is kept with its bytes, like any other."""
    fetched = fetch(batch(RECORDS[0] + varint(10**6), 2))
    assert offsets(DECODER.decode(fetched)) == [100]
    assert raw_values(fetched, [100]) == [RawRecord(100, 1005, b"key", GOOD)]


def test_raw_values_are_one_record_an_offset_when_offsets_repeat() -> None:
    """The row at 101 is the first record that claims it; `decode` gave the second another."""
    body = record(0, GOOD) + record(1, GOOD) + record(1, b"other") + record(3, GOOD)
    fetched = fetch(batch(body, 4))
    assert offsets(DECODER.decode(fetched)) == [100, 101, 103]
    assert [raw.value for raw in raw_values(fetched, [101])] == [GOOD]


def test_raw_values_and_decode_give_a_refused_record_the_same_offset() -> None:
    """An offset that a reject names leads back to the reject's bytes."""
    body = record(0, GOOD) + varint(1) + b"\0" + record(2, GOOD)
    fetched = fetch(batch(body, 3))
    (reject,) = DECODER.decode(fetched).rejects
    assert reject.offset == 101
    assert [raw.offset for raw in raw_values(fetched, [101])] == [101]
