"""Pre-training of points towards frozen CLIP towers: ULIP's loss, what is trained by key, what it hands on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from training_runs import evaluated

from manifests.config import parse_changes
from manifests.errors import Refused
from training.data.batch import LabelledBatch
from training.loop.fit import fit
from training.loop.schedule import Schedule
from training.loop.update import optimizer_of
from training.models.cross_modal import CrossModalModel
from training.objectives.pretrain import freeze, step, terms_of
from training.settings.fit_recipe import PretrainRecipe, read_recipe
from training.settings.objective import PretrainSettings
from training.weights.checkpoint import build_model

SMALL = (
    "image.model=cross_most_small",
    "image.stem=conv",
    "precision=fp32",
    "points.groups=24",
    "points.group_size=12",
    "points.tokenizer_widths=[32, 64, 64]",
    "points.tokenizer_width=96",
    "points.width=96",
    "points.depth=1",
    "points.heads=4",
    "data.num_points=128",
    "data.views=rgb12",
    "data.workers=0",
    "optimizer.batch_size=8",
    "optimizer.steps=3",
    "optimizer.warmup_epochs=0",
    "log_every=1",
    "tensorboard=false",
)
BOTH = {"image": "frozen", "text": "frozen", "positives": "object", "image_text": 0.0}


def run_of(recipe: str, shards, folder, *changes: str):
    """A whole run, in this process."""
    fit(read_recipe(recipe, parse_changes(changes)), str(shards), str(folder), torch.device("cpu"))
    return folder


@pytest.fixture(scope="module")
def clip(shards, tmp_path_factory):
    """A small CLIP of two steps: the weights that the others begin with."""
    folder = tmp_path_factory.mktemp("runs") / "clip"
    small = ("data.num_points=128", "optimizer.batch_size=8", "optimizer.steps=2", "points.depth=1")
    return run_of("small_pretrain", shards, folder, *small, "tensorboard=false")


@pytest.fixture(scope="module")
def ulip(shards, clip, tmp_path_factory):
    return run_of("pretrain", shards, tmp_path_factory.mktemp("runs") / "ulip", *SMALL, f"init.image={clip}")


def weights_of(run, number: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{number:08d}/model.safetensors")


def changed(run, steps: int = 3) -> set[str]:
    first, last = weights_of(run, 0), weights_of(run, steps)
    return {name for name, value in last.items() if not torch.equal(value, first[name])}


@pytest.mark.parametrize(("name", "scale"), [("init_1_over_0.07", 1 / 0.07), ("clip_100", 100.0)])
@pytest.mark.parametrize("learns", ["projection", "frozen"])
def test_the_terms_equal_ulips(golden, name: str, scale: float, learns: str) -> None:
    """Value and gradients in float64, in one process; image and text get theirs where they are not frozen."""
    folder = golden / "method" / "ulip_loss"
    stored = np.load(folder / "ulip_loss.npz")
    results = json.loads((folder / "expected.json").read_text())["results"]
    given = {n: torch.from_numpy(stored[f"{n}_embed"]).double() for n in ("image", "text", "pc")}
    for n, value in given.items():
        value.requires_grad_(n == "pc" or learns == "projection")
    settings = PretrainSettings(**BOTH | {"image": learns, "text": learns})
    logit_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    image, text, points = (normalize(value, dim=1) for value in given.values())
    captions = torch.arange(len(points)) // 2  # equal captions are no positives of one another here
    terms = terms_of(image, text, points, captions, logit_scale, settings)
    assert ("image_text" in terms) is (learns == "projection")
    loss = terms["points_text"] + terms["points_image"]
    loss.backward()
    assert loss.item() == pytest.approx(results[f"{name}_f64"]["loss"], rel=1e-12)
    assert logit_scale.grad.item() == pytest.approx(results[f"{name}_f64"]["grad_logit_scale"], rel=1e-9)
    for n, value in given.items():
        if value.requires_grad:
            np.testing.assert_allclose(value.grad, stored[f"{name}.grad_{n}_f64"], atol=1e-12)
    if name.startswith("init"):  # ULIP's two processes: each its rows against all columns
        ranks = results["two_rank_gloo_world2_8_per_rank_scale_1_over_0.07"]
        assert loss.item() == pytest.approx(sum(rank["loss"] for rank in ranks) / 2, rel=1e-6)


def features() -> dict[str, torch.Tensor]:
    """Five objects of three captions; unit features of eight numbers in float64."""
    g = torch.Generator().manual_seed(0)
    given = {name: torch.randn(5, 8, generator=g, dtype=torch.float64) for name in ("image", "text", "points")}
    return {name: normalize(value, dim=1).requires_grad_() for name, value in given.items()}


def one_way(left: torch.Tensor, right: torch.Tensor, same: torch.Tensor) -> float:
    """Cross-entropy by hand: the mean over rows of the mean over each row's positives."""
    log = torch.log_softmax(10 * left @ right.T, dim=1)
    return float(-torch.stack([row[positive].mean() for row, positive in zip(log, same, strict=True)]).mean())


@pytest.mark.parametrize("positives", ["class", "object"])
def test_the_terms_by_hand(positives: str) -> None:
    """Equal captions are positives with text, by key; a picture is positive with its own object's cloud alone."""
    given, caption = features(), torch.tensor([0, 1, 0, 2, 1])
    terms = terms_of(*given.values(), caption, torch.tensor(10.0), PretrainSettings(positives=positives))
    alone = torch.eye(5, dtype=torch.bool)
    same = caption[:, None] == caption[None] if positives == "class" else alone
    image, text, points = (value.detach() for value in given.values())
    for name, left, right, positive in (
        ("image_text", image, text, same),
        ("points_text", points, text, same),
        ("points_image", points, image, alone),
    ):
        expected = (one_way(left, right, positive) + one_way(right, left, positive.T)) / 2
        assert terms[name].item() == pytest.approx(expected), name


@pytest.mark.parametrize(("learns", "pulled"), [("trained", False), ("projection", True)])
def test_points_pull_the_towers_by_key(learns: str, pulled: bool) -> None:
    """A trained tower learns by image-text alone; a projection by every term."""
    given = features()
    settings = PretrainSettings(image=learns, text=learns)
    terms = terms_of(*given.values(), torch.arange(5) % 3, torch.tensor(10.0), settings)
    (terms["points_text"] + terms["points_image"]).backward(retain_graph=True)
    assert given["points"].grad.any()
    assert (given["image"].grad is not None) is pulled
    assert (given["text"].grad is not None) is pulled
    terms["image_text"].backward()
    assert given["image"].grad.any()
    assert given["text"].grad.any()


def test_an_object_is_taught_its_own_class_in_every_prompt() -> None:
    """Losses by hand, of the captions that the step must have taken; prompts are drawn anew for each batch."""
    model, batch = model_of(PretrainSettings()).eval(), batch_of(8)
    recipe = PretrainRecipe(method="pretrain")
    with torch.no_grad():
        image, points = model.image_features(batch.images[:, 0]), model.point_features(batch.points)
        scale, values = model.logit_scale.exp(), []
        for prompt in range(model.captions.shape[1]):
            text = normalize(model.text.encode(model.captions[:, prompt]), dim=1)
            right = [((each @ text.T).argmax(dim=1) == batch.label).float().mean().item() for each in (image, points)]
            terms = terms_of(image, text[batch.label], points, batch.label, scale, recipe.pretrain)
            values.append((terms["points_text"].item(), terms["image_text"].item(), *right))
        drawn = set()
        torch.manual_seed(0)
        for _ in range(12):
            result = step(model, None, batch, recipe)
            found = [result.terms["points_text"].item(), result.terms["image_text"].item()]
            found += [result.figures["right_image"].item(), result.figures["right_points"].item()]
            drawn |= {number for number, value in enumerate(values) if found == pytest.approx(value, rel=1e-4)}
    assert len(values) == 2
    assert drawn == {0, 1}


def model_of(settings: PretrainSettings) -> CrossModalModel:
    changes = parse_changes(SMALL)
    recipe = read_recipe("small_pretrain", changes)
    model = build_model(recipe, ("mug", "bowl", "chair"))[0]
    freeze(model, recipe.model_copy(update={"pretrain": settings}))
    return model.train()


def batch_of(size: int = 8) -> LabelledBatch:
    g = torch.Generator().manual_seed(0)
    pictures, clouds = torch.randn(size, 1, 3, 48, 48, generator=g), torch.randn(size, 64, 3, generator=g)
    return LabelledBatch(tuple(map(str, range(size))), pictures, clouds, torch.arange(size) % 3)


def bytes_kept(settings: PretrainSettings) -> tuple[int, int]:
    """Bytes that autograd keeps for a whole step, and for the point tower alone."""
    model, batch, kept = model_of(settings), batch_of(), {}
    recipe = PretrainRecipe.model_construct(pretrain=settings)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    sizes = []
    for run in (lambda: step(model, None, batch, recipe).total, lambda: model.point_features(batch.points)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = run()
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
        del result
    return sizes[0], sizes[1]


def test_frozen_towers_keep_nothing_for_a_gradient_and_rest() -> None:
    frozen, points = bytes_kept(PretrainSettings(**BOTH))
    trained, _ = bytes_kept(PretrainSettings())
    assert points <= frozen < 1.1 * points
    assert trained > 3 * frozen
    model = model_of(PretrainSettings(**BOTH))
    assert not model.image.training
    assert not model.text.training
    assert model.points.training
    assert model_of(PretrainSettings()).image.training


def test_only_points_are_trained_towards_frozen_towers(ulip) -> None:
    names = changed(ulip)
    assert {name.partition(".")[0] for name in names} == {"points"}
    assert {"points.projection", "points.encoder.first_conv.0.weight", "points.blocks.0.attn.qkv.weight"} <= names
    log = (ulip / "log.csv").read_text().splitlines()[0].split(",")
    assert [name for name in log if name.startswith("loss_")] == ["loss_points_text", "loss_points_image"]


def test_projections_are_trained_by_key(shards, clip, tmp_path) -> None:
    """The paper's form: f^I and f^S learn from the points' terms, and nothing else of the two towers does."""
    form = ("pretrain.image=projection", "pretrain.text=projection", "logit_scale=clamped", f"init.image={clip}")
    run_of("pretrain", shards, tmp_path / "run", *SMALL, *form)
    names = {name for name in changed(tmp_path / "run") if not name.startswith("points.")}
    assert names == {"image.visual.proj", "text.clip.text_projection", "classifier", "logit_scale"}


def test_what_it_gives_is_where_cross_most_begins(shards, ulip, tmp_path) -> None:
    """Towers, text tower and logit scale are handed on: zero-shot is what pre-training gave."""
    common = [change for change in SMALL if not change.startswith(("log", "data.workers"))]
    run = tmp_path / "run"
    keys = ("optimizer.steps=1", f"init.all={ulip}", 'prompts=["{}"]')
    run_of("small_cross_most", shards, run, *common, *keys)
    begun, given = weights_of(run, 0), weights_of(ulip, 3)
    for name in ("image.visual.proj", "points.projection", "logit_scale", "classifier"):
        torch.testing.assert_close(begun[name], given[name])
    before = evaluated(ulip, shards, ("{}",))
    after = evaluated(run / "checkpoints/step-00000000", shards)
    assert after["student"] == before["student"]


def test_a_frozen_tower_without_weights_is_refused() -> None:
    with pytest.raises(Refused, match=r"pretrain\.image=frozen needs weights"):
        read_recipe("pretrain", parse_changes((*SMALL, 'init.image=""')))


def test_the_recipe_has_the_papers_numbers() -> None:
    recipe = read_recipe("pretrain", {})
    schedule = Schedule.of(recipe.optimizer, 100)
    assert (schedule.total, schedule.warmup) == (25_000, 100)
    assert schedule.learning_rate(99) == pytest.approx(1e-3)
    assert schedule.learning_rate(25_000) == pytest.approx(1e-5)
    model = model_of(recipe.pretrain)
    optimizer = optimizer_of(model, recipe.optimizer)
    assert all(group["betas"] == (0.9, 0.98) for group in optimizer.param_groups)
    decays = {group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {0.0, 0.1}
    given = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    named = {name.partition(".")[0] for name, parameter in model.named_parameters() if id(parameter) in given}
    assert named == {"points", "logit_scale"}  # the recipe's logit_scale=frozen takes the last one out in build_model


@pytest.mark.parametrize(("key", "moves"), [("trained", True), ("clamped", True), ("frozen", False)])
def test_the_logit_scale_by_key(key: str, moves: bool) -> None:
    recipe = read_recipe("small_pretrain", parse_changes((*SMALL, f"logit_scale={key}")))
    model = build_model(recipe, ("mug", "bowl"))[0]
    assert model.logit_scale.requires_grad is moves
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    model.clamp_scale()
    assert model.logit_scale.exp().item() == pytest.approx(100)
