"""What a sandbox process has around it: an environment without secrets, and a folder of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["Folder", "environment"]

_PREFIX = "sql-"
#: Names of places that Python needs where it is not installed as usual; nothing else is inherited.
_INHERITED = ("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    # No threads before the walls stand, which hold for a thread and for those that it starts.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OPENBLAS_NUM_THREADS": "1",
    # A process has an address space to keep within.
    "MALLOC_ARENA_MAX": "2",
}


def environment() -> dict[str, str]:
    """All that a process inherits: no secret."""
    own = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**_ENVIRONMENT, **own}


class Folder:
    """An empty folder that is locked as long as this process lives, and removed by `close`."""

    def __init__(self, parent: Path) -> None:
        """Make it; those of workers that no longer live are removed first."""
        place = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # One at a time: a folder that was made and is not locked yet is nobody's to remove.
            fcntl.flock(place, fcntl.LOCK_EX)
            for other in parent.glob(f"{_PREFIX}*"):
                if (held := _locked(other)) is not None:
                    shutil.rmtree(other, ignore_errors=True)
                    os.close(held)
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._held = _locked(self.path)
        finally:
            os.close(place)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)


def _locked(folder: Path) -> int | None:
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None  # gone
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(place)
        return None
    return place
