"""`python -m tests.bench`: run all contestants, check their work, print the report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import click

from k2.dev.broker import Embedded
from k2.errors import K2Error
from tests.bench.contestants import CONTESTANTS, K2_MANY
from tests.bench.freshness import Freshness, as_lines, measure
from tests.bench.measure import CheckFailed, Place, Run
from tests.bench.report import Machine, as_json, as_text
from tests.bench.workload import Plan, Workload


@click.command()
@click.option("--trades", default=2_000_000, show_default=True, type=click.IntRange(1000))
@click.option("--faust-trades", default=60_000, show_default=True, type=click.IntRange(1000))
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0))
@click.option("--symbols", default=100, show_default=True, type=click.IntRange(1, 65_535))
@click.option("--many-symbols", default=20_000, show_default=True, type=click.IntRange(1, 65_535))
@click.option(
    "--only", multiple=True, type=click.Choice(list(CONTESTANTS)), help="Repeat for more."
)
@click.option(
    "--fresh-rate",
    default=50_000,
    show_default=True,
    type=click.IntRange(1),
    help="Trades/s beside which freshness is measured.",
)
@click.option(
    "--fresh-seconds",
    default=20.0,
    show_default=True,
    type=click.FloatRange(0),
    help="How long, for each way of asking; 0, or with --only: not at all.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False))
def main(
    trades: int,
    faust_trades: int,
    runs: int,
    seed: int,
    symbols: int,
    many_symbols: int,
    only: tuple[str, ...],
    fresh_rate: int,
    fresh_seconds: float,
    json_file: Path | None,
) -> None:
    """Measure K2, with few and many symbols, a hand-written loop, stock Faust and the limit.

    And how soon a trade is seen by a query, beside a steady stream.

    The report goes to stdout, progress to stderr, and with --json all figures to a file. The exit
    code is 1 if a contestant's work failed its checks, which no timing can.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    plan = Plan(trades, faust_trades, runs, seed, symbols, many_symbols)
    machine = Machine.here()
    try:
        workload, done = _run(plan, only or tuple(CONTESTANTS))
        asked = fresh_seconds and not only
        freshness = _freshness(plan, fresh_rate, fresh_seconds) if asked else []
    except (CheckFailed, K2Error) as exc:
        raise click.ClickException(str(exc)) from exc
    except KeyboardInterrupt:
        raise click.Abort from None
    if json_file is not None:
        content = as_json(workload, machine, done)
        content["freshness"] = [asdict(each) for each in freshness]
        json_file.write_text(json.dumps(content, indent=2) + "\n")
    click.echo(as_text(workload, machine, done, as_lines(freshness)))


def _run(plan: Plan, names: tuple[str, ...]) -> tuple[Workload, list[Run]]:
    done: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="k2-bench-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        with Embedded(folder / "broker") as broker:
            assert broker.child is not None
            assert broker.child.pid is not None
            _tell(f"producing {plan.trades:,} and {plan.faust_trades:,} trades")
            workload = Workload.produce(plan, broker, folder / "feed", K2_MANY in names)
            for number in range(1, plan.runs + 1):
                for name in names:
                    label = f"bench-{number}-{len(done)}"
                    place = Place(folder / label, label, broker.child.pid)
                    _tell(f"run {number} of {plan.runs}: {name}", end="")
                    run = CONTESTANTS[name](workload, place)
                    _tell(
                        f": {run.rate:,.0f} trades/s, {run.seconds:.2f} s of "
                        f"{run.wall_seconds:.2f} s; processor {run.cpu_seconds:.1f} s, "
                        f"broker's {run.broker_cpu_seconds:.1f} s; "
                        f"load {os.getloadavg()[0]:.1f}"
                    )
                    done.append(run)
                    shutil.rmtree(place.folder, ignore_errors=True)
    return workload, done


def _freshness(plan: Plan, rate: int, seconds: float) -> list[Freshness]:
    with tempfile.TemporaryDirectory(prefix="k2-bench-", ignore_cleanup_errors=True) as folder:
        _tell(f"freshness beside {rate:,} trades/s")
        return measure(Path(folder), rate, seconds, plan.symbols, plan.seed)


def _tell(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
