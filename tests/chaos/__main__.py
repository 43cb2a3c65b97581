"""`make chaos`: every fault, some rounds each, and what the oracle found."""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console
from rich.table import Table

from tests.chaos.rounds import FAULTS, Outcome, run


@click.command()
@click.option("--seed", default=1, show_default=True, help="Of streams and moments.")
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1), help="A fault.")
@click.option("--only", multiple=True, help="Faults whose name holds this; repeat for more.")
@click.option("--without", default="", help="Take a guard out of every worker: fence, watermark.")
def main(seed: int, rounds: int, only: tuple[str, ...], without: str) -> None:
    """Break K2 in every way that is known, and see whether a row is lost or doubled.

    Exit code 1 if the oracle found anything.
    """
    console = Console(stderr=True)
    faults = [fault for fault in FAULTS if not only or any(word in fault.name for word in only)]
    outcomes: list[Outcome] = []
    for fault in faults:
        for number in range(rounds):
            started = time.monotonic()
            outcome = run(fault, seed + number, without)
            seconds = time.monotonic() - started
            said = outcome.wrong.splitlines()[0][:150] if outcome.wrong else "ok"
            console.print(f"{fault.name}: {said} ({seconds:.0f} s)", highlight=False)
            outcomes.append(outcome)
    _show(outcomes)
    sys.exit(1 if any(outcome.wrong for outcome in outcomes) else 0)


def _show(outcomes: list[Outcome]) -> None:
    table = Table("fault", "rounds", "rows checked", "wrong", "recovery s, worst", "peak MB")
    for name in dict.fromkeys(outcome.fault for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.fault == name]
        table.add_row(
            name,
            str(len(own)),
            f"{sum(outcome.rows for outcome in own):,}",
            str(sum(bool(outcome.wrong) for outcome in own)),
            f"{max(outcome.recovery_s for outcome in own):.1f}",
            f"{max(outcome.rss_bytes_max for outcome in own) / 1e6:,.0f}",
        )
    console = Console()
    console.print(table)
    for outcome in outcomes:
        if outcome.wrong:
            console.print(f"{outcome.fault}: {outcome.wrong}", highlight=False, markup=False)


if __name__ == "__main__":
    main()
