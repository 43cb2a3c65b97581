"""What a process may do once its walls stand; asked of the kernel, without DuckDB between."""

import socket
import subprocess
import sys

import pytest

from k2.sandbox.surroundings import environment

#: Each is run behind the walls; `F` is the own folder, `P` another one, `PORT` one that listens.
TRIED = {
    "write in the own folder": ("open(F + '/a', 'w').write('x')", "done"),
    "read in the own folder": ("open(F + '/stays').read()", "done"),
    "read another file": ("open(P + '/secret').read()", "PermissionError"),
    "read the system's": ("open('/etc/passwd').read()", "PermissionError"),
    "read the own environment": ("open('/proc/self/environ').read()", "PermissionError"),
    "list another folder": ("os.listdir(P)", "PermissionError"),
    "write elsewhere": ("open(P + '/made', 'w')", "PermissionError"),
    "remove elsewhere": ("os.remove(P + '/secret')", "PermissionError"),
    "link out of the folder": ("os.link(P + '/secret', F + '/b')", "PermissionError|OSError"),
    "follow a link": ("open(F + '/link').read()", "PermissionError"),
    "reach a port": ("socket.create_connection(('127.0.0.1', PORT))", "PermissionError"),
    "make a socket": ("socket.socket()", "PermissionError"),
    "make a pair of them": ("socket.socketpair()", "PermissionError"),
    "start a program": ("os.execv('/bin/true', ['true'])", "PermissionError"),
    "fork": ("os.fork()", "PermissionError"),
    "signal the parent": ("os.kill(os.getppid(), 0)", "PermissionError"),
    "raise a limit": ("resource.setrlimit(resource.RLIMIT_CORE, (9, 9))", "PermissionError|Value"),
    "write a long file": ("open(F + '/c', 'wb').write(bytes(3 << 20))", "OSError"),
    "take much memory": ("bytearray(1 << 32)", "MemoryError"),
    "start a thread": ("threading.Thread(target=print).start()", "done"),
}

_SCRIPT = """
import os, resource, socket, sys, threading
from pathlib import Path
from k2.sandbox import walls
F, P, PORT, code = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
walls.die_with_parent(os.getppid())
walls.limit(1 << 30, 2 << 20, 64)
missing = walls.raise_walls(Path(F))
if missing:
    print("missing", *missing)
    os._exit(0)
try:
    exec(code)
    print("done")
except BaseException as exc:
    print(type(exc).__name__)
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's walls are Linux's")
@pytest.mark.parametrize("what", TRIED)
def test_behind_the_walls(tmp_path, what):
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    (own / "stays").write_text("x")
    (other / "secret").write_text("x")
    (own / "link").symlink_to(other / "secret")
    code, wanted = TRIED[what]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        said = subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(own), str(other), port, code],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert said.returncode == 0, said.stderr
    if said.stdout.startswith("missing"):
        pytest.skip(f"this kernel has not: {said.stdout}")
    first = said.stdout.split()[0]
    assert any(first.startswith(each) for each in wanted.split("|")), said.stdout
    assert sorted(path.name for path in other.iterdir()) == ["secret"]
