"""Writer schemas other than K2's own: what they decode to never depends on the path taken."""

from __future__ import annotations

import copy
from decimal import Decimal
from typing import Any

import pytest

from k2.codec import Decoded, Decoder
from k2.schemas import TRADES
from k2.transport.fetched import Fetched
from tests.by_hand import TRADE, Schemas, framed, of_values

SIDE = {"type": "enum", "name": "Aggressor", "symbols": ["NONE", "BUY", "SELL"]}
UUID = {"type": "string", "logicalType": "uuid"}
TEXT_UUID = "12345678-1234-5678-1234-567812345678"


def changed(name: str, avro: Any) -> dict[str, Any]:
    schema = copy.deepcopy(TRADES.avro)
    for field in schema["fields"]:
        if field["name"] == name:
            field["type"] = avro
    return schema


def with_fields(*fields: tuple[str, Any]) -> dict[str, Any]:
    schema = copy.deepcopy(TRADES.avro)
    schema["fields"] += [{"name": name, "type": avro} for name, avro in fields]
    return schema


def decode(schema: dict[str, Any], fetched: Fetched) -> Decoded:
    return Decoder(TRADES, Schemas({1: schema})).decode(fetched)


SAME_BYTES = {
    "renamed record": {**TRADES.avro, "name": "Execution"},
    "other namespace": {**TRADES.avro, "namespace": "venue"},
    "renamed enum": changed("side", SIDE),
    "microseconds": changed("ts_event", {"type": "long", "logicalType": "timestamp-micros"}),
    "milliseconds": changed("ts_recv", {"type": "long", "logicalType": "timestamp-millis"}),
    "local time": changed("ts_recv", {"type": "long", "logicalType": "local-timestamp-micros"}),
    "uuid": changed("symbol", UUID),
    "optional uuid": changed("trade_id", ["null", UUID]),
    "annotated string": changed("symbol", {"type": "string", "avro.java.string": "String"}),
}


@pytest.mark.parametrize("schema", SAME_BYTES.values(), ids=SAME_BYTES)
def test_good_values_do_not_depend_on_a_corrupt_neighbour(schema: dict[str, Any]) -> None:
    """A clean fetch and a damaged one give the same rows for the same records."""
    value = framed({**TRADE, "symbol": TEXT_UUID, "trade_id": TEXT_UUID})
    clean = decode(schema, of_values(value, value))
    damaged = decode(schema, of_values(value, value, None))
    assert damaged.rows.equals(clean.rows)
    assert [r.reason for r in damaged.rejects[:-1]] == [r.reason for r in clean.rejects]


#: An enum defined in a branch of a union, and referred to by its name behind it.
NAMED = {"type": "enum", "name": "Phase", "symbols": ["OPEN", "AUCTION"]}
NAMED_TYPES = {
    "in its short name": (with_fields(("maker", "Side")), {"maker": "BUY"}),
    "in its full name": (with_fields(("maker", "k2.Side")), {"maker": "BUY"}),
    "in a union not taken": (
        with_fields(("phase", ["null", NAMED]), ("before", "Phase")),
        {"phase": None, "before": "OPEN"},
    ),
    "in an empty array": (
        with_fields(("phases", {"type": "array", "items": NAMED}), ("before", "Phase")),
        {"phases": [], "before": "OPEN"},
    ),
    "of another namespace": (
        with_fields(("phase", {**NAMED, "namespace": "venue"}), ("before", "venue.Phase")),
        {"phase": "OPEN", "before": "AUCTION"},
    ),
}


@pytest.mark.parametrize(("schema", "more"), NAMED_TYPES.values(), ids=NAMED_TYPES)
def test_named_types_are_known_wherever_the_schema_defines_them(
    schema: dict[str, Any], more: dict[str, Any]
) -> None:
    """Avro lets a schema refer to a type by its name, whatever the data before it was."""
    decoded = decode(schema, of_values(framed({**TRADE, **more}, schema)))
    assert decoded.rejects == []
    assert decoded.rows.drop_columns("kafka_offset").to_pylist() == [TRADE]


ADDED_KINDS = {
    "array": ({"type": "array", "items": "string"}, ["a", "b"]),
    "map": ({"type": "map", "values": "long"}, {"a": 1}),
    "fixed": ({"type": "fixed", "name": "Mac", "size": 6}, b"123456"),
    "double": ("double", 1.5),
    "boolean": ("boolean", True),
    "record": (
        {"type": "record", "name": "Leg", "fields": [{"name": "a", "type": "int"}]},
        {"a": 1},
    ),
}


@pytest.mark.parametrize(("avro", "value"), ADDED_KINDS.values(), ids=ADDED_KINDS)
def test_added_field_of_any_type_is_skipped(avro: Any, value: Any) -> None:
    """A compatible producer may add whatever Avro has."""
    schema = with_fields(("extra", avro))
    decoded = decode(schema, of_values(framed({**TRADE, "extra": value}, schema)))
    assert decoded.rejects == []
    assert decoded.rows.drop_columns("kafka_offset").to_pylist() == [TRADE]


def test_amount_of_another_scale_is_a_row_when_nothing_is_lost() -> None:
    """1.5 is 1.5 with any number of decimals; what does not fit eight of them is refused."""
    schema = changed(
        "price", {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 10}
    )
    fits, lost = Decimal("1.5000000000"), Decimal("1.5000000001")
    values = [framed({**TRADE, "price": price}, schema) for price in (fits, lost)]
    decoded = decode(schema, of_values(*values))
    assert decoded.rows.column("price").to_pylist() == [Decimal("1.50000000")]
    assert [(reject.offset, reject.reason) for reject in decoded.rejects] == [
        (101, "invalid_value")
    ]


NO_TRADES = {
    "another record": {"type": "record", "name": "Other", "fields": []},
    "a primitive": {"type": "string"},
    "no Avro at all": {"type": "object", "properties": {"symbol": {"type": "string"}}},
    "an unknown name": changed("side", "Sides"),
    "nothing": {},
}


@pytest.mark.parametrize("schema", NO_TRADES.values(), ids=NO_TRADES)
def test_values_of_a_schema_that_is_no_trade_are_rejects(schema: dict[str, Any]) -> None:
    """A registry holds schemas of all kinds, JSON Schema too; none of them stops a partition."""
    good = framed(TRADE, schema_id=2)
    other = framed(TRADE)
    decoded = Decoder(TRADES, Schemas({1: schema, 2: TRADES.avro})).decode(of_values(good, other))
    assert decoded.rows.column("kafka_offset").to_pylist() == [100]
    assert [reject.offset for reject in decoded.rejects] == [101]
    assert decoded.rejects[0].value == other


class Counting(Schemas):
    """Counts the questions: with Confluent's registry each one is a request."""

    asked = 0

    def get(self, schema_id: int) -> dict[str, Any] | None:
        self.asked += 1
        return super().get(schema_id)


def test_unknown_id_is_asked_for_a_few_times_a_fetch_and_not_once_a_record() -> None:
    """A fetch holds ten thousand records; a request for each would take longer than the fetch."""
    schemas = Counting({})
    decoded = Decoder(TRADES, schemas).decode(of_values(*[framed(TRADE)] * 100))
    assert [reject.reason for reject in decoded.rejects] == ["unknown_schema"] * 100
    assert schemas.asked <= 3
