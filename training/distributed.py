"""Training and evaluation by several processes at once: start and end under torchrun, collectives, shared errors.

In a single process everything here works too, and exchanges nothing. CPU tensors (errors, counts) are exchanged by
gloo, which never waits for an accelerator, and CUDA tensors by NCCL.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from manifests.errors import Refused, Stopped, one_line
from manifests.patience import begin, reader_seconds, seconds_of

PROCESS_SECONDS = "CROSS_MOST_PROCESS_SECONDS"  # environment: how long a process waits for the others
SECONDS = 1800.0  # the slowest work between two collectives reads weights from a cold shared disk
LEAVING = timedelta(seconds=10)
_ENDING_SECONDS = 5.0  # a thread that comes back from torch while the interpreter ends would abort the process
_SPARE_SECONDS = 60.0  # a process whose reader hangs reports that before the others stop waiting for it
_KINDS = {kind.__name__: kind for kind in (Refused, Stopped, KeyboardInterrupt)}


def launched() -> bool:
    """Whether torchrun, or another launcher that sets WORLD_SIZE, started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start() -> None:
    """Joins the other processes, if several were launched. Call it before any check that may raise Refused.

    Later collectives wait for the others for at most CROSS_MOST_PROCESS_SECONDS (half an hour), then they raise
    Stopped. Raises Refused when the others cannot be reached.
    """
    if not launched() or dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    seconds = seconds_of(PROCESS_SECONDS, max(SECONDS, reader_seconds() + _SPARE_SECONDS))
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as error:
        raise Refused(
            f"several processes: the others cannot be reached ({one_line(error, 200)}); start by torchrun"
        ) from error


def finish() -> None:
    """Leaves the process group: each process waits until all have arrived here, at most for LEAVING.

    torchrun sends SIGTERM to the others as soon as one ends with an error. It is ignored from here on, so that each
    process prints its messages and keeps its own exit code.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        begin(_leave).result(timeout=LEAVING.total_seconds() + _ENDING_SECONDS)
    except (TimeoutError, dist.DistError):
        return  # another process has ended already; closing the group properly would wait for it
    dist.destroy_process_group()


def _leave() -> None:
    store = dist.distributed_c10d._get_default_store()
    store.set(f"leaves/{rank()}", "1")
    store.wait([f"leaves/{number}" for number in range(world())], LEAVING)


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def readers_of_process(workers: int) -> int:
    """How many of a machine's `workers` readers are of each of its processes: an even share, at least one.

    All processes give the same number, that of the machine with the most processes, as the order of samples needs.
    """
    beside = int(largest(torch.tensor(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))
    return min(workers, max(workers // beside, 1))


def leads() -> bool:
    """Whether this is the process that prints, logs and writes."""
    return rank() == 0


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def device_of(name: str) -> torch.device:
    """The device of `cpu`, `cuda` or `auto` (CUDA if torch sees a device). Each process of a machine has its own GPU.

    Raises Refused where torch sees no CUDA device, or fewer devices than processes.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not found):
        return torch.device("cpu")
    if not found:
        raise Refused("--device cuda: torch sees no CUDA device here; use --device cpu")
    if world() == 1:
        return torch.device("cuda")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= found:
        raise Refused(f"--device {name}: {found} CUDA devices for more processes; use --nproc-per-node {found}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def answered() -> Iterator[None]:
    """Put it around collectives. Raises Stopped, naming the process, when one has ended or does not answer in time."""
    try:
        yield
    except RuntimeError as lost:
        if world() == 1 or not (isinstance(lost, dist.DistError) or "gloo" in str(lost)):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in `finish`: torchrun notices it as well
        missing = _missing()
        who = f"process {', '.join(map(str, missing))} has ended or hangs" if missing else "another process has ended"
        said = re.sub(r"^\[[^]]*gloo[^]]*\] ", "", one_line(lost, 200))  # without the name and line of a source file
        raise Stopped(
            f"process {rank()}: {who}: {said} ({PROCESS_SECONDS}); what is finished is kept, run the same again"
        ) from lost


def _missing() -> list[int]:
    """Ranks of the lost processes: those that do not report within LEAVING that they, too, wait for another one."""
    try:
        return begin(_unheard).result(timeout=2 * LEAVING.total_seconds())
    except (TimeoutError, dist.DistError):  # the store is torchrun's, or else in the process of rank 0
        return [] if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or leads() else [0]


def _unheard() -> list[int]:
    """`_missing` in a thread of its own: where the process that keeps the store hangs, torch's limits do not hold."""
    store = dist.distributed_c10d._get_default_store()
    store.set(f"waits/{rank()}", "1")
    deadline, missing = time.monotonic() + LEAVING.total_seconds(), []
    for number in range(world()):
        try:
            store.wait([f"waits/{number}"], timedelta(seconds=max(deadline - time.monotonic(), 0.1)))
        except dist.DistStoreError:
            missing.append(number)
    return missing


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world())]
        with answered():
            dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        with answered():
            dist.all_reduce(gradient)
        return gradient[rank() * ctx.count : (rank() + 1) * ctx.count]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        with answered():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        with answered():
            dist.all_reduce(gradient)
        return gradient


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of ranks, with gradients; all processes must have the same number of rows.

    Backward gives a process the sum, over all processes' losses, of the gradients with respect to its own rows. So if
    each process computes the loss of the global batch, the mean of all processes' gradients of a weight is that loss's
    gradient.
    """
    return rows if world() == 1 else _Gather.apply(rows)


def summed(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, with gradients as in `gather`."""
    return value if world() == 1 else _Sum.apply(value)


@torch.no_grad()
def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes; no gradient."""
    return value if world() == 1 else _Sum.apply(value) / world()


@torch.no_grad()
def largest(value: Tensor) -> Tensor:
    """The maximum over all processes, entry by entry; no gradient."""
    if world() == 1:
        return value
    value = value.clone()
    with answered():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


@torch.no_grad()
def gather_rows(rows: Tensor) -> Tensor:
    """Rows (n, ...) of all processes in the order of ranks, without gradients; only n may differ between processes."""
    if world() == 1:
        return rows
    counts = torch.empty(world(), dtype=torch.int64)
    with answered():
        dist.all_gather_into_tensor(counts, torch.tensor([len(rows)]))
    most = int(counts.max())
    kind = rows.dtype
    padded = rows.new_zeros((most, *rows.shape[1:]), dtype=torch.uint8 if kind == torch.bool else kind)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world())]
    if most:
        with answered():
            dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)]).to(kind)


def gather_values(value: Any) -> list[Any]:
    """A JSON value of each process (keys of samples, messages), in the order of ranks."""
    if world() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = gather_rows(torch.tensor([len(data)])).tolist()
    return [json.loads(part.numpy().tobytes()) for part in gather_rows(data).split(sizes)]


def same(value: Any) -> Any:
    """The JSON value of the process of rank 0, in all processes."""
    return gather_values(value if leads() else None)[0]


def agree(error: BaseException | None = None, wish: int = 0) -> int:
    """The largest `wish` of all processes; or, if any process met an error, all raise the error of the lowest rank.

    Refused, Stopped and Ctrl-C are raised as they are. Any other error is raised by its own process, and as Stopped by
    the others. A process that has ended or hangs makes the others raise Stopped as well.
    """
    if world() == 1:
        if error is not None:
            raise error
        return wish
    try:
        failed, wish = largest(torch.tensor([int(error is not None), wish])).tolist()
        met = gather_values([_kind(error), str(error)] if error is not None else None) if failed else []
    except Stopped as lost:
        if error is not None:
            raise error from lost
        raise
    for number, known in enumerate(met):
        if known is not None:
            kind, message = known
            _raise(number, kind, message, error)
    return wish


def _raise(number: int, kind: str, message: str, error: BaseException | None) -> NoReturn:
    if number == rank() and error is not None:
        raise error
    known = _KINDS.get(kind)
    raise known(message) if known else Stopped(f"process {number}: {kind}: {message}") from error


def _kind(error: BaseException) -> str:
    """The name under which other processes raise it: DamagedShard is Stopped for them."""
    return next((name for name, kind in _KINDS.items() if isinstance(error, kind)), type(error).__name__)


@contextmanager
def together() -> Iterator[None]:
    """All processes leave this block normally, or all raise the error that one of them met in it (`agree`).

    Inside the block, work that can fail in one process alone must not come before a collective.
    """
    try:
        yield
    except BaseException as error:
        agree(error)
        raise
    agree()
