"""Cursors: they say the same again, and nothing else is one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.errors import BadQuery
from k2.lake.offsets import Source
from k2.replay.cursor import START, Pin, Position, cursors, parse

SOURCES = [Source(cluster, topic, p) for cluster in "ab" for topic in "tu" for p in (0, 1, 300)]
NS = st.integers(-(2**63), 2**63 - 1)
PINS = st.builds(
    Pin,
    st.dictionaries(st.sampled_from(SOURCES), st.integers(0, 2**63 - 1), min_size=1),
    st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)),
    st.booleans(),
)


@given(PINS, NS, st.integers(-1, 2**63 - 1), st.data())
def test_cursor_says_what_it_was_made_of(
    pin: Pin, ts: int, offset: int, data: st.DataObject
) -> None:
    source = data.draw(st.integers(0, len(pin.sources) - 1))
    at = Position(ts, offset, source, data.draw(st.integers(0, 65_535)))
    assert parse(pin.cursor(at), SOURCES) == (pin, at)


def test_column_of_cursors_is_the_cursors_of_its_rows() -> None:
    pin = Pin(dict.fromkeys(SOURCES, 7), (3, 4))
    ts, offset = np.array([5, -1, 2**62]), np.array([0, 6, 2**40])
    source, rank = np.array([0, 11, 3], np.int32), np.array([0, 1, 2], np.uint16)
    made = cursors(pin, ts, offset, source, rank)
    made.validate(full=True)
    rows = zip(ts, offset, source, rank, strict=True)
    assert made.to_pylist() == [pin.cursor(Position(*map(int, row))) for row in rows]
    assert len(cursors(pin, *[np.empty(0, np.int64)] * 4)) == 0


@given(PINS, st.data())
def test_altered_cursor_is_refused(pin: Pin, data: st.DataObject) -> None:
    text = pin.cursor(START)
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("AZaz09-_.é "))
    altered = text[:at] + letter + text[at + 1 :]
    if altered != text:
        try:
            cursor = parse(altered, SOURCES)
        except BadQuery:
            return
        # Bits of the last letter that no byte has: the same cursor.
        assert cursor == (pin, START)


def test_cursor_of_another_lake_or_of_nothing_is_refused() -> None:
    pin, other = Pin({SOURCES[0]: 5}, (1, 1)), Pin({SOURCES[0]: 6}, (1, 1))
    text = pin.cursor(START)
    with pytest.raises(BadQuery, match="topics that this lake does not know"):
        parse(text, SOURCES[3:])
    for wrong in ("", ".", "x", text[:-3], text.partition(".")[0], "!" + text):
        with pytest.raises(BadQuery, match="it is not one of K2"):
            parse(wrong, SOURCES)
    first, last = text.partition(".")[0], other.cursor(START).partition(".")[2]
    with pytest.raises(BadQuery, match="it was altered"):
        parse(f"{first}.{last}", SOURCES)


def test_more_partitions_than_a_cursor_can_number_are_refused() -> None:
    with pytest.raises(BadQuery, match="65536 partitions: more than 65535"):
        Pin({Source("c", "t", p): 1 for p in range(65_536)}, (0, 0))
