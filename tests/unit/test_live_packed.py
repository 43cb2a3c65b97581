"""A segment is read as it was written, whatever its numbers are, or it is refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.live import BARS, LATEST, Form
from k2.live.packed import pack, through, unpack
from k2.live.segments import _hashes, residue
from k2.schemas import QUOTES, TRADES
from tests.unit.test_live import RECORDS, batch, pieces

FORMS = [BARS, LATEST[TRADES], LATEST[QUOTES]]
EDGES = [0, 1, -1, 2**63 - 1, -(2**63)]


@pytest.mark.parametrize("form", FORMS, ids=["bars", "trades", "quotes"])
@given(st.integers(0, 20), st.randoms(use_true_random=False), st.sampled_from(EDGES))
def test_rows_are_read_as_they_were_written(form: Form, count: int, order: Any, end: int) -> None:
    """Also where the distance of two numbers does not fit into 64 bits."""
    own = {pa.string(): "A", pa.decimal128(18, 8): Decimal(1)}
    rows = pa.table(
        [
            pa.array(order.choices(EDGES, k=count), pa.int64())
            if field.type == pa.int64()
            else pa.array([None if field.nullable else own[field.type]] * count, field.type)
            for field in form.schema
        ],
        schema=form.schema,
    )
    segment = pack(rows, end)
    assert unpack(form, segment) == rows
    assert through(segment) == end
    assert unpack(form, pack(pa.concat_tables([rows.slice(0, 3), rows.slice(3)]), end)) == rows


@given(records=st.lists(RECORDS, max_size=40))
def test_what_records_say_is_read_as_it_was_written(records: list[Any]) -> None:
    (piece,) = pieces(TRADES, records, [])
    assert unpack(BARS, pack(piece.bars, 7)) == piece.bars
    assert unpack(LATEST[TRADES], pack(piece.latest, 7)) == piece.latest


@pytest.mark.parametrize("kept", [0, 7, 16, 40, -30])
def test_a_segment_that_was_cut_is_refused(kept: int) -> None:
    (piece,) = pieces(TRADES, [("A", 1, 0, 1, 1, 1, True)], [])
    with pytest.raises(ValueError, match="no segment of live rows"):
        unpack(BARS, pack(piece.bars, 7)[:kept])


def test_whole_numbers_of_other_names_are_refused() -> None:
    names = [name if name != "close" else "closing" for name in BARS.schema.names]
    with pytest.raises(ValueError, match="other columns"):
        unpack(BARS, pack(BARS.schema.empty_table().rename_columns(names), 0))


def test_all_rows_are_where_each_is_looked_for() -> None:
    """Several exchanges in a table, whose symbols are alike."""
    whole, _, _ = batch(TRADES, [(s, 1, 0, 1, 1, 1, True) for s in ("A", "BB", "A", "Ü", "")], 0)
    for exchanges in (["X"] * 5, ["X", "Y", "Y", "Ü", ""]):
        rows = whole.set_column(0, whole.schema.field(0), pa.array(exchanges))
        found = _hashes(rows) % np.int64(1 << 16)
        symbols = rows.column("symbol").to_pylist()
        expected = [residue(e, s, 1 << 16) for e, s in zip(exchanges, symbols, strict=True)]
        assert found.tolist() == expected
