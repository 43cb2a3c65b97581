"""The ledger against what the simulator injected: nothing is missed, nothing is invented."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from k2.feeds.simulate import Simulation
from k2.schemas import TRADES
from k2.sequence import Change, Rules, SymbolState, check
from tests.sequences import injected, newest

STREAMS = 1000


def batches(rng: np.random.Generator, stream: pa.Table) -> list[pa.Table]:
    """The stream cut at random; now and then a batch begins before the former one's end."""
    n = stream.num_rows
    cuts = np.sort(rng.integers(0, n + 1, int(rng.integers(0, 9)))).tolist()
    edges = [0, *cuts, n]
    backs = rng.choice([0, 0, 0, 20], len(cuts) + 1).tolist()
    return [
        stream.slice(max(a - back, 0), b - max(a - back, 0))
        for (a, b), back in zip(pairwise(edges), backs, strict=True)
    ]


def ledger(stream: pa.Table, rng: np.random.Generator, rules: Rules) -> list[Change]:
    states: dict[tuple[str, str], SymbolState] = {}
    changes: list[Change] = []
    for batch in batches(rng, stream):
        if rng.random() < 0.5:  # a restart: all that is left are bytes
            states = {key: SymbolState.from_bytes(bytes(s)) for key, s in states.items()}
        got = check(states, batch, rules, "market.trades.sim[0]")
        states.update(got.states)
        changes += got.changes
    return changes


@pytest.mark.parametrize("part", range(4))
def test_the_ledger_is_what_the_simulator_injected(part: int) -> None:
    """1,000 seeded streams, cut and restarted anywhere: every fault with its bounds, none else."""
    rules = Rules()
    faults = 0
    for seed in range(part, STREAMS, 4):
        rng = np.random.default_rng([seed, 7])
        wanted = {
            name: int(rng.integers(0, 4)) for name in ("gaps", "duplicates", "late", "resets")
        }
        wanted["resets"] = min(wanted["resets"], 2)
        simulation = Simulation(seed, symbols=2, rows=300, **wanted)
        stream = pa.concat_tables(simulation)
        offsets = np.cumsum(rng.choice([1, 1, 1, 2], stream.num_rows))
        stream = stream.append_column(TRADES.batch.field("kafka_offset"), pa.array(offsets))
        found = newest(ledger(stream, rng, rules)).values()
        expected = injected(simulation.journal.entries)
        faults += len(expected)
        assert expected == sorted(
            (c.kind, c.status, c.symbol, c.missing_first, c.missing_last) for c in found
        ), seed
        for change in found:
            proven(change, stream)
    assert faults > STREAMS


def proven(change: Change, stream: pa.Table) -> None:
    """The records that a finding names are those that it says."""
    rows = {r: i for i, r in enumerate(stream["kafka_offset"].to_pylist())}
    ends = [stream.slice(rows[o], 1).to_pylist()[0] for o in (change.from_offset, change.to_offset)]
    assert [end["ts_event"] for end in ends] == [change.from_ts, change.to_ts]
    first, last = change.missing_first, change.missing_last
    expected = {"gap": (first - 1, last + 1), "duplicates": (first, last), "reset": (last, first)}
    assert tuple(end["sequence"] for end in ends) == expected[change.kind]
    assert {end["symbol"] for end in ends} == {change.symbol}
    assert change.count == (1 if change.kind == "reset" else last - first + 1)
    shown = ends[0] if change.kind == "duplicates" else ends[1]
    assert change.seen_at == shown["ts_recv"]
    if change.status == "filled":
        filler = stream.slice(rows[change.offset], 1).to_pylist()[0]
        assert (filler["sequence"], filler["ts_recv"]) == (first, change.filled_at)
