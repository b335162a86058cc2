"""View presets answer for themselves: what they need, and that their readers do not ask for their type."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from manifests.presets import load_preset

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = ("MeshViews", "RasterizedViews", "PointViews", "PointclipViews", "RealisticViews", "FileViews", "FrameViews")


@pytest.mark.parametrize(
    ("name", "changes", "draws", "reads", "needs"),
    [
        ("rgb12", {}, "mesh", None, {"mesh"}),
        ("rgb12", {"backend": "rasterize", "device": "cuda"}, "mesh", None, {"mesh", "gpu"}),
        ("rgb12", {"backend": "rasterize"}, "mesh", None, {"mesh"}),
        ("depth10", {}, "points", None, set()),
        ("realistic10", {}, "points", None, set()),
        ("pointclip10", {"channels": ["rgb"]}, "points", None, {"colors"}),
        ("files", {"pattern": "{id}_{view}.png"}, None, "files", {"source"}),
        ("frames20", {}, None, "frames", {"source"}),
    ],
)
def test_a_preset_says_what_it_needs(name: str, changes: dict, draws: str | None, reads: str | None, needs: set):
    preset = load_preset(name, changes)[1]
    assert (preset.draws, preset.reads) == (draws, reads)
    answers = {"mesh": preset.needs_mesh, "colors": preset.needs_colors, "gpu": preset.needs_gpu}
    answers["source"] = preset.needs_source(store_meshes=True)
    assert {name for name, needed in answers.items() if needed} == needs
    assert preset.needs_source(store_meshes=False) == ("mesh" in needs or "source" in needs)


def test_only_manifests_asks_for_the_type_of_a_preset() -> None:
    found = []
    for package in ("renderers", "pipeline", "training"):
        for path in (REPOSITORY / package).rglob("*.py"):
            calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            asked = (ast.unparse(call) for call in calls if ast.unparse(call.func) == "isinstance")
            found += [f"{path}: {words}" for words in asked if any(kind in words for kind in KINDS)]
    assert found == []
