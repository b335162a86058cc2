"""Nothing waits for ever: readers that are stopped, killed or without memory, other ranks, commands that hang."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from builders import REPOSITORY
from rich.console import Console

from manifests import patience
from manifests.errors import Refused, Stopped
from manifests.patience import PATIENCE, READER_SECONDS
from training import child_commands, demo_stages
from training.child_commands import COMMAND_SECONDS, Watch
from training.data import reader_processes
from training.data.dataset import open_source
from training.data.loader import Form, Loader, SupervisedSamples, UnlabelledSamples
from training.data.whole_split import SplitReader
from training.distributed import PROCESS_SECONDS
from training.evaluation import predict
from training.paper_tables import runner
from training.paper_tables.place import Place
from training.settings.data import AugmentSettings, DataSettings
from training.weights.checkpoint import open_checkpoint, step_folders

SMALL = ("data.num_points=64", "optimizer.batch_size=8", "points.depth=1", "tensorboard=false", "log_every=5")
ENDLESS = (*SMALL, "optimizer.steps=100000", "save_every=5", "data.workers=2")
LIMIT = 12  # seconds that a reader is given: ten more than the store
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
ENVIRONMENT |= {PATIENCE: "2", READER_SECONDS: "3"}
FORM = Form(image_size=64, patch=8, mask_cell=16, mask_ratio=0.3)
SETTINGS = DataSettings(views="rgb12", num_points=128, shuffle=16)


def fit(shards: Path, run: Path, *changes: str) -> list[str]:
    return ["training", "fit", "small_cross_most", "--shards", str(shards), "--run", str(run), *changes]


def begun(run: Path, steps: int = 5) -> None:
    """Waits until a run has gone so far."""
    deadline = time.monotonic() + 150
    while not any(int(folder.name.rpartition("-")[2]) >= steps for folder in step_folders(run)):
        assert time.monotonic() < deadline, "it does not begin"
        time.sleep(0.1)


def readers_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children()


def ended(process: subprocess.Popen, limit: float) -> str:
    """What a command says on stderr, which has to end within so many seconds."""
    try:
        return process.communicate(timeout=limit)[1]
    finally:
        child_commands.end(process)


def require_valid(run: Path) -> None:
    """The last checkpoint opens, and the same command goes on from it."""
    step = int(step_folders(run)[-1].name.rpartition("-")[2])
    open_checkpoint(str(run))
    assert step >= 5


# --- readers


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_reader_that_is_stopped_or_killed_ends_fit(shards, tmp_path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", *fit(shards, run, *ENDLESS)]
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    begun(run)
    victim, other = readers_of(process.pid)
    since = time.monotonic()
    victim.send_signal(number)
    message = ended(process, LIMIT + 40)
    assert process.returncode == 3
    assert "Traceback" not in message
    (line,) = [line for line in message.splitlines() if "data.workers=0" in line]
    if number is signal.SIGKILL:
        assert f"reader process {victim.pid} of data.workers=2 was ended by SIGKILL" in line
        assert time.monotonic() - since < LIMIT + 5  # noticed by itself, not when the time is over
    else:
        assert f"no batch came from the reader processes of data.workers=2 for 12 s ({READER_SECONDS})" in line
    assert "docker run --shm-size" in line
    assert not psutil.pid_exists(victim.pid)
    assert not psutil.pid_exists(other.pid)
    require_valid(run)


def in_small_memory(size: str, script: str) -> subprocess.CompletedProcess:
    """Runs a shell script with so much shared memory."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace may be made here (unshare -m)")
    script = f"mount -t tmpfs -o size={size} tmpfs /dev/shm || exit 77\n{script}"
    command = ["unshare", "-m", "sh", "-c", script]
    found = subprocess.run(command, env=ENVIRONMENT, cwd=REPOSITORY, capture_output=True, text=True, timeout=400)
    if found.returncode == 77:
        pytest.skip("no tmpfs may be mounted here")
    return found


@pytest.mark.slow
def test_too_little_shared_memory_is_refused_before_anything_is_written(shards, tmp_path) -> None:
    """Two batches of each of two readers and one in use, of 20 samples of two pictures of 48 pixels each: 1.5 MB."""
    changes = (*ENDLESS, "optimizer.batch_size=20")
    command = " ".join([sys.executable, "-m", *fit(shards, tmp_path / "run", *changes)])
    found = in_small_memory("512k", f"exec {command}")
    assert found.returncode == 2
    (line,) = found.stderr.strip().splitlines()
    assert line.startswith("data.workers=2: readers keep up to 1.5 MB of batches")
    assert "/dev/shm, which has 0.5 MB free" in line
    assert "data.workers=0" in line
    assert "docker run --shm-size=" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_shared_memory_that_fills_up_later_ends_fit(shards, tmp_path) -> None:
    """Readers lose their batches or are killed by SIGBUS; without a limit the command hung for ever."""
    run = tmp_path / "run"
    command = " ".join([sys.executable, "-m", *fit(shards, run, *ENDLESS)])
    two = f'[ "$(ls {run}/checkpoints 2>/dev/null | wc -l)" -ge 2 ]'  # by name it may be pruned before it is seen
    taken = "head -c 4M /dev/zero >> /dev/shm/full 2>/dev/null"  # again and again: a batch that is used leaves room
    full = f"until {two}; do sleep 0.1; done; for _ in $(seq 300); do {taken}; sleep 0.05; done"
    found = in_small_memory("2m", f"({full}) >/dev/null 2>&1 & exec {command}")
    assert found.returncode == 3, found.stderr
    assert "/dev/shm" in found.stderr
    assert "data.workers=0" in found.stderr
    require_valid(run)


@pytest.mark.parametrize("kind", [UnlabelledSamples, SupervisedSamples])
def test_the_memory_that_is_asked_for_is_that_of_a_batch(shards, kind: type) -> None:
    """Else a refusal would come where there is room, or none where a reader then dies."""
    samples = kind(open_source(str(shards), SETTINGS), SETTINGS, AugmentSettings(), FORM, 4, 0)
    batch = next(iter(Loader(samples)))
    tensors = [value for value in vars(batch).values() if hasattr(value, "nbytes")]
    assert 0.95 * sum(each.nbytes for each in tensors) < samples.batch_bytes <= sum(each.nbytes for each in tensors)
    reader = SplitReader(samples.source, SETTINGS, 64, range(1), 4)
    (batch,) = reader.batches()
    assert reader.batch_bytes == batch.pictures.nbytes + batch.points.nbytes
    single = SplitReader(samples.source, SETTINGS, 64, range(1), 4, view_of=lambda key, count: 0)
    (batch,) = single.batches()
    assert single.batch_bytes == batch.pictures.nbytes + batch.points.nbytes


def test_ranks_of_a_machine_share_its_memory(shards, monkeypatch) -> None:
    source = open_source(str(shards), SETTINGS)
    settings = SETTINGS.model_copy(update={"workers": 1})
    samples = UnlabelledSamples(source, settings, AugmentSettings(), FORM, 4, 0)
    monkeypatch.setattr(reader_processes, "_free", lambda: 3 * samples.batch_bytes)
    Loader(samples)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(Refused, match=r"data\.workers=2: readers keep up to 0\.6 MB"):
        Loader(samples)


class Struck(SplitReader):
    """A reader process that sends itself a signal after its first batch."""

    number: signal.Signals

    def __iter__(self):
        for batch in super().__iter__():
            yield batch
            time.sleep(1)  # until it is sent
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSTOP, r"no batch came from the reader processes of data\.workers=1 for 3 s"),
        (signal.SIGKILL, r"reader process \d+ of data\.workers=1 was ended by SIGKILL"),
    ],
)
def test_a_reader_of_a_whole_split_that_is_stopped_or_killed(shards, monkeypatch, number, words: str) -> None:
    """evaluate, embed and predict read like this. A handler of SIGCHLD would raise in the midst of anything."""
    monkeypatch.setenv(PATIENCE, "1")
    monkeypatch.setenv(READER_SECONDS, "3" if number is signal.SIGSTOP else "60")
    for module in (patience, reader_processes):
        monkeypatch.setattr(module, "_SPARE_SECONDS", 1.0)
    source, before = open_source(str(shards), SETTINGS), signal.getsignal(signal.SIGCHLD)
    reader = Struck(source, SETTINGS, 64, range(4), 4)
    reader.number = number
    batches = reader.batches(1)
    assert len(next(batches).keys) == 4
    assert signal.getsignal(signal.SIGCHLD) is before
    since = time.monotonic()
    with pytest.raises(Stopped, match=words):
        next(batches)
    assert time.monotonic() - since < 20
    assert not [each for each in psutil.Process().children() if each.status() == psutil.STATUS_STOPPED]


# --- ranks


def ranks(count: int, command: list[str], **variables: str) -> list[subprocess.Popen]:
    """The same command as so many processes of one run; the first keeps what they tell one another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    options = {"cwd": REPOSITORY, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(
            command, env=ENVIRONMENT | world | variables | {"RANK": str(n), "LOCAL_RANK": str(n)}, **options
        )
        for n in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["reader of rank 1", "rank 1", "rank 0"])
def test_what_hangs_in_one_process_ends_all(shards, tmp_path, victim: str) -> None:
    run, limit = tmp_path / "run", 60 if "reader" in victim else 8
    command = [sys.executable, "-m", *fit(shards, run, *ENDLESS)]
    processes = ranks(2, command, **{PROCESS_SECONDS: str(limit)})
    try:
        begun(run)
        hangs = int(victim[-1])
        pid = processes[hangs].pid
        os.kill(readers_of(pid)[0].pid if "reader" in victim else pid, signal.SIGSTOP)
        since = time.monotonic()
        waiting = processes if "reader" in victim else [processes[1 - hangs]]
        messages = [each.communicate(timeout=100)[1] for each in waiting]
        assert time.monotonic() - since < 80
        assert [each.returncode for each in waiting] == [3] * len(waiting), messages
        assert "Traceback" not in "".join(messages)
        if "reader" in victim:
            assert "no batch came from the reader processes of data.workers=2 for 12 s" in messages[0]
        elif hangs:
            assert f"process 0: process 1 has ended or hangs: Timed out waiting {limit}000ms" in messages[0]
        require_valid(run)
    finally:
        for each in psutil.Process().children(recursive=True):
            each.kill()


# --- commands


def hanging(tmp_path: Path, when: str = "*") -> Path:
    """A `python` that hangs with a child of its own where its arguments are like this, and else is python."""
    wrapper = tmp_path / "python"
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in {when}) sleep 600 & echo $! >> {tmp_path}/pids; kill -STOP $$;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    wrapper.chmod(0o755)
    return wrapper


def require_gone(tmp_path: Path) -> None:
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert pids
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, pids))


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_command_is_watched_by_what_it_writes(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(COMMAND_SECONDS, "0.4")
    watch = Watch([tmp_path, tmp_path / "none"], 3600)
    for number in range(8):
        time.sleep(0.15)
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder/log").write_text("x" * number)
        assert not watch.hangs()
    time.sleep(0.3)
    assert not watch.hangs()
    time.sleep(0.5)
    assert watch.hangs()


def test_predict_ends_a_build_that_hangs(tmp_path, monkeypatch) -> None:
    """Twice: the second one would record the file that a build of one process hangs at."""
    monkeypatch.setattr(predict.sys, "executable", str(hanging(tmp_path)))
    monkeypatch.setenv(COMMAND_SECONDS, "1")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    since = time.monotonic()
    with pytest.raises(
        Stopped, match=rf"-m pipeline build .*--workers 1: no sign of life for 1 s \({COMMAND_SECONDS}\)"
    ):
        predict._build(scratch, Drawing(), "meshes", ("x", "y", "z"), {"a": str(tmp_path / "a.off")}, 0)
    assert time.monotonic() - since < 20
    assert len((tmp_path / "pids").read_text().split()) == 2
    require_gone(tmp_path)


class Drawing:
    """In place of `predict.BuildKeys`, whose recipe no build reads here."""

    def recipe(self, *arguments: object) -> str:
        return ""


def test_a_row_whose_command_hangs_fails_and_its_processes_end(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(COMMAND_SECONDS, "1")
    command = [str(hanging(tmp_path)), "-m", "training", "fit"]
    code, error, _ = runner._command(command, "run", Place(tmp_path))
    assert code == -signal.SIGKILL
    assert error == f"no sign of life for 1 s ({COMMAND_SECONDS}), so it was ended"
    require_gone(tmp_path)


def test_a_stage_of_the_demonstration_that_hangs_is_named_and_all_end(tmp_path, monkeypatch) -> None:
    """Also one that takes no notice of SIGTERM."""
    monkeypatch.setattr(demo_stages.sys, "executable", str(hanging(tmp_path)))
    monkeypatch.setattr(demo_stages, "ENDING_SECONDS", 1.0)
    monkeypatch.setenv(COMMAND_SECONDS, "1")
    (tmp_path / "logs").mkdir()
    stages = demo_stages.Stages(tmp_path, Console(quiet=True))
    started = [stages.start(name, "training", "fit") for name in ("first", "second")]
    with pytest.raises(Stopped, match="first: no sign of life for 1 s"):
        stages.wait(*started)
    stages.end_all()
    assert all(stage.process.poll() is not None for stage in started)
    require_gone(tmp_path)


def test_ending_takes_what_does_not_heed_a_signal(tmp_path) -> None:
    process = subprocess.Popen([str(hanging(tmp_path)), "x"])
    deadline = time.monotonic() + 20
    while not (tmp_path / "pids").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    child_commands.end(process, 0.5)
    assert process.returncode == -signal.SIGKILL
    require_gone(tmp_path)
