"""Arrow's stream as its bytes come: whatever they are cut into, the batches are the same."""

from __future__ import annotations

import io
from decimal import Decimal
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.client.arrow import Batches
from k2.client.errors import ClientError

TABLE = pa.table(
    {
        "n": pa.array([1, None, 3, 4, 5], pa.int64()),
        "price": pa.array([Decimal("1.5"), None, Decimal(3), Decimal(4), Decimal(5)],
                          pa.decimal128(18, 8)),
        "kind": pa.array(["a", "b", "a", None, "c"]).dictionary_encode(),
        "lists": pa.array([[1], [], None, [2, 3], [4]], pa.list_(pa.int32())),
    }
)  # fmt: skip


def stream(table: pa.Table, rows: int) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(rows):
            writer.write_batch(batch)
    return sink.getvalue()


@given(st.lists(st.integers(0, 3000), max_size=12), st.integers(1, 5))
def test_any_cut_of_the_bytes_gives_the_same_batches(cuts: list[int], rows: int) -> None:
    data = stream(TABLE, rows)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    batches, found = Batches(), []
    for first, end in pairwise(places):
        assert not batches.ended
        found += batches.feed(data[first:end])
    assert batches.ended
    assert [batch.num_rows for batch in found] == [
        batch.num_rows for batch in TABLE.to_batches(rows)
    ]
    assert pa.Table.from_batches(found, batches.schema).equals(TABLE)


def test_batch_is_given_with_its_last_byte() -> None:
    """A replay's record is not kept back until the next one comes."""
    data = stream(TABLE, 5)
    batches = Batches()
    counts = [len(batches.feed(data[at : at + 1])) for at in range(len(data))]
    assert counts.index(1) == len(data) - 8 - 1  # the end of the stream is 8 bytes


def test_stream_without_rows_has_a_schema() -> None:
    batches = Batches()
    assert batches.feed(stream(TABLE.slice(0, 0), 1)) == []
    assert batches.ended
    assert batches.schema == TABLE.schema


@pytest.mark.parametrize("cut", [5, 100, -9, -1])
def test_what_was_cut_off_has_not_ended(cut: int) -> None:
    batches = Batches()
    batches.feed(stream(TABLE, 2)[:cut])
    assert not batches.ended


@pytest.mark.parametrize(
    "data",
    [b'{"data":[]}', b"\xff\xff\xff\xff\x08\0\0\0\xff\xff\xff\x7f\0\0\0\0", b"\xff" * 64],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ClientError, match="no Arrow stream"):
        Batches().feed(data)
