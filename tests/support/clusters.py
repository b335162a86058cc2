"""A Ray cluster of several nodes on this machine, and Python environments that have our packages or have them not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2, "RAY_USAGE_STATS_ENABLED": "0"}
MARK = "CROSS_MOST_TEST_NODE"
_RAY = "from ray.scripts.scripts import main; main()"


def bare_environment(folder: Path) -> Path:
    """A Python with all libraries of this one but without our packages; the path of its interpreter.

    A line of a .pth file adds a folder, but the .pth files in that folder, such as an editable install's, are not read.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    (packages / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin" / "python"


def processes_of(mark: str) -> list[int]:
    """Processes of this machine whose environment says that they belong to a node."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}\0".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class Nodes:
    """Nodes of one cluster, each a real `ray start`; use it in a `with` block. The head runs no jobs unless told to."""

    def __init__(self, folder: Path, python: Path = Path(sys.executable), before: str = "") -> None:
        """before: Python statements that every `ray start` runs first."""
        self._folder, self._python, self._program = folder, python, before + _RAY
        self._sessions = tempfile.mkdtemp(prefix="rt", dir="/tmp")  # sockets lie below: their paths must be short
        self._started: list[tuple[str, subprocess.Popen]] = []
        self.address = ""

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        for mark, process in reversed(self._started):
            self._kill(mark, process)
        shutil.rmtree(self._sessions, ignore_errors=True)

    def head(self, *options: str) -> str:
        """Starts the head; the address that others and drivers join."""
        where = ("--head", "--port=0", "--include-dashboard=false", f"--temp-dir={self._sessions}")
        said = self._start(self._python, *where, *(options or ("--num-cpus=0",)))
        self.address = re.search(r"--address='(\S+)'", said)[1]
        return self.address

    def add(self, *options: str, python: Path | None = None) -> int:
        """Starts one more node; its number, for `kill`."""
        self._start(python or self._python, f"--address={self.address}", *(options or ("--num-cpus=1",)))
        return len(self._started) - 1

    def kill(self, number: int) -> None:
        """What a power cut does to a node: every process of it ends at once."""
        self._kill(*self._started[number])

    def _start(self, python: Path, *options: str) -> str:
        """Runs `ray start` in a folder and an environment from which our packages cannot be imported; what it says."""
        number = len(self._started)
        mark = f"{os.getpid()}-{os.path.basename(self._sessions)}-{number}"
        cwd = self._folder / f"node{number}"
        cwd.mkdir(parents=True)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | TOKEN | {MARK: mark}
        command = [python, "-c", self._program, "start", "--block", "--object-store-memory=80000000", *options]
        said = cwd / "said.txt"
        with open(said, "w") as file:
            process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL
            )
        self._started.append((mark, process))
        deadline = time.monotonic() + 120
        while "will now block" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
        return said.read_text()

    def _kill(self, mark: str, process: subprocess.Popen) -> None:
        while left := [pid for pid in processes_of(mark) if pid != process.pid]:
            for pid in (process.pid, *left):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        process.kill()
        process.wait()
