"""An operator's moves: in both tables, carried forward, fenced, and known to the audit."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from test_lake_audit import A, B, Lake, found, lake, reject, trade

from k2.errors import Fenced, K2Error, SchemaMismatch
from k2.lake.moves import Offsets
from k2.lake.offsets import (
    MOVES_MAX,
    Move,
    Source,
    Topic,
    anew,
    decode_moves,
    decode_topics,
    encode_moves,
    encode_topics,
    kept_under,
)
from k2.lake.states import rebuild
from k2.schemas import TRADES
from k2.sequence import Rules, check

__all__ = ["lake"]


def offsets(lake: Lake) -> Offsets:
    return Offsets(lake.catalog, lake.settings)


def test_moves_survive_every_encoding() -> None:
    """None, and whatever an operator types."""
    moves = [
        Move(A, None, 5, "me@here", "now", 'a "reason", ünicode'),
        Move(B, 5, None, "", "", ""),
    ]
    assert decode_moves(encode_moves(moves)) == moves
    assert decode_moves(None) == []
    with pytest.raises(SchemaMismatch, match="no list of moves"):
        decode_moves('[["c"]]')


def test_ids_of_topics_survive_encoding_in_their_order() -> None:
    """Where the broker names no id, the newest holds."""
    topics = {Topic("c", "t"): "z", Topic("c/a", "t"): "a", Topic("b", "ü"): "1"}
    assert list(decode_topics(encode_topics(topics)).items()) == list(topics.items())
    assert decode_topics(None) == {}


@pytest.mark.parametrize(
    ("topic_id", "known", "cluster"),
    [
        ("x", {}, "c"),
        (None, {}, "c"),
        ("x", {Topic("c", "t"): "x"}, "c"),
        ("y", {Topic("c", "t"): "x"}, None),
        (None, {Topic("c", "t"): "x"}, "c"),
        ("y", {Topic("c", "t"): "x", Topic("c/y", "t"): "y"}, "c/y"),
        ("x", {Topic("c", "t"): "x", Topic("c/y", "t"): "y"}, "c"),
        ("z", {Topic("c", "t"): "x", Topic("c/y", "t"): "y"}, None),
        (None, {Topic("c", "t"): "x", Topic("c/y", "t"): "y"}, "c/y"),
        ("y", {Topic("c", "other"): "x", Topic("d", "t"): "x", Topic("c/z", "t"): "x"}, "c"),
    ],
)
def test_a_topic_is_kept_under_its_cluster_until_it_is_made_anew(
    topic_id: str | None, known: dict[Topic, str], cluster: str | None
) -> None:
    """Other topics, other clusters, and a cluster whose name only looks alike, say nothing."""
    assert kept_under("c", "t", topic_id, known) == cluster


def test_a_topic_made_anew_is_accepted_in_both_tables_as_a_log_of_its_own(lake: Lake) -> None:
    """The same offsets in both logs are other records; twice in one of them is twice."""
    lake.add([trade(0), trade(1)], {A: 2})
    new = Source(anew("c", "y"), A.topic, A.partition)
    offsets(lake).accept(Topic(*new[:2]), "y", {new: 0}, "deleted by mistake")
    own = offsets(lake)
    assert (own.records, own.rejects, own.topics) == ({A: 2}, {}, {Topic("c/y", A.topic): "y"})
    assert own.gaps == {}
    (move,) = own.moves
    assert (move.source, move.before, move.after) == (new, None, 0)
    assert str(move).startswith("begun at 0 by ")
    lake.add([trade(o, new, sequence=o + 2) for o in range(3)], {new: 3})
    lake.add([reject(3, new)], {new: 4})
    lake.add([], {new: 4})
    report = lake.audit()
    assert (report.findings, report.rows) == ([], 6)
    lake.add([trade(1, new, sequence=9)], {})
    assert found(lake.audit()) == [("offset_twice", "error")]


def test_an_accepted_topic_is_fenced_by_a_worker_that_was_quicker(lake: Lake) -> None:
    """Nothing of it may have been read."""
    new = Source(anew("c", "y"), A.topic, A.partition)
    own = offsets(lake)
    lake.add([trade(0, new)], {new: 1})
    with pytest.raises(Fenced, match="expected next offset None, found 1"):
        own.accept(Topic(*new[:2]), "y", {new: 0}, "too late")


def test_ids_are_forgotten_with_a_cluster_that_is_gone_only(lake: Lake) -> None:
    """A present topic that is made anew later must still be told from its former self."""
    topic = Topic(*A[:2])
    lake.sinks[TRADES.table].commit([], {}, {A: 1}, topics={topic: "x"})
    offsets(lake).forget([A], "read it again")
    assert offsets(lake).topics == {topic: "x"}
    lake.add([trade(0)], {A: 1})
    offsets(lake).forget([A], "gone", topics=True)
    assert offsets(lake).topics == {}


def test_a_move_is_in_both_tables_and_carried_forward(lake: Lake) -> None:
    """Later commits know it although their snapshots' parents expire; others' offsets stay."""
    lake.add([trade(0), trade(0, B)], {A: 1, B: 1})
    own = offsets(lake)
    own.move(A, 10, "retention")
    assert (own.records, own.rejects) == ({A: 10, B: 1}, {A: 10})
    lake.add([trade(10)], {A: 11})
    (move,) = offsets(lake).moves
    assert (move.source, move.before, move.after, move.reason) == (A, 1, 10, "retention")


def test_the_audit_knows_what_was_given_up(lake: Lake) -> None:
    """What was skipped is explained, any other hole is not; also before the first row."""
    lake.add([trade(0)], {A: 1})
    offsets(lake).move(A, 10, "retention")
    offsets(lake).move(B, 7, "new")
    assert found(lake.audit()) == [("hole", "ok"), ("hole", "ok")]
    lake.add([trade(10), trade(12), trade(7, B)], {A: 13, B: 8})
    report = lake.audit()
    assert found(report) == [("hole", "ok"), ("hole", "error"), ("hole", "ok")]
    assert "[1..9] (9 offsets): moved from 1 to 10 by " in report.findings[0].detail
    assert "[11..11]" in report.findings[1].detail


def test_a_move_back_leaves_rows_beyond_with_a_name(lake: Lake) -> None:
    """The operator was told; the audit says it again, as a warning."""
    lake.add([trade(n) for n in range(10)], {A: 10})
    offsets(lake).move(A, 4, "made anew")
    assert found(lake.audit()) == [("beyond_offset", "warning")]


def test_forgotten_sources_are_checked_by_what_is_there(lake: Lake) -> None:
    """Their rows stay and nothing is promised any more."""
    lake.add([trade(0), trade(0, B)], {A: 1, B: 1})
    lake.add([reject(1)], {A: 2})
    own = offsets(lake)
    own.forget([A], "gone")
    assert (own.records, own.rejects) == ({B: 1}, {})
    report = lake.audit()
    assert found(report) == [("no_offset", "ok"), ("no_offset", "ok"), ("ahead", "warning")]


def test_a_move_is_fenced_by_a_worker_that_commits_meanwhile(lake: Lake) -> None:
    """What the operator saw is no longer so."""
    lake.add([trade(0)], {A: 1})
    own = offsets(lake)
    lake.add([trade(1)], {A: 2})
    with pytest.raises(Fenced, match="expected next offset 1, found 2"):
        own.move(A, 10, "too late")


def test_moves_are_bounded(lake: Lake) -> None:
    """Each snapshot carries all of them."""
    own = offsets(lake)
    own.moves = [Move(A, None, 1, "", "", "")] * MOVES_MAX
    with pytest.raises(K2Error, match="more than 1000 moves"):
        own.move(A, 10, "once more")


def test_a_state_from_the_table_is_the_state_of_the_stream(tmp_path: Path) -> None:
    """Gaps, late rows, several symbols, files and commits in any order of time; from any point."""
    lake = Lake(tmp_path)
    numbers = [0, 1, 5, 6, 3, 7, 20, 21, 4, 22]
    rows = [
        trade(o, sequence=n, ts_event=o * 10**9, symbol=f"S{o % 2}") for o, n in enumerate(numbers)
    ]
    lake.add([trade(o, B) for o in range(10)], {B: 10})
    for first in (0, 4, 8):
        lake.add(rows[first : first + 4], {A: first + 4})
    rules = Rules()
    stream = pa.Table.from_pylist(rows, TRADES.table).select(TRADES.batch.names)
    whole = check({}, stream, rules).states
    settings = replace(lake.settings, query_memory_max=64 * 2**20)
    assert rebuild(lake.catalog, settings, TRADES, A, {}, 0, 10, rules) == whole
    half = check({}, stream.slice(0, 5), rules).states
    assert rebuild(lake.catalog, settings, TRADES, A, {}, 0, 5, rules) == half
    assert rebuild(lake.catalog, settings, TRADES, A, half, 5, 10, rules) == whole
    assert rebuild(lake.catalog, settings, TRADES, A, half, 10, 10, rules) == half
