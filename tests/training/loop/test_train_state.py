"""A run that was broken off is an unbroken one: weights, teacher, optimiser, draws, rows and histograms."""

from __future__ import annotations

import csv
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from manifests.config import parse_changes
from training import distributed
from training.loop import fit
from training.loop.metric_log import Logged
from training.loop.throughput import TIMING
from training.loop.train_state import Run
from training.settings.fit_recipe import FitRecipe, read_recipe
from training.weights.checkpoint import step_folders

CPU = torch.device("cpu")
FEW = (
    "data.num_points=64",
    "optimizer.batch_size=6",
    "optimizer.steps=8",
    "log_every=2",
    "save_every=3",  # between two rows of the log
    "keep_last=3",
    "points.depth=2",
    "points.drop_path=0.4",  # draws from torch's generator
    "ema.start=0.5",
    "labels.threshold=0.06",
    "tensorboard=false",
)  # 38 objects: an epoch has 6 steps
LAST = "checkpoints/step-00000008"


def recipe_of(*changes: str) -> FitRecipe:
    return read_recipe("small_cross_most", parse_changes((*FEW, *changes)))


def rows(folder: Path, name: str = "log.csv") -> list[dict[str, str]]:
    with open(folder / name, newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMING} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory) -> Path:
    """An unbroken run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    fit.fit(recipe_of(), str(shards), str(folder), CPU)
    return folder


def same_weights(folder: Path, other: Path, step: str = LAST) -> bool:
    files = [f"{step}/{name}.safetensors" for name in ("model", "teacher")]
    pairs = [(load_file(folder / file), load_file(other / file)) for file in files]
    return all(torch.equal(first[name], second[name]) for first, second in pairs for name in first)


@pytest.mark.parametrize("begun", [3, 6])
def test_a_run_that_goes_on_is_an_unbroken_one(whole, shards, tmp_path, begun: int) -> None:
    """From within an epoch and a row, and from the end of an epoch, to the last digit."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for path in step_folders(folder):
        if int(path.name[5:]) > begun:
            shutil.rmtree(path)
    told = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**told, "seconds": 1000.0}))
    torch.manual_seed(99)
    fit.fit(recipe_of(), str(shards), str(folder), CPU)
    assert rows(folder) == rows(whole)
    assert rows(folder, "histograms.csv") == rows(whole, "histograms.csv")
    assert same_weights(folder, whole)
    about = json.loads((folder / "run.json").read_text())
    assert 1000 < about["seconds"] < 1000 + 10 * told["seconds"]  # of both parts


def test_what_a_run_is_seeded_by_and_how_fast_it_is(whole, shards, tmp_path) -> None:
    """The recipe's seed alone, not what was drawn in the process before; another seed draws other paths."""
    torch.manual_seed(3)
    times, told = [], []

    def on_log(logged: Logged) -> None:
        times.append(time.perf_counter())
        told.append(2 * logged.values["ms_per_step"] / 1000)

    fit.fit(recipe_of("save_every=100"), str(shards), str(tmp_path / "same"), CPU, on_log)
    assert rows(tmp_path / "same") == rows(whole)
    for between, seconds in zip(np.diff(times), told[1:], strict=True):  # the pace is of a row's own steps
        assert seconds == pytest.approx(between, rel=0.4, abs=0.02)
    seeds = []
    for seed in (1, 2):
        state, _ = fit._set_up(tmp_path / str(seed), recipe_of(f"seed={seed}"), str(shards), CPU)
        state.seed()
        seeds.append(torch.rand(4))
    assert not torch.equal(*seeds)


def test_rows_of_a_run(whole) -> None:
    """One each log_every steps and one for the last; histograms of the steps since the row before."""
    assert [row["step"] for row in rows(whole)] == ["2", "4", "6", "8"]
    for row in rows(whole, "histograms.csv"):
        if row["histogram"] in ("image", "points"):
            assert sum(int(value) for name, value in row.items() if name not in ("step", "histogram")) == 12
    assert [path.name[-1] for path in step_folders(whole)] == ["0", "3", "6", "8"]
    teacher, student = (load_file(whole / LAST / f"{name}.safetensors") for name in ("teacher", "model"))
    assert not torch.equal(teacher["classifier"], student["classifier"])


def test_a_last_step_between_two_rows_has_a_row(shards, tmp_path) -> None:
    fit.fit(recipe_of("optimizer.steps=3"), str(shards), str(tmp_path / "run"), CPU)
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == ["2", "3"]
    assert float(found[1]["lr"]) != float(found[0]["lr"])


def prepared(shards: Path, folder: Path, *changes: str) -> Run:
    return fit.prepare(recipe_of(*changes), str(shards), str(folder), CPU)


def test_segments_of_one_epoch_say_nothing_of_the_next(shards, tmp_path) -> None:
    """Or samples of every later epoch would be left out."""
    state = prepared(shards, tmp_path / "run")
    state.given, state.given_epoch, state.step = [(2, 1, 4)], 0, 4
    assert state.progress() == (0, [(2, 1, 4)])
    state.step = 5
    assert state.progress() == (0, [(2, 1, 4), (1, 1, 1)])
    state.step = 6
    assert state.progress() == (1, [])
    state.step = 8
    assert state.progress() == (1, [(1, 1, 2)])


@pytest.mark.parametrize("name", ["classes", "prompt_names", "assets_hash", "shapes_hash", "view_set", "view_set_hash"])
def test_a_run_does_not_go_on_with_other_shards(whole, shards, tmp_path, name: str) -> None:
    """Whatever of them is another: objects, how they were made, their pictures, the names of classes."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in ("recipe.toml", "run.json"):
        shutil.copy(whole / path, folder / path)
    (folder / "checkpoints/step-00000003").mkdir(parents=True)
    about = json.loads((folder / "run.json").read_text())
    about[name] = about[name][::-1]
    (folder / "run.json").write_text(json.dumps(about))
    with pytest.raises(fit.Refused, match=rf"began with other shards \(another {name}\)"):
        prepared(shards, folder)


def test_a_run_tells_how_its_pictures_are_normalised(whole) -> None:
    about = json.loads((whole / "run.json").read_text())
    assert about["pixel_mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])  # CLIP's
    assert about["pixel_deviation"] == pytest.approx([0.26862954, 0.26130258, 0.27577711])


def test_training_trains(shards, tmp_path) -> None:
    """Drop path and batch norms are on in the student and rest in the teacher, of which no weight is trained."""
    updates = prepared(shards, tmp_path / "run", "points.freeze_tokenizer=false").updates
    assert all(module.training for module in updates.student.modules())
    assert not any(module.training for module in updates.teacher.model.modules())
    assert not any(p.requires_grad for p in updates.teacher.model.parameters())


def test_each_process_goes_on_with_its_own_random_numbers(monkeypatch) -> None:
    """Or all of them would drop the same paths."""
    torch.manual_seed(3)
    saved = {"torch_rng": torch.stack([torch.get_rng_state(), torch.Generator().manual_seed(4).get_state()])}
    monkeypatch.setattr(distributed, "world", lambda: 2)
    drawn = []
    for rank, seed in enumerate((3, 4)):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        Run._restore_random(SimpleNamespace(device=torch.device("cpu")), saved)
        drawn.append(torch.rand(4).tolist())
        assert drawn[-1] == torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()
    assert drawn[0] != drawn[1]
