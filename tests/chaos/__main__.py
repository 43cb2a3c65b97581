"""`make chaos`: every fault, some rounds each, and what the oracle found."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from k2.dev import jars
from k2.dev.seaweed import SeaweedFS
from tests.chaos.faults import FAULTS
from tests.chaos.lakes import Place, embedded, kafka
from tests.chaos.mutations import GUARDED, MUTATIONS, PROOF, misread_cases
from tests.chaos.rounds import Outcome, run


@click.command()
@click.option("--seed", default=1, show_default=True, help="Of streams and moments.")
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1), help="A fault.")
@click.option("--only", multiple=True, help="Faults whose name holds this; repeat for more.")
@click.option(
    "--on",
    type=click.Choice(["embedded", "kafka"]),
    help="Only with this broker; kafka has its lake on S3 behind a REST catalog.  [default: both]",
)
@click.option(
    "--without", default="", type=click.Choice(["", *MUTATIONS]), help="A guard to take out."
)
def main(seed: int, rounds: int, only: tuple[str, ...], on: str | None, without: str) -> None:
    """Break K2 in every way that is known, and see whether a row is lost or doubled.

    Exit code 1 if the oracle found anything.
    """
    # Else servers and workers would outlive it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console = Console(stderr=True)
    faults = [fault for fault in FAULTS if not only or any(word in fault.name for word in only)]
    outcomes: list[Outcome] = []
    with _places(on, console) as places:
        for name, place in places.items():
            for fault in (fault for fault in faults if name in fault.places):
                for number in range(rounds):
                    started = time.monotonic()
                    outcome = run(fault, seed + number, name, place, without)
                    seconds = time.monotonic() - started
                    said = outcome.wrong.splitlines()[0][:150] if outcome.wrong else "ok"
                    said += f", {outcome.rows:,} rows, recovery {outcome.recovery_s:.1f} s"
                    console.print(
                        f"{name}: {fault.name}: {said} ({seconds:.0f} s)", highlight=False
                    )
                    outcomes.append(outcome)
    _show(outcomes)
    failed = any(outcome.wrong for outcome in outcomes)
    if not (only or without):
        failed = not _show_guards(seed, console) or failed
    sys.exit(1 if failed else 0)


@contextmanager
def _places(on: str | None, console: Console) -> Iterator[dict[str, Place]]:
    """Those asked for; without Java only the embedded one, and a word about it."""
    places: dict[str, Place] = {} if on == "kafka" else {"embedded": embedded}
    lacking = "" if on == "embedded" else jars.missing()
    if lacking and (on == "kafka" or os.environ.get("CI")):
        raise click.ClickException(f"Apache Kafka cannot run: {lacking}")
    if lacking:
        console.print(f"Apache Kafka is left out: {lacking}", style="yellow")
    if on == "embedded" or lacking:
        yield places
        return
    with tempfile.TemporaryDirectory(prefix="k2-chaos-") as data, SeaweedFS(Path(data)) as store:
        yield {**places, "kafka": kafka(store)}


def _show(outcomes: list[Outcome]) -> None:
    table = Table(
        "broker", "fault", "rounds", "rows checked", "lost", "doubled", "failed",
        "recovery s, worst", "peak MB",
    )  # fmt: skip
    for place, name in dict.fromkeys((outcome.place, outcome.fault) for outcome in outcomes):
        own = [each for each in outcomes if (each.place, each.fault) == (place, name)]
        peak = max(outcome.rss_bytes_max for outcome in own)
        table.add_row(
            place,
            name,
            str(len(own)),
            f"{sum(outcome.rows for outcome in own):,}",
            str(sum(outcome.lost for outcome in own)),
            str(sum(outcome.doubled for outcome in own)),
            str(sum(bool(outcome.wrong) for outcome in own)),
            f"{max(outcome.recovery_s for outcome in own):.1f}",
            f"{peak / 1e6:,.0f}" if peak else "",
        )
    console = Console(width=max(120, Console().width))
    console.print(table)
    for outcome in outcomes:
        if outcome.wrong:
            said = f"{outcome.place}: {outcome.fault}: {outcome.wrong}"
            console.print(said, highlight=False, markup=False)


def _show_guards(seed: int, console: Console) -> bool:
    """Each guard taken out, and what the oracle said; whether it always said something."""
    table = Table("guard taken out", "fault", "what then shows")
    shown = True
    for guard, name in GUARDED.items():
        (fault,) = (fault for fault in FAULTS if fault.name == name)
        outcome = run(fault, seed, "embedded", embedded, guard)
        found = outcome.lost + outcome.doubled
        said = f"{outcome.lost} lost, {outcome.doubled} doubled" if found else "nothing"
        console.print(f"without {guard}: {name}: {said}", highlight=False)
        table.add_row(guard, name, said)
        shown = shown and found > 0
    cases, misread = 200, misread_cases(200)
    table.add_row(PROOF, "damaged records", f"{misread} of {cases} fuzz cases are misread")
    Console(width=max(120, Console().width)).print(table)
    return shown and misread > 0


if __name__ == "__main__":
    main()
