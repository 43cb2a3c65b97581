"""The buffer: what asks for a flush, and what holds its bound."""

import asyncio

import pyarrow as pa
import pytest

from k2.buffer import Buffer

ROWS = pa.table({"x": pa.array(range(1000), pa.int64())})
NONE = ROWS.slice(0, 0)


async def test_row_count_asks_for_a_flush() -> None:
    buffer: Buffer[int] = Buffer(rows_max=2000, bytes_max=1 << 30, age_max_s=3600)
    buffer.add(0, ROWS, NONE, NONE, 1000)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(buffer.due(), 0.05)
    buffer.add(0, ROWS, NONE, NONE, 2000)
    await asyncio.wait_for(buffer.due(), 1)
    assert buffer.take().next_offsets == {0: 2000}


async def test_age_asks_for_a_flush_even_without_rows() -> None:
    """A batch of duplicates writes no row, but its offsets must move on."""
    buffer: Buffer[int] = Buffer(rows_max=2000, bytes_max=1 << 30, age_max_s=0.05)
    buffer.add(3, NONE, NONE, NONE, 17)
    await asyncio.wait_for(buffer.due(), 1)
    taken = buffer.take()
    assert (taken.next_offsets, taken.rows) == ({3: 17}, 0)


async def test_full_buffer_gives_room_only_when_written() -> None:
    buffer: Buffer[int] = Buffer(rows_max=1 << 30, bytes_max=ROWS.nbytes, age_max_s=3600)
    buffer.add(0, ROWS, NONE, NONE, 1000)
    buffer.take()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(buffer.room(), 0.05)
    buffer.written()
    await asyncio.wait_for(buffer.room(), 1)


async def test_rows_can_be_read_until_they_are_written() -> None:
    """Those being committed first: they stand before what came meanwhile."""
    buffer: Buffer[int] = Buffer(rows_max=1 << 30, bytes_max=1 << 30, age_max_s=3600)
    first, second, gaps = ROWS.slice(0, 1), ROWS.slice(1, 1), ROWS.slice(2, 1)
    buffer.add(7, first, NONE, gaps, 1)
    buffer.take()
    buffer.add(7, second, NONE, NONE, 2)
    buffer.add(8, NONE, NONE, NONE, 2)
    assert buffer.held() == {7: [first, second]}
    assert buffer.held_gaps() == [gaps]
    buffer.written()
    assert (buffer.held(), buffer.held_gaps()) == ({7: [second]}, [])
    buffer.take()
    buffer.clear()
    assert buffer.held() == {}


async def test_clear_drops_everything() -> None:
    buffer: Buffer[int] = Buffer(rows_max=1, bytes_max=1, age_max_s=3600)
    buffer.add(0, ROWS, ROWS, ROWS, 1000)
    buffer.clear()
    assert (buffer.rows, buffer.nbytes, buffer.take().next_offsets) == (0, 0, {})
    await asyncio.wait_for(buffer.room(), 1)
