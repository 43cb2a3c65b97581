"""The app makes its folder when it starts; a worker that hangs while it stops ends all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HANGS = """
import asyncio
import faust
from k2 import app as k2_app, process

async def hang(self):
    await asyncio.Event().wait()

faust.App.stop = hang
process.STOP_MARGIN_S = 0.1
asyncio.run(k2_app.app.stop())
"""


IMPORTED = """
import asyncio
from k2.app import app

print(app.settings.data.exists())
asyncio.run(app.on_first_start())
print(app.conf.tabledir.is_dir())
"""


def test_import_of_the_app_makes_no_folder_and_its_start_does(tmp_path: Path) -> None:
    data = tmp_path / "some" / "data"
    env = dict(os.environ, K2_DATA=str(data), K2_WORKER="w")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False\nTrue\n", done.stderr
    assert [path.name for path in (data / "tables").iterdir()] == ["w"]


@pytest.mark.slow
def test_stop_that_hangs_ends_the_process_and_says_so(tmp_path: Path) -> None:
    env = dict(os.environ, K2_DATA=str(tmp_path), K2_SHUTDOWN_TIMEOUT_MS="100")
    done = subprocess.run(
        [sys.executable, "-c", HANGS], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "not stopped within 0.2 s: ending the process" in done.stderr
