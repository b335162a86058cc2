"""fit and evaluate as a person types them: logs, checkpoints, resuming, refusals; and no label reaches fit."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator

import pytest
import torch
from pydantic import BaseModel
from training_runs import typed

from manifests.cli import meanings, parse_arguments, version_words
from manifests.config import parse_changes
from manifests.errors import Stopped
from training.__main__ import COMMANDS, main
from training.command_line import parser
from training.loop import fit
from training.loop.throughput import TIMING
from training.settings.fit_recipe import RECIPE_OF, read_recipe

FEW = (
    "data.num_points=128",
    "optimizer.batch_size=4",
    "optimizer.steps=6",
    "log_every=2",
    "save_every=3",
    "points.depth=2",
    "points.drop_path=0.3",  # draws from torch's generator, which resuming must restore
)


@pytest.fixture(scope="module")
def run(training, shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    training("fit", "small_cross_most", "--shards", shards, "--run", folder, *FEW)
    return folder


def rows(folder) -> list[dict[str, str]]:
    with open(folder / "log.csv") as file:
        return list(csv.DictReader(file))


def weights(folder, step: int) -> str:
    data = (folder / f"checkpoints/step-{step:08d}/model.safetensors").read_bytes()
    return hashlib.sha256(data).hexdigest()


def test_what_a_run_holds(run) -> None:
    files = {"recipe.toml", "run.json", "log.csv", "histograms.csv"}
    assert {p.name for p in run.iterdir()} == files | {"text", "checkpoints", "tensorboard"}
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == [
        "step-00000000",
        "step-00000003",
        "step-00000006",
    ]
    assert {p.name for p in (run / "checkpoints/step-00000006").iterdir()} == {
        "model.safetensors",
        "teacher.safetensors",
        "state.pt",
        "recipe.toml",
    }
    log = rows(run)
    assert [row["step"] for row in log] == ["2", "4", "6"]
    for name in ("cls", "align", "fair", "mim", "mpm", "lg_align"):
        assert float(log[-1][f"loss_{name}"]) >= 0
        assert f"weighted_{name}" in log[-1]
    assert float(log[0]["weighted_lg_align"]) == pytest.approx(0.2 * float(log[0]["loss_lg_align"]), rel=1e-6)
    about = json.loads((run / "run.json").read_text())
    assert about["seconds"] > 0
    assert about["max_rss_mb"] > 100
    assert len(about["classes"]) == 19


TOP = ("top3", "top5", "interval")


def test_evaluate_prints_one_object(training, shards, run) -> None:
    result = json.loads(training("evaluate", run, "--shards", shards, "--json").stdout)
    assert set(result) >= {"dataset", "split", "n", "classes", "step", "student", "teacher", "analysis"}
    assert (result["dataset"], result["split"], result["n"], result["step"]) == ("parametric", "test", 22, 6)
    for who in ("student", "teacher"):
        assert set(result[who]) == {"image", "image_mean", "image_star", "points", "mean_per_class", *TOP}
        assert all(0 <= result[who][name] <= 100 for name in ("image", "image_mean", "image_star", "points"))
    zero_shot = json.loads(
        training("evaluate", run / "checkpoints/step-00000000", "--shards", shards, "--json", "--split", "train").stdout
    )
    assert (zero_shot["step"], zero_shot["split"]) == (0, "train")
    assert zero_shot["student"] == zero_shot["teacher"]
    assert "image_star" in training("evaluate", run, "--shards", shards).stdout


def test_killed_and_run_again_gives_the_same_losses(training, shards, run, tmp_path) -> None:
    folder = tmp_path / "run"
    command = ("fit", "small_cross_most", "--shards", shards, "--run", folder, *FEW)
    process = training.start(*command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (folder / "checkpoints/step-00000003").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    training(*command)
    assert [{k: v for k, v in row.items() if k not in TIMING} for row in rows(folder)] == [
        {k: v for k, v in row.items() if k not in TIMING} for row in rows(run)
    ]
    assert weights(folder, 6) == weights(run, 6)


def test_no_label_reaches_fit(training, shards, run, tmp_path) -> None:
    """Every label of the train split is taken out of its shards: the checkpoint is the same to the last byte."""
    import io

    import webdataset as wds

    from manifests.samples import encode_json, read_samples

    out = tmp_path / "out"
    shutil.copytree(shards, out)
    for tar in sorted((out / "shapes").glob("train-*.tar")):
        file = io.BytesIO()
        writer = wds.TarWriter(file, encoder=False, mtime=0, user="", group="")
        offsets = []
        for _, sample in read_samples(io.BytesIO(tar.read_bytes())):
            values = {**sample.json, "label": 0, "class": "airplane"}
            offsets.append(writer.tarstream.offset)
            writer.write({"__key__": sample.key, **sample.members, "json": encode_json(values)})
        writer.close()
        tar.write_bytes(file.getvalue())
        record = {**json.loads(tar.with_suffix(".json").read_text()), "offsets": offsets}
        del record["sizes"], record["checks"]  # as of a build before them: those written are of the members with labels
        tar.with_suffix(".json").write_text(json.dumps(record))
    training("fit", "small_cross_most", "--shards", out, "--run", tmp_path / "run", *FEW)
    assert weights(tmp_path / "run", 6) == weights(run, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("small_cross_mist",), ["did you mean small_cross_most"]),
        (("small_cross_most", "optimizer.leaning_rate=1"), ["optimizer.leaning_rate"]),
        (("small_cross_most", "data.views=rgb99"), ["data.views=rgb99", "rgb12"]),
        (("small_cross_most", "data.num_points=256", "optimizer.batch_size=500"), ["batch_size=500", "38 objects"]),
        (("small_cross_most", "data.num_points=256", "mask.image_cell=20", *FEW[1:2]), ["mask.image_cell=20"]),
        (("small_cross_most", "data.num_points=8"), ["data.num_points=8", "24"]),
        (("small_cross_most", "data.channel=gray"), ["data.channel=gray", "rgb, depth"]),
        (("small_cross_most", "data.num_points=256", "image.pretrained=/nowhere.pt"), ["image.pretrained"]),
    ],
)
def test_refusals_write_nothing(training, shards, tmp_path, arguments: tuple, words: list[str]) -> None:
    message = training("fit", *arguments, "--shards", shards, "--run", tmp_path / "run", code=2).stderr.strip()
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


def test_another_recipe_in_the_same_run_is_refused(training, shards, run, tmp_path) -> None:
    common = ("fit", "small_cross_most", "--shards", shards, "--run", run)
    assert "optimizer.lr: 0.004 -> 0.001" in training(*common, *FEW, "optimizer.lr=1e-3", code=2).stderr
    assert "holds no build" in training(*common, *FEW, "--shards", tmp_path, code=2).stderr
    assert "is no checkpoint" in training("evaluate", tmp_path, "--shards", shards, code=2).stderr


def test_other_classes_are_refused_unless_made_from_text(training, shards, run, tmp_path) -> None:
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["classes"] = [name.upper() for name in manifest["classes"]] + ["SPACESHIP"]
    manifest["prompt_names"] += ["spaceship"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert "--classes-from-text" in training("evaluate", run, "--shards", out, code=2).stderr
    result = json.loads(training("evaluate", run, "--shards", out, "--classes-from-text", "--json").stdout)
    assert (result["classes"][0], len(result["classes"])) == ("AIRPLANE", 20)
    assert (
        "began with other shards (another classes)"
        in training("fit", "small_cross_most", "--shards", out, "--run", run, *FEW, code=2).stderr
    )


def test_a_loss_that_is_not_finite_stops_with_step_and_term(training, shards, tmp_path) -> None:
    message = training(
        "fit", "small_cross_most", "--shards", shards, "--run", tmp_path / "r", *FEW, "optimizer.lr=1e18", code=3
    ).stderr
    assert "is not finite" in message.strip().splitlines()[-1]
    assert "step " in message.strip().splitlines()[-1]


def test_a_weight_that_is_not_finite_is_never_saved(shards, tmp_path) -> None:
    """As after an update whose loss was still finite."""
    recipe = read_recipe("small_cross_most", parse_changes(FEW))
    state, _ = fit._set_up(tmp_path / "run", recipe, str(shards), torch.device("cpu"))
    with torch.no_grad():
        state.updates.student.points.mask_token[0, 0, 0] = torch.nan
    with pytest.raises(Stopped, match=r"step 0: the weight points\.mask_token is not finite"):
        state.save()
    assert not (tmp_path / "run").exists()


def test_damage_is_one_line(training, shards, run, tmp_path) -> None:
    out, damaged = tmp_path / "out", tmp_path / "run"
    shutil.copytree(shards, out)
    tar = out / "views/rgb12/train-00001.tar"
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8\xff", b"\x00\xd8\xff"))
    options = ("--shards", out, "--run", tmp_path / "other", *FEW, "data.workers=1", "optimizer.steps=9")
    message = training("fit", "small_cross_most", *options, code=3).stderr.strip().splitlines()[-1]
    assert message.startswith(f"{tar}: ")
    assert "v00.rgb.jpg is not what was written" in message
    shutil.copytree(run, damaged)
    model = damaged / "checkpoints/step-00000006/model.safetensors"
    model.write_bytes(model.read_bytes()[:-100])
    message = training("evaluate", damaged, "--shards", shards, code=2).stderr.strip()
    assert message.startswith(f"{model}: ")
    assert "\n" not in message


def test_lists(training) -> None:
    assert "small_cross_most" in training("recipes").stdout


def described(kind: type[BaseModel]) -> Iterator[tuple[str, str | None]]:
    """(key, its meaning) of every key of a settings class and of its tables."""
    known = meanings(kind)
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from ((f"{name}.{key}", meaning) for key, meaning in described(field.annotation))
        else:
            yield name, known.get(name)


@pytest.mark.parametrize("method", RECIPE_OF)
def test_every_key_says_what_it_means(method) -> None:
    assert [key for key, meaning in described(RECIPE_OF[method]) if not meaning] == []


def test_a_recipe_is_shown_with_its_header_and_every_key() -> None:
    told = typed("recipes", "small_cross_most")[0]
    assert told.startswith("# Cross-MoST with the small towers on the unlabelled target domain")
    assert "keep_last = 2  # newest checkpoints that stay beside the first\n" in told
    assert "threshold = 0.7  # T, strict\n" in told
    assert tomllib.loads(told) == read_recipe("small_cross_most", {}).model_dump(mode="json", exclude_none=True)
    assert "did you mean small_cross" in typed("recipes", "small_cross", code=2)[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_every_option_is_and_how_it_is_typed(command, capsys) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    told = capsys.readouterr().out
    assert f"examples:\n  python -m training {command}" in told
    silent = [name for name, action in arguments_of(command) if not action.help]
    assert silent == []


def arguments_of(command: str) -> list[tuple[str, argparse.Action]]:
    (commands,) = [each for each in parser("")._actions if isinstance(each, argparse._SubParsersAction)]
    return [(action.dest, action) for action in commands.choices[command]._actions]


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_commands_that_are_read(command, capsys) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    for line in capsys.readouterr().out.partition("examples:\n")[2].splitlines():
        arguments = shlex.split(line)[3:]
        assert parse_arguments(parser(""), arguments).command == command


def test_the_version_is_that_of_the_pipeline(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"{version_words()}\n")
