"""The app's stop has a deadline: a worker that hangs while it stops ends all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HANGS = """
import asyncio
import faust
from k2 import app as k2_app

async def hang(self):
    await asyncio.Event().wait()

faust.App.stop = hang
k2_app.STOP_MARGIN_S = 0.1
asyncio.run(k2_app.app.stop())
"""


@pytest.mark.slow
def test_stop_that_hangs_ends_the_process_and_says_so(tmp_path: Path) -> None:
    env = dict(os.environ, K2_DATA=str(tmp_path), K2_SHUTDOWN_TIMEOUT_MS="100")
    done = subprocess.run(
        [sys.executable, "-c", HANGS], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "not stopped within 0.2 s: ending the process" in done.stderr
