"""The process in which readers meet hostile files. It outlives its cases; whoever started it watches the clock.

One JSON object a line: {"do": "make"|"run", "kind", "seed" or "case", "armed"} in, what became of it out. While a case
runs, an audit hook notes code from elsewhere, processes, sockets, pickled names, and files outside the case's folders.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

SECONDS = 20
MAPPED = 4 << 30  # bytes that a case may map beyond what is mapped already: it protects the machine, not the rule
_STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
_REACHES = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "urllib.Request")
_CHANGES = {  # event -> which of its arguments are paths that it changes
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.link": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.utime": (0,),
    "shutil.rmtree": (0,),
    "shutil.move": (0, 1),
    "shutil.unpack_archive": (0, 1),
}


class Guard:
    """What must not happen while a case runs. violations: one line each, the first of each kind."""

    def __init__(self) -> None:
        self.armed, self.writable, self.forbidden = False, "", ""
        self.violations: list[str] = []
        self._libraries = (*map(os.path.realpath, (sys.prefix, sys.base_prefix, os.getcwd())), "<frozen")

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.armed:
            return
        self.armed = False  # what is done here is not watched
        try:
            found = self._violation(event, arguments)
            if found and len(self.violations) < 5:
                self.violations.append(found)
        finally:
            self.armed = True

    def _violation(self, event: str, arguments: tuple) -> str:
        if event in ("compile", "exec"):
            return self._code(event, arguments)
        if event == "open":
            return self._opened(*arguments)
        if event == "ctypes.dlopen":
            return (
                "" if arguments[0] is None or str(arguments[0]).startswith(self._libraries) else f"{event} {arguments}"
            )
        if event in _STARTS or event in _REACHES or event == "pickle.find_class":
            return f"{event} {str(arguments)[:200]}"
        for number in _CHANGES.get(event, ()):
            if not self._may_write(arguments[number]):
                return f"{event} {str(arguments)[:200]}"
        return ""

    def _code(self, event: str, arguments: tuple) -> str:
        """Modules of libraries may still be loaded, and numpy reads a literal (no code) to know an array's shape."""
        name = getattr(arguments[0], "co_filename", None) if event == "exec" else arguments[1]
        name = os.fsdecode(name) if isinstance(name, bytes | str) else str(name)
        known = name.startswith(self._libraries) or os.path.realpath(name).startswith(self._libraries)
        if known or (event == "compile" and name == "<unknown>" and _called_by("literal_eval")):
            return ""
        if name in ("<string>", "<__array_function__ internals>") and _called_by(
            "namedtuple", "_create_fn", "exec_module"
        ):
            return ""
        return f"{event} of {name!r}"

    def _opened(self, path: Any, mode: Any, flags: Any) -> str:
        if isinstance(path, int):
            return ""
        real = os.path.realpath(os.fsdecode(path))
        if self.forbidden and real.startswith(self.forbidden):
            return f"open of {real}, which lies outside the source"
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        return f"open for writing of {real}" if writes and not self._may_write(path) else ""

    def _may_write(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        text = os.fsdecode(path)
        real = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(text))), os.path.basename(text))
        return real == self.writable or real.startswith(self.writable + os.sep) or real == os.devnull


def _called_by(*names: str) -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in names:
            return True
        frame = frame.f_back
    return False


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) / 1024


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()


def answer(order: dict[str, Any], guard: Guard) -> dict[str, Any]:
    """What became of one case: `ok`, or the error with the names of its type and all above it."""
    from fuzz_kinds import KINDS

    kind, case = KINDS[order["kind"]], Path(order["case"])
    guard.violations = []
    guard.writable = os.path.realpath(case / kind.writable)
    guard.forbidden = order.get("canary", "")
    Path("/proc/self/clear_refs").write_text("5")
    if order.get("armed", True):
        resource.setrlimit(resource.RLIMIT_AS, (_mapped() + MAPPED, resource.RLIM_INFINITY))
    faulthandler.dump_traceback_later(SECONDS - 1)
    started, cpu = time.monotonic(), time.process_time()
    found: dict[str, Any] = {"outcome": "ok"}
    guard.armed = order.get("armed", True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found["note"] = str(kind.run(case) or "")[:200]
    except BaseException as error:
        guard.armed = False
        names = [each.__name__ for each in type(error).__mro__]
        found = {"outcome": "error", "types": names, "message": str(error)[:2000]}
        found["trace"] = traceback.format_exc(limit=-12)[-4000:]
    finally:
        guard.armed = False
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    found |= {"seconds": round(time.monotonic() - started, 3), "cpu": round(time.process_time() - cpu, 3)}
    return found | {"peak_mb": round(_peak_mb(), 1), "violations": guard.violations}


def main() -> None:
    """Answers orders until the other side closes the pipe."""
    orders, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = io.StringIO()
    sys.dont_write_bytecode = True
    faulthandler.enable()
    guard = Guard()
    sys.addaudithook(guard)
    for line in orders:
        order = json.loads(line)
        if order["do"] == "make":
            from fuzz_kinds import KINDS

            (Path(order["case"]) / "in").mkdir(parents=True)
            KINDS[order["kind"]].make(Path(order["case"]))
            found: dict[str, Any] = {"outcome": "ok"}
        else:
            found = answer(order, guard)
        sys.stdout = io.StringIO()
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
