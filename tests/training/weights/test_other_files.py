"""Files in the place of weights, and weights below other people's prefixes: named, or read, by every command alike."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from training_runs import ONE_STEP, typed

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 605157884\n"
SIGN_IN = "\n<!DOCTYPE html>\n<html><head><title>Sign in &ndash; Google\n Accounts</title></head><body>x</body></html>"
INDEX = {
    "metadata": {},
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
}


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return file.getvalue()


def tarred(*names: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def saved(save: Callable[[object], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


FILES = {
    "lfs": (LFS, "a git-lfs pointer to a file of 605,157,884 bytes, not the file: git lfs pull"),
    "annex": ("/annex/objects/SHA256E-s5--abc.pt\n", "a git-annex pointer, not the file: git annex get"),
    "dvc": ("outs:\n- md5: 1f\n  size: 5\n  path: a.pt\n", "a pointer of DVC, not the file: dvc pull"),
    "sign-in": (SIGN_IN, "a web page (Sign in \u2013 Google Accounts), not the file: open its address in a browser"),
    "quota": ("<html><head><TITLE>Google Drive - Quota exceeded</TITLE>", "a web page (Google Drive - Quota exceeded)"),
    "untitled": ("\ufeff<HTML><body><p>Access <b>denied</b></p></body>", "a web page (Access denied), not the file"),
    "store": (
        "<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "a store's error message (AccessDenied)",
    ),
    "error": ('{"error": "Repository not found"}', "an error message (Repository not found), not the file: download"),
    "index": (json.dumps(INDEX), "the index of weights in 2 files (model-00001-of-00002.safetensors, model-00002-"),
    "config": ('{"model_type": "clip"}', 'a JSON text ({"model_type": "clip"}), not the file of weights'),
    "cut json": ('{"model_type', "a JSON text ("),
    "text": ("Entry not found", "a text ('Entry not found')"),
    "utf-16": ("Entry not found".encode("utf-16"), "a text ('Entry not found')"),
    "empty": ("", "the file is empty"),
    "blank": (b"\0" * 5000, "it begins with empty bytes: a download that broke"),
    "zip": (
        zipped("a/model.pt", "a/readme.txt", "b", "c"),
        "a zip archive of a/model.pt, a/readme.txt, b and 1 more: unpack",
    ),
    "empty zip": (zipped(), "a zip archive of no file"),
    "npz": (saved(lambda file: np.savez(file, a=np.zeros(3))), "an archive of numpy's arrays of a.npy"),
    "tar": (tarred("model.pt"), "a tar archive of model.pt: unpack it"),
    "old torch": (tarred("sys_info", "pickle", "storages", "tensors"), "torch's format before 0.1.10"),
    "gzip": (b"\x1f\x8b\x08\0abc", "a gzip archive: unpack it"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file, as Keras and TensorFlow write"),
    "npy": (saved(lambda file: np.save(file, np.zeros(3))), "an array of numpy"),
    "cut": (
        saved(lambda file: torch.save({"a": torch.zeros(9)}, file))[:400],
        "its 400 bytes are cut, or of another format",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_weights_is_named_for_what_it_is(tmp_path, name: str) -> None:
    data, words = FILES[name]
    path = tmp_path / "weights.pt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    line = typed("weights", path, code=2)[1]
    assert line.startswith(f"{path} is damaged or no weights: ")
    assert words in line
    assert len(line.splitlines()) == 1
    assert "Error" not in line.replace("<Error>", "")


def transformers_clip() -> dict[str, Tensor]:
    names = ("vision_model.embeddings.class_embedding", "text_model.embeddings.token_embedding.weight", "logit_scale")
    return {name: torch.ones(2, 2) for name in (*names, "visual_projection.weight", "text_projection.weight")}


@pytest.mark.parametrize("key", ["init.image", "init.points", "init.all", "image.pretrained"])
def test_every_key_says_the_line_of_the_command(tmp_path, shards, key: str) -> None:
    """Of a pointer, and of CLIP as transformers has it: with what is read in its place."""
    save_file(transformers_clip(), tmp_path / "model.safetensors")
    (tmp_path / "lfs.pt").write_text(LFS)
    for path, words in (
        (tmp_path / "model.safetensors", "open_clip_model.safetensors"),
        (tmp_path / "lfs.pt", "git lfs"),
    ):
        line = typed("weights", path, code=2)[1]
        assert words in line
        command = ("fit", "small_cross_most", "--shards", shards, "--run", tmp_path / "run", *ONE_STEP)
        assert typed(*command, f"{key}={path}", code=2)[1] == f"{key}={line}"
        assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("prefix", ["", "clip.", "module.", "model.vision_tower."])
def test_clip_of_transformers_says_where_the_right_file_is(tmp_path, prefix: str) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({prefix + name: value for name, value in transformers_clip().items()}, path)
    line = typed("weights", path, code=2)[1]
    if prefix == "model.vision_tower.":
        assert "no weights of a kind that is known here" in line
        return
    assert "is CLIP in the format of transformers (vision_model.*, text_model.*), which is not read" in line
    for other in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "OpenAI's .pt", "init.image=openai"):
        assert other in line


def test_a_hub_that_holds_transformers_files_alone_says_so(tmp_path, shards, monkeypatch) -> None:
    """Of a repository with both formats, open_clip's file is taken."""
    import huggingface_hub.constants

    snapshot = tmp_path / "models--openai--clip" / "snapshots" / ("0" * 40)
    (tmp_path / "models--openai--clip" / "refs").mkdir(parents=True)
    (tmp_path / "models--openai--clip" / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    command = ("fit", "small_cross_most", "--shards", shards, "--run", tmp_path / "run", *ONE_STEP)
    save_file(transformers_clip(), snapshot / "model.safetensors")
    line = typed(*command, "init.image=hf-hub:openai/clip", code=2)[1]
    assert line.startswith("init.image=")
    assert "is CLIP in the format of transformers" in line
    torch.save({f"module.{name}": value for name, value in clip().items()}, snapshot / "open_clip_pytorch_model.bin")
    assert "an open_clip model" in typed(*command, "init.image=hf-hub:openai/clip", code=2)[1]


def clip(plus: float = 0.0) -> dict[str, Tensor]:
    """A very small CLIP of open_clip's names."""
    names = ["class_embedding", "positional_embedding", "proj", "ln_pre.weight", "ln_post.weight"]
    names += [f"transformer.resblocks.{n}.{part}" for n in range(3) for part in ("ln_1.weight", "ln_2.weight")]
    text = ["token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection"]
    found = {name: torch.full((4, 4), plus) for name in (*(f"visual.{name}" for name in names), *text)}
    return found | {"visual.conv1.weight": torch.full((4, 3, 2, 2), plus), "logit_scale": torch.tensor(1.0 + plus)}


def below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def held(path: Path, values: object, *more: object) -> dict:
    torch.save(values, path)
    return json.loads(typed("weights", path, "--json", *more)[0])


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "clip_model.",
        "_orig_mod.",
        "clip.",
        "module.model.",
        "_orig_mod.module.clip_model.",
        "net.",
    ],
)
def test_prefixes_of_most_names_are_stripped(tmp_path, prefix: str) -> None:
    """Not all or nothing: heads beside them keep their names, are counted, and change nothing."""
    whole = held(tmp_path / "plain.pt", clip())
    assert (whole["kind"], whole["left_over"], whole["missing"]) == ("open_clip", [], [])
    assert whole["towers"]["image"]["depth"] == 3
    extra = {"head.weight": torch.zeros(3), "criterion.queue": torch.zeros(3), "epoch": torch.tensor(3)}
    for state in (below(prefix, clip()), below(prefix, clip()) | extra):
        found = held(tmp_path / "w.pt", {"state_dict": state, "epoch": 3})
        assert found["towers"]["image"] == whole["towers"]["image"]
        others = {name.removeprefix("text.clip.") for name in extra} if len(state) > len(clip()) else set()
        assert found["tensors"] == whole["tensors"] + len(others)
        assert found["logit_scale"] == whole["logit_scale"]
    mixed = below(prefix, clip())
    mixed["logit_scale"] = mixed.pop(f"{prefix}logit_scale")
    assert held(tmp_path / "w.pt", mixed) == whole | {"path": str(tmp_path / "w.pt")}
    many = {f"queue.{number}": torch.zeros(2) for number in range(100)}
    assert held(tmp_path / "w.pt", below(prefix, clip()) | many)["towers"]["image"] == whole["towers"]["image"]


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"state_dict": {"model": state}},
        lambda state: {"net": state, "optimizer": {"state": {}}},
        lambda state: {"ema": state},
        lambda state: {"ema": {"module": below("module.", state)}},
        lambda state: {"model_ema": {"state_dict": state}},
        lambda state: {"student": below("_orig_mod.", state)},
        lambda state: {
            "visual._orig_mod." + n.removeprefix("visual.") if "visual" in n else n: state[n] for n in state
        },
    ],
)
def test_weights_inside_dictionaries_are_found(tmp_path, nest) -> None:
    whole = held(tmp_path / "w.pt", clip())
    assert held(tmp_path / "w.pt", nest(clip())) == whole


@pytest.mark.parametrize(
    "both",
    [
        lambda s, t: {"model": s, "model_ema": t},
        lambda s, t: {"model": s, "ema": {"state_dict": t}},
        lambda s, t: {"student": s, "teacher": t},
        lambda s, t: {"model": {"student": s, "teacher": t}},
        lambda s, t: {"state_dict": below("student.", s) | below("teacher.", t)},
        lambda s, t: {"state_dict": below("model.", s) | below("model_ema.module.", t)},
    ],
)
def test_student_and_teacher_are_not_mixed_up(tmp_path, both) -> None:
    for who, plus in (("student", 0.0), ("teacher", 1.0)):
        found = held(tmp_path / "w.pt", both(clip(), clip(1.0)), "--take", who)
        assert found["logit_scale"] == round(float(torch.tensor(1.0 + plus).exp()), 3)


def test_what_is_missing_is_named(tmp_path) -> None:
    state = clip()
    for name in ("visual.proj", "visual.transformer.resblocks.1.ln_2.weight", "text_projection"):
        del state[name]
    lost = ["image.visual.proj", "image.visual.transformer.resblocks.1.ln_2.weight", "text.clip.text_projection"]
    assert held(tmp_path / "w.pt", below("module.", state))["missing"] == lost
    assert f"missing: 3: {', '.join(lost)}" in typed("weights", tmp_path / "w.pt")[0]
