"""probe as a person types it: the linear probe, episodes and retrieval against goldens and hand-computed figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from tiny_towers import tiny
from training_runs import ONE_STEP, relabelled, typed
from weight_files import as_point_bert

from training.evaluation import few_shot, linear_probe, retrieval
from training.evaluation.few_shot import Episode
from training.evaluation.probed_features import own_feature, random_twin
from training.weights.checkpoint import open_checkpoint
from training.weights.open_models import open_models

SIZES = (
    "points.width=16",
    "points.heads=2",
    "points.tokenizer_widths=[8, 8, 8]",
    "points.tokenizer_width=8",
    "points.groups=8",
    "points.group_size=8",
)
NAMED = {"accuracy", "mean_per_class", "interval", "n_train", "n_test", "C", "standardised", "features", "width"}


@pytest.fixture(scope="module", autouse=True)
def tiny_towers() -> Iterator[None]:
    with tiny():
        yield


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    typed("fit", "small_cross_most", "--shards", shards, "--run", folder, *ONE_STEP, *SIZES, "seed=3")
    return folder


def probed(source: object, shards: Path, *more: object) -> dict[str, Any]:
    return json.loads(typed("probe", source, "--shards", shards, "--json", *more)[0])


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file}


@pytest.mark.parametrize(
    ("case", "C", "scaled"),
    [("pred_C0.01", 0.01, False), ("pred_C0.1", 0.1, False), ("pred_C1.0", 1.0, False), ("pred_scaled_C1", 1.0, True)],
)
def test_an_svm_is_that_of_crosspoint(golden, case, C, scaled, monkeypatch) -> None:
    """By the kernel of all objects at once, and by libsvm's own where there are too many objects for it."""
    folder = golden / "method/linear_probe"
    found, about = arrays(folder / "svm.npz"), json.loads((folder / "meta.json").read_text())
    train, test = found["train_features"], found["test_features"]
    if scaled:
        train, test = linear_probe.standardised(train, test)
    for most in (linear_probe.LARGEST_KERNEL, 100):
        monkeypatch.setattr(linear_probe, "LARGEST_KERNEL", most)
        (said,) = linear_probe.answers("svm", train, found["train_labels"], test, [C])
        np.testing.assert_array_equal(said, found[case])
    given = [(found[f"{split}_features"], found[f"{split}_labels"]) for split in ("train", "test")]
    row = linear_probe.probe("svm", *given, scaled, C)
    named = case.removeprefix("pred_C").replace("pred_scaled_C1", "StandardScaler,C=1")
    assert row["accuracy"] == round(100 * about["cases"]["svm"]["accuracy"][named], 2)
    assert row["interval"][0] < row["accuracy"] < row["interval"][1]


def test_episodes_are_those_of_crosspoint(golden) -> None:
    folder = golden / "method/linear_probe"
    found = arrays(folder / "episodes.npz")
    for case in json.loads((folder / "meta.json").read_text())["cases"]["episodes"]["episodes"]:
        episodes = []
        for number in range(len(case["accuracy"])):
            name = f"{case['way']}way{case['shot']}shot.run{number}"
            episode = Episode(*(found[f"{name}.{part}"] for part in ("classes", "support", "query")))
            said = few_shot.answer(found["features"], found["labels"], episode)
            np.testing.assert_array_equal(said, found[f"{name}.pred"])
            episodes.append(episode)
        row = few_shot.few_shot(found["features"], found["labels"], episodes)
        assert row == {"mean": round(case["mean"], 2), "std": round(case["std_population"], 2)}


def test_drawn_episodes_are_of_different_objects_of_their_classes() -> None:
    label = np.repeat(np.arange(6), (9, 4, 9, 9, 9, 3))
    task = few_shot.EpisodeSize(ways=3, shots=2, queries=4)
    drawn = few_shot.draw(label, task, 20, seed=1)
    for each in drawn:
        assert set(each.classes) < {0, 2, 3, 4}  # those with six objects
        np.testing.assert_array_equal(label[each.support], np.repeat(each.classes, 2))
        np.testing.assert_array_equal(label[each.query], np.repeat(each.classes, 4))
        assert len({*each.support, *each.query}) == 18
    again, other = few_shot.draw(label, task, 20, seed=1), few_shot.draw(label, task, 20, seed=2)
    assert all((one.query == two.query).all() for one, two in zip(drawn, again, strict=True))
    assert any((one.query != two.query).any() for one, two in zip(drawn, other, strict=True))


def test_a_search_judges_by_a_fifth_of_each_class_of_the_train_objects() -> None:
    label = np.repeat(np.arange(4), (10, 20, 2, 1))
    held = linear_probe.held_out(label, seed=0)
    assert np.bincount(label[held], minlength=4).tolist() == [2, 4, 1, 0]
    assert (held != linear_probe.held_out(label, seed=1)).any()
    rng = np.random.default_rng(0)
    label = rng.choice(3, 300, p=(0.6, 0.3, 0.1))
    features = 0.1 * (rng.normal(size=(300, 10)) + 2 * np.eye(10)[label])
    held = linear_probe.held_out(label, seed=4)
    fits = [SVC(kernel="linear", C=C).fit(features[~held], label[~held]) for C in linear_probe.STRENGTHS]
    shares = [fit.score(features[held], label[held]) for fit in fits]
    best = linear_probe.STRENGTHS[shares.index(max(shares))]
    assert linear_probe.search("svm", features, label, 4) == best > min(linear_probe.STRENGTHS)
    (row, other) = (
        linear_probe.probe("svm", (features, label), (test, label[:9]), False, "search", 4)
        for test in (features[:9], -features[:9])
    )
    assert row["C"] == other["C"] == best  # whatever the test objects are
    assert row["accuracy"] != other["accuracy"]


def test_retrieval_by_hand() -> None:
    """Five objects on the circle; classes 0 0 1 1 2, of which the last is alone."""
    at = np.deg2rad([0.0, 50, 20, 100, 180])
    features, label = np.stack([np.cos(at), np.sin(at)], axis=1), np.array([0, 0, 1, 1, 2])
    found = retrieval.retrieve(features, features, label, across=False)
    # places of the right one among the four others: 2, 3 (after 20 and 0 at equal 50 and 100 degrees), 3, 3
    assert found["recall"] == {"1": 0.0, "5": 100.0, "10": 100.0}
    ranks = [2, 2, 3, 3]
    assert found["map"] == pytest.approx(100 * np.mean([1 / rank for rank in ranks]), abs=0.01)
    assert found["instance"] is None
    assert found["queries"] == 4
    turned = np.roll(features, 1, axis=0)  # each query lies where the object before it does
    found = retrieval.retrieve(features, turned, label, across=True)
    assert found["instance"] == {"1": 0.0, "5": 100.0, "10": 100.0}
    assert found["queries"] == 5
    assert found["recall"]["1"] == 40.0  # 0 finds 1, 2 finds 3, the others another class
    assert retrieval.purity(features, np.zeros(5)) == 100.0
    assert retrieval.purity(features, np.arange(5)) == 0.0


def test_a_probe_is_that_of_the_features_that_embed_writes(run, shards, tmp_path) -> None:
    for split in ("train", "test"):
        typed("embed", run, "--shards", shards, "--split", split, "--out", tmp_path / f"{split}.npz")
    train, test = (arrays(tmp_path / f"{split}.npz") for split in ("train", "test"))
    found = probed(run, shards, "--space", "clip", "--C", 10)
    assert set(found) >= NAMED
    said = SVC(kernel="linear", C=10).fit(train["points"], train["label"]).predict(test["points"])
    assert found["accuracy"] == round(100 * (said == test["label"]).mean(), 2)
    shares = [(said == test["label"])[test["label"] == label].mean() for label in np.unique(test["label"])]
    assert found["mean_per_class"] == round(100 * np.mean(shares), 2)
    about = {"n_train": 38, "n_test": len(test["label"]), "C": 10, "features": "points", "width": 8, "step": 1}
    about |= {"standardised": False, "run_seed": 3, "backbone": "point_bert", "splits": ["train", "test"]}
    assert {name: found[name] for name in about} == about
    assert [(row["network"], row["standardised"]) for row in found["rows"]] == [
        ("trained", False),
        ("trained", True),
        ("random", False),
        ("random", True),
    ]
    scaler = StandardScaler().fit(train["points"])
    learned = LogisticRegression(C=0.5, max_iter=2000).fit(scaler.transform(train["points"]), train["label"])
    right = learned.predict(scaler.transform(test["points"])) == test["label"]
    regressed = ("--space", "clip", "--classifier", "logistic", "--C", 0.5, "--standardise", "--without-random")
    assert probed(run, shards, *regressed)["accuracy"] == round(100 * right.mean(), 2)
    both = probed(run, shards, "--features", "both", "--standardise", "--classifier", "knn", "--without-random")
    assert (both["width"], both["C"], both["standardised"], len(both["rows"])) == (32 + 8, None, True, 2)


def test_the_own_feature_is_what_the_tower_projects_and_the_twin_is_the_run_before_training(run) -> None:
    checkpoint = open_checkpoint(str(run / "checkpoints/step-00000000"))
    model = open_models(checkpoint, "student").models["student"]
    with torch.inference_mode():
        tokens = model.encode(*model.tokenize(torch.rand(2, 64, 3)))
    torch.testing.assert_close(own_feature(tokens) @ model.points.projection, tokens.feature)
    twin = random_twin(checkpoint, model, torch.device("cpu")).points.state_dict()
    for name, value in model.points.state_dict().items():
        torch.testing.assert_close(twin[name], value, rtol=0, atol=0)


def test_episodes_and_retrieval_say_what_they_are_of(run, shards, tmp_path) -> None:
    options = ("--ways", 3, "--shots", 1, "--queries", 1, "--episodes", 4)
    found = probed(run, shards, *options)
    about = {"ways": 3, "shots": 1, "queries": 1, "episodes": 4, "splits": ["train"], "C": 1.0, "standardised": True}
    assert {name: found[name] for name in about} == about
    assert found["rows"][0].items() <= found.items()
    words = typed("probe", run, "--shards", shards, *options)[0]
    for row in found["rows"]:
        assert f"{row['network']}│{row['mean']:.1f}│{row['std']:.1f}" in words.replace(" ", "")
    assert "3-way 1-shot, 1 queries, 4 episodes" in " ".join(words.split())
    assert "svm C 1 on features standardised over the support" in words
    plot = tmp_path / "inside/plane.png"
    found = probed(run, shards, "--retrieval", "--plot", plot, "--without-random")
    for name, across in (("image_to_cloud", True), ("cloud_to_image", True), ("cloud_to_cloud", False)):
        assert found[name]["recall"]["1"] <= found[name]["recall"]["5"] <= found[name]["recall"]["10"]
        assert (found[name]["instance"] is not None) == across
    assert found["plot"]["drawn"] == found["n"]
    assert 0 <= found["plot"]["purity"] <= 100
    with Image.open(plot) as picture:
        assert picture.width > 1000
    shown = typed("probe", run, "--shards", shards, "--retrieval", "--features", "points")[0]
    assert "random: cloud to cloud" in shown
    assert "image" not in shown


def test_weights_without_a_run_need_the_tower_that_is_probed_alone(run, shards, tmp_path) -> None:
    """Point-BERT has no projection: its own features are probed, those of the shared space are not."""
    state = load_file(run / "checkpoints/step-00000001/model.safetensors")
    tower = {name.removeprefix("points."): value for name, value in state.items() if name.startswith("points.")}
    file = tmp_path / "point_bert.pth"
    torch.save({"base_model": as_point_bert(tower)}, file)
    sizes = ("--recipe", "small_cross_most", "points.depth=1", "data.num_points=64", *SIZES, "--without-random")
    assert probed(file, shards, *sizes)["rows"] == probed(run, shards, "--without-random")["rows"]
    for more, words in (
        (("--space", "clip"), "no projection of points"),
        (("--features", "image"), "no tower of image"),
    ):
        assert words in typed("probe", file, "--shards", shards, *sizes, *more, code=2)[1]


def test_an_overflowing_checkpoint_names_the_object(run, shards, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("model", "teacher"):
        file = folder / f"checkpoints/step-00000001/{name}.safetensors"
        tensors = load_file(file)
        tensors["points.norm.weight"].fill_(3e38)
        save_file(tensors, file)
    said = typed("probe", folder, "--shards", shards, code=3)[1]
    assert "what the model makes of it is not finite" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--train-split", "tain"), "--train-split tain: SHARDS has test, train"),
        (("--test-split", "val"), "--test-split val: SHARDS has test, train"),
        (("--test-split", "train"), "--test-split train: the classifier learns from these objects; name another split"),
        (('data.classes=["mug"]',), "the train objects are of one class: a probe tells two or more apart"),
        (("--ways", 5), "--ways 5: 0 classes of 19 have 10 + 20 labelled objects (the smallest has 2): fewer --ways"),
        (("--ways", 1), "--ways 1: an episode tells two or more classes apart"),
        (("--ways", 2, "--retrieval"), "--retrieval and --ways are two probes: one of them"),
        (("--ways", 2, "--C", 1), "--ways: of episodes C is 1 and the features are always standardised"),
        (("--plot", "plane.jpg"), "--plot plane.jpg: the picture is a PNG, so its name must end in .png"),
        (("--shots", 2), "--shots is of episodes, which --ways N asks for"),
        (("--retrieval", "--classifier", "knn"), "--retrieval has no classifier"),
        (("--classifier", "knn", "--C", "search"), "--C: of --classifier svm and logistic; knn has none"),
        (("data.split=val",), "data.split=val: of probe the flag says it: --test-split val"),
        (("seed=1",), "probe takes keys of data, image, init, points, not seed"),
    ],
)
def test_what_does_not_fit_is_one_line(run, shards, more: tuple[object, ...], words: str) -> None:
    said = typed("probe", run, "--shards", shards, *more, code=2)[1]
    assert said.replace(str(shards), "SHARDS").startswith(words)
    assert len(said.splitlines()) == 1


def test_objects_without_labels_are_left_out_and_a_build_of_them_is_refused(run, shards, tmp_path) -> None:
    some = relabelled(shards, tmp_path / "some", lambda key, label: None if label in (0, 1) else label)
    found = probed(run, some, "--without-random")
    assert (found["n_train"], found["classes"]) == (34, 17)
    none = relabelled(shards, tmp_path / "none", lambda key, label: None)
    said = typed("probe", run, "--shards", none, code=2)[1]
    assert said == f"{none}: no object of train has a label, which a probe needs"


def test_a_probe_of_points_needs_no_pictures(run, shards, tmp_path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(shards, bare, ignore=shutil.ignore_patterns("views"))
    (both, alone) = (probed(run, build, "--without-random") for build in (shards, bare))
    assert alone == both
    for more in (("--features", "image"), ("--retrieval",)):
        told = typed("probe", run, "--shards", bare, *more, code=2)[1]
        assert "has no such view set" in told
