"""Record batches whose framing is broken: nothing is lost in silence, nothing else moves."""

from __future__ import annotations

import pytest

from k2.codec import Decoded
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
    assert (reject.offset, reject.reason) == (101, "broken_record")
    assert (reject.key, reject.value) == (None, inside)


BROKEN_ENDS = [
    (varint(10**6) + b"abc", 3),  # a length that leads beyond the section
    (varint(-5) + b"abc", 3),
    (b"\xff" * 12, 3),
    (b"", 3),  # fewer records than the header says
    (b"\x80", 3),
]


@pytest.mark.parametrize(("rest", "count"), BROKEN_ENDS)
def test_records_before_the_damage_are_kept_and_the_rest_is_one_reject_with_its_bytes(
    rest: bytes, count: int
) -> None:
    """What cannot be cut into records is refused at the first offset behind what could."""
    body = RECORDS[0] + RECORDS[1] + rest
    decoded = DECODER.decode(fetch(RecordBatch(100, 2, count, 0, 0, False, body)))
    assert offsets(decoded) == [100, 101]
    (reject,) = decoded.rejects
    assert (reject.offset, reject.reason, reject.value) == (102, "broken_record", rest)
    assert reject.detail


@pytest.mark.parametrize("more", [RECORDS[2], b"\0"])
def test_last_record_is_refused_with_the_bytes_behind_it(more: bytes) -> None:
    """It should end where its batch ends: no offset is left for what follows."""
    body = RECORDS[0] + RECORDS[1] + more
    decoded = DECODER.decode(fetch(RecordBatch(100, 1, 2, 0, 0, False, body)))
    assert offsets(decoded) == [100]
    (reject,) = decoded.rejects
    assert (reject.offset, reject.reason) == (101, "broken_record")
    assert reject.value == RECORDS[1] + more


def test_records_that_the_damage_took_along_are_rejects_of_their_own() -> None:
    """The audit asks for every offset that the header promises."""
    body = RECORDS[0] + varint(10**6) + b"abc"
    decoded = DECODER.decode(fetch(RecordBatch(100, 4, 5, 0, 0, False, body)))
    assert [(reject.offset, reject.value) for reject in decoded.rejects] == [
        (101, varint(10**6) + b"abc"),
        (102, None),
        (103, None),
        (104, None),
    ]


def test_header_that_promises_more_records_than_offsets_makes_the_batch_one_reject() -> None:
    """Nothing in it can be placed."""
    body = b"".join(RECORDS)
    decoded = DECODER.decode(fetch(RecordBatch(100, 1, 3, 0, 0, False, body)))
    assert decoded.rows.num_rows == 0
    assert [(reject.offset, reject.value) for reject in decoded.rejects] == [
        (100, body),
        (101, None),
    ]


def test_batch_that_cannot_be_decompressed_is_one_reject_with_its_bytes() -> None:
    """The bytes as they came are all that there is."""
    problem = "cannot be decompressed: no frame"
    damaged = RecordBatch(100, 0, 1, 0, 0, False, b"noise", problem)
    decoded = DECODER.decode(fetch(damaged, batch(RECORDS[0], 1, base=200)))
    assert offsets(decoded) == [200]
    (reject,) = decoded.rejects
    assert (reject.offset, reject.reason, reject.detail) == (100, "broken_record", problem)
    assert reject.value == b"noise"


def test_damaged_batch_leaves_the_batches_around_it_alone() -> None:
    """Each batch has a length and a checksum of its own."""
    middle = batch(RECORDS[0] + varint(10**6), 2, base=200)
    whole = b"".join(RECORDS)
    decoded = DECODER.decode(fetch(batch(whole, 3), middle, batch(whole, 3, base=300)))
    assert offsets(decoded) == [100, 101, 102, 200, 300, 301, 302]
    assert [reject.offset for reject in decoded.rejects] == [201]


@pytest.mark.parametrize("wrong", [0, 7, -1])
def test_record_with_an_impossible_offset_is_refused_at_the_next_free_one(wrong: int) -> None:
    """No offset is given twice, and the next batch may hold the one that it claims."""
    middle = record(wrong, GOOD)
    decoded = DECODER.decode(fetch(batch(RECORDS[0] + middle + RECORDS[2], 3)))
    assert offsets(decoded) == [100, 102]
    (reject,) = decoded.rejects
    assert (reject.offset, reject.reason) == (101, "broken_record")
    assert varint(len(reject.value or b"")) + (reject.value or b"") == middle


def test_damage_below_the_first_offset_is_reported_when_wanted_records_are_behind_it() -> None:
    """Offsets 101 to 109 are wanted and unreadable: that is a loss, and needs rejects."""
    body = record(0, GOOD) + varint(10**6)
    damaged = RecordBatch(100, 9, 10, 0, 0, False, body)
    decoded = DECODER.decode(fetch(damaged, first_offset=105))
    assert decoded.rows.num_rows == 0
    assert [reject.offset for reject in decoded.rejects] == [105, 106, 107, 108, 109]
