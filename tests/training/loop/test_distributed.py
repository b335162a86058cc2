"""Several gloo processes are one: the same losses and weights, rows gathered, errors that end all alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from builders import REPOSITORY, torchrun

from manifests.errors import Refused, Stopped
from training import distributed
from training.data.dataset import open_source
from training.data.loader import Form, UnlabelledSamples
from training.networks.dgcnn import EdgeConv
from training.networks.global_batch_norm import GlobalBatchNorm1d
from training.networks.nearest import nearest_neighbours
from training.settings.data import AugmentSettings, DataSettings

ENVIRONMENT = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
COMMON = ("data.num_points=128", "optimizer.batch_size=8", "optimizer.steps=10", "points.depth=2", "tensorboard=false")
LABELS = ("labels.threshold=0.108", "labels.points_weight=0.77")  # some samples are sure, labels are from both
TOKENIZER = "points.freeze_tokenizer=false"
RECIPES = {
    "cross_most": ("small_cross_most", *COMMON, *LABELS, "labels.mode=joint", "mask.passes=1", "lg_align.points=own"),
    "trained_tokenizer_f64": ("small_cross_most", *COMMON, *LABELS, TOKENIZER, "cls.divisor=selected"),
    "self_training": ("small_self_training", *COMMON, *LABELS),
    "pretrain_f64": ("small_pretrain", *COMMON),
    "supervised": ("small_cross_most", *COMMON, "method=supervised"),
    "crosspoint_f64": ("small_crosspoint", *COMMON[:3], "points.backbone=pointnet", "crosspoint.images=2", COMMON[-1]),
    "skipped": ("small_cross_most", *COMMON),
}
# What is added to all keys of an attention has no gradient but rounding, which AdamW makes as large as any. So it is
# with what a batch norm takes away again: those recipes are compared in float64, where rounding is below AdamW's eps.
UNDETERMINED = "attn.in_proj_bias"


def run(command: list[str]) -> subprocess.CompletedProcess:
    options = {"cwd": REPOSITORY, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 200}
    return subprocess.run(command, check=False, **options)


@pytest.fixture(scope="module")
def compared(shards, tmp_path_factory) -> dict[int, dict]:
    """By number of processes: rows and weights of ten updates of every recipe, with the same global batches."""
    folder = tmp_path_factory.mktemp("compared")
    script = REPOSITORY / "tests/support/equal_updates.py"
    processes = {}
    for world in (1, 2):
        arguments = (script, shards, folder / f"{world}.pt", json.dumps(RECIPES))
        command = [sys.executable, *map(str, arguments)] if world == 1 else torchrun(2, *arguments)
        processes[world] = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    for process in processes.values():
        _, err = process.communicate(timeout=280)
        assert process.returncode == 0, err
    return {world: torch.load(folder / f"{world}.pt") for world in processes}


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "skipped"])
def test_two_processes_with_half_the_batch_are_one_with_the_whole(compared, name: str) -> None:
    one, two = compared[1][name], compared[2][name]
    assert len(one["rows"]) == len(two["rows"]) == 10
    for alone, both in zip(one["rows"], two["rows"], strict=True):
        assert both == pytest.approx(alone, rel=1e-5, abs=1e-5)
    assert one["without_gradient"] == two["without_gradient"]
    for who, weights in one["weights"].items():
        assert list(weights) == list(two["weights"][who])
        for key, value in weights.items():
            difference = (two["weights"][who][key].double() - value.double()).abs()
            if key.endswith(UNDETERMINED) and not name.endswith("f64"):
                difference = difference.unflatten(0, (3, -1))[[0, 2]]  # of queries, keys, values
            assert difference.max().item() < 1e-5, f"{who} {key}"


def test_what_is_compared_is_not_trivial(compared) -> None:
    """Confident sets, labels of both modalities and masked tokens differ from half to half, and weights have moved."""
    for name in ("cross_most", "trained_tokenizer_f64"):
        rows = compared[1][name]["rows"]
        assert any(0 < row["confident_image"] < 1 for row in rows)
        assert any(0 < row["from_image"] < 1 for row in rows)
        assert all(row[f"loss_{term}"] > 0.05 for row in rows for term in ("cls", "align", "fair", "mim", "mpm"))
        assert rows[0]["loss"] != pytest.approx(rows[-1]["loss"], rel=1e-3)
    assert compared[1]["self_training"]["without_gradient"] == ["points.own_projection"]
    rows = compared[1]["crosspoint_f64"]["rows"]
    assert rows[-1]["loss_intra"] + rows[-1]["loss_cross"] < 0.98 * (rows[0]["loss_intra"] + rows[0]["loss_cross"])
    begun = compared[2]["crosspoint_f64"]["weights"]["student"]
    assert all(begun[f"contrast.{tower}.1.num_batches_tracked"] == 10 for tower in ("points", "image"))
    weights = compared[2]["pretrain_f64"]["weights"]["student"]
    assert weights["points.encoder.first_conv.1.num_batches_tracked"] == 10


def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_all(compared) -> None:
    for world in (1, 2):
        found = compared[world]["skipped"]
        assert found["moved"] == [[]] * world
        assert len(set(found["words"])) == 1
        assert found["words"][0].startswith("step 2: the loss cls, align, fair, mim, lg_align is not finite")


PRIMITIVES = """
import json, sys, torch
from training import distributed as d
from manifests.errors import Refused, Stopped
from training.data.sample_index import DamagedShard
from training.networks.dgcnn import EdgeConv
from training.networks.global_batch_norm import GlobalBatchNorm1d
from training.networks.nearest import nearest_neighbours

d.start()
found = {
    "place": [d.rank(), d.world(), d.leads()],
    "rows": d.gather_rows(torch.arange(2 * (d.rank() + 1)).view(-1, 2)).tolist(),
    "none": d.gather_rows(torch.zeros(0, 3)).shape[0],
    "bools": d.gather_rows(torch.ones(d.rank(), dtype=torch.bool)).tolist(),
    "values": d.gather_values({"key": "x" * d.rank()}),
    "same": d.same(d.rank()),
    "largest": d.largest(torch.tensor([d.rank(), 5 - d.rank()])).tolist(),
    "mean": d.mean(torch.tensor(float(d.rank()))).item(),
    "wish": d.agree(wish=15 * d.rank()),
    "device": str(d.device_of("cpu")),
}
for error in (Stopped("full"), DamagedShard("a.tar: key"), Refused("key=1"), KeyboardInterrupt(), ValueError("bug")):
    try:
        with d.together():
            if d.rank() == 1:
                raise error
    except BaseException as raised:
        found.setdefault("errors", []).append([type(raised).__name__, str(raised)])
try:
    with d.together():
        raise Stopped(f"of {d.rank()}")
except Stopped as raised:
    found["both"] = str(raised)
norm = GlobalBatchNorm1d(4).double()
generator = torch.Generator().manual_seed(0)
x = (3 + 2 * torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)).requires_grad_()
half = slice(3 * d.rank(), 3 * d.rank() + 3)
(norm(x[half]).pow(3).sum() / d.world()).backward()
found["norm"] = [x.grad[half].tolist(), norm.running_mean.tolist(), norm.running_var.tolist()]
torch.manual_seed(0)
conv, clouds = EdgeConv(3, 4).double(), torch.randn(6, 9, 3, dtype=torch.float64)
edges = conv(clouds[half], nearest_neighbours(clouds[half], 4))
edges.pow(3).sum().backward()
found["edges"] = [edges.tolist(), conv.get_submodule("0").weight.grad.tolist(), conv.norm.running_mean.tolist()]
found["edges"].append(conv.norm.running_var.tolist())
everybody = d.gather_values(found)
if d.leads():
    print("FOUND", json.dumps(everybody), file=sys.stderr)
d.finish()
"""


@pytest.fixture(scope="module")
def primitives(tmp_path_factory) -> list[dict]:
    script = tmp_path_factory.mktemp("script") / "primitives.py"
    script.write_text(PRIMITIVES)
    done = subprocess.run(
        torchrun(2, script), env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("FOUND ") for line in done.stderr.splitlines() if line.startswith("FOUND [")]
    return json.loads(lines[0])


def test_what_processes_tell_one_another(primitives) -> None:
    first, second = primitives
    assert first["place"] == [0, 2, True]
    assert second["place"] == [1, 2, False]
    for found in primitives:
        assert found["rows"] == [[0, 1], [0, 1], [2, 3]]
        assert found["none"] == 0
        assert found["bools"] == [True]
        assert found["values"] == [{"key": ""}, {"key": "x"}]
        assert (found["same"], found["largest"], found["mean"], found["wish"]) == (0, [1, 5], 0.5, 15)
        assert found["device"] == "cpu"


def test_an_error_of_one_process_is_that_of_all(primitives) -> None:
    first, second = primitives
    assert [kind for kind, _ in second["errors"]] == [
        "Stopped",
        "DamagedShard",
        "Refused",
        "KeyboardInterrupt",
        "ValueError",
    ]
    assert first["errors"] == [
        ["Stopped", "full"],
        ["Stopped", "a.tar: key"],
        ["Refused", "key=1"],
        ["KeyboardInterrupt", ""],
        ["Stopped", "process 1: ValueError: bug"],
    ]
    assert first["both"] == second["both"] == "of 0"


def test_batch_norm_over_processes_is_that_of_the_whole_batch(primitives) -> None:
    norm, own = torch.nn.BatchNorm1d(4).double(), GlobalBatchNorm1d(4).double()
    x = 3 + 2 * torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = []
    for module in (norm, own):
        given = x.clone().requires_grad_()
        # every process's loss is half; weights' gradients would be averaged, so inputs' are of the sum of both halves
        (module(given).pow(3).sum() / 2).backward()
        gradients.append(given.grad)
    assert torch.equal(*gradients)
    for number, found in enumerate(primitives):
        gradient, mean, variance = (torch.tensor(value, dtype=torch.float64) for value in found["norm"])
        torch.testing.assert_close(gradient, gradients[0][3 * number : 3 * number + 3])
        torch.testing.assert_close(mean, norm.running_mean)
        torch.testing.assert_close(variance, norm.running_var)


def test_an_edge_convolution_over_processes_is_that_of_the_whole_batch(primitives) -> None:
    torch.manual_seed(0)
    conv, clouds = EdgeConv(3, 4).double(), torch.randn(6, 9, 3, dtype=torch.float64)
    edges = conv(clouds, nearest_neighbours(clouds, 4))
    edges.pow(3).sum().backward()
    found = [[torch.tensor(value, dtype=torch.float64) for value in each["edges"]] for each in primitives]
    torch.testing.assert_close(torch.cat([each[0] for each in found]), edges)
    torch.testing.assert_close(found[0][1] + found[1][1], conv.get_submodule("0").weight.grad)
    for each in found:
        torch.testing.assert_close(each[2], conv.norm.running_mean)
        torch.testing.assert_close(each[3], conv.norm.running_var)


def test_alone_nothing_is_exchanged() -> None:
    rows = torch.ones(2, 3)
    assert distributed.gather(rows) is rows
    assert distributed.gather_rows(rows) is rows
    assert distributed.summed(rows) is rows
    assert (distributed.rank(), distributed.world(), distributed.leads()) == (0, 1, True)
    assert distributed.agree(wish=2) == 2
    with pytest.raises(Stopped, match="full"), distributed.together():
        raise Stopped("full")
    assert distributed.device_of("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert distributed.device_of("auto") == torch.device("cpu")
        with pytest.raises(Refused, match="--device cuda"):
            distributed.device_of("cuda")


FEW = (*COMMON, "log_every=2", "save_every=3")


def training_by_two(*arguments: object) -> subprocess.CompletedProcess:
    return run(torchrun(2, "-m", "--", "training", *arguments))


def exit_codes(done: subprocess.CompletedProcess) -> list[str]:
    """Of every process, from torchrun's table of failures."""
    return [line.split()[2] for line in done.stderr.splitlines() if line.strip().startswith("exitcode")]


def test_a_damaged_shard_of_one_process_ends_all(shards, tmp_path) -> None:
    """A picture that only the second process reads, in its second batch."""
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    settings = DataSettings(views="rgb12", num_points=128, shuffle=512)
    samples = UnlabelledSamples(
        open_source(str(out), settings), settings, AugmentSettings(), Form(48, 8, 16, 0.3), 4, 0, rank=1, world=2
    )
    key = list(samples)[1].keys[0]
    for tar in (out / "views/rgb12").glob("train-*.tar"):
        record, data = json.loads(tar.with_suffix(".json").read_text()), tar.read_bytes()
        if key in record["keys"]:
            number = record["keys"].index(key)
            first, last = [*record["offsets"], len(data)][number : number + 2]
            tar.write_bytes(data[:first] + data[first:last].replace(b"\xff\xd8\xff", b"\x00\xd8\xff") + data[last:])
            damaged = tar
    begun = time.monotonic()
    done = training_by_two("fit", "small_cross_most", "--shards", out, "--run", tmp_path / "run", *FEW)
    assert time.monotonic() - begun < 60
    assert done.returncode == 1  # torchrun's own; those of the processes:
    assert exit_codes(done) == ["3", "3"]
    told = [line for line in done.stderr.splitlines() if line.startswith(f"{damaged}: {key}: ")]
    assert len(told) == 1
    assert done.stderr.count("Traceback") == 1  # torchrun's own
    assert (tmp_path / "run/checkpoints/step-00000000").is_dir()


def test_refusals_are_told_once(shards, tmp_path) -> None:
    common = ("--shards", shards, "--run", tmp_path / "run", *FEW)
    done = training_by_two("fit", "small_cross_most", *common, "optimizer.batch_size=9")
    assert exit_codes(done) == ["2", "2"]
    words = "optimizer.batch_size=9 is of all processes together: 2 of them cannot share it evenly"
    assert done.stderr.count(words) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_commands_of_one_process_are_refused_once() -> None:
    done = training_by_two("recipes")
    assert exit_codes(done) == ["2", "2"]
    assert done.stderr.count("recipes runs in one process: start it without torchrun") == 1


@pytest.mark.slow
def test_a_process_that_is_gone_stops_the_others(tmp_path) -> None:
    """Killed as by the kernel for memory: the other one does not wait for it."""
    script = tmp_path / "gone.py"
    script.write_text(
        "import os, signal, sys\nfrom training import distributed as d\nfrom manifests.errors import Stopped\n"
        "d.start()\nd.agree()\nif d.rank() == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "try:\n    d.agree()\nexcept Stopped as error:\n    print(error, file=sys.stderr, flush=True)\n"
    )
    begun = time.monotonic()
    done = subprocess.run(
        torchrun(2, script), env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "process 0: process 1 has ended or hangs: " in done.stderr
    assert time.monotonic() - begun < 60
