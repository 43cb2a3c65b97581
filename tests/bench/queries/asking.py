"""The questions, one at a time and sixteen clients at once, asked of both sides in turns.

Both sides get the same questions with the same values, and take turns in being first. Before
anything is timed, answers of both are compared, row by row; what is timed must have as many rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice

import pyarrow as pa

from k2.lake.catalog import open_catalog, table_name
from k2.query.index import Bound, Files, Tables
from k2.schemas import TRADES
from k2.settings import Settings
from tests.bench.measure import CheckFailed
from tests.bench.queries.lake import Lake
from tests.bench.queries.questions import NAMES, Asked, ask
from tests.bench.queries.rival import Rival, Task
from tests.bench.queries.service import Client, Refused

__all__ = [
    "CLIENTS", "Plans", "Together", "Turns", "ask_in_turns", "ask_together", "compare",
    "require_alike",
]  # fmt: skip

CLIENTS = 16
ROUNDS = 3
#: Seeds of the values: those that are compared, which also warm up, and those that are timed.
_COMPARED, _TIMED, _AT_ONCE = 0, 1, 2

Answer = tuple[float, int]


@dataclass(slots=True)
class Turns:
    """Of one question; seconds of each answer."""

    name: str
    k2: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    told: list[float] = field(default_factory=list)  # bare, told which files hold the answer
    rows: int = 0  # of all answers
    files: int = 0  # that hold the answers, of all


@dataclass(slots=True)
class Together:
    """Of one question, asked by `CLIENTS` at once; seconds of each answer, and of all."""

    name: str
    k2: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    k2_seconds: float = 0.0
    bare_seconds: float = 0.0
    refused: int = 0  # by K2: no process for SQL was free in time


class Plans:
    """Which files hold an answer, found outside the clock by the index that K2 has too."""

    def __init__(self, settings: Settings) -> None:
        tables = Tables(open_catalog(settings))
        self._files: Files = tables.load(table_name(settings, TRADES)).files()

    def of(self, asked: Asked) -> list[str]:
        values, bounds = asked.values, []
        if "symbol" in values:
            bounds.append(Bound("symbol", [values["symbol"]]))
        if "start" in values:
            since, until = values["start"] // 1000, (values["end"] - 1) // 1000
            bounds.append(Bound("event_time", least=since, greatest=until))
        paths = self._files.among(bounds)["path"].to_list()
        return [path.removeprefix("file://") for path in paths]


def compare(client: Client, rival: Rival, lake: Lake, count: int) -> None:
    """Ask `count` of each question of both sides.

    Raises:
        CheckFailed: the answers are not equal, or all are empty.
    """
    for name in NAMES:
        found = 0
        for asked in ask(name, lake.plan, count, _COMPARED):
            mine = client.rows(asked).select(asked.compared)
            theirs = rival.rows((asked, lake.paths)).select(asked.compared)
            require_alike(f"{name}: {asked.values}", mine, theirs)
            found += mine.num_rows
        if not found:
            raise CheckFailed(f"{name}: {count} answers, and no row")


def require_alike(what: str, mine: pa.Table, theirs: pa.Table) -> None:
    """Compare the values of answers; DuckDB's types may be wider.

    Raises:
        CheckFailed: they differ.
    """
    pieces = [
        {field.name: rows[field.name].cast(field.type).combine_chunks() for field in mine.schema}
        for rows in (mine, theirs)
    ]
    if pa.table(pieces[0]) != pa.table(pieces[1]):
        raise CheckFailed(
            f"{what}: the answers differ: {mine.num_rows} rows of K2, {theirs.num_rows} of DuckDB"
        )


def ask_in_turns(
    client: Client, rival: Rival, lake: Lake, plans: Plans, counts: Mapping[str, int]
) -> list[Turns]:
    """One client, one question at a time."""
    return [
        _in_turns(Turns(name), client, rival, lake, plans, ask(name, lake.plan, count, _TIMED))
        for name, count in counts.items()
    ]


def _in_turns(
    done: Turns,
    client: Client,
    rival: Rival,
    lake: Lake,
    plans: Plans,
    questions: Sequence[Asked],
) -> Turns:
    for number, asked in enumerate(questions):
        known = plans.of(asked)
        ways: list[tuple[list[float], Callable[[], Answer]]] = [
            (done.k2, partial(client.ask, asked)),
            (done.bare, partial(rival.ask, (asked, lake.paths))),
            (done.told, partial(rival.ask, (asked, known))),
        ]
        rows = set()
        for times, way in islice(cycle(ways), number % 3, number % 3 + 3):
            seconds, count = way()
            times.append(seconds)
            rows.add(count)
        if len(rows) > 1:
            raise CheckFailed(f"{done.name}: {asked.values}: {rows} rows")
        done.rows += rows.pop()
        done.files += len(known)
    return done


def ask_together(url: str, rival: Rival, lake: Lake, counts: Mapping[str, int]) -> list[Together]:
    """`CLIENTS` clients, each with its own questions, as fast as they are answered."""
    found = []
    for name, count in counts.items():
        done, each = Together(name), max(1, count // (CLIENTS * ROUNDS))
        for number in range(ROUNDS):
            questions = ask(name, lake.plan, CLIENTS * each, _AT_ONCE + number)
            shares = [questions[place::CLIENTS] for place in range(CLIENTS)]
            if number % 2:
                _bare_at_once(done, rival, lake, shares)
                _k2_at_once(done, url, shares)
            else:
                _k2_at_once(done, url, shares)
                _bare_at_once(done, rival, lake, shares)
        found.append(done)
    return found


def _k2_at_once(done: Together, url: str, shares: Sequence[Sequence[Asked]]) -> None:
    def work(share: Sequence[Asked]) -> tuple[list[float], int]:
        times, refused = [], 0
        with Client(url) as client:
            for asked in share:
                try:
                    times.append(client.ask(asked)[0])
                except Refused:
                    refused += 1
        return times, refused

    with ThreadPoolExecutor(len(shares)) as pool:
        began = time.perf_counter()
        answers = list(pool.map(work, shares))
        done.k2_seconds += time.perf_counter() - began
    for times, refused in answers:
        done.k2 += times
        done.refused += refused


def _bare_at_once(
    done: Together, rival: Rival, lake: Lake, shares: Sequence[Sequence[Asked]]
) -> None:
    tasks: list[list[Task]] = [[(asked, lake.paths) for asked in share] for share in shares]
    seconds, answers = rival.together(tasks)
    done.bare_seconds += seconds
    done.bare += [each for each, _ in answers]
