"""Adapters of frozen towers: golden values of both releases and of the paper's equations, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from golden_backbones import filled
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from training.models.gated_adapter import GatedAdapter, InterView
from training.settings.adapter_recipe import AdapterSettings

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
