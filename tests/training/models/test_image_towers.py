"""Image towers without patch tokens: open_clip's ResNets and others by name, and ResNets of torchvision."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18
from training_runs import ONE_STEP, evaluated, typed
from weight_files import register

from manifests.config import parse_changes
from manifests.errors import Refused
from training.loop.update import updates_of
from training.models.clip import build_towers, pixel_statistics
from training.models.cross_modal import parameter_groups
from training.models.ema_teacher import Teacher
from training.models.resnet import ResNetTower
from training.settings.fit_recipe import FitRecipe, read_recipe
from training.settings.model import ImageSettings
from training.settings.objective import EMASettings
from training.weights.checkpoint import build_model
from training.weights.pretrained import read_source

TEXT = {"vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
SHAPES: dict[str, dict[str, Any]] = {  # an image tower of each kind, small
    "rn": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "image_size": 32},
    "convnext": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 32},
    "coca": {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True, "image_size": 32},
}
UNMASKED = ("weights.mim=0", "weights.lg_align=0")
FEW = (*ONE_STEP, "points.width=48", "points.heads=3", "image.stem=patch", "image.image_size=32", "prompts=['a {}']")
METHODS = {  # method -> its recipe and what it needs besides
    "pretrain": ("small_pretrain",),
    "crosspoint": ("small_crosspoint",),
    "supervised": ("small_cross_most", "method=supervised"),
    "cross_most": ("small_cross_most", *UNMASKED, "mask.passes=2"),
    "self_training": ("small_self_training", *UNMASKED),
}


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The models of SHAPES under names of open_clip."""
    folder = tmp_path_factory.mktemp("models")
    for name, vision in SHAPES.items():
        register(folder, f"small-{name}", 16, vision=vision, text=TEXT, custom_text=name != "rn")
    values = json.loads((folder / "small-coca.json").read_text())
    values["text_cfg"] |= {"embed_cls": True, "output_tokens": True}
    values["multimodal_cfg"] = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (folder / "small-coca.json").write_text(json.dumps(values))
    open_clip.add_model_config(folder / "small-coca.json")


def recipe_of(model: str, *changes: str, recipe: str = "small_cross_most") -> FitRecipe:
    """A recipe with an image tower of SHAPES, or with a ResNet of torchvision beside the text tower of one."""
    tower = (
        (f"image.backbone={model}", "image.model=small-rn") if model[:3] == "res" else (f"image.model=small-{model}",)
    )
    unmasked = UNMASKED if recipe == "small_cross_most" else ()
    return read_recipe(recipe, parse_changes((*FEW, *unmasked, *tower, *changes)))


def filled(keys: dict[str, list[int]], salt: int, gain: float) -> dict[str, Tensor]:
    """Weights by the rule of the golden data (backbones/FILL.md)."""
    found = {}
    for number, name in enumerate(sorted(keys)):
        shape, one = keys[name], np.uint64
        with np.errstate(over="ignore"):
            x = np.arange(math.prod(shape), dtype=np.uint64)
            x += one((number + 1) * 0x9E3779B97F4A7C15 % 2**64) + one(salt * 0xD1B54A32D192ED03 % 2**64)
            x = (x ^ (x >> one(30))) * one(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> one(27))) * one(0x94D049BB133111EB)
            x ^= x >> one(31)
        u = (x >> one(11)) / 2**53
        if name.endswith("num_batches_tracked"):
            u = np.zeros(1)
        elif name.endswith(("running_mean", "bias")):
            u = (u - 0.5) * 0.2
        elif len(shape) == 1:
            u = 0.5 + u
        else:
            u = (2 * u - 1) * math.sqrt(gain / math.prod(shape[1:]))
        found[name] = torch.from_numpy(u.astype(np.float32)).double().reshape(shape)
    return found


def test_the_resnet_50_equals_golden(golden: Path) -> None:
    folder = golden / "method" / "crosspoint_models"
    data = np.load(folder / "resnet50_head.npz")
    weights = filled(json.loads((folder / "resnet50_head.keys.json").read_text()), 1, 1.0)
    with torch.device("meta"):
        tower = ResNetTower("resnet50", 8, 64)
    tower = tower.to_empty(device="cpu").double().eval()
    trunk = {name.removeprefix("resnet."): value for name, value in weights.items() if name.startswith("resnet.")}
    tower.visual.load_state_dict(trunk)
    nn.init.normal_(tower.projection)
    with torch.no_grad():
        out = tower(torch.from_numpy(data["image"]).double())
    assert out.patches.shape == (2, 0, 1)
    torch.testing.assert_close(out.cls, torch.from_numpy(data["feat_f64"]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.feature, out.cls @ tower.projection.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model", SHAPES)
def test_features_are_open_clips_own_in_each_precision(model: str) -> None:
    tower, text, _ = build_towers(ImageSettings(model=f"small-{model}"))
    tower.eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        given, out = tower.visual(pictures), tower(pictures, torch.ones(2, 1, 1, dtype=torch.bool))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = tower(pictures)
    torch.testing.assert_close(out.feature, given[0] if isinstance(given, tuple) else given, rtol=1e-5, atol=1e-5)
    assert (tower.image_size, tower.embed_dim) == (32, out.feature.shape[1])
    assert rounded.feature.dtype == torch.float32
    torch.testing.assert_close(rounded.feature, out.feature, rtol=0.1, atol=0.1)
    assert not torch.equal(rounded.feature, rounded.feature.bfloat16().float())
    assert not any("text_decoder" in name for name in text.state_dict())


@pytest.mark.parametrize(
    ("method", "tower"),
    [
        ("crosspoint", ("image.backbone=resnet18", "image.model=small-rn")),
        ("cross_most", ("image.model=small-rn",)),
        pytest.param("pretrain", ("image.model=small-rn",), marks=pytest.mark.slow),
        pytest.param("supervised", ("image.model=small-convnext",), marks=pytest.mark.slow),
        pytest.param("self_training", ("image.model=small-coca",), marks=pytest.mark.slow),
    ],
)
def test_every_method_trains_one_and_all_commands_answer(shards: Path, tmp_path: Path, method: str, tower) -> None:
    recipe, *changes = METHODS[method]
    run = tmp_path / "run"
    typed("fit", recipe, "--shards", shards, "--run", run, *FEW, *changes, *tower)
    first, last = (load_file(run / f"checkpoints/step-0000000{n}/model.safetensors") for n in (0, 1))
    moved = [name for name in first if name.startswith("image.") and not torch.equal(first[name], last[name])]
    assert moved
    assert {"image", "points"} <= evaluated(run, shards)["student"].keys()
    typed("embed", run, "--shards", shards, "--out", tmp_path / "e.npz")
    assert np.load(tmp_path / "e.npz")["image"].shape == (22, 16)
    assert len(json.loads(typed("predict", run, "--shards", shards, "--json")[0])) == 22


def test_masked_losses_are_refused_in_one_line() -> None:
    for model, words in (
        ("resnet50", "image.backbone=resnet50: a convolutional network has no patch tokens to be masked: "),
        ("coca", "image.model=small-coca: it is no plain vision transformer read out at its class token: "),
    ):
        recipe = recipe_of(model, "weights.mim=1", "weights.lg_align=0.2")
        with pytest.raises(Refused) as refused:
            build_model(recipe, ("mug", "bowl"))
        assert str(refused.value) == f"{words}weights.mim=0 weights.lg_align=0 trains it without masks"


def test_what_batch_norms_forbid_is_refused_by_name() -> None:
    student = build_model(recipe_of("resnet18"), ("mug", "bowl"))[0].train()
    for change, words in (
        (
            "optimizer.accumulate=2",
            "optimizer.accumulate=2: image.backbone=resnet18 learns batch norms, which need the",
        ),
        ("activation_checkpointing=true", "activation_checkpointing=true: image.backbone=resnet18 learns batch norms"),
        (
            "optimizer.batch_size=1",
            "optimizer.batch_size=1: image.backbone=resnet18 learns batch norms, which need two",
        ),
    ):
        with pytest.raises(Refused, match=words):
            updates_of(student, recipe_of("resnet18", change), 10)
    student.image.requires_grad_(False)
    updates_of(student.train(), recipe_of("resnet18", "optimizer.accumulate=2", "activation_checkpointing=true"), 10)


def test_towers_without_batch_norms_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = ("optimizer.accumulate=2", "activation_checkpointing=true")
    student = build_model(recipe_of("convnext"), ("mug", "bowl"))[0].train()
    updates_of(student, recipe_of("convnext", *memory), 10)
    assert all(stage.grad_checkpointing for stage in student.image.blocks)


def test_norms_of_frozen_weights_rest() -> None:
    """`pretrain.image=projection` trains the last matrix alone: the statistics before it stay those of the weights."""
    student = build_model(recipe_of("resnet18", recipe="small_pretrain"), ("mug", "bowl"))[0]
    student.image.visual.requires_grad_(False)
    student.train()
    before = student.image.visual.bn1.running_mean.clone()
    student.image_features(torch.randn(4, 3, 32, 32)).sum().backward()
    assert torch.equal(student.image.visual.bn1.running_mean, before)
    assert student.image.projection.grad.abs().sum() > 0
    student.image.requires_grad_(True)
    student.train().image_features(torch.randn(4, 3, 32, 32))
    assert not torch.equal(student.image.visual.bn1.running_mean, before)


def test_stages_learn_at_rates_that_decay_to_the_stem() -> None:
    trunk = "visual.trunk.stages"
    for model, names in (
        ("resnet18", ("visual.bn1.weight", "visual.layer1.0.conv1.weight", "visual.layer4.1.bn2.bias", "projection")),
        (
            "rn",
            (
                "visual.conv3.weight",
                "visual.layer1.0.bn1.bias",
                "visual.layer4.0.bn2.bias",
                "visual.attnpool.c_proj.bias",
            ),
        ),
        (
            "convnext",
            (
                *("visual.trunk.stem.0.weight", f"{trunk}.0.blocks.0.conv_dw.weight"),
                *(f"{trunk}.3.downsample.1.weight", "visual.head.proj.weight"),
            ),
        ),
    ):
        student = build_model(recipe_of(model), ("mug", "bowl"))[0]
        groups = parameter_groups(student, 0.05, 0.5, 1.0)
        scales = {id(each): group["lr_scale"] for group in groups for each in group["params"]}
        named = dict(student.image.named_parameters())
        assert [scales[id(named[name])] for name in names] == [0.5**5, 0.5**4, 0.5, 1]
        assert scales[id(student.points.projection)] == 1


def test_the_teacher_follows_weights_and_statistics() -> None:
    student = build_model(recipe_of("resnet18"), ("mug", "bowl"))[0].train()
    teacher = Teacher(student, EMASettings(start=0.75))
    before = teacher.model.image.visual.bn1.running_mean.clone()
    student.image_features(torch.randn(4, 3, 32, 32))
    teacher.update(student, 0)
    mine, theirs = teacher.model.image.visual.bn1, student.image.visual.bn1
    torch.testing.assert_close(mine.running_mean, 0.75 * before + 0.25 * theirs.running_mean)
    assert int(mine.num_batches_tracked) == int(theirs.num_batches_tracked) == 1
    teacher.model.image_features(torch.randn(4, 3, 32, 32))
    assert int(mine.num_batches_tracked) == 1


def test_a_file_of_torchvision_fills_the_resnet_and_its_classes_are_left_over(tmp_path: Path) -> None:
    torch.manual_seed(3)
    given = resnet18()
    torch.save(given.state_dict(), tmp_path / "resnet18.pth")
    kind = read_source("init.image", str(tmp_path / "resnet18.pth"), ImageSettings(), "student")
    assert (kind.kind, kind.left_over) == ("torchvision", ("fc.weight", "fc.bias"))
    said: list[str] = []
    recipe = recipe_of("resnet18", f"init.image={tmp_path / 'resnet18.pth'}")
    student = build_model(recipe, ("mug",), lambda loaded: said.extend(loaded.lines()))[0]
    torch.testing.assert_close(student.image.visual.layer4[1].conv2.weight, given.layer4[1].conv2.weight)
    assert said[0].endswith("a ResNet of torchvision, 120 tensors loaded")
    assert said[1:] == [
        "  not in it, left at random: image.projection",
        "  in it and not needed: fc.weight, fc.bias",
    ]
    assert pixel_statistics(recipe)[0] == (0.485, 0.456, 0.406)
    words = typed("weights", tmp_path / "resnet18.pth")[0]
    assert "image tower: 120 tensors" in words
    assert "missing" not in words
    with pytest.raises(Refused, match=r"image.backbone=resnet50 \(or resnet18\) takes it"):
        build_model(recipe_of("rn", f"init.image={tmp_path / 'resnet18.pth'}"), ("mug",))


def test_a_clip_file_gives_a_resnet_its_text_tower_alone(tmp_path: Path) -> None:
    clip = open_clip.create_model("small-rn", precision="fp32")
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    student, text = build_model(recipe_of("resnet18", f"image.pretrained={tmp_path / 'clip.pt'}"), ("mug",))
    assert torch.equal(text.clip.token_embedding.weight, clip.token_embedding.weight)
    assert student.image.embed_dim == clip.text_projection.shape[1]
    with pytest.raises(Refused, match=r"fits no image\.backbone=resnet18: its text tower is"):
        build_model(recipe_of("resnet18", f"init.image={tmp_path / 'clip.pt'}"), ("mug",))


def test_weights_of_other_picture_sizes_fit_or_are_refused(tmp_path: Path) -> None:
    """Positions of CLIP's ResNet are resized; a trunk of timm that is not fixed takes any multiple of 32."""
    clip = open_clip.create_model("small-rn", precision="fp32")
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    recipe = recipe_of("rn", f"init.image={tmp_path / 'clip.pt'}", "image.image_size=64")
    student = build_model(recipe, ("mug",))[0]
    assert student.image.visual.attnpool.positional_embedding.shape == (5, 256)
    assert student.image_features(torch.randn(1, 3, 64, 64)).shape == (1, 16)
    assert build_towers(ImageSettings(model="small-convnext", image_size=64))[0].image_size == 64
    for settings, words in (
        (
            ImageSettings(model="small-rn", image_size=48),
            "image.image_size=48: image.model=small-rn takes multiples of 32",
        ),
        (
            ImageSettings(model="small-rn", stem="conv"),
            "image.stem=conv: image.model=small-rn: a convolutional network",
        ),
    ):
        with pytest.raises(Refused, match=words):
            build_towers(settings)


def test_weights_without_a_run_are_judged_without_masks(shards: Path, tmp_path: Path) -> None:
    clip = open_clip.create_model("small-rn", precision="fp32")
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, tmp_path / "clip.safetensors")
    keys = ("image.model=small-rn", "data.views=rgb12", "data.num_points=64", "prompts=['a {}']")
    found = json.loads(typed("evaluate", tmp_path / "clip.safetensors", "--shards", shards, "--json", *keys)[0])
    assert found["n"] == 22


@pytest.mark.slow
def test_compiled_stages_give_the_same(tmp_path: Path) -> None:
    tower = ResNetTower("resnet18", 8, 32).eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = tower(pictures).feature
        tower.compile_inside()
        torch.testing.assert_close(tower(pictures).feature, plain, rtol=1e-4, atol=1e-4)
    assert "visual.layer1.0.conv1.weight" in tower.state_dict()
