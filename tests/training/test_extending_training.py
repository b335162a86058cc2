"""docs/extending.md: its loss term, method and backbone as they stand there, trained and opened again."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from builders import REPOSITORY, torchrun
from safetensors.torch import load_file
from tiny_towers import tiny
from training_runs import typed

import training
from manifests import plugins
from manifests.config import load_toml

PAGE = (REPOSITORY / "docs/extending.md").read_text()
FEW = (
    *("data.num_points=64", "optimizer.batch_size=8", "optimizer.steps=2", "save_every=1", "log_every=1"),
    *("tensorboard=false", "data.shuffle=8", "optimizer.lr=0.01", "optimizer.warmup_epochs=0"),
)
POINTS = ("points.depth=1", "points.width=16", "points.heads=2", "points.freeze_tokenizer=true", "mask.image_cell=8")
UNMASKED = ("weights.mpm=0", "weights.lg_align=0")
LAST = "checkpoints/step-00000002/model.safetensors"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files in the current folder, and the smallest towers."""
    monkeypatch.chdir(tmp_path)
    for name in ("spread.py", "follow.py", "pooled.py"):
        text = re.search(rf"`{name}`[^\n]*\n\n```python\n(.*?)```", PAGE, re.DOTALL)
        assert text is not None
        assert len(text[1].splitlines()) < 40
        (tmp_path / name).write_text(text[1])
    with tiny():
        yield tmp_path


def on_page(beginning: str, shards: Path, *more: str, code: int = 0) -> tuple[str, str]:
    """A command of the page, whose build is `shards`."""
    line = next(line for line in PAGE.splitlines() if line.strip().startswith(f"python -m training {beginning}"))
    return typed(*line.replace("shards/shelf", str(shards)).split()[3:], *more, code=code)


def fit(shards: Path, run: str, *words: str, recipe: str = "small_cross_most", code: int = 0) -> str:
    return typed("fit", recipe, "--shards", shards, "--run", run, *FEW, *words, code=code)[1]


def rows(run: str) -> list[dict[str, str]]:
    with open(Path(run) / "log.csv") as file:
        return list(csv.DictReader(file))


def test_a_term_is_trained_logged_and_opened_again(page, shards) -> None:
    on_page("fit small_cross_most --plugin spread.py", shards, *FEW, *POINTS)
    row = rows("runs/spread")[-1]
    assert float(row["loss_spread"]) > 0
    assert float(row["weighted_spread"]) == pytest.approx(0.3 * float(row["loss_spread"]), rel=1e-5)
    weighted = [float(value) for name, value in row.items() if name.startswith("weighted_")]
    assert float(row["loss"]) == pytest.approx(sum(weighted), rel=1e-5)
    assert load_toml(page / "runs/spread/recipe.toml")["weights"]["spread"] == 0.3
    about = json.loads((page / "runs/spread/run.json").read_text())
    with plugins.using(["spread.py"]):
        assert about["plugins"] == plugins.versions()
    on_page("evaluate runs/spread", shards)
    without = ("runs/spread", "--shards", shards)
    for line in (["evaluate", *without], ["embed", *without, "--out", "e.npz"], ["report", *without]):
        (page / "spread.py").write_text("raise SystemExit('it ran')")
        said = typed(*line, code=2)[1]
        assert said == "runs/spread was trained with --plugin spread.py: give the same here"
    said = fit(shards, "runs/spread", *POINTS, code=2)
    assert said == f"--run {page}/runs/spread was trained with --plugin spread.py: give the same here"


def test_another_version_of_a_term_does_not_go_on_with_a_run(page, shards) -> None:
    fit(shards, "run", "--plugin", "spread.py", *POINTS)
    (page / "spread.py").write_text((page / "spread.py").read_text() + "# another\n")
    said = fit(shards, "run", "--plugin", "spread.py", *POINTS, code=2)
    assert said.endswith("began with another version of plugin spread.py: choose another --run")
    said = typed("evaluate", "run", "--plugin", "spread.py", "--shards", shards)[1]
    assert "run was trained with another version of plugin spread.py" in said


def test_a_weight_of_0_needs_no_plugin_and_an_older_run_has_that_weight(page, shards) -> None:
    """Self-training, too, whose table of weights is another."""
    fit(shards, "idle", "--plugin", "spread.py", "weights.spread=0", *POINTS, recipe="small_self_training")
    assert {"loss_spread", "loss_cls"} <= rows("idle")[0].keys()
    said = typed("evaluate", "idle", "--shards", shards)[1]
    assert "weights.spread=0 is of a term that is not loaded here: it is left out" in said
    fit(shards, "older", *POINTS, recipe="small_self_training")
    before = (page / "older" / LAST).read_bytes()
    assert (page / "idle" / LAST).read_bytes() == before
    said = fit(shards, "older", "--plugin", "spread.py", *POINTS, recipe="small_self_training")
    assert "was begun before weights.spread was a key: it goes on with 0.0" in said
    fit(shards, "taught", "--plugin", "spread.py", *POINTS, recipe="small_self_training")
    assert load_toml(page / "taught/recipe.toml")["weights"]["spread"] == 0.1
    assert (page / "taught" / LAST).read_bytes() != before


def close(first: Path, second: Path) -> None:
    pairs = load_file(first / LAST), load_file(second / LAST)
    for name, value in pairs[0].items():
        if "attn.in_proj_bias" not in name:  # what is added to all keys has no gradient but rounding
            torch.testing.assert_close(value, pairs[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_term_sees_whole_batches_that_are_taken_in_parts(page, shards) -> None:
    term = ("--plugin", "spread.py", "weights.spread=5", "points.drop_path=0", "optimizer.lr=0.001", *POINTS)
    fit(shards, "whole", *term)
    fit(shards, "parts", "optimizer.accumulate=4", *term)
    close(page / "whole", page / "parts")
    assert rows("parts")[0]["loss_spread"] == pytest.approx(rows("whole")[0]["loss_spread"])


@pytest.mark.slow
def test_a_term_of_two_processes_is_that_of_one(page, shards) -> None:
    words = ["fit", "small_cross_most", "--shards", str(shards), "--plugin", "spread.py", *FEW, *POINTS]
    words += ["weights.spread=5", "points.drop_path=0", "optimizer.lr=0.001"]
    fit(shards, "one", *words[4:6], *words[6 + len(FEW) :])
    command = torchrun(2, "--", REPOSITORY / "tests/support/tiny_towers.py", *words, "--run", "two")
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
    subprocess.run(command, env=environment, check=True, timeout=280)
    close(page / "one", page / "two")


def test_a_method_is_trained_and_opened_again(page, shards) -> None:
    on_page("fit small_cross_most --plugin follow.py", shards, *FEW, *POINTS[:-1], "follow.cosine=2")
    first, last = rows("runs/follow")
    assert float(last["weighted_cosine"]) == pytest.approx(2 * float(last["loss_cosine"]), rel=1e-5)
    assert float(last["loss"]) < float(first["loss"])
    begun, ended = (load_file(page / "runs/follow" / name) for name in (LAST.replace("2/", "0/"), LAST))
    changed = {name.partition(".")[0] for name in begun if not torch.equal(begun[name], ended[name])}
    assert changed == {"points"}
    on_page("evaluate runs/follow", shards)
    said = typed("evaluate", "runs/follow", "--shards", shards, code=2)[1]
    assert said == "runs/follow was trained with --plugin follow.py: give the same here"
    with plugins.using(["follow.py"]):
        training.load("runs/follow").save("one.safetensors")
        assert training.load("one.safetensors").checkpoint.recipe.method == "follow"
    with pytest.raises(Exception, match=r"one.safetensors was trained with --plugin follow.py: give the same here"):
        training.load("one.safetensors")
    said = fit(shards, "other", "--plugin", "follow.py", "method=follow", "ema.steps=3", *POINTS[:-1], code=2)
    assert "ema.steps is a key of cross_most and self_training" in said


LABELS = """
def step(student, teacher, batch, recipe):
    points = student.point_features({points})
    assert hasattr(batch, "label") is {labels}, "labels"
    return weigh({{"cosine": points.square().mean()}}, {{"cosine": 1.0}})


METHODS = {{"follow": {{"step": step, "recipe": FollowRecipe, "supervised": {labels}}}}}
"""


def test_no_label_reaches_a_method_that_does_not_say_so(page, shards) -> None:
    text = (page / "follow.py").read_text()
    (page / "follow.py").write_text(text + LABELS.format(points="batch.weak_points", labels=False))
    fit(shards, "unlabelled", "--plugin", "follow.py", "method=follow", *POINTS[:-1])
    (page / "follow.py").write_text(text + LABELS.format(points="batch.points", labels=True))
    said = fit(shards, "labelled", "--plugin", "follow.py", "method=follow", *POINTS[:-1], code=2)
    assert said.endswith("METHODS follow: supervised=True needs `augment: LabelledAugmentSettings` in its recipe")
    labelled = text.replace("AugmentSettings", "LabelledAugmentSettings")
    (page / "follow.py").write_text(labelled + LABELS.format(points="batch.points", labels=True))
    fit(shards, "labelled", "--plugin", "follow.py", "method=follow", *POINTS[:-1])
    said = typed("report", "labelled", "--plugin", "follow.py", "--shards", shards, code=2)[1]
    assert said == "labelled was trained with labels: it can be the --oracle alone"


def test_a_backbone_is_trained_and_opened_again(page, shards) -> None:
    on_page("fit small_cross_most --plugin pooled.py", shards, *FEW, "mask.image_cell=8", "points.width=24")
    saved = load_toml(page / "runs/pooled/recipe.toml")["points"]
    assert saved == {"backbone": "pooled", "width": 24}
    row = rows("runs/pooled")[-1]
    assert float(row["loss_align"]) > 0
    assert (float(row["loss_mpm"]), float(row["loss_lg_align"]) > 0) == (0.0, True)  # the picture's half has its figure
    begun, ended = (load_file(page / "runs/pooled" / name) for name in (LAST.replace("2/", "0/"), LAST))
    assert not torch.equal(begun["points.each.0.weight"], ended["points.each.0.weight"])
    on_page("evaluate runs/pooled", shards)
    said = typed("evaluate", "runs/pooled", "--shards", shards, code=2)[1]
    assert said == "runs/pooled was trained with --plugin pooled.py: give the same here"
    with plugins.using(["pooled.py"]):
        assert training.load("runs/pooled").encode_points(torch.rand(5, 64, 3).numpy()).shape == (5, 8)


def test_keys_of_a_backbone_are_its_own(page, shards) -> None:
    pooled = ("--plugin", "pooled.py", "points.backbone=pooled")
    said = fit(shards, "run", *pooled, "mask.image_cell=8", code=2)
    assert said.endswith("points.backbone=pooled has no tokens to mask: weights.mpm=0 weights.lg_align=0")
    said = fit(shards, "run", *pooled, *UNMASKED, "points.depth=2", code=2)
    assert "points.depth is a key of points.backbone=point_bert" in said
    assert said.endswith("method=cross_most reads points.backbone, points.width")
    said = fit(shards, "run", *pooled, *UNMASKED, "lg_align.points=own", code=2)
    assert said.endswith("points.backbone=pooled has no tokens to project: lg_align.points=tower")
    assert "unknown backbone pooled" in fit(shards, "run", *pooled[2:], code=2)
    fit(shards, "bert", *POINTS)
    said = fit(shards, "run", *pooled, *UNMASKED, "mask.image_cell=8", "init.all=bert", code=2)
    assert said.endswith("has points.backbone=point_bert, this recipe pooled")


def test_batch_norms_of_a_backbone_need_the_whole_batch(page, shards) -> None:
    text = (page / "pooled.py").read_text()
    (page / "pooled.py").write_text(text.replace("nn.Linear(width, width), ", "nn.BatchNorm1d(64), "))
    words = ("--plugin", "pooled.py", "points.backbone=pooled", *UNMASKED, "mask.image_cell=8")
    said = fit(shards, "run", *words, "optimizer.accumulate=2", code=2)
    assert (
        said == "optimizer.accumulate=2: points.backbone=pooled learns batch norms, which need the whole batch at once"
    )
    fit(shards, "run", *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TERMS = {'align': {'loss': print}}", "plugin bad.py: TERMS holds align, and so does this package"),
        ("TERMS = {'Own': {'loss': print}}", "plugin bad.py: TERMS Own: a name is made of a-z, 0-9 and _"),
        ("TERMS = {'own': {'loss': 3}}", "plugin bad.py: TERMS own: loss: Input should be callable, got 3"),
        ("TERMS = {'own': {'loss': print, 'weight': -1}}", "plugin bad.py: TERMS own: weight: Input should be greater"),
        ("METHODS = {'own': {'step': print, 'recipe': int}}", "plugin bad.py: METHODS own: recipe: Input should be"),
        ("BACKBONES = {'own': {'tower': print}}", "plugin bad.py: BACKBONES own: keys: Field required"),
        ("METHODS = {'pretrain': {}}", "plugin bad.py: METHODS holds pretrain, and so does this package"),
    ],
)
def test_a_wrong_row_is_refused_in_one_line(page, text, words) -> None:
    (page / "bad.py").write_text(text)
    said = fit(page, "run", "--plugin", "bad.py", code=2)
    assert words in said
    assert "\n" not in said


def test_a_term_that_is_no_scalar_is_said(page, shards) -> None:
    (page / "spread.py").write_text("TERMS = {'spread': {'loss': lambda *given: given[3].image}}")
    said = fit(shards, "run", "--plugin", "spread.py", *POINTS, code=3)
    assert "the term spread of a plugin gives a tensor (8, 8); a loss is a scalar tensor, such as a mean" in said


def test_a_table_gives_its_commands_the_plugin(page, shards) -> None:
    (page / "own.toml").write_text(
        'title = "own"\n[[rows]]\nname = "spread"\nlabel = "spread"\nrecipe = "small_cross_most"\nrun = "spread"\n'
    )
    places = ("--shards", shards, "--run", "table", "--plugin", "spread.py", "--dry-run")
    said = typed("table", "own.toml", *places, "weights.spread=0.3", *FEW, *POINTS, code=0)[0]
    assert said.count("--plugin spread.py") >= 1
