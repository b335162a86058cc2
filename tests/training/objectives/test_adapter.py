"""Adapters of frozen towers: golden values of both releases and of the paper's equations, and whole runs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from golden_backbones import filled
from safetensors.torch import load_file
from tiny_towers import tiny
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training_runs import ONE_STEP, typed

from manifests.config import parse_changes
from manifests.layout import read_manifest
from manifests.samples import Sample
from training import load
from training.data import loader
from training.data.batch import normalized
from training.data.dataset import Source, open_source
from training.data.decode import picture_of
from training.data.loader import ViewsSamples
from training.data.part_of_split import part_of
from training.data.subsets import classes_of
from training.data.whole_split import SplitReader
from training.evaluation.embed import embed
from training.evaluation.evaluate import examine
from training.evaluation.predict import predict_shards
from training.models.clip import pixel_statistics
from training.models.gated_adapter import GatedAdapter, InterView
from training.settings.adapter_recipe import AdapterSettings
from training.settings.fit_recipe import FitRecipe, read_recipe
from training.weights.checkpoint import open_checkpoint
from training.weights.run_folder import step_folders

RELEASED = AdapterSettings(aggregator="released", gate="none", views=4, temperature=1)


def arrays_of(golden: Path, case: str) -> dict[str, Tensor]:
    stored = np.load(golden / "method" / "clip2point_training" / f"{case}.npz")
    return {name: torch.from_numpy(value) for name, value in stored.items()}


def fill(module: nn.Module, shapes: dict[str, list[int]], salt: int) -> nn.Module:
    weights = {name: filled(name, shapes[name], j, salt) for j, name in enumerate(sorted(shapes))}
    module.load_state_dict(weights)
    return module


def named_paper(path: nn.Module, arrays: dict[str, Tensor], letter: str) -> None:
    path.load_state_dict({name: arrays[f"{letter}.{name}"] for name in path.state_dict()})


@pytest.mark.parametrize(
    ("paths", "gate", "logits"),
    [
        ("both", "scalar", "logits_gate_scalar"),
        ("both", "channel", "logits_gate_channel"),
        ("both", "none", "logits_no_gate"),
        ("depth", "scalar", "logits_single_path_depth"),
    ],
)
def test_the_papers_equations(golden: Path, paths: str, gate: str, logits: str) -> None:
    arrays = arrays_of(golden, "gdpa_paper")
    adapter = GatedAdapter(AdapterSettings(paths=paths, gate=gate, views=5), 16).double()
    named_paper(adapter.adapter1, arrays, "D")
    given = arrays["views_depth"]
    if paths == "both":
        named_paper(adapter.adapter2, arrays, "C")
        given = torch.cat([given, arrays["views_clip"]], dim=2)
        torch.testing.assert_close(adapter.adapter2(arrays["views_clip"]).detach(), arrays["G_C"])
    if adapter.gate is not None:
        adapter.gate.data = arrays[f"gate_{gate}"]
    text = torch.nn.functional.normalize(arrays["text"], dim=1)
    torch.testing.assert_close(adapter(given).detach() @ text.T, arrays[logits], rtol=1e-10, atol=1e-10)


def test_a_gate_begins_with_both_paths_alike() -> None:
    views = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for gate in ("none", "scalar", "channel"):
        torch.manual_seed(0)
        found.append(GatedAdapter(AdapterSettings(views=5, gate=gate), 16)(views))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_released_adapter_on_stored_weights(golden: Path) -> None:
    folder = golden / "method" / "clip2point"
    stored = {name: torch.from_numpy(value) for name, value in np.load(folder / "gdpa_io.npz").items()}
    adapter = GatedAdapter(RELEASED.model_copy(update={"dropout": 0.0}), 32).double()
    adapter.load_state_dict(load_file(folder / "gdpa_state_dict.safetensors"))
    given = torch.cat([stored["path1_view_features"], stored["path2_view_features"]], dim=2).double()
    for mode in ("eval", "train_nodropout"):
        adapter.train(mode != "eval")
        expected = torch.nn.functional.normalize(stored[f"{mode}_out_f64"], dim=1)
        torch.testing.assert_close(adapter(given).detach(), expected, rtol=0, atol=1e-10)


def test_the_released_adapter_at_full_size(golden: Path) -> None:
    """Names and shapes of the released file's tensors, 2.89 million numbers a path."""
    about = json.loads((golden / "method" / "clip2point" / "expected.json").read_text())
    adapter = GatedAdapter(RELEASED.model_copy(update={"views": 10}), 512)
    shapes = {name: list(value.shape) for name, value in adapter.state_dict().items()}
    assert shapes == about["gdpa_real_keys_views10_in512"]
    assert sum(p.numel() for p in adapter.parameters()) == 2 * 2_886_666


def test_pointclips_adapter(golden: Path) -> None:
    arrays = arrays_of(golden, "pointclip_adapter")
    folder = golden / "method" / "clip2point_training"
    about = json.loads((folder / "meta.json").read_text())["cases"]["pointclip_adapter"]
    shapes = json.loads((folder / "pointclip_adapter.keys.json").read_text())
    adapter = fill(InterView(4, 24, 0.0), shapes, about["salt"]).double()
    given = arrays["view_features"].unflatten(0, (-1, 4))
    for mode in ("eval", "train"):
        adapter.train(mode == "train")
        torch.testing.assert_close(adapter(given).detach(), arrays[f"{mode}_out_f64"], rtol=1e-10, atol=1e-10)


def test_a_cosine_of_all_views_side_by_side() -> None:
    """PointCLIP repeats the text feature over the views and normalises it."""
    adapter = GatedAdapter(AdapterSettings(aggregator="inter_view", paths="clip", views=4), 8).eval()
    views, text = torch.randn(2, 6, 4, 8, generator=torch.Generator().manual_seed(1))[:, :5]
    text = torch.nn.functional.normalize(text[:, 0], dim=1)
    whole = torch.nn.functional.normalize(adapter.adapter2(views), dim=1)
    repeated = torch.nn.functional.normalize(text.repeat(1, 4), dim=1)
    torch.testing.assert_close(adapter(views) @ text.T, whole @ repeated.T)


def golden_tower(shapes: dict[str, list[int]], about: dict, salt: int) -> nn.Module:
    size = about["visual"]
    sizes = {"image_size": size["input_resolution"], "output_dim": size["output_dim"], "mlp_ratio": 4}
    sizes |= {name: size[name] for name in ("patch_size", "width", "layers", "heads")}
    visual = open_clip.transformer.VisionTransformer(**sizes, act_layer=open_clip.transformer.QuickGELU)
    return fill(visual, shapes, salt).double().eval()


def test_three_steps_through_frozen_towers(golden: Path) -> None:
    """The release's few-shot training: losses, gradients' norms, logits before each step and after the last."""
    arrays, folder = arrays_of(golden, "dpa_steps"), golden / "method" / "clip2point_training"
    about = json.loads((folder / "meta.json").read_text())["cases"]["dpa_steps"]
    shapes = json.loads((folder / "dpa_steps.keys.json").read_text())
    towers = [golden_tower(shapes["visual"], about, about[f"salt_{name}"]) for name in ("pre_model", "ori_model")]
    adapter = GatedAdapter(RELEASED, 512)
    for number in (1, 2):
        fill(getattr(adapter, f"adapter{number}"), shapes["adapter"], about[f"salt_adapter{number}"])
    adapter.double().train()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3, weight_decay=1e-4)
    text = torch.nn.functional.normalize(arrays["text_features"], dim=1)

    def logits_of(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            found = [tower(pictures.double().flatten(0, 1)).unflatten(0, pictures.shape[:2]) for tower in towers]
        return adapter(torch.cat(found, dim=2)) @ text.T

    for number, expected in enumerate(about["steps"]):
        logits = logits_of(arrays[f"step{number}.depth"])
        torch.testing.assert_close(logits.detach(), arrays[f"step{number}.logits_f64"], rtol=0, atol=1e-9)
        loss = cross_entropy(logits, arrays[f"step{number}.label"])
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)
        optimizer.zero_grad()
        loss.backward()
        norms = {name: p.grad.norm().item() for name, p in adapter.named_parameters()}
        assert norms == pytest.approx(expected["grad_norms"], rel=1e-6, abs=1e-12)
        optimizer.step()
    adapter.eval()
    found = logits_of(arrays["step0.depth"])
    torch.testing.assert_close(found.detach(), arrays["eval_after3_logits_f64"], rtol=0, atol=1e-7)


SHORT = (
    *("data.views=depth10", "data.channel=depth", "data.num_points=64", "data.shots=1", "tensorboard=false"),
    *("optimizer.batch_size=4", "optimizer.epochs=2", "log_every=1", "image.stem=patch"),
)


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    with tiny():
        yield


@pytest.fixture(scope="module")
def begun(shards: Path, tmp_path_factory) -> Path:
    """Towers that know no more than random ones: an unpaired step of a pre-training."""
    run = tmp_path_factory.mktemp("begun") / "run"
    keys = (*ONE_STEP, "image.stem=patch", "points.width=16", "points.heads=2")
    typed("fit", "small_pretrain", "--shards", shards, "--run", run, *keys)
    return run


@pytest.fixture(scope="module")
def adapted(shards: Path, begun: Path, tmp_path_factory) -> tuple[Path, str]:
    """A run, and what was said of it."""
    run = tmp_path_factory.mktemp("adapted") / "run"
    return run, typed("fit", "small_adapter", "--shards", shards, "--run", run, f"init.image={begun}", *SHORT)[1]


def test_a_run_says_what_it_trains_and_on_which_objects(shards: Path, adapted: tuple[Path, str]) -> None:
    run, said = adapted
    assert "trains adapter.gate: 1 number" in said
    assert "trains adapter.adapter1.f1.weight: 640 numbers" in said  # 10 views of 8 numbers to 8
    listed = (run / "objects.txt").read_text().splitlines()
    manifest = read_manifest(str(shards))
    known = classes_of(str(shards), "train")
    assert sorted(Counter(known[key] for key in listed)) == sorted({known[key] for key in known})
    assert set(Counter(known[key] for key in listed).values()) == {1}
    assert json.loads((run / "run.json").read_text())["objects"] == len(listed) <= len(manifest.classes)
    first, last = (load_file(step / "model.safetensors") for step in (step_folders(run)[0], step_folders(run)[-1]))
    changed = {name.partition(".")[0] for name in last if not last[name].equal(first[name])}
    assert changed == {"adapter"}
    assert first["logit_scale"].exp().item() == pytest.approx(100)


def test_the_same_objects_train_again(shards: Path, begun: Path, adapted: tuple[Path, str], tmp_path: Path) -> None:
    """By objects.txt, from another seed; the order of shots is that of all objects' hashes."""
    recipe = read_recipe("small_adapter", parse_changes(SHORT))
    source = open_source(str(shards), recipe.data)
    few = {shots: _keys(part_of(source, str(shards), _with(recipe, shots=shots))) for shots in (0, 1)}
    assert few[1] == set((adapted[0] / "objects.txt").read_text().split())
    assert few[1] < few[0]
    other = _keys(part_of(source, str(shards), recipe.model_copy(update={"seed": 1})))
    assert other != few[1]
    again = recipe.data.model_copy(update={"shots": 0, "objects": str(adapted[0] / "objects.txt")})
    assert _keys(open_source(str(shards), again)) == few[1]


def _keys(source: Source) -> set[str]:
    return {key for shard in source.shards for key in shard.keys}


def _with(recipe: FitRecipe, **changes: object) -> FitRecipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)})


def test_a_run_answers_about_all_views_together(shards: Path, adapted: tuple[Path, str]) -> None:
    """evaluate, predict, classify and embed: the adapter of both towers' features of the same depth pictures."""
    run, _ = adapted
    (found,) = examine([open_checkpoint(str(run))], str(shards))
    result = found.result()
    assert result["student"]["image"] is None
    assert result["student"]["points"] is None
    assert result["analysis"]["student"]["joint"] is None
    model, settings = load(run), open_checkpoint(str(run)).recipe.data.model_copy(update={"split": "test"})
    source = open_source(str(shards), settings, tower=pixel_statistics(model.checkpoint.recipe))
    (batch, *_) = SplitReader(source, settings, 16, range(1)).batches()
    views = normalized(batch.pictures, batch.mean, batch.deviation)
    with torch.inference_mode():
        towers = [model.model.view_features(name, views) for name in ("depth", "image")]
        own = model.model.adapter
        mixed = own.adapter1(towers[0]) + own.gate * own.adapter2(towers[1])
        expected = 100 * torch.nn.functional.normalize(mixed, dim=1) @ model.model.classifier
    logits = found.student.logits["image_star"][: len(expected)]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)
    pictures = [[picture.permute(1, 2, 0).numpy() for picture in each] for each in batch.pictures[:2]]
    asked = model.classify(views=pictures)
    torch.testing.assert_close(asked.probabilities, expected[:2].softmax(dim=1), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="takes 10 views of an object, not 9"):
        model.classify(views=pictures[0][:9])
    with pytest.raises(ValueError, match=r"classify\(views=...\)"):
        model.classify(image=pictures[0])
    rows = predict_shards(open_checkpoint(str(run)), str(shards), classes=["mug", "a chair"])
    assert {row["label"] for row in rows} <= {"mug", "a chair"}
    features = embed(open_checkpoint(str(run)), str(shards), per_view=True)
    assert features.views.shape[1:] == (10, 16)
    np.testing.assert_allclose(np.linalg.norm(features.image, axis=1), 1, rtol=1e-5)


def test_a_broken_run_goes_on_as_if_unbroken(shards: Path, begun: Path, adapted: tuple[Path, str], tmp_path) -> None:
    """Features of frozen towers are kept in one process alone; the numbers are the same without."""
    command = ("fit", "small_adapter", "--shards", shards, "--run", tmp_path / "run", f"init.image={begun}")
    typed(*command, *SHORT, "save_every=2")
    whole = step_folders(tmp_path / "run")[-1]
    assert len(step_folders(tmp_path / "run")) == 3
    expected = load_file(whole / "model.safetensors")
    shutil.rmtree(whole)
    typed(*command, *SHORT, "save_every=2")
    found = load_file(whole / "model.safetensors")
    assert all(found[name].equal(expected[name]) for name in expected)


def test_no_picture_is_read_twice(shards: Path, begun: Path, adapted: tuple[Path, str], tmp_path, monkeypatch) -> None:
    """Of objects whose features are kept; the weights are those of a run that reads all."""
    decoded: Counter[str] = Counter()

    def counted(views: Sample, *rest):
        decoded[views.key] += 1
        return picture_of(views, *rest)

    monkeypatch.setattr(loader, "picture_of", counted)
    run = tmp_path / "run"
    typed("fit", "small_adapter", "--shards", shards, "--run", run, f"init.image={begun}", *SHORT, "optimizer.epochs=3")
    assert set(decoded) == set((run / "objects.txt").read_text().split())
    assert set(decoded.values()) == {10}
    whole = tmp_path / "whole"
    monkeypatch.setattr(ViewsSamples, "known", property(lambda samples: (), lambda samples, keys: None))
    typed(
        "fit", "small_adapter", "--shards", shards, "--run", whole, f"init.image={begun}", *SHORT, "optimizer.epochs=3"
    )
    assert set(decoded.values()) != {10}
    found, expected = (load_file(step_folders(each)[-1] / "model.safetensors") for each in (run, whole))
    assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("data.views=rgb12", "data.channel=rgb", "adapter.views=3"), "the depth tower sees depth pictures"),
        (("adapter.views=6",), "adapter.views=6: of depth10 10 views are used (data.num_views)"),
        (("data.num_views=6",), "adapter.views=10: of depth10 6 views are used"),
        (("data.shots=500",), "data.shots=500: class "),
        (("data.fraction=0.5",), "shots=1 and fraction=0.5: one of the two"),
        (("adapter.temperature=0",), "adapter.temperature"),
        (("adapter.gate=vector",), "adapter.gate"),
        (('data.classes=["mug"]',), "has one class (mug): method=adapter needs two"),
        (("optimizer.batch_size=1", "adapter.aggregator=released"), "learns batch norms, which need two objects"),
    ],
)
def test_what_does_not_fit_is_refused(shards: Path, begun: Path, tmp_path: Path, keys: tuple[str, ...], words: str):
    named = {key.partition("=")[0] for key in keys}
    kept = [key for key in SHORT if key.partition("=")[0] not in named]
    command = ("fit", "small_adapter", "--shards", shards, "--run", tmp_path / "run", f"init.image={begun}")
    assert words in typed(*command, *kept, *keys, code=2)[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("data.num_views=6",), "the adapter learned with 10 views, and an object has 6 of them"),
        (("--search-view-weights", "train"), "an adapter reads all its views together"),
        (("views_weight=[1,1,1,1,1,1,1,1,1,1]",), "views_weight is of a mean over views"),
    ],
)
def test_what_an_adapter_cannot_be_asked(shards: Path, adapted: tuple[Path, str], arguments, words: str) -> None:
    assert words in typed("evaluate", adapted[0], "--shards", shards, *arguments, code=2)[1]
