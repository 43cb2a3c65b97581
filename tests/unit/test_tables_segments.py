"""The segments that sequence states are written in: what is packed, split, and found again."""

from __future__ import annotations

import random
from pathlib import Path

import k2.tables.segments
import pyarrow as pa
import pytest
from k2.tables.segments import (
    BUCKETS,
    SEGMENT_BYTES_MAX,
    Name,
    Segments,
    Symbols,
    bucket,
    unpack,
)

from k2.app import create_app
from k2.sequence import Chain, Gap, Memory, SymbolState
from k2.settings import Settings


def state(offset: int, *gaps: Gap) -> SymbolState:
    chain = Chain(1, 9, 9, 9, [*Chain.unseen_below(1), *gaps])
    return Memory(1, chain, offset, gaps_found=len(gaps)).pack()


def quiet(count: int, offset: int = 7) -> Symbols:
    return {("SIM", f"S{n}"): state(offset) for n in range(count)}


def broken(chance: random.Random, offset: int) -> SymbolState:
    """A state of nearly 1 KB, packed."""
    starts = sorted(chance.sample(range(10**15, 2**62), 60))
    return state(offset, *(Gap(at, at, ((at, at),), 1, at, at, offset, at, at) for at in starts))


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """A record of a few broken states is too large."""
    monkeypatch.setattr(k2.tables.segments, "SEGMENT_BYTES_MAX", 8 * 1024)
    return 8 * 1024


def names(taken: dict[Name, bytes], symbols: Symbols) -> set[Name]:
    """Which of the segments hold any of the symbols."""
    return {name for name, value in taken.items() if symbols.keys() & unpack({name: value}).keys()}


def test_every_state_is_found_again() -> None:
    """Whatever exchange, symbol and state; each symbol in one segment, the first time in all."""
    states = quiet(500) | {
        ("SIM", "BTC/USD"): state(3),
        ("ASX", "S1"): state(4, Gap(2, 2, ((2, 2),), offset=3)),
        ("SIM", ""): state(5),
        ("SIM", "naïve \0"): state(6),
    }
    segments = Segments(states)
    taken = segments.take()
    assert (len(taken), len(segments)) == (BUCKETS, BUCKETS)
    assert unpack(taken) == states
    assert sum(len(unpack({name: value})) for name, value in taken.items()) == len(states)


def test_only_segments_with_a_change_are_written() -> None:
    segments = Segments(quiet(500))
    kept = segments.take()
    assert segments.take() == {}
    changed = {("SIM", "S3"): state(9), ("SIM", "new"): state(10)}
    segments.update(changed)
    taken = segments.take()
    assert set(taken) == names(taken, changed)
    assert len(taken) == len({bucket(*key) for key in changed})
    assert unpack(kept | taken) == quiet(500) | changed


def test_a_change_is_seen_whatever_was_dirty_before(limit: int) -> None:
    """Also where segments are split; of those some are empty, and never dirty again."""
    chance = random.Random(2)
    states = {key: broken(chance, 50) for key in quiet(100)}
    segments = Segments(states)
    kept = segments.take()
    for offset in range(60, 90):
        for key in chance.sample(sorted(states), chance.choice([1, 40, 100])):
            states[key] = state(offset)
            segments.update({key: states[key]})
        kept |= segments.take()
        assert unpack(kept) == states


def test_no_symbol_no_segment() -> None:
    assert (Segments({}).take(), len(Segments({}))) == ({}, 0)


def test_a_symbols_bucket_is_the_same_for_ever() -> None:
    """Another one would leave an old state where no checkpoint replaces it."""
    found = [bucket("SIM", f"S{n}") for n in range(6)]
    assert found == [bucket("SIM", f"S{n}", 16) for n in range(6)] == [9, 15, 5, 3, 0, 6]
    assert bucket("SIM", "S0", 32) == 25


def test_a_segment_holds_no_more_than_a_record_may(limit: int) -> None:
    """It is split, again and again; the former one is written behind its parts, and empty."""
    chance = random.Random(1)
    segments, states = Segments(quiet(2000)), quiet(2000)
    kept = segments.take()
    for offset in range(100, 400, 100):
        grown = {("SIM", f"S{n}"): broken(chance, offset) for n in range(offset - 100, offset)}
        segments.update(grown)
        states |= grown
        taken = segments.take()
        assert max(map(len, taken.values())) <= limit
        kept |= taken
        assert unpack(kept) == states
        assert len(kept) == len(segments)
    assert len(segments) > BUCKETS
    late = {("SIM", f"late{n}"): state(500) for n in range(200)}
    segments.update(late)
    assert unpack(kept | segments.take()) == states | late


@pytest.mark.parametrize("seed", range(3))
def test_a_split_that_is_cut_short_loses_no_state(seed: int, limit: int) -> None:
    """After any number of records: none is older than at the checkpoint before."""
    chance = random.Random(seed)
    segments = Segments(quiet(400))
    kept = segments.take()
    before = unpack(kept)
    grown = {key: broken(chance, 50) for key in chance.sample(sorted(before), 200)}
    segments.update(grown)
    taken = segments.take()
    assert len(kept | taken) > len(kept)
    for written in range(len(taken) + 1):
        found = unpack(kept | dict(list(taken.items())[:written]))
        assert found.keys() == before.keys()
        assert all(found[key] in (before[key], grown.get(key)) for key in before)
    assert found == before | grown


def test_what_cannot_be_split_is_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state alone, or those of one hash: whether it is taken, the broker says."""
    chance = random.Random(1)
    monkeypatch.setattr(k2.tables.segments, "SEGMENT_BYTES_MAX", 1024)
    monkeypatch.setattr(k2.tables.segments, "_MODULUS_MAX", 64)
    large = {("SIM", f"S{n}"): broken(chance, 50) for n in range(200)}
    segments = Segments(large)
    taken = segments.take()
    assert unpack(taken) == large
    assert {name[1] for name in names(taken, large)} == {64}
    assert len(taken) == len(segments) == 16 + 32 + 64


def test_segments_of_another_kind_are_left_out() -> None:
    taken = Segments(quiet(3)).take()
    assert unpack(taken | {("live", 3): b"?", ("bars", 3, 1416529200): b"?"}) == quiet(3)


def test_what_another_release_packed_is_named() -> None:
    """Another form of the segment, of its columns, or of a state."""
    with pytest.raises(ValueError, match="no segment of sequence states"):
        unpack({("sequences", 16, 3): b"[1,2]"})
    for columns, message in (
        ({"exchange": ["SIM"], "state": [b""]}, "a segment of other columns"),
        ({"exchange": ["SIM"], "symbol": ["A"], "state": [b"[1,9]"]}, "no sequence state of form"),
    ):
        kinds = {"exchange": pa.string(), "symbol": pa.string(), "state": pa.binary()}
        schema = pa.schema([pa.field(name, kinds[name], nullable=False) for name in columns])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(pa.table(columns, schema=schema))
        with pytest.raises(ValueError, match=message):
            unpack({("sequences", 16, 3): sink.getvalue().to_pybytes()})


def test_the_producer_takes_a_whole_segment(tmp_path: Path) -> None:
    """With room for its key and the record's frame; so does a broker, by default 1 MiB."""
    app = create_app(Settings(data=tmp_path))
    assert SEGMENT_BYTES_MAX + 64 * 1024 <= app.conf.producer_max_request_size <= 1024 * 1024
