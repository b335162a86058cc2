"""Weights of other projects: recognised by their names, read without running anything, put where they belong."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from weight_files import (
    GOLDEN_POINTS,
    constants,
    full_keys,
    recipe_of,
    register,
    save_archive,
    save_released,
    save_ulip,
)

from manifests.errors import Refused
from training.__main__ import main
from training.settings.model import PointSettings
from training.weights.checkpoint import build_model
from training.weights.formats import read_weights_file, recognise
from training.weights.pretrained import Towers, initial_towers

FULL = PointSettings()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    """A CLIP with a small picture half, in an embedding of 64."""
    return register(tmp_path_factory.mktemp("models"), "weights-small", 64)


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> str:
    """The same in CLIP's embedding of 512, to which full-size point towers project."""
    return register(tmp_path_factory.mktemp("models"), "weights-wide", 512)


@pytest.fixture(scope="module")
def released(golden: Path) -> dict[str, Tensor]:
    """The released Cross-MoST's own names, small."""
    return load_file(golden / "method" / "crossmost_small" / "state_dict.safetensors")


def clip_state(state: dict[str, Tensor], text: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP of open_clip's names, from the released picture half and a text tower."""
    ours = ("visual.decoder", "visual.ln_patch", "visual.mask_token")
    found = {n: v for n, v in state.items() if n.startswith("visual.") and not n.startswith(ours)}
    return found | text | {"visual.proj": state["image_projection"], "logit_scale": state["logit_scale"]}


@pytest.fixture(scope="module")
def clip(golden: Path, released: dict[str, Tensor]) -> dict[str, Tensor]:
    return clip_state(released, load_file(golden / "method" / "text_classifier" / "text_tower.safetensors"))


@pytest.fixture(scope="module")
def point_bert(released: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Point-BERT's transformer by its own names, with heads of other sizes than ours."""
    inside = {n.removeprefix("point_encoder."): v for n, v in released.items() if n.startswith("point_encoder.")}
    heads = {
        "lm_head.weight": torch.zeros(128, 96),
        "lm_head.bias": torch.zeros(128),
        "cls_head.0.weight": torch.zeros(9, 96),
    }
    return {n: v for n, v in inside.items() if n != "proj"} | heads


def towers(model: str, sizes: PointSettings = GOLDEN_POINTS, pretrained: str = "", **init: object) -> Towers:
    init = {name: str(value) for name, value in init.items()}
    return initial_towers(recipe_of(model, sizes, pretrained=pretrained, init=init))


def refused(*arguments: object, **options: object) -> str:
    """The one line with which weights are refused."""
    with pytest.raises(Refused) as caught:
        towers(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- names, one by one


def renamed(path: Path, values: dict[str, object], who: str = "student") -> dict[str, object]:
    """Our name of each tensor that has one; tensors are told by their first number."""
    torch.save(values, path)
    return {name: value.flatten()[0].item() for name, value in read_weights_file(path, who).tensors.items()}


def numbered(*names: str, wrapper: str = "", plus: float = 0) -> dict[str, Tensor]:
    return {wrapper + name: torch.full((1, 1), number + plus) for number, name in enumerate(names)}


RELEASED_NAMES = {
    "visual.class_embedding": "image.visual.class_embedding",
    "visual.proj_of_none": "image.visual.proj_of_none",
    "image_projection": "image.visual.proj",
    "visual.mask_token_embedding": "image.mask_token",
    "visual.decoder.0.weight": "image.decoder.weight",
    "visual.ln_patch.bias": "image.ln_patch.bias",
    "classifier": "classifier",
    "logit_scale": "logit_scale",
    "pc_projection": "points.projection",
    "point_encoder.proj": "points.own_projection",
    "point_encoder.blocks.blocks.3.attn.qkv.weight": "points.blocks.3.attn.qkv.weight",
    "point_encoder.encoder.first_conv.0.weight": "points.encoder.first_conv.0.weight",
    "point_encoder.cls_pos": "points.cls_pos",
    "ln_final.weight": "text.clip.ln_final.weight",
}


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_names_of_a_released_checkpoint_and_which_of_its_models(tmp_path, who: str) -> None:
    """Each tensor is put under its own name; of the two models the one that was asked for is taken."""
    models = {"model": numbered(*RELEASED_NAMES), "model_ema": numbered(*RELEASED_NAMES, plus=100)}
    plus = 100 if who == "teacher" else 0
    expected = {ours: number + plus for number, ours in enumerate(RELEASED_NAMES.values())}
    assert renamed(tmp_path / "best.pth", models, who) == expected


def test_names_of_ulip_and_of_point_bert(tmp_path) -> None:
    """ULIP: the point half alone, its projection too. Point-BERT: not the momentum copy, nor what is not ours."""
    ulip = ("pc_projection", "point_encoder.mask_token", "point_encoder.cls_head_finetune.0.weight", "image_projection")
    state = {"state_dict": numbered(*ulip, "visual.cls_token", "logit_scale", wrapper="module.")}
    assert renamed(tmp_path / "ulip.pt", state) == {"points.projection": 0, "points.mask_token": 1}
    names = ("cls_token", "blocks.blocks.0.norm1.weight", "encoder.second_conv.0.weight", "lm_head.weight")
    query = {"base_model": numbered(*names, wrapper="module.transformer_q.")}
    query["base_model"] |= numbered(*names, wrapper="module.transformer_k.", plus=100)
    expected = {"points.cls_token": 0, "points.blocks.0.norm1.weight": 1, "points.encoder.second_conv.0.weight": 2}
    assert renamed(tmp_path / "bert.pth", query) == expected


def test_a_pixel_decoder_keeps_the_order_of_its_rows(tmp_path) -> None:
    """As a 1x1 convolution in the file, as a matrix with us."""
    weight = torch.arange(12.0).reshape(4, 3, 1, 1)
    state = numbered("visual.class_embedding", "point_encoder.cls_pos") | {"visual.decoder.0.weight": weight}
    torch.save({"model": state}, tmp_path / "best.pth")
    assert torch.equal(read_weights_file(tmp_path / "best.pth").tensors["image.decoder.weight"], weight[:, :, 0, 0])


def test_what_is_taken_of_a_file_and_in_which_order(small, tmp_path) -> None:
    """Student or teacher, the logit scale, and `init.image` over what `init.all` gave."""
    states = {}
    for seed, name in enumerate(("student", "teacher", "other")):
        recipe = recipe_of(small).model_copy(update={"seed": seed})
        states[name] = build_model(recipe, ("mug", "bowl"), blank=True)[0].state_dict()
        states[name] |= {"logit_scale": torch.tensor(1.0 + seed), "classifier": torch.full((64, 2), 0.5 + seed)}
    torch.save({"model": states["student"], "model_ema": states["teacher"]}, tmp_path / "both.pt")
    torch.save(states["other"], tmp_path / "other.pt")
    for who in ("student", "teacher"):
        got = towers(small, all=tmp_path / "both.pt", take=who, classifier="file")
        assert torch.equal(got.points.projection, states[who]["points.projection"])
        assert torch.equal(got.image.mask_token, states[who]["image.mask_token"])
        assert torch.equal(got.classifier, states[who]["classifier"])
        assert got.scale == pytest.approx(float(states[who]["logit_scale"]))
    keys = {"all": tmp_path / "both.pt", "image": tmp_path / "other.pt", "classifier": "file", "other_space": "keep"}
    got = towers(small, **keys)
    assert torch.equal(got.image.mask_token, states["other"]["image.mask_token"])
    assert torch.equal(got.points.projection, states["student"]["points.projection"])
    assert got.scale == pytest.approx(3.0)
    assert "not to this run's image tower" in refused(small, **{**keys, "other_space": "refuse"})


# -- full-size files, by the key lists


def test_a_full_size_ulip_file_fills_the_point_tower_alone(golden, wide, tmp_path) -> None:
    state = constants(full_keys(golden, "ulip_pointbert"))
    path = save_ulip(tmp_path / "checkpoint_best.pt", state)
    message = refused(wide, FULL, points=path)
    assert f"init.points={path} (ULIP's Point-BERT)" in message
    assert "SLIP's ViT-B/16" in message
    assert "init.other_space" in message
    kept = towers(wide, FULL, points=path, other_space="keep")
    tower, report = kept.points, kept.loaded[0]
    assert (tower.projection == state["pc_projection"]).all()
    for number in range(12):
        there = state[f"point_encoder.blocks.blocks.{number}.attn.qkv.weight"]
        assert (tower.blocks[number].attn.qkv.weight == there).all()
    assert (tower.encoder.second_conv[1].running_var == state["point_encoder.encoder.second_conv.1.running_var"]).all()
    assert (tower.cls_pos == state["point_encoder.cls_pos"]).all()
    assert len(report.loaded) == 161  # 160 of the encoder and its projection
    assert report.missing == tuple(
        f"points.{n}" for n in ("mask_token", "own_projection", "lm_head.weight", "lm_head.bias")
    )
    assert len(report.left_over) == 462 - 161
    assert {"visual.cls_token", "token_embedding.weight", "logit_scale", "image_projection"} <= set(report.left_over)
    assert kept.scale == pytest.approx(2.6593, abs=1e-3)  # not the file's, which is SLIP's
    begun = torch.get_rng_state()
    dropped = towers(wide, FULL, points=path, other_space="drop")
    torch.set_rng_state(begun)
    assert not (dropped.points.projection == state["pc_projection"]).any()
    assert (dropped.points.cls_pos == state["point_encoder.cls_pos"]).all()
    assert "points.projection" in dropped.loaded[0].left_over


def test_a_full_size_released_checkpoint_fills_both_towers(golden, tmp_path) -> None:
    keys = full_keys(golden, "crossmost")
    student = constants(keys)
    path = save_released(tmp_path / "checkpoint-best.pth", student)
    assert path.stat().st_size < 1e6
    full = {"image_size": 224, "layers": 12, "width": 768, "head_width": 64}
    register(tmp_path, "weights-vit-b-16", 512, vision=full)  # with a small text half
    recipe = recipe_of("weights-vit-b-16", FULL, init={"all": str(path), "classifier": "file"})
    reports = []
    model, _ = build_model(recipe, tuple(map(str, range(40))), reports.append)
    for ours, theirs in (
        (model.image.visual.proj, "image_projection"),
        (
            model.image.visual.transformer.resblocks[11].attn.in_proj_weight,
            "visual.transformer.resblocks.11.attn.in_proj_weight",
        ),
        (model.image.mask_token, "visual.mask_token_embedding"),
        (model.image.decoder.weight, "visual.decoder.0.weight"),
        (model.image.ln_patch.bias, "visual.ln_patch.bias"),
        (model.points.own_projection, "point_encoder.proj"),
        (model.points.projection, "pc_projection"),
        (model.points.blocks[11].mlp.fc2.weight, "point_encoder.blocks.blocks.11.mlp.fc2.weight"),
        (model.points.lm_head.weight, "point_encoder.lm_head.weight"),
        (model.classifier, "classifier"),
        (model.logit_scale, "logit_scale"),
    ):
        assert (ours == float(student[theirs].flatten()[0])).all(), theirs
    assert (len(reports[0].loaded), reports[0].missing, reports[0].left_over) == (324, (), ())
    with pytest.raises(Refused, match="a classifier of 40 classes, the shards 3"):
        build_model(recipe, ("a", "b", "c"))


# -- kinds, recognised and put in their places


def test_student_or_teacher_of_a_released_checkpoint(small, released, tmp_path) -> None:
    teacher = {name: value + 1 if value.is_floating_point() else value for name, value in released.items()}
    path = save_released(tmp_path / "best.pth", released, teacher)
    for who, state in (("student", released), ("teacher", teacher)):
        got = towers(small, all=path, classifier="file", take=who)
        torch.testing.assert_close(got.points.own_projection.detach(), state["point_encoder.proj"])
        torch.testing.assert_close(got.classifier, state["classifier"])
    torch.save({"model": released}, path)
    assert "holds no teacher" in refused(small, all=path, take="teacher")


def test_a_released_checkpoint_needs_a_text_tower_or_its_own_classifier(small, released, clip, tmp_path) -> None:
    path = save_released(tmp_path / "best.pth", released)
    assert "holds no text tower" in refused(small, all=path)
    torch.save(clip, tmp_path / "clip.pt")
    both = towers(small, all=path, pretrained=str(tmp_path / "clip.pt"))
    assert [each.key for each in both.loaded] == ["image.pretrained", "init.all"]
    torch.testing.assert_close(both.text.clip.text_projection.detach(), clip["text_projection"])
    torch.testing.assert_close(both.image.mask_token.detach(), released["visual.mask_token_embedding"])
    assert both.scale == pytest.approx(float(released["logit_scale"]))
    assert "init.all=" in refused(small, all=tmp_path / "clip.pt", classifier="file")  # no points in it


def test_points_aligned_to_this_very_image_tower_are_taken(small, released, clip, tmp_path) -> None:
    """Pre-training as released keeps CLIP frozen: its checkpoint holds the same image projection."""
    ours = ("classifier", "visual.decoder", "visual.ln_patch", "visual.mask", "point_encoder.mask", "point_encoder.lm")
    state = {n: v for n, v in released.items() if not n.startswith(ours) and n != "point_encoder.proj"}
    text = {n: v for n, v in clip.items() if not n.startswith(("visual.", "logit"))}
    path = save_ulip(tmp_path / "ulip-june11-checkpoint_best.pt", state | text)
    torch.save(clip, tmp_path / "clip.pt")
    got = towers(small, image=tmp_path / "clip.pt", points=path)
    assert [(each.kind, each.key) for each in got.loaded] == [
        ("open_clip", "init.image"),
        ("cross_most_released", "init.points"),
    ]
    torch.testing.assert_close(got.points.projection.detach(), released["pc_projection"])
    whole = towers(small, all=path)  # both towers and text are in it
    torch.testing.assert_close(whole.text.clip.ln_final.weight.detach(), clip["ln_final.weight"])
    other = dict(clip, **{"visual.proj": torch.randn(96, 64)})
    torch.save(other, tmp_path / "other.pt")
    assert "not to this run's image tower" in refused(small, image=tmp_path / "other.pt", points=path)


@pytest.mark.parametrize("form", ["pretrained", "finetuned"])
def test_point_bert_fills_all_but_projection_and_heads(small, point_bert, tmp_path, form: str) -> None:
    prefix = "module.transformer_q." if form == "pretrained" else "module."
    state = {prefix + name: value for name, value in point_bert.items()}
    if form == "pretrained":
        state |= {f"module.transformer_k.{name}": value + 1 for name, value in point_bert.items()}
        state["module.dvae.codebook"] = torch.zeros(8, 8)
    torch.save({"base_model": state, "epoch": 300, "metrics": {"acc": 0.0}}, tmp_path / "Point-BERT.pth")
    got = towers(small, points=tmp_path / "Point-BERT.pth")
    report = got.loaded[0]
    assert report.kind == "point_bert"
    torch.testing.assert_close(got.points.mask_token.detach(), point_bert["mask_token"])
    torch.testing.assert_close(
        got.points.blocks[1].mlp.fc1.weight.detach(), point_bert["blocks.blocks.1.mlp.fc1.weight"]
    )
    assert set(report.missing) == {
        f"points.{n}" for n in ("projection", "own_projection", "lm_head.weight", "lm_head.bias")
    }
    assert any(name.endswith("lm_head.weight") for name in report.left_over)


def test_a_dvae_fills_the_tokenizer_alone(small, point_bert, tmp_path) -> None:
    encoder = {f"module.{n}": v for n, v in point_bert.items() if n.startswith("encoder.")}
    others = {"module.codebook": torch.zeros(8, 8), "module.dgcnn_1.input_trans.weight": torch.zeros(4, 4, 1)}
    torch.save({"base_model": encoder | others}, tmp_path / "dVAE.pth")
    got = towers(small, points=tmp_path / "dVAE.pth")
    torch.testing.assert_close(
        got.points.encoder.state_dict(),
        {n.removeprefix("encoder."): v for n, v in point_bert.items() if n.startswith("encoder.")},
    )
    assert (got.loaded[0].kind, got.loaded[0].left_over) == ("dvae", ("codebook", "dgcnn_1.input_trans.weight"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*is deprecated. Please switch:FutureWarning")
def test_an_archive_of_openai_is_read_without_its_code(small, clip, tmp_path, monkeypatch) -> None:
    path = save_archive(tmp_path / "ViT.pt", clip)
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("the archive's code was loaded"))
    for got in (towers(small, image=path), towers(small, pretrained=str(path))):
        assert got.loaded[0].kind == "openai_clip"
        assert set(got.loaded[0].left_over) == {"input_resolution", "context_length", "vocab_size"}
        torch.testing.assert_close(got.image.visual.proj.detach(), clip["visual.proj"].half().float())
        assert got.image.visual.proj.dtype == torch.float32
        torch.testing.assert_close(
            got.text.clip.positional_embedding.detach(), clip["positional_embedding"].half().float()
        )
    register(tmp_path, "weights-gelu", 64, quick_gelu=False)
    assert "needs QuickGELU: image.model=weights-gelu-quickgelu" in refused("weights-gelu", image=path)


def test_an_open_clip_file_for_pictures_of_another_size(clip, tmp_path) -> None:
    save_file({f"module.{n}": v.contiguous() for n, v in clip.items()}, tmp_path / "clip.safetensors")
    register(tmp_path, "weights-large-pictures", 64, vision={"image_size": 96})
    got = towers("weights-large-pictures", image=tmp_path / "clip.safetensors")
    positions = got.image.visual.positional_embedding
    assert positions.shape == (37, 96)
    torch.testing.assert_close(positions[0].detach(), clip["visual.positional_embedding"][0])


def test_towers_that_are_none_of_ours_are_named(small, tmp_path) -> None:
    files = {
        "OpenShape": {"module.ppat.cls_token": torch.zeros(512), "module.proj.weight": torch.zeros(1280, 512)},
        "Uni3D": {
            "point_encoder.encoder2trans.weight": torch.zeros(8, 8),
            "point_encoder.cls_token": torch.zeros(1, 1, 8),
        },
        "SLIP": {"module.visual.cls_token": torch.zeros(1, 1, 8), "module.image_projection": torch.zeros(8, 8)},
    }
    for name, state in files.items():
        path = tmp_path / f"{name}.pt"
        torch.save({"module" if name == "Uni3D" else "state_dict": state}, path)
        message = refused(small, points=path)
        assert f"init.points={path} ({name}" in message
        assert "it is no Point-BERT" in message or "not a CLIP ViT" in message


def test_kinds_by_their_names() -> None:
    assert recognise(["open_clip_model.visual.proj", "point_encoder.norm.weight", "pc_projection"]) == "ulip2"
    assert recognise(["visual.trunk.blocks.0.norm1.weight"]) == "open_clip"
    assert recognise(["features.0.weight"]) == ""


# -- what is refused


def test_files_of_other_sizes_name_the_first_misfit(small, released, tmp_path) -> None:
    path = save_released(tmp_path / "best.pth", released)
    shallow = GOLDEN_POINTS.model_copy(update={"depth": 1})
    deep = GOLDEN_POINTS.model_copy(update={"depth": 3})
    wide = GOLDEN_POINTS.model_copy(update={"width": 192})
    for points, words in (
        (shallow, "holds points.blocks.1.attn.proj.bias, which this recipe's tower has not"),
        (deep, "holds no points.blocks.2.norm1.weight, which this recipe's tower has"),
        (wide, "points.projection is (192, 64), this recipe's (384, 64)"),
    ):
        message = refused(small, points, points=path)
        assert f"init.points={path} (Cross-MoST of the released code)" in message
        assert words in message


def test_damaged_and_wrong_files_are_one_line(small, released, tmp_path) -> None:
    whole = save_released(tmp_path / "best.pth", released).read_bytes()
    save_file({n: v.contiguous() for n, v in released.items()}, tmp_path / "best.safetensors")
    tensors = (tmp_path / "best.safetensors").read_bytes()
    for number, (data, words) in enumerate(
        (
            (whole[: len(whole) // 2], "damaged or no weights"),
            (tensors[: len(tensors) // 2], "damaged or no weights"),
            (b"", "damaged or no weights"),
            (b"\x80\x02}q\x00", "damaged or no weights"),
            (b"once upon a time", "damaged or no weights"),
            (saved({"features.0.weight": torch.zeros(3)}), "no weights of a kind that is known"),
            (saved([1, 2, 3]), "holds no tensors by name"),
            (saved(released | {"pc_projection": torch.full((192, 64), torch.nan)}), "points.projection is not finite"),
        )
    ):
        path = tmp_path / f"file-{number}"
        path.write_bytes(data)
        message = refused(small, points=path)
        assert message.startswith(f"init.points={path}")
        assert words in message
    assert "is no checkpoint, no run and no file" in refused(small, points=tmp_path / "gone.pt")
    assert "no such file, and no open_clip tag of image.model=weights-small" in refused(small, image="laion9b")


def saved(values: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


class Malicious:
    """Unpickled by an unguarded reader, this makes a folder."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4:UserWarning")
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "inside arguments", "archive", "hidden archive"])
@pytest.mark.parametrize("call", [(os.mkdir,), (eval,), (nn.Linear,)], ids=["mkdir", "eval", "class"])
def test_no_code_of_a_file_is_run(small, released, tmp_path, form: str, call: tuple) -> None:
    mark = tmp_path / "was-here"
    argument = {os.mkdir: str(mark), eval: f"__import__('os').mkdir({str(mark)!r})", nn.Linear: 3}[call[0]]
    evil = Malicious(call[0], argument)
    path = tmp_path / "evil.pt"
    values = {"model": released, "args": evil}
    if form == "inside arguments":
        torch.save({"model": released, "args": argparse.Namespace(lr=evil)}, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps(values))
    elif form in ("zip", "legacy"):
        torch.save(values, path, _use_new_zipfile_serialization=form == "zip")
    else:
        root = "archive" if form == "archive" else "archive/deeper"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{root}/data.pkl", pickle.dumps(evil, protocol=2))
            archive.writestr(
                "archive/data.pkl" if root != "archive" else "archive/code/x.py", pickle.dumps(evil, protocol=2)
            )
            archive.writestr(f"{root}/constants.pkl", pickle.dumps(()))
            archive.writestr("archive/version", b"3\n")
    message = refused(small, all=path, classifier="file")
    assert str(path) in message
    assert not mark.exists()
    if form in ("zip", "legacy", "inside arguments", "archive"):
        assert "names code" in message


def test_a_header_that_claims_too_much_is_refused(small, tmp_path) -> None:
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "damaged" in refused(small, points=tmp_path / "huge.safetensors")


def test_arguments_and_scores_beside_the_tensors_do_not_matter(released, tmp_path) -> None:
    read = read_weights_file(save_released(tmp_path / "best.pth", released))
    assert read.kind == "cross_most_released"
    assert len(read.tensors) == len(released)


# -- hubs, tags and runs of ours


def test_a_hub_that_cannot_be_reached_is_one_line(small, monkeypatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refused(small, points="hf-hub:nobody/nothing-here")
    assert message.startswith("init.points=hf-hub:nobody/nothing-here: ")
    assert "init.image=hf-hub:nobody" in refused(small, image="hf-hub:nobody/nothing-here/model.pt")
    assert "init.image=hf-hub:nobody" in refused(small, image="hf-hub:nobody")


def test_a_file_of_the_hubs_cache_is_read(small, clip, tmp_path, monkeypatch) -> None:
    import huggingface_hub.constants

    snapshot = tmp_path / "models--someone--small-clip" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--small-clip" / "refs").mkdir()
    (tmp_path / "models--someone--small-clip" / "refs" / "main").write_text("0" * 40)
    save_file({n: v.contiguous() for n, v in clip.items()}, snapshot / "open_clip_model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("hf-hub:someone/small-clip", "hf-hub:someone/small-clip@main/open_clip_model.safetensors"):
        got = towers(small, image=name)
        torch.testing.assert_close(got.image.visual.proj.detach(), clip["visual.proj"])


def test_a_tag_is_for_pictures() -> None:
    for key in ("points", "all"):
        message = refused("ViT-B-32", PointSettings(depth=1), **{key: "laion2b_s34b_b79k"})
        assert message == f"init.{key}=laion2b_s34b_b79k: an open_clip tag has no point tower: init.image takes it"


@pytest.fixture(scope="module")
def run(training, shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "run"
    few = ("data.num_points=128", "optimizer.batch_size=4", "optimizer.steps=2", "points.depth=1", "ema.start=0.5")
    training("fit", "small_cross_most", "--shards", shards, "--run", folder, *few, "tensorboard=false")
    return folder


def test_one_tower_of_a_run_of_ours(run) -> None:
    from training.settings.model import InitSettings
    from training.weights.checkpoint import open_checkpoint

    recipe = open_checkpoint(str(run)).recipe
    last = run / "checkpoints" / "step-00000002"
    stored = {
        who: load_file(last / f"{name}.safetensors") for who, name in (("student", "model"), ("teacher", "teacher"))
    }
    for who in ("student", "teacher"):
        for path in (run, last):
            init = InitSettings(points=str(path), take=who, other_space="keep")
            got = initial_towers(recipe.model_copy(update={"init": init}))
            assert torch.equal(got.points.projection.detach(), stored[who]["points.projection"])
            assert not torch.equal(got.image.visual.proj.detach(), stored[who]["image.visual.proj"])
    assert not torch.equal(stored["student"]["points.projection"], stored["teacher"]["points.projection"])
    one = InitSettings(points=str(last / "model.safetensors"))
    with pytest.raises(Refused, match="its own image tower, not to this run's"):
        initial_towers(recipe.model_copy(update={"init": one}))
    both = InitSettings(image=str(run), points=str(run))
    got = initial_towers(recipe.model_copy(update={"init": both}))
    assert torch.equal(got.image.mask_token.detach(), stored["student"]["image.mask_token"])
    heads = recipe.points.model_copy(update={"heads": 8})
    with pytest.raises(Refused, match=r"has points\.heads=4, this recipe 8"):
        initial_towers(recipe.model_copy(update={"init": one, "points": heads}))


def test_the_command_says_what_a_file_holds(training, golden, run, tmp_path, capsys) -> None:
    def weights(*arguments: object) -> str:
        assert main(["weights", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    path = save_ulip(tmp_path / "ulip.pt", constants(full_keys(golden, "ulip_pointbert")))
    about = json.loads(weights(path, "--json"))
    assert (about["kind"], about["space"], about["tensors"]) == ("ulip", "SLIP's ViT-B/16", 462)
    sizes = {"width": 384, "tokenizer_width": 256, "embed_dim": 512, "depth": 12}
    assert about["towers"] == {"points": {"tensors": 161, "parameters": 22_253_314} | sizes}
    out = weights(path)
    assert "ULIP's Point-BERT, 462 tensors" in out
    assert "embedding space: SLIP's ViT-B/16" in out
    assert "text tower" in weights(run, "--out", tmp_path / "one.safetensors")
    alone = json.loads(weights(tmp_path / "one.safetensors", "--json"))
    assert set(alone["towers"]) == {"image", "points", "text"}
    (tmp_path / "wrong.pt").write_bytes(b"nothing")
    message = training("weights", tmp_path / "wrong.pt", code=2).stderr
    assert message.count("\n") == 1
    assert "damaged or no weights" in message
