"""A run that was stopped (kill -9, a signal, while it wrote, damage) goes on, by as many processes or others."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from builders import REPOSITORY, torchrun

from manifests import store
from manifests.config import parse_changes, to_toml
from manifests.errors import Refused
from training.data.sampler import went_on
from training.loop import fit
from training.loop.metric_log import append_row, cut_rows
from training.loop.run_lock import held
from training.loop.shutdown import remembered
from training.loop.throughput import TIMING, Pace
from training.loop.train_state import _read_state
from training.settings.fit_recipe import CrossMostRecipe, read_recipe
from training.weights.checkpoint import prune, save_step, step_folders

FEW = (
    "data.num_points=128",
    "optimizer.batch_size=6",
    "optimizer.steps=9",
    "log_every=2",
    "save_every=4",
    "keep_last=3",
    "points.depth=2",
    "points.drop_path=0.3",  # draws from torch's generator, which every process has its own
    "tensorboard=false",
)  # 38 objects: an epoch has 6 steps
CPU = torch.device("cpu")
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")


def start(world: int, folder: Path, shards: Path, *changes: str) -> subprocess.Popen:
    command = torchrun(world, "-m", "--", "training", "fit", "small_cross_most", "--shards", shards, "--run", folder)
    options = {"cwd": REPOSITORY, "env": ENVIRONMENT, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *FEW, *changes], **options)


def ended(process: subprocess.Popen, code: int = 0) -> str:
    _, err = process.communicate(timeout=250)
    assert process.returncode == code, err
    return err


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    assert path.exists()


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "log.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMING} for row in csv.DictReader(file)]


def digest(folder: Path, step: int = 9) -> list[str]:
    files = (folder / f"checkpoints/step-{step:08d}" / name for name in ("model.safetensors", "teacher.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@pytest.fixture(scope="module")
def alone(training, shards, tmp_path_factory) -> Path:
    """An unbroken run of one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    training("fit", "small_cross_most", "--shards", shards, "--run", folder, *FEW)
    return folder


@pytest.fixture(scope="module")
def two(shards, tmp_path_factory) -> Path:
    """An unbroken run of two processes."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    ended(start(2, folder, shards))
    return folder


@pytest.mark.slow
def test_two_processes_killed_go_on_to_the_last_digit(two, shards, tmp_path) -> None:
    folder = tmp_path / "run"
    process = start(2, folder, shards)
    wait_for(folder / "checkpoints/step-00000004", process)
    everybody = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in everybody:
        each.kill()
    process.communicate(timeout=60)
    psutil.wait_procs(everybody, timeout=60)
    assert not (folder / "checkpoints/step-00000009").exists()
    ended(start(2, folder, shards))
    assert rows(folder) == rows(two)
    assert digest(folder) == digest(two)
    assert json.loads((folder / "run.json").read_text())["processes"] == 2


def keys_of(shards: Path, folder: Path, epoch: int, given: list, world: int) -> list[list[str]]:
    """Of each rank, the keys that it is given of what is left of an epoch, batch by batch."""
    found = []
    recipe = read_recipe("small_cross_most", parse_changes(FEW))
    state, _ = fit._set_up(folder, recipe, str(shards), CPU)
    samples = state.samples
    for rank in range(world):
        own = recipe.optimizer.batch_size // world
        given_to = type(samples)(samples.source, recipe.data, recipe.augment, samples.form, own, 0, rank, world)
        given_to.set_epoch(epoch, given)
        found.append([batch.keys for batch in given_to])
    return found


def test_another_number_of_processes_takes_what_is_left_each_sample_once(training, two, shards, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    for step in (8, 9):
        shutil.rmtree(folder / f"checkpoints/step-0000000{step}")
    saved = torch.load(folder / "checkpoints/step-00000004/state.pt", weights_only=True)
    assert (saved["epoch"], saved["given"]) == (0, [(2, 1, 4)])
    before = {key for rank in keys_of(shards, folder, 0, [], 2) for batch in rank[:4] for key in batch}
    recipe = read_recipe("small_cross_most", parse_changes(FEW))
    state, _ = fit._set_up(folder, recipe, str(shards), CPU)
    state.resume(folder / "checkpoints/step-00000004")
    assert state.progress() == (0, [(2, 1, 4)])
    state.samples.set_epoch(*state.progress())
    rest = [key for batch in state.loader for key in batch.keys]
    assert len(before) == 24
    assert len(rest) == len(set(rest)) == 12
    assert not before & set(rest)
    state.step = 5
    assert state.progress() == (0, [(2, 1, 4), (1, 1, 1)])
    state.step = 7
    assert state.progress() == (1, [(1, 1, 1)])
    training("fit", "small_cross_most", "--shards", shards, "--run", folder, *FEW)
    assert [row["step"] for row in rows(folder)] == ["2", "4", "6", "8", "9"]
    assert rows(folder)[:2] == rows(two)[:2]
    assert rows(folder)[2:] != rows(two)[2:]
    assert json.loads((folder / "run.json").read_text())["processes"] == 1


@pytest.mark.slow
def test_one_process_is_followed_by_two(alone, shards, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    shutil.rmtree(folder / "checkpoints/step-00000009")
    ended(start(2, folder, shards))
    assert rows(folder)[:2] == rows(alone)[:2]
    assert float(rows(folder)[-1]["loss"]) == pytest.approx(float(rows(alone)[-1]["loss"]), rel=0.2)


def test_the_sums_of_a_row_are_kept_by_any_number_of_processes(two, shards, tmp_path) -> None:
    """Saved between two rows of the log by two processes: one goes on with their mean, and with all they counted."""
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    recipe = read_recipe("small_cross_most", parse_changes(FEW))
    state, _ = fit._set_up(folder, recipe, str(shards), CPU)
    saved = {"names": ["loss"], "sums": torch.tensor([[2.0], [4.0]]), "steps": 1, "counts": {"image": torch.eye(2)}}
    state.updates.log.restore(saved, CPU)
    row = state.updates.log.row()
    assert row["loss"] == 3
    assert row["biasedness_image"] == pytest.approx(0, abs=1e-6)


def test_sigterm_saves_and_the_run_goes_on(training, alone, shards, tmp_path) -> None:
    folder = tmp_path / "run"
    command = ("fit", "small_cross_most", "--shards", shards, "--run", folder, *FEW, "save_every=1000")
    process = training.start(*command, "optimizer.steps=9", stderr=subprocess.PIPE, text=True)
    wait_for(folder / "log.csv", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "run the same again to go on" in err.splitlines()[-1]
    steps = [int(path.name[5:]) for path in step_folders(folder)]
    assert len(steps) == 2
    assert steps[-1] >= 2
    training(*command)
    assert rows(folder) == rows(alone)
    assert digest(folder) == digest(alone)


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_once(shards, tmp_path) -> None:
    folder = tmp_path / "run"
    process = start(2, folder, shards, "save_every=100000", "optimizer.steps=100000")
    wait_for(folder / "log.csv", process)
    process.send_signal(signal.SIGTERM)
    err = ended(process, 1)
    assert err.count("run the same again to go on") == 1
    assert len(step_folders(folder)) == 2
    assert step_folders(folder)[-1].name > "step-00000001"


def test_a_second_fit_into_a_run_is_refused_until_the_first_is_gone(shards, tmp_path) -> None:
    folder = tmp_path / "run"
    first = start(1, folder, shards, "optimizer.steps=900")
    wait_for(folder / "log.csv", first)
    pid = int((folder / ".lock").read_text().rpartition(" ")[2])
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix == ".toml"}
    message = ended(start(1, folder, shards, "optimizer.steps=900"), 1)  # torchrun's code for any failure
    assert f"{folder} is being trained ({socket.gethostname()}, process {pid})" in message
    assert {path: path.stat().st_mtime_ns for path in before} == before
    os.kill(pid, signal.SIGKILL)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with held(folder):  # its readers may be alive: they do not hold the run
        assert (folder / ".lock").read_text().endswith(f"process {os.getpid()}")
    assert not (folder / ".lock").exists()
    ended(first, 1)


def test_killed_while_it_writes_leaves_the_last_good_checkpoint(training, alone, shards, tmp_path) -> None:
    """kill -9 as soon as the folder of an unfinished checkpoint is seen; the next start removes what is left of it."""
    folder = tmp_path / "run"
    command = ("fit", "small_cross_most", "--shards", shards, "--run", folder, *FEW, "save_every=1", "keep_last=1")
    for _ in range(20):
        process = training.start(*command, stderr=subprocess.DEVNULL)
        checkpoints = folder / "checkpoints"
        seen: list[Path] = []
        while not seen and process.poll() is None:
            seen = [p for p in checkpoints.glob(".step-*.tmp") if (p / "model.safetensors").exists()]
        process.kill()
        process.wait(timeout=30)
        left = list(checkpoints.glob(".*.tmp"))
        if left:
            break
        shutil.rmtree(folder)
    assert left
    assert all((path / "state.pt").is_file() for path in step_folders(folder))
    training(*command)
    assert not list(checkpoints.glob(".*"))
    assert [path.name for path in step_folders(folder)] == ["step-00000000", "step-00000009"]
    assert digest(folder) == digest(alone)


def test_damage_of_the_last_checkpoint_names_what_to_delete(training, alone, shards, tmp_path) -> None:
    folder = tmp_path / "run"
    command = ("fit", "small_cross_most", "--shards", shards, "--run", folder, *FEW)
    for name in ("model.safetensors", "teacher.safetensors", "state.pt"):
        shutil.copytree(alone, folder)
        last = folder / "checkpoints/step-00000009"
        file = last / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        if name == "state.pt":
            message = training(*command, code=2).stderr.strip()
            assert "\n" not in message
        else:  # in this process, which is quicker
            state, _ = fit._set_up(folder, read_recipe("small_cross_most", parse_changes(FEW)), str(shards), CPU)
            with pytest.raises(fit.Refused) as caught:
                state.resume(last)
            message = str(caught.value)
        assert message.startswith(str(file))
        assert message.endswith(f"delete {last} to go on from the checkpoint before it")
        if name != "state.pt":
            shutil.rmtree(folder)
    shutil.rmtree(last)
    training(*command)
    assert rows(folder) == rows(alone)
    assert digest(folder) == digest(alone)


def test_a_checkpoint_of_an_earlier_version_is_refused(alone, shards, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    state, _ = fit._set_up(folder, read_recipe("small_cross_most", parse_changes(FEW)), str(shards), CPU)
    file = folder / "checkpoints/step-00000009/state.pt"
    saved = torch.load(file, weights_only=True)
    del saved["given"]
    torch.save(saved, file)
    with pytest.raises(fit.Refused, match="of an earlier version, whose runs can be evaluated, but not continued"):
        state.resume(file.parent)


def test_a_state_that_is_a_device_is_not_read_without_end(tmp_path) -> None:
    file = tmp_path / "state.pt"
    file.symlink_to("/dev/zero")
    with pytest.raises(fit.Refused, match=r"state\.pt is damaged"):
        _read_state(file)


def test_keep_last_and_save_every(alone, tmp_path) -> None:
    assert [path.name[-1] for path in step_folders(alone)] == ["0", "4", "8", "9"]
    model, recipe = torch.nn.Linear(2, 2), CrossMostRecipe()
    for step in range(6):
        save_step(tmp_path, step, model, None, {"step": step}, recipe)
    prune(tmp_path, 3)
    assert [path.name[-1] for path in step_folders(tmp_path)] == ["0", "3", "4", "5"]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_only_dead_writers_leftovers_are_deleted(tmp_path) -> None:
    checkpoints = tmp_path / "checkpoints"
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = {
        "own": store.temporary_name("step-00000003"),
        "live": store.temporary_name("step-00000004").replace(f"-{os.getpid()}-", f"-{os.getppid()}-"),
        "dead": store.temporary_name("step-00000005").replace(f"-{os.getpid()}-", f"-{dead.pid}-"),
        "fresh": ".step-00000006.elsewhere-12-0123abcd.tmp",
        "stale": ".step-00000007.elsewhere-12-0123abcd.tmp",
        "step": "step-00000002",
        "other": ".hidden",
    }
    for name in names.values():
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".recipe.toml.elsewhere-12-0123abcd.tmp").write_text("half")
    before = time.time() - 7 * 24 * 3600
    for path in (checkpoints / names["stale"], tmp_path / ".recipe.toml.elsewhere-12-0123abcd.tmp"):
        os.utime(path, (before, before))
    assert store.delete_temporaries(str(checkpoints)) == 3
    assert store.delete_temporaries(str(tmp_path)) == 1
    assert {path.name for path in checkpoints.iterdir()} == {names[n] for n in ("live", "fresh", "step", "other")}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints"}


def test_a_log_of_fewer_columns_gets_the_others(tmp_path) -> None:
    path = tmp_path / "log.csv"
    append_row(path, 2, {"loss": 1.5, "lr": 0.1})
    append_row(path, 4, {"loss": 1.25, "lr": 0.1, "data_wait": 0.5})
    append_row(path, 6, {"loss": 1.0, "data_wait": 0.25})
    with open(path, newline="") as file:
        assert list(csv.reader(file)) == [
            ["step", "loss", "lr", "data_wait"],
            ["2", "1.5", "0.1", "nan"],
            ["4", "1.25", "0.1", "0.5"],
            ["6", "1", "nan", "0.25"],
        ]
    with open(path, "a") as file:
        file.write("1")  # a row of step 100 that a full disk cut
    cut_rows(path, 4)
    assert [line.partition(",")[0] for line in path.read_text().splitlines()] == ["step", "2", "4"]


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with remembered(signal.SIGTERM) as pending:
        assert pending.number == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert pending.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler
    with remembered(signal.SIGINT) as pending:
        os.kill(os.getpid(), signal.SIGINT)
        assert pending.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_pace_measures_waiting() -> None:
    pace = Pace(32, CPU)
    for _ in range(2):
        with pace.waiting():
            time.sleep(0.03)
        time.sleep(0.01)
    row = pace.row(2)
    assert list(row) == list(TIMING)
    assert 0.5 < row["data_wait"] < 1
    assert row["samples_per_second"] == pytest.approx(32 / row["ms_per_step"] * 1000)
    assert row["memory_mb"] > 50
    with pace.waiting():
        pass
    time.sleep(0.02)
    assert pace.row(1)["data_wait"] < 0.2


def test_rows_tell_the_pace(alone) -> None:
    with open(alone / "log.csv", newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:
        assert 0 <= float(row["data_wait"]) <= 1
        assert float(row["memory_mb"]) > 100
        assert float(row["samples_per_second"]) == pytest.approx(6000 / float(row["ms_per_step"]), rel=1e-6)
    assert all(int(a["step"]) < int(b["step"]) for a, b in pairwise(found))


def test_how_fast_a_run_goes_may_change_and_what_it_is_may_not(tmp_path) -> None:
    recipe = read_recipe("small_cross_most", parse_changes(FEW))
    begun = recipe.model_dump(mode="json")
    del begun["labels"]["points_weight"]  # a key that came later: the run had its default
    (tmp_path / "recipe.toml").write_text(to_toml(begun))
    faster = read_recipe("small_cross_most", parse_changes((*FEW, "data.workers=2", "save_every=1", "keep_last=1")))
    assert fit._as_begun(tmp_path, faster) == faster
    for change in ("seed=5", "data.num_points=256", "labels.points_weight=0.9"):
        with pytest.raises(Refused, match=change.partition("=")[0]):
            fit._as_begun(tmp_path, read_recipe("small_cross_most", parse_changes((*FEW, change))))


@pytest.mark.parametrize(("workers", "own"), [(0, 0), (1, 1), (2, 1), (8, 4), (9, 4)])
def test_processes_of_a_machine_share_its_readers(shards, tmp_path, monkeypatch, workers: int, own: int) -> None:
    """Two here. A checkpoint says how many there were, so that any other number goes on with what is left."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    recipe = read_recipe("small_cross_most", parse_changes((*FEW, f"data.workers={workers}")))
    state = fit.prepare(recipe, str(shards), str(tmp_path / "run"), torch.device("cpu"))
    state.step = 1
    assert state.progress() == (0, went_on([], 1, own, 1))
    assert state.loader._readers._workers == own
    assert fit._as_begun(tmp_path / "run", recipe).data.workers == workers


def test_a_run_of_before_a_key_goes_on_as_it_began(tmp_path, caplog) -> None:
    """The same command, whose new defaults are other ones; a key that is typed is refused as any other."""
    recipe = read_recipe("small_cross_most", parse_changes((*FEW, "augment.points_fill=first")))
    begun = recipe.model_dump(mode="json")
    del begun["image"]["normalize"], begun["augment"]["weak_crop"], begun["augment"]["points_fill"]
    (tmp_path / "recipe.toml").write_text(to_toml(begun))
    found = fit._as_begun(tmp_path, recipe)
    assert (found.image.normalize, found.augment.weak_crop, found.augment.points_fill) == ("preset", "middle", "repeat")
    assert "was begun before image.normalize was a key: it goes on with preset" in caplog.text
    typed = read_recipe("small_cross_most", parse_changes((*FEW, "augment.points_fill=neighbours")))
    with pytest.raises(Refused, match=r"augment\.points_fill: 'repeat' -> 'neighbours'"):
        fit._as_begun(tmp_path, typed)
