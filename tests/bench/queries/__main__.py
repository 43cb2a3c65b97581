"""`python -m tests.bench.queries`: make the table, ask, replay, print the report."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import FrameType

import click

from k2.errors import K2Error
from k2.settings import Settings
from tests.bench.measure import CheckFailed
from tests.bench.queries.asking import CLIENTS, Plans, ask_in_turns, ask_together, compare
from tests.bench.queries.lake import Plan, make
from tests.bench.queries.replays import FORMS, replay
from tests.bench.queries.report import Found, as_json, as_text
from tests.bench.queries.rival import Rival
from tests.bench.queries.service import Client, serving
from tests.bench.report import Machine
from tests.bench.workload import EXCHANGE

COMPARED = 5
NOTHING = 200
#: How often each is asked: a tenth of it of what takes long.
_SHARES = {"point": 1.0, "bars": 1.0, "scan": 0.5, "sql": 0.1}
_FEWEST = 5


@click.command()
@click.option("--trades", default=10_000_000, show_default=True, type=click.IntRange(10_000))
@click.option("--commit-rows", default=50_000, show_default=True, type=click.IntRange(1))
@click.option(
    "--asked",
    default=300,
    show_default=True,
    type=click.IntRange(1),
    help="How often a question is asked; scans half, SQL a tenth of it.",
)
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0))
@click.option("--symbols", default=100, show_default=True, type=click.IntRange(1, 65_535))
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False))
def main(
    trades: int, commit_rows: int, asked: int, seed: int, symbols: int, json_file: Path | None
) -> None:
    """Measure queries and replays over HTTP, beside bare DuckDB over the same files.

    The report goes to stdout, progress to stderr, and with --json all figures to a file. The exit
    code is 1 if an answer is wrong, which no timing can.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    machine, plan = Machine.here(), Plan(trades, seed, symbols, commit_rows=commit_rows)
    try:
        with tempfile.TemporaryDirectory(
            prefix="k2-bench-", ignore_cleanup_errors=True
        ) as temporary:
            found = _run(Path(temporary), plan, asked)
    except (CheckFailed, K2Error) as exc:
        raise click.ClickException(str(exc)) from exc
    except KeyboardInterrupt:
        raise click.Abort from None
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(found, machine), indent=2) + "\n")
    click.echo(as_text(found, machine))


def _run(folder: Path, plan: Plan, asked: int) -> Found:
    settings = Settings(data=folder, exchanges=EXCHANGE)
    _tell(f"making a table of {plan.trades:,} trades")
    began = time.monotonic()
    lake = make(settings, plan)
    made = time.monotonic() - began
    counts = {name: max(_FEWEST, round(asked * share)) for name, share in _SHARES.items()}
    with Rival() as rival, serving(settings) as service, Client(service.url) as client:
        _tell("comparing answers")
        compare(client, rival, lake, COMPARED)
        nothing = median(client.nothing() for _ in range(NOTHING))
        _tell("asking")
        turns = ask_in_turns(client, rival, lake, Plans(settings), counts)
        _tell(f"{CLIENTS} clients at once")
        together = ask_together(service.url, rival, lake, counts)
        replays = []
        for form in FORMS:
            _tell(f"replaying: {form}")
            replays.append(replay(service, form, lake.rows))
    if len({done.digest for done in replays}) > 1:
        raise CheckFailed(f"replays: other digests: {[done.digest for done in replays]}")
    load = os.getloadavg()[0]
    return Found(lake, made, 1000 * nothing, turns, together, replays, load)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
