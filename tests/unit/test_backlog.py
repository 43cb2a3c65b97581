"""Fetches that wait together become one batch, in order, none twice and none left out."""

from __future__ import annotations

import random

import pytest
from k2.agents.backlog import Backlog, Batch

from k2.transport import Fetched, LogEnd, RecordBatch, joined


def fetched(first: int, following: int, nbytes: int = 10, seek: int = 0) -> Fetched:
    body = RecordBatch(first, following - first - 1, following - first, 0, first, False, b"")
    end = LogEnd(following, 7)
    return Fetched("t", 0, first, following, (body,), nbytes, following + 5, end, seek)


def test_those_that_wait_together_are_taken_as_one() -> None:
    backlog = Backlog()
    first = backlog.add(fetched(0, 3), 100)
    assert first is not None
    assert backlog.add(fetched(3, 4), 100) is None
    assert backlog.add(fetched(4, 9), 100) is None
    whole = first.take()
    assert (whole.first_offset, whole.next_offset, whole.nbytes) == (0, 9, 30)
    assert (whole.log_end, whole.end) == (14, LogEnd(9, 7))  # as they are now
    assert [batch.base_offset for batch in whole.batches] == [0, 3, 4]
    assert backlog.add(fetched(9, 10), 100) is not None, "joined what was taken"


@pytest.mark.parametrize(
    ("what", "second"),
    [
        ("there is no room", fetched(3, 5, nbytes=91)),
        ("read again from elsewhere", fetched(3, 5, seek=1)),
        ("something is missing", fetched(4, 5)),
    ],
)
def test_another_batch_begins_where(what: str, second: Fetched) -> None:
    backlog = Backlog()
    first = backlog.add(fetched(0, 3), 100)
    other = backlog.add(second, 100)
    assert first is not None
    assert other is not None, what
    assert (first.take(), other.take()) == (fetched(0, 3), second)
    assert first.nbytes + other.nbytes == 10 + second.nbytes


@pytest.mark.parametrize("seed", range(20))
def test_whatever_waits_when_all_is_taken_once_and_in_order(seed: int) -> None:
    rng, backlog, waiting, at, found = random.Random(seed), Backlog(), [], 0, []
    for _ in range(200):
        following = at + rng.randrange(1, 9)
        if (batch := backlog.add(fetched(at, following, rng.randrange(1, 60)), 100)) is not None:
            waiting.append(batch)
        at = following
        while len(waiting) > rng.randrange(6):
            found.append(waiting.pop(0).take())
    found += [batch.take() for batch in waiting]
    assert [f.first_offset for f in found] == [0, *(f.next_offset for f in found[:-1])]
    assert found[-1].next_offset == at
    assert sum(len(f.batches) for f in found) == 200
    sizes = [f.nbytes for f in found if len(f.batches) > 1]
    assert sizes
    assert max(sizes) <= 100


def test_one_fetch_is_itself() -> None:
    assert joined([fetched(3, 8)]) == fetched(3, 8)
    assert Batch(fetched(3, 8)).take() == fetched(3, 8)
