"""NaN and infinity: no command answers from a checkpoint that holds one, none writes one, and JSON holds neither."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import training as program
from manifests.config import parse_changes
from manifests.errors import Refused, Stopped
from manifests.records import json_text, write_json
from manifests.samples import encode_json
from training.__main__ import main
from training.loop import fit
from training.settings.fit_recipe import read_recipe

FEW = (
    "data.num_points=64",
    "optimizer.batch_size=8",
    "optimizer.steps=2",
    "log_every=2",
    "points.depth=1",
    "tensorboard=false",
)
LAST = "checkpoints/step-00000002"


def typed(*arguments: object, code: int = 0) -> str:
    """The command line in this process (importing torch takes seconds): what it says on stderr."""
    err = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(err):
        assert main([str(argument) for argument in arguments]) == code, err.getvalue()
    return err.getvalue().strip()


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    typed("fit", "small_cross_most", "--shards", shards, "--run", folder, *FEW)
    return folder


def broken(file: Path, name: str, number: float) -> Path:
    """Puts a number into the last row of a tensor of a weights file."""
    tensors = load_file(file)
    tensors[name].view(-1)[-tensors[name].shape[-1] if tensors[name].ndim else 0 :] = number
    save_file(tensors, file)
    return file


@pytest.mark.parametrize(
    ("file", "name", "number"),
    [("model.safetensors", "points.norm.weight", torch.nan), ("teacher.safetensors", "image.visual.proj", torch.inf)],
)
def test_no_command_answers_from_a_broken_checkpoint(run, shards, tmp_path, file, name, number) -> None:
    """Whichever of the two models is asked: 5.3 % and exit 0 would be taken for a result."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    said = f"{broken(folder / LAST / file, name, number)}: {name} is not finite (NaN or infinity)"
    into = ("--shards", shards)
    for who in ("student", "teacher"):
        out = tmp_path / "features.npz"
        assert typed("embed", folder, *into, "--out", out, "--who", who, code=2) == said
        assert not out.exists()
        assert typed("predict", folder, *into, "--who", who, code=2) == said
        with pytest.raises(Refused) as caught:
            program.load(folder, who)
        assert str(caught.value) == said
    assert typed("evaluate", folder, *into, "--json", code=2) == said
    assert typed("report", folder, *into, "--out", tmp_path / "report", code=2) == said
    begin = ("fit", "small_cross_most", *into, "--run", tmp_path / "other", *FEW)
    for take in ("student", "teacher"):
        assert typed(*begin, f"init.all={folder}", f"init.take={take}", code=2) == f"init.all={said}"
    assert not (tmp_path / "other").exists()
    words = typed("fit", "small_cross_most", *into, "--run", folder, *FEW, code=2)
    assert words == f"{said}; delete {folder / LAST} to go on from the checkpoint before it"


def test_a_teacher_that_is_not_finite_is_never_saved(shards, tmp_path) -> None:
    """Nor are running averages, which are no parameters: loading would refuse what was saved."""
    recipe = read_recipe("small_cross_most", parse_changes(FEW))
    for who in ("student", "teacher"):
        folder = tmp_path / who
        state, _ = fit._set_up(folder, recipe, str(shards), torch.device("cpu"))
        model = state.updates.student if who == "student" else state.updates.teacher.model
        name, value = next((n, b) for n, b in model.named_buffers() if n.endswith("running_var"))
        value[0] = torch.inf
        words = "the weight" if who == "student" else "the teacher's weight"
        with pytest.raises(Stopped, match=rf"step 0: {words} {name} is not finite; lower optimizer\.lr"):
            state.save()
        assert not folder.exists()


def test_text_and_scale_of_weights_are_looked_at(run, shards, tmp_path) -> None:
    """Both come with init.image beside the towers."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    text = broken(folder / "text/text.safetensors", "clip.ln_final.weight", torch.nan)
    begin = ("fit", "small_cross_most", "--shards", shards, "--run", tmp_path / "other", *FEW)
    said = f"{text}: text.clip.ln_final.weight is not finite (NaN or infinity)"
    assert typed(*begin, f"init.all={folder}", code=2) == f"init.all={said}"
    file = shutil.copy(run / LAST / "model.safetensors", tmp_path / "weights.safetensors")
    broken(file, "logit_scale", torch.nan)
    said = f"{file}: logit_scale is not finite (NaN or infinity)"
    assert typed(*begin, f"init.all={file}", code=2) == f"init.all={said}"
    assert typed("weights", file, code=2) == said


def test_answers_that_overflow_are_none(run, shards, tmp_path) -> None:
    """Weights that are finite can still give NaN, which would be counted as the first class."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("model.safetensors", "teacher.safetensors"):
        broken(folder / LAST / name, "points.norm.weight", 3e38)
    for command in ("evaluate", "predict"):
        assert "what the model makes of it is not finite" in typed(command, folder, "--shards", shards, code=3)
    out = tmp_path / "features.npz"
    assert "is not finite" in typed("embed", folder, "--shards", shards, "--out", out, code=3)
    assert not out.exists()


def test_json_holds_null_where_a_number_is_none(tmp_path) -> None:
    values = {"seconds": float("nan"), "pace": [1.5, float("inf"), (float("-inf"), 2)], "n": 3, "ok": True}
    for indent in (None, 1):
        text = json_text(values, indent)
        assert json.loads(text, parse_constant=pytest.fail) == {
            "seconds": None,
            "pace": [1.5, None, [None, 2]],
            "n": 3,
            "ok": True,
        }


def test_what_shards_say_is_never_nan(tmp_path) -> None:
    """A camera or a coverage that is none is that object's failure, not a json that other readers stop at."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_json({"coverage": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(str(tmp_path / "record.json"), {"gates": {"coverage_min": float("nan")}})
    assert not (tmp_path / "record.json").exists()
