"""Pre-training, self-training and what they share with Cross-MoST: weights handed on, branches kept apart, resuming."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import signal
import subprocess
import time

import pytest
import torch
from builders import interruptible
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import evaluated

from manifests.config import parse_changes
from manifests.errors import Stopped
from training.loop import fit
from training.loop.throughput import TIMING
from training.objectives import METHODS, SUPERVISED
from training.settings.fit_recipe import RECIPE_OF, read_recipe
from training.weights.checkpoint import build_model, open_checkpoint, without_pretrained

FEW = (
    "data.num_points=128",
    "optimizer.batch_size=8",
    "optimizer.steps=6",
    "log_every=2",
    "save_every=3",
    "points.depth=2",
)
LAST = "checkpoints/step-00000006/model.safetensors"


@pytest.fixture(scope="module")
def pretrained(training, shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    training("fit", "small_pretrain", "--shards", shards, "--run", folder, *FEW)
    return folder


@pytest.fixture(scope="module")
def self_trained(training, shards, pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "self_training"
    training("fit", "small_self_training", "--shards", shards, "--run", folder, *FEW, f"init.all={pretrained}")
    return folder


def rows(folder) -> list[dict[str, str]]:
    with open(folder / "log.csv") as file:
        return [{k: v for k, v in row.items() if k not in TIMING} for row in csv.DictReader(file)]


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def events(folder) -> dict[str, dict[int, float]]:
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {tag: {e.step: e.value for e in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def state_of(recipe: str, shards, folder, *changes: str):
    return fit._set_up(folder, read_recipe(recipe, parse_changes((*FEW, *changes))), str(shards), torch.device("cpu"))[
        0
    ]


def test_pretraining_has_three_losses_no_teacher_and_its_text_tower(pretrained, shards) -> None:
    log = rows(pretrained)
    assert [name for name in log[0] if name.startswith("loss_")] == [
        "loss_image_text",
        "loss_points_text",
        "loss_points_image",
    ]
    assert {"right_image", "right_points"} <= set(log[0])
    assert not (pretrained / "checkpoints/step-00000006/teacher.safetensors").exists()
    assert not (pretrained / "text").exists()
    result = evaluated(pretrained, shards)
    assert result["teacher"] is None
    assert result["n"] == 22


def test_the_classifier_of_a_pretrained_checkpoint_is_that_of_its_text_tower(pretrained) -> None:
    checkpoint = open_checkpoint(str(pretrained))
    weights = load_file(pretrained / LAST)
    model, text = build_model(without_pretrained(checkpoint.recipe), checkpoint.prompt_names)
    model.load_state_dict(weights)
    torch.testing.assert_close(
        weights["classifier"], text.classifier(checkpoint.prompt_names, checkpoint.recipe.prompts)
    )
    first = load_file(pretrained / "checkpoints/step-00000000/model.safetensors")
    assert not torch.equal(first["classifier"], weights["classifier"])
    assert torch.equal(first["text.clip.token_embedding.weight"], weights["text.clip.token_embedding.weight"])
    assert not torch.equal(first["text.clip.text_projection"], weights["text.clip.text_projection"])


def test_zero_shot_is_what_pretraining_gave(training, shards, pretrained, self_trained) -> None:
    """Step 0 of a method evaluates as the run that it begins with; both classifiers are the text's."""
    before = evaluated(pretrained, shards)
    zero_shot = evaluated(self_trained / "checkpoints/step-00000000", shards)
    assert zero_shot["student"] == before["student"]
    assert zero_shot["teacher"] == before["student"]
    weights = load_file(self_trained / "checkpoints/step-00000000/model.safetensors")
    assert torch.equal(weights["classifier"], weights["points_classifier"])
    assert weights["logit_scale"] == load_file(pretrained / LAST)["logit_scale"]
    weights = load_file(self_trained / LAST)
    assert not torch.equal(weights["classifier"], weights["points_classifier"])


def test_self_training_has_every_loss_but_alignment(self_trained) -> None:
    names = [name.removeprefix("loss_") for name in rows(self_trained)[0] if name.startswith("loss_")]
    assert names == ["cls", "fair", "mim", "mpm", "lg_align"]


@pytest.mark.parametrize(
    ("method", "classifier", "joined"),
    [("self_training", "own", False), ("self_training", "shared", True), ("cross_most", "shared", True)],
)
def test_branches_of_self_training_do_not_meet(shards, tmp_path, method: str, classifier: str, joined: bool) -> None:
    """Other clouds change a gradient of the image branch only where the method joins the two."""
    recipe = f"small_{method}"
    state = state_of(recipe, shards, tmp_path / "run", f"classifier={classifier}", "labels.threshold=0.0")
    batch = next(iter(state.loader)).to(torch.device("cpu"))
    clouds = torch.rand(batch.strong_points.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for points in (batch.strong_points, clouds):
        changed = type(batch)(**{**vars(batch), "strong_points": points, "weak_points": points})
        state.updates.optimizer.zero_grad()
        METHODS[method](state.updates.student, state.updates.teacher.model, changed, state.recipe).total.backward()
        own = {n: p.grad.clone() for n, p in state.updates.student.named_parameters() if not n.startswith("points")}
        gradients.append({n: g for n, g in own.items() if n.startswith("image.") or n in ("classifier", "logit_scale")})
    same = {name: torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0]}
    assert same["classifier"] is not joined
    assert same["logit_scale"] is not joined
    assert same["image.visual.proj"] is (method == "self_training")


@pytest.mark.parametrize("method", ["pretrain", "self_training"])
def test_a_run_that_goes_on_is_an_unbroken_one(training, shards, pretrained, self_trained, tmp_path, method) -> None:
    whole = {"pretrain": pretrained, "self_training": self_trained}[method]
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints/step-00000006")
    begin = (f"init.all={pretrained}",) if method == "self_training" else ()
    training("fit", f"small_{method}", "--shards", shards, "--run", folder, *FEW, *begin)
    assert rows(folder) == rows(whole)
    assert digest(folder / LAST) == digest(whole / LAST)
    logged = {int(row["step"]): float(row["loss"]) for row in rows(folder)}
    assert events(folder)["loss"] == pytest.approx(logged, rel=1e-6)
    assert list(events(folder)["loss"]) == [2, 4, 6]


def test_weights_of_other_sizes_or_none_are_refused(training, shards, pretrained, tmp_path) -> None:
    common = ("fit", "small_cross_most", "--shards", shards, "--run", tmp_path / "run", *FEW)
    message = training(*common, f"init.all={pretrained}", "points.width=48", code=2).stderr
    assert f"init.all={pretrained} has points.width=96, this recipe 48" in message
    assert "is no checkpoint" in training(*common, f"init.all={tmp_path / 'none'}", code=2).stderr
    assert not (tmp_path / "run").exists()


def test_only_supervised_methods_are_given_labels(shards, tmp_path) -> None:
    stages = {"multiview", "cross_modal_generator", "pointcmt"}
    assert {"pretrain", "supervised", "parts", "adapter", *stages} == SUPERVISED
    assert set(METHODS) == set(RECIPE_OF)
    for name in METHODS.keys() - {"parts", "adapter", "clip2point", *stages}:  # on builds of their own in their tests
        recipe = "small_cross_most" if name == "supervised" else f"small_{name}"
        batch = next(iter(state_of(recipe, shards, tmp_path / name, f"method={name}").loader))
        assert hasattr(batch, "label") is (name in SUPERVISED), name


def test_an_update_with_a_loss_that_is_not_finite_is_skipped(shards, tmp_path) -> None:
    state = state_of("small_cross_most", shards, tmp_path / "run")
    batches = iter(state.loader)
    state.updates(next(batches).to(state.device), state.step)
    state.updates(next(batches).to(state.device), state.step)
    assert not any(p.isnan().any() for p in state.updates.student.parameters())
    state.updates.log.refuse_fault()
    with torch.no_grad():
        state.updates.student.points.lm_head.bias[0] = torch.nan
    before = {name: p.clone() for name, p in state.updates.student.named_parameters()}
    state.step = 2
    state.updates(next(batches).to(state.device), state.step)
    for name, parameter in state.updates.student.named_parameters():
        assert torch.equal(parameter.nan_to_num(), before[name].nan_to_num()), name
    with torch.no_grad():
        state.updates.student.points.lm_head.bias[0] = 0.0
    state.step = 3
    state.updates(next(batches).to(state.device), state.step)
    with pytest.raises(Stopped, match="step 3: the loss mpm is not finite"):
        state.save()
    assert not (tmp_path / "run").exists()


def test_ctrl_c_is_130_and_saves_what_was_trained(training, shards, tmp_path) -> None:
    command = ("fit", "small_pretrain", "--shards", shards, "--run", tmp_path / "run", *FEW)
    piped = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": interruptible}
    process = training.start(*command, "optimizer.steps=100000", "save_every=100000", **piped)
    try:
        deadline = time.monotonic() + 90
        while not (tmp_path / "run/log.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "run the same again to go on" in err.splitlines()[-1]
    assert "a checkpoint is written after this step; Ctrl-C again ends at once" in err
    assert open_checkpoint(str(tmp_path / "run")).step > 0


def test_a_full_disk_is_exit_3_and_the_same_again_completes(training, shards, pretrained, tmp_path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in (pretrained / "checkpoints/step-00000006").iterdir())
    options = ["-t", "tmpfs", "-o", f"size={int(2.5 * size)}"]
    mounted = subprocess.run(["mount", *options, "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        command = ("fit", "small_pretrain", "--shards", shards, "--run", disk / "run", *FEW, "tensorboard=false")
        message = training(*command, code=3).stderr
        assert "No space left on device" in message.splitlines()[-1]
        subprocess.run(["mount", "-o", f"remount,size={10 * size}", str(disk)], check=True)
        assert open_checkpoint(str(disk / "run")).step == 3
        training(*command)
        assert digest(disk / "run" / LAST) == digest(pretrained / LAST)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_run_information(self_trained) -> None:
    about = json.loads((self_trained / "run.json").read_text())
    assert about["seconds"] > 0
    assert about["ms_per_step"] > 0
    assert {"torch", "open_clip_torch"} <= set(about["versions"])
