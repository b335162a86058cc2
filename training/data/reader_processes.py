"""Reader processes of batches: none is waited for without a limit, and one that is gone is told as what it is.

A reader hands its batches over in shared memory (/dev/shm). Where that is full it is killed (SIGBUS) or loses a batch
without a word. So room for all batches that readers keep is asked for before they start.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from manifests.errors import Refused, Stopped
from manifests.patience import READER_SECONDS, reader_seconds

SHARED = "/dev/shm"
_SPARE_SECONDS = 10.0
_LOOK_SECONDS = 0.5
_AHEAD = 2  # batches that a reader keeps
_GOING_SECONDS = 1.0  # from a broken connection to a process to its exit code
_REMEDY = "fewer readers, or none (data.workers=0, of evaluate and embed --workers 0), or in a container a larger"


class Readers:
    """The batches of a dataset, by so many processes beside this one; 0: it reads by itself.

    batch_bytes: of a batch. pin: batches lie in memory that a GPU reads by itself. Making it raises Refused where
    shared memory has no room for what the readers keep. Iterating raises Stopped when a reader is gone, or none gives
    a batch for `reader_seconds`, and what a reader raised.
    """

    def __init__(self, dataset: IterableDataset, workers: int, batch_bytes: int, pin: bool = False) -> None:
        _require_room(workers, batch_bytes)
        own = torch.Generator()  # or each start would draw from the generator of the towers, and resuming differ
        several = {"prefetch_factor": _AHEAD} if workers else {}
        options = {"batch_size": None, "num_workers": workers, "generator": own, "pin_memory": pin}
        self._loader, self._workers = DataLoader(dataset, **options, **several), workers

    def __iter__(self) -> Iterator[Any]:
        return self._from_processes() if self._workers else iter(self._loader)

    def _from_processes(self) -> Iterator[Any]:
        with _deaths_unheard():
            batches = iter(self._loader)
        guard = _Guard(batches._workers, reader_seconds())
        guard.start()
        try:
            while (batch := self._next(batches, guard)) is not None:
                yield batch
        finally:
            guard.over.set()

    def _next(self, batches: Iterator[Any], guard: _Guard) -> Any:
        """A batch; None at the end."""
        try:
            guard.since = time.monotonic()
            return next(batches, None)
        except Stopped:
            raise
        except Exception as error:
            gone = [] if guard.hung else _gone(guard.readers)
            if not guard.hung and not gone:
                raise
            _kill(guard.readers)
            raise Stopped(_words(self._workers, gone, guard.limit)) from error
        finally:
            guard.since = math.inf


class _Guard(threading.Thread):
    """Kills all readers when one batch is waited for too long; then the wait ends by an error.

    A timeout of DataLoader's would not do: it holds for the message that says where a batch lies, and not for fetching
    the memory itself, for which a reader must answer on a socket.
    """

    def __init__(self, readers: Sequence[BaseProcess], limit: float) -> None:
        super().__init__(daemon=True, name="cross-most-readers")
        self.readers, self.limit = readers, limit
        self.since = math.inf  # when the wait for a batch began
        self.hung = False
        self.over = threading.Event()

    def run(self) -> None:
        """Looks now and then, until `over`."""
        while not self.hung and not self.over.wait(_LOOK_SECONDS):
            if time.monotonic() - self.since > self.limit:
                self.hung = True
                for reader in self.readers:
                    reader.kill()


def _require_room(workers: int, batch_bytes: int) -> None:
    """Raises Refused where the batches of this machine's readers do not fit into shared memory; nothing without one."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed, free = processes * (workers * _AHEAD + 1) * batch_bytes, _free()
    if workers and free is not None and needed > free:
        raise Refused(
            f"data.workers={workers}: readers keep up to {_mb(needed)} of batches in {SHARED}, which has {_mb(free)} "
            f"free; {_REMEDY} one (docker run --shm-size={needed // 10**6 + 64}m)"
        )


def _free() -> int | None:
    """Bytes of shared memory that are free; None where there is none."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextmanager
def _deaths_unheard() -> Iterator[None]:
    """Readers that are started inside do not interrupt this process when they die; `next` notices it by itself.

    torch's own handler would raise wherever the main thread is: in a collective, or while a checkpoint is written.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGCHLD, before)


def _gone(readers: Sequence[BaseProcess]) -> list[BaseProcess]:
    """Those that ended otherwise than by their own will. A broken connection is noticed before its process's end."""
    deadline = time.monotonic() + _GOING_SECONDS
    while not (found := [reader for reader in readers if reader.exitcode]) and time.monotonic() < deadline:
        time.sleep(_GOING_SECONDS / 20)
    return found


def _kill(readers: Sequence[BaseProcess]) -> None:
    """Ends readers, also a stopped one, which no other signal ends: the interpreter waits for its children at exit."""
    for reader in readers:
        reader.kill()
    for reader in readers:
        reader.join(timeout=_SPARE_SECONDS)


def _words(workers: int, gone: Sequence[BaseProcess], limit: float) -> str:
    free = _free()
    room = "" if free is None else f" ({SHARED} has {_mb(free)} free)"
    if gone:
        code = gone[0].exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        what = f"reader process {gone[0].pid} of data.workers={workers} {how}, as for want of memory"
    else:
        what = f"no batch came from the reader processes of data.workers={workers} for {limit:g} s ({READER_SECONDS})"
    return f"{what}{room}; {_REMEDY} {SHARED} (docker run --shm-size=1g); what is finished is kept, run the same again"
