"""Faust's recovery, which waits for as long as the sinks need."""

from __future__ import annotations

import asyncio
from pathlib import Path

from k2.app import create_app
from k2.settings import Settings


async def test_no_time_is_too_long(tmp_path: Path) -> None:
    """Faust's own would raise ServiceStopped here, end its loop, and never read again."""
    recovery = create_app(Settings(data=tmp_path)).tables.recovery
    done = asyncio.Event()

    async def seek() -> None:
        await asyncio.sleep(0.05)
        done.set()

    await recovery._wait(seek(), timeout=0.001)
    assert done.is_set()
