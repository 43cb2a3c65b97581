"""What is written down of a partition: which epoch counts, forgetting, states of no use."""

from __future__ import annotations

import pytest
from k2.tables.epochs import epoch_after, forgotten, key, mark, parse, read_states, unfit
from k2.tables.segments import Segments

from k2.lake.offsets import Move, Source
from k2.sequence import Chain, Memory, SymbolState

SOURCE = Source("c", "market.trades.sim", 2)
OTHER = Source("c", "market.trades.sim", 3)
Pairs = dict[bytes, bytes]


def state(offset: int) -> SymbolState:
    return Memory(1, Chain(1, 9, 9, 9, []), offset=offset).pack()


def epoch(name: str, watermark: int, *offsets: int, source: Source = SOURCE) -> Pairs:
    """One segment an offset, of no kind that is read."""
    pairs = {key(source, name, "live", n): b"%d" % at for n, at in enumerate(offsets)}
    return pairs | {key(source, name): mark(watermark, len(offsets))}


def test_forgotten_states_are_not_there_but_their_keys() -> None:
    """The first checkpoint has to replace them."""
    pairs = epoch("7-a", 20, 18, 19) | epoch("7-a", 5, 4, source=OTHER)
    _, keys = parse(pairs.items())
    forgetting = forgotten(keys[SOURCE])
    stored, keys = parse((pairs | dict([forgetting])).items())
    assert (stored[SOURCE].watermark, stored[SOURCE].segments) == (None, {})
    assert (stored[OTHER].epoch, stored[OTHER].watermark) == ("7-a", 5)
    assert len(keys[SOURCE]) == 4
    assert forgetting[0] in keys[SOURCE]


def test_what_was_forgotten_does_not_come_back() -> None:
    """Neither by a late write to its epoch, nor out of a folder that missed the deletions."""
    pairs = epoch("7-a", 20, 18) | epoch("9-b", 30, 28)
    forgetting = dict([forgotten(pairs)])
    late = epoch("7-a", 40, 38)
    stored, _ = parse((forgetting | late).items())
    assert stored[SOURCE].watermark is None
    following = epoch_after(stored[SOURCE].epoch)
    assert following.startswith("11-")
    stored, _ = parse((epoch(following, 25, 24) | late).items())
    assert (stored[SOURCE].epoch, stored[SOURCE].watermark) == (following, 25)


def test_forgetting_wins_over_an_epoch_of_the_same_number() -> None:
    """That a worker began with the states that were to be forgotten."""
    forgetting = dict([forgotten(epoch("7-a", 20, 18))])
    for pairs in (epoch("8-b", 30, 28) | forgetting, forgetting | epoch("8-b", 30, 28)):
        stored, _ = parse(pairs.items())
        assert stored[SOURCE].watermark is None


def test_forgetting_stays_until_an_epoch_is_whole() -> None:
    """A first checkpoint that is cut short changes nothing."""
    pairs = dict([forgotten(epoch("7-a", 20, 18))]) | epoch("9-b", 30, 28, 29)
    del pairs[key(SOURCE, "9-b", "live", 1)]
    assert parse(pairs.items())[0][SOURCE].watermark is None


def test_segments_are_kept_by_their_names() -> None:
    """Whatever kinds there are, and parts of their names; more than the mark says may be there."""
    written = {("sequences", 16, 3): b"a", ("live", 3): b"b", ("bars", 3, 1416529200): b"c"}
    pairs = {key(SOURCE, "7-a", *name): value for name, value in written.items()}
    pairs[key(SOURCE, "7-a")] = mark(20, 2)
    stored, keys = parse(pairs.items())
    assert (stored[SOURCE].watermark, stored[SOURCE].segments) == (20, written)
    assert keys[SOURCE] == list(pairs)


def test_the_states_are_read_from_whatever_was_stored() -> None:
    """What another release packed is as good as nothing: rebuilt, like all that is missing."""
    states = {("SIM", f"S{n}"): state(18) for n in range(40)}
    pairs = {key(SOURCE, "7-a", *name): v for name, v in Segments(states).take().items()}
    pairs[key(SOURCE, "7-a")] = mark(20, len(pairs))
    stored, _ = parse(pairs.items())
    assert read_states(stored[SOURCE]) == (20, states)
    assert read_states(None) == (None, {})
    pairs[next(iter(pairs))] = b"[1,9,[],null,1,9,19,[],0,0,0,0,0,0,0]"
    stored, keys = parse(pairs.items())
    assert read_states(stored[SOURCE]) == (None, {})
    assert len(keys[SOURCE]) == len(pairs)


def test_only_what_is_wanted_is_returned() -> None:
    pairs = epoch("7-a", 20, 18) | epoch("7-a", 5, 4, source=OTHER)
    stored, keys = parse(pairs.items(), {OTHER})
    assert (set(stored), set(keys)) == ({OTHER}, {OTHER})


STATES = {("SIM", "S0"): state(18)}


@pytest.mark.parametrize(
    ("watermark", "start", "following", "basis"),
    [
        (20, 0, 20, None),
        (20, 20, 50, None),  # the log advances it from 20
        (20, 21, 50, (20, STATES)),  # the table does, from 20
        (20, 0, 19, (0, {})),  # ahead of the table
        (18, 0, 19, None),  # a torn checkpoint: the symbol skips what it has
        (18, 19, 20, (0, {})),  # and cannot be told from the table where the log is gone
        (18, 0, 18, (0, {})),  # a symbol alone is ahead of the table
        (None, 0, 20, (0, {})),
    ],
)
def test_a_state_is_advanced_from_the_log_or_from_the_table(
    watermark: int | None, start: int, following: int, basis: object
) -> None:
    """The log if it reaches back to the watermark; nothing that the table has not."""
    symbols = {} if watermark is None else STATES
    assert unfit(SOURCE, watermark, symbols, start, following, []) == basis


def test_what_an_operator_skipped_is_not_read_for_a_state() -> None:
    """Only moves of the source itself count."""
    moves = [Move(source, 20, 40, "o", "t", "r") for source in (OTHER, SOURCE)]
    assert unfit(SOURCE, 20, STATES, 0, 40, moves[:1]) is None
    assert unfit(SOURCE, 20, STATES, 0, 40, moves) == (20, STATES)
