"""A batch taken in parts, and blocks computed again in backward, train as the whole batch does, in less memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from builders import REPOSITORY, torchrun
from training_runs import typed

from manifests.config import parse_changes
from training.data.batch import Batch
from training.loop.update import updates_of
from training.settings.fit_recipe import read_recipe
from training.weights.checkpoint import build_model

FEW = (
    "data.num_points=64",
    "optimizer.batch_size=8",
    "optimizer.steps=3",
    "points.depth=3",
    "points.drop_path=0.4",
    "tensorboard=false",
    "labels.threshold=0.1",
)
FROZEN = "points.freeze_tokenizer=true"
CROSS_MOST = ("small_cross_most", *FEW)
METHODS = {
    "masked_once": (*CROSS_MOST, "mask.passes=1", "lg_align.points=own", "cls.divisor=selected"),
    "masked_twice": (*CROSS_MOST, "mask.passes=2", "weights.align=2"),
    "own_labels": (*CROSS_MOST, "labels.mode=none", "classifier=own", "align.gather=false"),
    "drawn_labels": (*CROSS_MOST, "labels.mode=random", "align.reduction=sum"),
    "agreement": (*CROSS_MOST, "labels.mode=agreement", "labels.threshold=0.05"),
    "self_training": ("small_self_training", *FEW),
    "crosspoint": ("small_crosspoint", *FEW[:-1], FROZEN, "crosspoint.image=trained"),
    "supervised": ("small_cross_most", *FEW[:-1], "method=supervised"),
    "pretrain": ("small_pretrain", *FEW[:-1], FROZEN),
}
# What is added to all keys of an attention has no gradient but rounding, which AdamW makes as large as any. So it is
# with what batch norms of heads take away again, and rounding of large gradients passes 1e-5 too: those methods are
# compared in float64.
UNDETERMINED = "attn.in_proj_bias"
GROUPS = {  # the first in fast tests
    (1, 0): ("masked_twice", "pretrain", "supervised"),
    (1, 1): ("masked_once", "own_labels", "drawn_labels f64", "agreement f64", "self_training", "crosspoint f64"),
    (2, 0): ("masked_once", "masked_twice", "pretrain"),
}
CASES = [
    pytest.param(group, name, id=f"{name} {group[0]}", marks=() if group == (1, 0) else pytest.mark.slow)
    for group, names in GROUPS.items()
    for name in names
]


@pytest.fixture(scope="module")
def updated(shards, tmp_path_factory) -> Callable[[tuple[int, int]], dict]:
    """Of a group: three updates of its methods with the whole batch, in parts, and with blocks computed again."""
    folder, known = tmp_path_factory.mktemp("updated"), {}
    script = REPOSITORY / "tests/support/equal_updates.py"
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")

    def update(group: tuple[int, int]) -> dict:
        if group not in known:
            recipes = {name: METHODS[name.split()[0]] for name in GROUPS[group]}
            recipes |= {f"parts {name}": (*recipes[name], "optimizer.accumulate=4") for name in GROUPS[group]}
            recipes |= {f"again {name}": (*recipes[name], "activation_checkpointing=true") for name in GROUPS[group]}
            arguments = (script, shards, folder / "found.pt", json.dumps(recipes))
            command = [sys.executable, *map(str, arguments)] if group[0] == 1 else torchrun(2, *arguments)
            subprocess.run(command, env=environment, check=True, timeout=280)
            known[group] = torch.load(folder / "found.pt")
        return known[group]

    return update


def determined(name: str, value: torch.Tensor) -> torch.Tensor:
    return value.unflatten(0, (3, -1))[[0, 2]] if name.endswith(UNDETERMINED) else value  # of queries, keys, values


@pytest.mark.parametrize(("group", "name"), CASES)
def test_parts_are_the_whole_batch(updated, group: tuple[int, int], name: str) -> None:
    whole, parts = updated(group)[name], updated(group)[f"parts {name}"]
    assert len(whole["rows"]) == len(parts["rows"]) == 3
    for one, other in zip(whole["rows"], parts["rows"], strict=True):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-5)
    assert whole["without_gradient"] == parts["without_gradient"]
    for key, value in whole["gradients"].items():
        assert (parts["gradients"][key] - value).abs().max() < 1e-5 * max(1, value.abs().max()), key
    for who, weights in whole["weights"].items():
        for key, value in weights.items():
            difference = determined(key, parts["weights"][who][key]) - determined(key, value)
            assert difference.abs().max() < 1e-5, f"{who} {key}"


@pytest.mark.parametrize(("group", "name"), CASES)
def test_blocks_that_are_computed_again_change_no_bit(updated, group: tuple[int, int], name: str) -> None:
    """With drop path, masks and both towers in training."""
    plain, again = (found | found["weights"] for found in (updated(group)[name], updated(group)[f"again {name}"]))
    assert again["rows"] == plain["rows"]
    assert plain["rows"][0]["loss"] != plain["rows"][-1]["loss"]
    for part in ("gradients", *plain["weights"]):
        assert all(torch.equal(value, again[part][key]) for key, value in plain[part].items())


def kept_bytes(changes: tuple[str, ...]) -> int:
    """What a step of Cross-MoST keeps for backward, without weights."""
    recipe = read_recipe("small_cross_most", parse_changes((*FEW, *changes)))
    run = updates_of(build_model(recipe, ("mug", "bowl", "chair"))[0].train(), recipe, 10)
    weights = {value.untyped_storage().data_ptr() for value in run.student.parameters()}
    kept: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in weights:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        pictures, clouds = torch.randn(2, 16, 3, 48, 48), torch.randn(2, 16, 64, 3)
        mask, draws = torch.rand(16, 6, 6) < 0.3, torch.rand(16, 3)
        batch = Batch(tuple(map(str, range(16))), *pictures, *clouds, mask, draws[:, :2], draws[:, 2])
        result = run._step(run.student, run.teacher.model, batch, recipe)
    result.total.backward()
    return sum(kept.values())


def test_parts_and_blocks_that_are_computed_again_keep_less() -> None:
    whole, parts, again = map(kept_bytes, ((), ("optimizer.accumulate=4",), ("activation_checkpointing=true",)))
    assert parts < whole / 2, (whole, parts)
    assert again < whole / 2, (whole, again)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("optimizer.accumulate=3",), "optimizer.accumulate=3 cannot divide the 8 samples of a process"),
        (("optimizer.accumulate=2", "points.freeze_tokenizer=false"), "the batch norms of a trained tokenizer"),
    ],
)
def test_what_cannot_be_the_whole_batch_is_refused(shards, tmp_path, changes: tuple[str, ...], words: str) -> None:
    _, err = typed("fit", *CROSS_MOST, *changes, "--shards", shards, "--run", tmp_path / "run", code=2)
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_in_other_parts(shards, tmp_path) -> None:
    """They are of the machine: a run may move to a smaller card."""
    place = ("--shards", shards, "--run", tmp_path / "run")
    typed("fit", *CROSS_MOST, *place)
    typed("fit", *CROSS_MOST, "optimizer.accumulate=2", "activation_checkpointing=true", *place)
    typed("fit", *CROSS_MOST, "seed=1", *place, code=2)
