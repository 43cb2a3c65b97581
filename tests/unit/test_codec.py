"""Values of a fetch to rows and rejects, and rows to values."""

from __future__ import annotations

import copy
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.codec import Decoder, encode
from k2.errors import RegistryUnavailable, SchemaMismatch
from k2.schemas import QUOTES, SIDES, TRADES
from k2.transport.fetched import RecordBatch
from tests.by_hand import (
    DECODER,
    GOOD,
    TRADE,
    Row,
    Schemas,
    batch,
    fetch,
    framed,
    of_values,
    record,
    varint,
)


def test_rows_carry_every_field_and_their_offset() -> None:
    """Decimals keep their scale, absent strings are null, offsets are base plus delta."""
    decoded = DECODER.decode(of_values(GOOD, framed({**TRADE, "sequence": -8})))
    assert decoded.rejects == []
    assert decoded.rows.schema.equals(TRADES.batch)
    assert decoded.rows.to_pylist() == [
        {**TRADE, "kafka_offset": 100},
        {**TRADE, "sequence": -8, "kafka_offset": 101},
    ]


#: Index of the side, counted from the end of GOOD: behind it come "t-1", null and "é".
SIDE_AT = -(1 + 5 + 1 + 4)

CORRUPT: list[tuple[str, str, bytes | None]] = [
    ("no value", "null_value", None),
    ("no bytes", "bad_magic", b""),
    ("half a frame", "bad_magic", GOOD[:4]),
    ("another magic", "bad_magic", b"\1" + GOOD[1:]),
    ("an id nobody registered", "unknown_schema", b"\0\0\0\0\2" + GOOD[5:]),
    ("a frame without a value", "truncated", GOOD[:5]),
    ("a value without its last byte", "truncated", GOOD[:-1]),
    ("a string longer than the value", "truncated", GOOD[:5] + varint(2**62) + GOOD[6:]),
    ("one zero byte too many", "trailing_bytes", GOOD + b"\0"),
    ("two values in one record", "trailing_bytes", GOOD + GOOD[5:]),
    ("a string of negative length", "invalid_value", GOOD[:5] + varint(-3) + GOOD[6:]),
    ("text that is not UTF-8", "invalid_value", GOOD.replace(b"BHP", b"B\xffP")),
    ("a side that is none", "invalid_value", GOOD[:SIDE_AT] + varint(3) + GOOD[SIDE_AT + 1 :]),
    ("a negative side", "invalid_value", GOOD[:SIDE_AT] + varint(-1) + GOOD[SIDE_AT + 1 :]),
    ("a branch that is none", "invalid_value", GOOD.replace(b"\2\6t-1", b"\4\6t-1")),
    ("a negative branch", "invalid_value", GOOD.replace(b"\2\6t-1", b"\1\6t-1")),
    ("an integer of more than 64 bits", "invalid_value", GOOD[:13] + b"\xff" * 9 + b"\x02"),
    (
        "an amount of 19 digits",
        "invalid_value",
        framed(TRADE).replace(
            varint(5) + (4_512_000_000).to_bytes(5, "big"), varint(8) + (10**18).to_bytes(8, "big")
        ),
    ),
]


@pytest.mark.parametrize(("what", "reason", "value"), CORRUPT, ids=[what for what, _, _ in CORRUPT])
def test_corrupt_value_is_rejected_and_its_neighbours_are_rows(
    what: str, reason: str, value: bytes | None
) -> None:
    """The reject has the record's key, bytes and time; no other record moves."""
    assert value != GOOD, what
    decoded = DECODER.decode(of_values(GOOD, value, GOOD))
    assert decoded.rows.column("kafka_offset").to_pylist() == [100, 102]
    assert decoded.rows.drop_columns("kafka_offset").to_pylist() == [TRADE, TRADE]
    (reject,) = decoded.rejects
    assert (reject.offset, reject.reason, reject.timestamp_ms) == (101, reason, 1005)
    assert (reject.key, reject.value) == (b"key", value)
    assert reject.detail


def test_string_that_looks_like_a_record_stays_a_string() -> None:
    """A whole record with a whole trade inside a string is text."""
    one = Decimal("0.00000001")
    small = {**TRADE, "ts_event": 1, "ts_recv": 1, "price": one, "size": one, "venue": None}
    row = {**TRADE, "trade_id": record(1, framed(small)).decode("ascii")}
    decoded = DECODER.decode(of_values(framed(row), GOOD))
    assert decoded.rows.column("trade_id").to_pylist() == [row["trade_id"], "t-1"]


def test_longer_encodings_of_a_number_are_rows() -> None:
    """Avro allows integers and decimals in more bytes than they need."""
    stretched = GOOD[:5] + b"\x86\x00" + GOOD[6:]  # the length of "ASX"
    wide = GOOD.replace(
        varint(5) + (4_512_000_000).to_bytes(5, "big"),
        varint(20) + (4_512_000_000).to_bytes(20, "big"),
    )
    decoded = DECODER.decode(of_values(stretched, wide, GOOD))
    assert decoded.rows.drop_columns("kafka_offset").to_pylist() == [TRADE] * 3


def test_headers_and_attributes_of_a_record_do_not_matter() -> None:
    """Neither says anything about the value."""
    headed = record(1, GOOD, headers=varint(1) + varint(1) + b"h" + varint(-1))
    flagged = record(2, GOOD, attributes=b"\x80")
    decoded = DECODER.decode(fetch(batch(record(0, GOOD) + headed + flagged, 3)))
    assert decoded.rows.column("kafka_offset").to_pylist() == [100, 101, 102]


def test_records_below_the_first_offset_are_skipped_good_or_bad() -> None:
    """A broker returns the whole batch that the wanted offset is in."""
    clean = DECODER.decode(of_values(GOOD, GOOD, GOOD, first_offset=101))
    assert clean.rows.column("kafka_offset").to_pylist() == [101, 102]
    damaged = DECODER.decode(of_values(None, GOOD, b"", first_offset=101))
    assert damaged.rows.column("kafka_offset").to_pylist() == [101]
    assert [reject.offset for reject in damaged.rejects] == [102]


def test_offsets_that_compaction_removed_stay_removed() -> None:
    """Offsets come from the records, not from counting them."""
    body = record(2, GOOD) + record(5, GOOD)
    decoded = DECODER.decode(fetch(RecordBatch(100, 9, 2, 0, 0, False, body)))
    assert decoded.rows.column("kafka_offset").to_pylist() == [102, 105]


def test_reject_has_the_brokers_time_where_the_topic_says_so() -> None:
    """Under log append time a record's own time is not kept up."""
    decoded = DECODER.decode(fetch(batch(record(0, None), 1, log_append=True)))
    assert decoded.rejects[0].timestamp_ms == 2000


def test_fetch_without_batches_has_no_rows() -> None:
    """And is no error."""
    decoded = DECODER.decode(fetch())
    assert (decoded.rows.num_rows, decoded.rejects) == (0, [])
    assert decoded.rows.schema.equals(TRADES.batch)


def test_registry_that_does_not_answer_is_the_callers_to_know() -> None:
    """An unavailable registry never turns good records into rejects."""
    schemas = Schemas({1: TRADES.avro}, down=True)
    decoder = Decoder(TRADES, schemas)
    for fetched in (of_values(GOOD), of_values(None, GOOD)):
        with pytest.raises(RegistryUnavailable):
            decoder.decode(fetched)
    schemas.down = False
    assert decoder.decode(of_values(GOOD)).rows.num_rows == 1


def test_id_that_is_registered_later_decodes_from_then_on() -> None:
    """That an id is unknown is not remembered."""
    schemas = Schemas({})
    decoder = Decoder(TRADES, schemas)
    assert decoder.decode(of_values(GOOD)).rejects[0].reason == "unknown_schema"
    schemas.known[1] = TRADES.avro
    assert decoder.decode(of_values(GOOD)).rows.num_rows == 1


def test_evolved_writer_schema_resolves_to_the_readers() -> None:
    """Added field dropped, order and union order mapped, among values of the present schema."""
    evolved = copy.deepcopy(TRADES.avro)
    evolved["fields"].insert(0, {"name": "desk", "type": ["null", "long"], "default": None})
    evolved["fields"][1], evolved["fields"][2] = evolved["fields"][2], evolved["fields"][1]
    evolved["fields"][-1] = {"name": "venue", "type": ["string", "null"]}
    value = framed({**TRADE, "desk": 5}, evolved, 2)
    decoder = Decoder(TRADES, Schemas({1: TRADES.avro, 2: evolved}))
    for fetched in (of_values(value, value), of_values(GOOD, value)):
        decoded = decoder.decode(fetched)
        assert decoded.rejects == []
        assert decoded.rows.drop_columns("kafka_offset").to_pylist() == [TRADE, TRADE]


def test_raw_gives_the_records_of_rows_as_they_came() -> None:
    """From whichever batch and path; rows below the first offset do not count."""
    plain = batch(record(0, GOOD) + record(1, GOOD), 2)
    mixed = batch(record(0, None) + record(1, GOOD) + record(2, b"x"), 3, base=200)
    decoded = DECODER.decode(fetch(plain, mixed, first_offset=101))
    assert decoded.rows.column("kafka_offset").to_pylist() == [101, 201]
    raw = {"timestamp_ms": 1005, "key": b"key", "value": GOOD}
    assert decoded.raw(np.array([0, 1])).to_pylist() == [raw, raw]
    assert decoded.raw(np.array([], np.int64)).num_rows == 0


def test_raw_of_a_null_key_is_null_on_either_path() -> None:
    """An empty key is another one."""
    bare = b"\0" + varint(5) + varint(0) + varint(-1) + varint(len(GOOD)) + GOOD + b"\0"
    body = varint(len(bare)) + bare
    for fetched in (fetch(batch(body, 1)), fetch(batch(body + record(1, None), 2))):
        raw = DECODER.decode(fetched).raw(np.array([0]))
        assert raw.column("key").to_pylist() == [None]
        assert raw.column("value").to_pylist() == [GOOD]


INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=100)
AMOUNT = st.one_of(
    st.integers(-(10**18) + 1, 10**18 - 1),
    st.builds(lambda k, d, s: s * (2**k + d), st.integers(0, 59), st.integers(-1, 1), st.just(-1)),
    st.builds(lambda k, d: 2**k + d, st.integers(0, 59), st.integers(-1, 1)),
).map(lambda unscaled: Decimal(unscaled).scaleb(-8))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            **dict.fromkeys(("exchange", "symbol"), TEXT),
            **dict.fromkeys(("sequence", "ts_event", "ts_recv"), INT64),
            **dict.fromkeys(("price", "size"), AMOUNT),
            "side": st.sampled_from(SIDES),
            **dict.fromkeys(("trade_id", "conditions", "venue"), st.none() | TEXT),
        }
    ),
    max_size=20,
)


def table(rows: list[Row]) -> pa.Table:
    fields = [field for field in TRADES.batch if field.name != "kafka_offset"]
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in fields]
    return pa.table(columns, schema=pa.schema(fields))


def encoded(trades: pa.Table, schema_id: int = 1) -> list[bytes]:
    buffer, offsets = encode(TRADES, trades, schema_id)
    return [buffer[a:b].tobytes() for a, b in pairwise(offsets)]


@given(ROWS, st.integers(0, 2**32 - 1), st.data())
def test_encode_equals_fastavro_byte_for_byte(rows: list[Row], schema_id: int, data: Any) -> None:
    """For any rows, in any number of chunks, and for any slice of them."""
    cut = data.draw(st.integers(0, len(rows)))
    chunked = pa.concat_tables([table(rows[:cut]), table(rows[cut:])])
    expected = [framed(row, schema_id=schema_id) for row in rows]
    assert encoded(chunked, schema_id) == expected
    assert encoded(table(rows).slice(cut), schema_id) == expected[cut:]


@given(ROWS)
def test_decode_gives_back_what_encode_was_given(rows: list[Row]) -> None:
    """Every value that the schema allows survives the round trip."""
    decoded = DECODER.decode(of_values(*encoded(table(rows))))
    assert decoded.rejects == []
    assert decoded.rows.drop_columns("kafka_offset").to_pylist() == rows


QUOTE_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            **dict.fromkeys(("exchange", "symbol"), TEXT),
            **dict.fromkeys(("sequence", "ts_event", "ts_recv"), INT64),
            **dict.fromkeys(("bid_price", "bid_size", "ask_price", "ask_size"), st.none() | AMOUNT),
            **dict.fromkeys(("conditions", "venue"), st.none() | TEXT),
        }
    ),
    max_size=20,
)


@given(QUOTE_ROWS, st.data())
def test_quotes_are_encoded_as_by_fastavro_and_come_back(rows: list[Row], data: Any) -> None:
    """Amounts that may be null, from any slice; one by one and many at once."""
    cut = data.draw(st.integers(0, len(rows)))
    whole = pa.Table.from_pylist(rows, QUOTES.columns)
    buffer, offsets = encode(QUOTES, whole.slice(cut), 1)
    values = [buffer[a:b].tobytes() for a, b in pairwise(offsets)]
    assert values == [framed(row, QUOTES.avro) for row in rows[cut:]]
    decoded = Decoder(QUOTES, Schemas({1: QUOTES.avro})).decode(of_values(*values))
    assert decoded.rejects == []
    assert decoded.rows.drop_columns("kafka_offset").to_pylist() == rows[cut:]


def test_a_trade_in_a_topic_of_quotes_is_a_reject() -> None:
    """And a quote among trades: whatever the id, the schema says what a value is."""
    for kind, other in ((QUOTES, TRADES), (TRADES, QUOTES)):
        row = {field.name: None for field in other.columns} | TRADE
        value = framed(row, other.avro)
        decoded = Decoder(kind, Schemas({1: other.avro})).decode(of_values(value, value))
        assert decoded.rows.num_rows == 0
        assert [reject.offset for reject in decoded.rejects] == [100, 101]


def swapped(name: str, column: pa.Array) -> pa.Table:
    trades = table([TRADE, TRADE])
    return trades.set_column(trades.column_names.index(name), name, column)


MISMATCHED = [
    ("column venue must be string", table([TRADE]).drop_columns("venue")),
    ("column sequence must be int64", swapped("sequence", pa.array([1, 2], pa.int32()))),
    ("column price must be decimal", swapped("price", pa.array([1, 2], pa.decimal128(18, 4)))),
    ("column symbol has 1 nulls", swapped("symbol", pa.array(["a", None]))),
    ("column side has values other", swapped("side", pa.array(["BUY", "buy"]))),
]


@pytest.mark.parametrize(("message", "trades"), MISMATCHED, ids=[m for m, _ in MISMATCHED])
def test_encode_refuses_wrong_columns(message: str, trades: pa.Table) -> None:
    """It names the column and what is wrong with it."""
    with pytest.raises(SchemaMismatch, match=message):
        encode(TRADES, trades, 1)
