"""`k2 worker` with a fault point armed, or a guard taken out: see CHAOS_* below."""

from __future__ import annotations

import os
from pathlib import Path

from k2.cli import main
from tests.chaos.mutations import MUTATIONS
from tests.chaos.points import arm

if __name__ == "__main__":
    if point := os.environ.get("CHAOS_POINT"):
        arm(
            point,
            int(os.environ["CHAOS_FIRST"]),
            int(os.environ["CHAOS_TIMES"]),
            os.environ["CHAOS_ACTION"],
            Path(os.environ["CHAOS_MARK"]),
        )
    if guard := os.environ.get("CHAOS_WITHOUT"):
        MUTATIONS[guard]()
    main()
