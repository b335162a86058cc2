"""A point network trained with labels, as its authors train it, and every command that reads such a run."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import REPOSITORY, Commands
from tiny_towers import tiny
from torch.nn.functional import cross_entropy
from training_runs import relabelled, typed

import training
from manifests.config import names_in, parse_changes
from manifests.errors import Refused
from training.data.batch import LabelledBatch
from training.data.dataset import Source, open_source
from training.data.part_of_split import part_of
from training.data.point_augment import LABELLED, normalized_axes, pool_of, scaled_clouds
from training.data.subsets import classes_of
from training.data.whole_split import SplitReader, batch_numbers
from training.evaluation.evaluate import Options, examine
from training.loop.train_state import _read_state
from training.models.cross_modal import CrossModalModel
from training.networks.part_networks import PART_TOWERS
from training.objectives.losses import smoothed_cross_entropy
from training.objectives.supervised import step
from training.settings.backbone_rows import BACKBONE_SETTINGS
from training.settings.fit_recipe import RECIPES, FitRecipe, read_recipe
from training.weights.checkpoint import build_model, open_checkpoint

SMALL = {  # sizes for two cores; a backbone without a row has its own
    "point_bert": ("groups=24", "group_size=12", "depth=2", "width=48", "heads=2", "tokenizer_width=48", "drop_path=0"),
    "pointnet": ("widths=[16, 16, 16, 32]", "emb_dims=64"),
    "dgcnn": ("k=8", "widths=[16, 16, 32, 32]", "emb_dims=64"),
    "pointnet2_ssg": (
        *("centres=[48, 12]", "radii=[[0.4], [0.8]]", "neighbours=[[8], [8]]"),
        *("widths=[[[16, 32]], [[32, 64]]]", "last=[64, 128]"),
    ),
    "rscnn": ("centres=[48, 12]", "radii=[0.4, 0.8]", "neighbours=[8, 8]", "widths=[32, 64]", "last=128"),
    "pointmlp": (
        "centres=[48, 24, 12, 8]",
        "neighbours=8",
        "embedding=16",
        "before=[1, 1, 1, 1]",
        "after=[1, 1, 1, 1]",
    ),
}
SMALL["pointnet2_msg"] = (
    *("centres=[48, 12]", "radii=[[0.3, 0.6], [0.5, 1.0]]", "neighbours=[[4, 8], [4, 8]]", "last=[64, 128]"),
    "widths=[[[16, 32], [16, 32]], [[32, 64], [32, 64]]]",
)
SMALL["pointnet2_pointcmt"] = (*SMALL["pointnet2_msg"], "feature=64")
SMALL["pointmlp_elite"] = SMALL["pointmlp"]
TAUGHT = ("method=supervised", "supervised.head=own", "supervised.towers=points", "augment.labelled_points=dgcnn")
SHORT = ("data.num_points=64", "optimizer.batch_size=8", "optimizer.steps=4", "log_every=2", "tensorboard=false")


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    """The tower that no loss reaches is the smallest."""
    with tiny():
        yield


def keys_of(backbone: str) -> tuple[str, ...]:
    return (*TAUGHT, f"points.backbone={backbone}", *(f"points.{key}" for key in SMALL.get(backbone, ())))


def build(folder: Path, *keys: str) -> Path:
    common = ("--workers", 0, "num_points=256", "fps_prefix=256", "views=[]")
    Commands(REPOSITORY)("build", "parametric", "--out", folder, *common, *keys)
    return folder


@pytest.fixture(scope="module")
def clouds(tmp_path_factory) -> Path:
    """120 parametric objects of 256 points, and no view set."""
    return build(tmp_path_factory.mktemp("clouds") / "out", "parametric.objects=120", "parametric.test_fraction=0.5")


OF_RUN = (*keys_of("pointnet"), *SHORT, "supervised.smoothing=0.2", "optimizer.kind=sgd", "optimizer.norm_momentum=0.5")
OF_RUN += ("save_every=2", "keep_last=9")


@pytest.fixture(scope="module")
def run(clouds, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    typed("fit", "small_cross_most", "--shards", clouds, "--run", folder, *OF_RUN)
    return folder


def evaluated(run: Path, clouds: Path, *words: object) -> dict:
    return json.loads(typed("evaluate", run, "--shards", clouds, "--json", *words)[0])


def test_evaluate_judges_points_without_pictures(clouds, run, tmp_path) -> None:
    result = evaluated(run, clouds)
    student, analysis = result["student"], result["analysis"]["student"]
    assert student["image"] is student["image_star"] is analysis["joint"] is result["pseudo_labels"] is None
    assert student["points"] >= 0
    assert student["mean_per_class"]["points"] >= 0
    assert "mean per class" in typed("evaluate", run, "--shards", clouds, "--out", tmp_path / "out")[0]
    assert (tmp_path / "out" / "histogram_student.csv").read_text().startswith("class,points\n")
    training.load(run).save(tmp_path / "one.safetensors")
    assert evaluated(tmp_path / "one.safetensors", clouds)["student"] == student


@pytest.mark.slow
def test_load_predict_and_embed_answer_by_the_head(clouds, run, tmp_path) -> None:
    model = training.load(run)
    assert model.model.points_width == 64
    assert any(name.startswith("points_head.") for name in model.model.state_dict())
    file = tmp_path / "cloud.npy"
    np.save(file, np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32))
    (row,) = json.loads(typed("predict", run, file, "--json", "--html", tmp_path / "page.html")[0])
    asked = model.classify(points=np.load(file))
    assert row["towers"] == ["points"]
    assert row["confidence"] == pytest.approx(float(asked.confidence), abs=1e-3)
    rows = json.loads(typed("predict", run, "--shards", clouds, "--json")[0])
    assert {each["surer"] for each in rows} == {"points"}
    typed("embed", run, "--shards", clouds, "--out", tmp_path / "e.npz", "--picture", "tsne")
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["points"].shape == (len(rows), 64)
        assert len(arrays["image"]) == 0
        own = model.model.points_head(torch.from_numpy(arrays["points"])).argmax(dim=1)
    assert [model.classes[number] for number in own.tolist()] == [each["label"] for each in rows]
    with pytest.raises(ValueError, match="did not train its image tower"):
        model.classify(image=np.zeros((60, 60, 3), np.uint8))
    with pytest.raises(Refused, match=r"supervised\.head=own"):
        model.classify(points=np.eye(3), classes=["mug", "bowl"])
    for words in ("--classes-from-text", "prompts=ulip64"):
        assert "supervised.head=own" in typed("evaluate", run, "--shards", clouds, words, code=2)[1]


def test_a_subset_of_classes_keeps_the_columns_of_the_head(clouds, run) -> None:
    checkpoint = open_checkpoint(str(run))
    names = [checkpoint.classes[number] for number in (2, 5)]
    few = examine([checkpoint], str(clouds), options=Options(changes={"classes": names}))[0]
    every = examine([checkpoint], str(clouds))[0]
    rows = [every.keys.index(key) for key in few.keys]
    torch.testing.assert_close(few.student.logits["points"], every.student.logits["points"][rows][:, [2, 5]])


def test_a_run_of_sgd_goes_on_to_the_same_bits(clouds, run, tmp_path) -> None:
    copy, last = tmp_path / "run", "checkpoints/step-00000004"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / last)
    typed("fit", "small_cross_most", "--shards", clouds, "--run", copy, *OF_RUN)
    assert (copy / last / "model.safetensors").read_bytes() == (run / last / "model.safetensors").read_bytes()
    state = _read_state(copy / last / "state.pt")["optimizer"]["state"]
    assert all(set(each) == {"momentum_buffer"} for each in state.values())


def test_votes_scale_the_stored_cloud_anew(clouds, run) -> None:
    """The mean of logits by hand, each vote's axes in 0.8 to 1.2, none built on another; one vote is a plain pass."""
    checkpoint, model = open_checkpoint(str(run)), training.load(run).model
    settings = checkpoint.recipe.data.model_copy(update={"split": "test"})
    source = open_source(str(clouds), settings, pictures=False)
    (batch, *_) = SplitReader(source, settings, 48, batch_numbers(source.total, 32)).batches()
    seen: list[torch.Tensor] = []
    model.point_features, own = lambda points: seen.append(points) or own(points), model.point_features
    found = examine([checkpoint], str(clouds), options=Options(votes=3))[0]
    folder = clouds.parent / "voted"
    said = typed("evaluate", run, "--shards", clouds, "--votes", 3, "--out", folder)[0]
    result = json.loads((folder / "evaluate.json").read_text())
    assert "3 votes" in said
    assert result["votes"] == 3
    assert result["student"]["points"] == found.student.percent()["points"]
    digest = [training.evaluation.evaluate.seed_digest(checkpoint.recipe.seed, key) for key in batch.keys]
    seed = torch.tensor([int.from_bytes(each[:8], "big", signed=True) for each in digest])
    factors = [scaled_clouds(torch.ones(len(seed), 1, 3), seed, vote) for vote in (1, 2)]
    assert not torch.equal(*factors)
    assert all(0.8 <= float(f.min()) < 0.9 < 1.1 < float(f.max()) <= 1.2 for f in factors)
    with torch.inference_mode():
        passes = [model.points_logits(own(batch.points * f)) for f in (torch.ones(1, 1, 3), *factors)]
    torch.testing.assert_close(found.student.logits["points"][: len(seed)], sum(passes) / 3, atol=1e-5, rtol=1e-5)


def test_a_share_of_each_class(clouds, tmp_path, caplog) -> None:
    recipe = read_recipe("small_cross_most", parse_changes([*keys_of("pointnet"), "data.fraction=0.25"]))
    source, known = open_source(str(clouds), recipe.data, pictures=False), classes_of(str(clouds), "train")

    def kept(seed: int) -> set[str]:
        part: Source = part_of(source, str(clouds), recipe.model_copy(update={"seed": seed}))
        return {key for shard in part.shards for key in shard.keys}

    with caplog.at_level(logging.WARNING):
        chosen = kept(0)
    counts, whole = Counter(known[key] for key in chosen), Counter(known.values())
    assert counts == {name: max(round(0.25 * number), 1) for name, number in whole.items()}
    assert f"{len(chosen)} of {source.total} objects" in caplog.text
    assert kept(0) == chosen != kept(1)
    folder = tmp_path / "run"
    few = (*keys_of("pointnet"), *SHORT, "data.fraction=0.25")
    typed("fit", "small_cross_most", "--shards", clouds, "--run", folder, *few)
    assert json.loads((folder / "run.json").read_text())["objects"] == len(chosen)
    assert (
        evaluated(folder, clouds)["n"]
        == open_source(str(clouds), recipe.data.model_copy(update={"split": "test"}), pictures=False).total
    )


def model_of(*keys: str) -> tuple[CrossModalModel, FitRecipe]:
    recipe = read_recipe("small_cross_most", parse_changes(("method=supervised", *keys)))
    return build_model(recipe, ("mug", "bowl", "chair"))[0], recipe


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        ((), {"image", "points", "points.projection", "classifier", "logit_scale"}),
        (("supervised.towers=points",), {"points", "points.projection", "classifier", "logit_scale"}),
        (("supervised.towers=image",), {"image", "classifier", "logit_scale"}),
        (("supervised.head=own",), {"image", "points", "points_head", "classifier", "logit_scale"}),
        (("supervised.head=own", "supervised.towers=points"), {"points", "points_head"}),
        (
            ("supervised.towers=points", "classifier=own"),
            {"points", "points.projection", "points_classifier", "points_logit_scale"},
        ),
    ],
)
def test_what_no_loss_reaches_is_frozen(keys: tuple[str, ...], trained: set[str]) -> None:
    model, _ = model_of(*keys)
    found = {name for name, p in model.named_parameters() if p.requires_grad}
    parts = {name if name == "points.projection" else name.partition(".")[0] for name in found}
    assert parts == trained


def test_the_regulariser_is_a_term() -> None:
    model, recipe = model_of("supervised.towers=points", "points.backbone=pointnet_tnet", "data.num_points=32")
    batch = LabelledBatch(tuple("abcd"), torch.zeros(4, 0, 3, 8, 8), torch.randn(4, 32, 3), torch.tensor([0, 1, 2, 0]))
    found = step(model.train(), None, batch, recipe)
    assert set(found.terms) == {"points", "regulariser"}
    assert found.total.item() == pytest.approx(found.terms["points"].item() + found.terms["regulariser"].item())
    found.total.backward()
    assert model.points.regulariser() is None  # it was given once


def test_smoothed_labels_by_hand() -> None:
    """The true class has 1 - eps and each other eps / (K - 1); in torch's form it has a share of eps, too."""
    g = torch.Generator().manual_seed(0)
    logits, label = torch.randn(6, 40, generator=g, dtype=torch.float64), torch.arange(6) * 6
    target = torch.full((6, 40), 0.2 / 39, dtype=torch.float64).scatter(1, label[:, None], 0.8)
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(smoothed_cross_entropy(logits, label, 0.2), expected)
    torch.testing.assert_close(smoothed_cross_entropy(logits, label, 0.2 * 40 / 39, "torch"), expected)
    assert torch.equal(smoothed_cross_entropy(logits, label), cross_entropy(logits, label))
    two = torch.tensor([[2.0, 0.0]], dtype=torch.float64)  # beyond what torch's form can say
    assert smoothed_cross_entropy(two, torch.tensor([0]), 0.9) > smoothed_cross_entropy(two, torch.tensor([1]), 0.9)


def cloud(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clouds of some seeds, and the same as they are before augmentation, float64 (B, N, 3)."""
    g = torch.Generator().manual_seed(1)
    points = torch.randn(200, count, 3, generator=g) * torch.tensor([1.0, 2.0, 3.0]) + 5
    return points, torch.arange(200) * 7919, normalized_axes(points).transpose(1, 2)


def scale_and_shift(made: torch.Tensor, plain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3) each, of clouds whose every axis was stretched and moved, from their extents."""
    scale = (made.amax(1) - made.amin(1)) / (plain.amax(1) - plain.amin(1))
    return scale, made.amin(1) - scale * plain.amin(1)


def test_dgcnns_and_rscnns_clouds() -> None:
    points, seed, plain = cloud(64)
    made = LABELLED["dgcnn"](points, seed)
    scale, shift = scale_and_shift(made, plain)
    for value, low, high in ((scale, 2 / 3, 3 / 2), (shift, -0.2, 0.2)):
        assert low <= float(value.min()) < low + 0.02
        assert high - 0.02 < float(value.max()) <= high + 1e-6
        assert (value[:, 0] - value[:, 1]).abs().max() > 0.1  # each axis for itself
    back = (made - shift[:, None]) / scale[:, None]
    assert not torch.allclose(back, plain, atol=1e-2)  # shuffled
    torch.testing.assert_close(back.sort(dim=1).values, plain.sort(dim=1).values, atol=1e-4, rtol=1e-4)
    assert (pool_of(1024), pool_of(64)) == (1200, 75)
    points, seed, plain = cloud(1200)
    made = LABELLED["rscnn"](points[:20], seed[:20])
    assert made.shape == (20, 1024, 3)
    order = plain[0, :, 0].argsort()
    assert len(made[0].unique(dim=0)) == 1024  # no point twice
    assert len(order) == 1200


def test_pointnet2s_clouds() -> None:
    points, seed, plain = cloud(64)
    made = LABELLED["pointnet2"](points, seed)
    same = (made == made[:, :1]).all(dim=2)
    share = (same.sum(dim=1) - 1) / 63
    assert 0 <= float(share.min()) < 0.05
    assert 0.75 < float(share.max()) <= 1
    rows = [number for number in range(200) if share[number] < 0.5]
    for number in rows[:20]:
        there = ~same[number]
        there[0] = True
        scale, shift = scale_and_shift(made[number, there][None], plain[number, there][None])
        assert 0.8 <= scale[0, 0] <= 1.25
        torch.testing.assert_close(scale[0], scale[0, :1].expand(3), atol=1e-4, rtol=1e-4)
        assert shift.abs().max() <= 0.1 + 1e-5


@pytest.mark.slow
def test_images_alone(shards, tmp_path) -> None:
    keys = ("method=supervised", "supervised.towers=image", "points.depth=1", *SHORT[1:], "data.num_points=64")
    typed("fit", "small_cross_most", "--shards", shards, "--run", tmp_path / "run", *keys)
    student = evaluated(tmp_path / "run", shards)["student"]
    assert student["points"] is None
    assert student["image_star"] is not None
    rows = json.loads(typed("predict", tmp_path / "run", "--shards", shards, "--json")[0])
    assert {tuple(row["towers"]) for row in rows} == {("image",)}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (('data.classes=["mug"]',), "has one class (mug): method=supervised needs two"),
        (("optimizer.batch_size=1",), "optimizer.batch_size=1: points.backbone=pointnet learns batch norms"),
        (("optimizer.accumulate=2",), "the whole batch at once"),
        (("supervised.towers=image",), "head=own is of the points, which towers=image leaves out"),
        (("supervised.smoothing=1.0",), "supervised.smoothing"),
    ],
)
def test_what_cannot_be_trained_is_one_line(clouds, tmp_path, keys: tuple[str, ...], words: str) -> None:
    said = typed(
        "fit",
        "small_cross_most",
        "--shards",
        clouds,
        "--run",
        tmp_path / "run",
        *keys_of("pointnet"),
        *SHORT,
        *keys,
        code=2,
    )
    assert words in " ".join(said[1].split())
    assert not (tmp_path / "run").exists()


def test_fewer_points_than_neighbours_and_no_label(clouds, tmp_path) -> None:
    place = ("--run", tmp_path / "run")
    few = (*TAUGHT, "points.backbone=dgcnn", *SHORT, "data.num_points=16")
    said = typed("fit", "small_cross_most", "--shards", clouds, *place, *few, code=2)[1]
    assert "data.num_points=16 is fewer than the 20 that points.* needs" in " ".join(said.split())
    bare = relabelled(clouds, tmp_path / "bare", lambda key, label: None)
    said = typed("fit", "small_cross_most", "--shards", bare, *place, *keys_of("pointnet"), *SHORT, code=3)[1]
    assert "no label, which supervised training needs" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names_in(RECIPES) if name.endswith("_cls")])
def test_a_recipe_trains(clouds, tmp_path, name: str) -> None:
    """One step with its authors' optimiser and clouds, of small sizes."""
    small = ("data.workers=0", "optimizer.batch_size=4", "optimizer.steps=1", "log_every=1", "tensorboard=false")
    sizes = [f"points.{key}" for key in SMALL[read_recipe(name, {}).points.backbone]]
    typed("fit", name, "--shards", clouds, "--run", tmp_path / "run", "data.num_points=64", *small, *sizes)
    assert (tmp_path / "run" / "checkpoints" / "step-00000001" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("many") / "out", "parametric.objects=400", "parametric.test_fraction=0.25")


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [name for name in BACKBONE_SETTINGS if name not in PART_TOWERS])
def test_each_backbone_beats_chance_by_far(many, tmp_path, backbone: str) -> None:
    """Chance is 1 in 19."""
    wanted = read_recipe("small_cross_most", parse_changes(keys_of(backbone))).points.fewest_points
    slow = {
        "point_bert": (240, 1e-3),
        "pointnet_tnet": (240, 1e-3),
        "pointmlp": (150, 3e-3),
        "pointmlp_elite": (150, 3e-3),
    }
    steps, rate = slow.get(backbone, (60, 3e-3))
    keys = ("optimizer.kind=adam", f"optimizer.lr={rate}", "optimizer.lr_scaled=false", f"optimizer.steps={steps}")
    keys += ("optimizer.warmup_epochs=0", "optimizer.batch_size=24", f"data.num_points={max(wanted, 128)}")
    typed("fit", "small_cross_most", "--shards", many, "--run", tmp_path / "run", *keys_of(backbone), *keys)
    assert evaluated(tmp_path / "run", many)["student"]["points"] > 40
