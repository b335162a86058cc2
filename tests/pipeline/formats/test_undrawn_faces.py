"""What of a mesh file is not drawn, in every format: faces without an area, faces twice, vertices without a face."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import trimesh
from builders import stored
from shapes import CUBE, CUBE_FACES

from pipeline.__main__ import main
from pipeline.inspect.html_gallery import gallery
from renderers.geometry import Mesh
from renderers.normals import undrawn_faces, unique_faces, weld

FAR = np.array([[900.0, 0, 0], [0, 700, 0], [0, 0, 1e6]])
LINE = np.array([[-0.5, -0.5, -0.5], [0, 0, 0], [0.5, 0.5, 0.5]])  # on a straight line
ASIDE = np.array([1e5, 0, 0])
VERTICES = np.concatenate([FAR, CUBE + ASIDE, LINE + ASIDE])
FACES = np.concatenate([CUBE_FACES + 3, CUBE_FACES[:1] + 3, CUBE_FACES[1:3, ::-1] + 3, [[4, 4, 5], [11, 12, 13]]])
COUNTS = {"zero-area faces": 2, "double faces": 3}
KEYS = ("num_points=256", "fps_prefix=64", "views.rgb12.image_size=32", "views.rgb12.name=rgb12")


def write(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """A mesh file with just these vertices and faces."""
    path.parent.mkdir(parents=True, exist_ok=True)
    places = [" ".join(f"{x:.9g}" for x in vertex) for vertex in vertices]
    if path.suffix == ".off":
        rows = [f"OFF {len(vertices)} {len(faces)} 0", *places, *(f"3 {a} {b} {c}" for a, b, c in faces)]
        path.write_text("\n".join(rows) + "\n")
    elif path.suffix == ".obj":
        rows = [*(f"v {place}" for place in places), *(f"f {a} {b} {c}" for a, b, c in faces + 1)]
        path.write_text("\n".join(rows) + "\n")
    else:
        mesh = trimesh.Trimesh(vertices, faces, process=False, validate=False)
        data = (trimesh.Scene(mesh) if path.suffix == ".glb" else mesh).export(file_type=path.suffix[1:])
        path.write_bytes(data)


def build(source: Path, out: Path, *keys: str) -> int:
    return main(["build", "meshes", "--source", str(source), "--out", str(out), "--workers", "0", *KEYS, *keys])


def warnings(out: Path) -> dict[str, dict[str, int]]:
    return {s.json["id"]: {w["type"]: w["count"] for w in s.json["warnings"]} for s in stored(out).values()}


@pytest.mark.parametrize("suffix", [".off", ".obj", ".ply", ".stl", ".glb"])
def test_every_format_counts_what_is_not_drawn(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"mine/odd{suffix}", VERTICES, FACES)
    write(tmp_path / f"mine/right{suffix}", CUBE, CUBE_FACES)
    assert build(tmp_path / "mine", tmp_path / "out", 'views=["rgb12"]', "normalize=bbox_unit_cube") == 0
    found = warnings(tmp_path / "out")
    strays = found[f"odd{suffix}"].pop("vertices without a face", None)
    assert found == {f"odd{suffix}": COUNTS, f"right{suffix}": {}}
    if suffix != ".stl":
        assert strays == 3
    shapes = stored(tmp_path / "out")
    odd, right = (np.array(shapes[f"{name}_{suffix[1:]}"].json["world_from_source"]) for name in ("odd", "right"))
    np.testing.assert_allclose(odd[:3, :3], right[:3, :3], rtol=0.02)  # float32 holds 1e5 to 0.008
    np.testing.assert_allclose(odd @ [1e5, 0, 0, 1], right @ [0, 0, 0, 1], atol=0.02)
    assert shapes[f"odd_{suffix[1:]}"].json["num_faces"] == len(FACES)


def test_check_and_the_page_show_types_with_examples(tmp_path: Path, capsys) -> None:
    for number in range(5):
        write(tmp_path / f"mine/odd{number}.off", VERTICES, FACES)
    write(tmp_path / "mine/one.off", VERTICES[3:11], np.concatenate([CUBE_FACES, CUBE_FACES[:1]]))
    assert build(tmp_path / "mine", tmp_path / "out", 'views=["rgb12"]', "shard_size=2", "views.rgb12.fov_deg=30") == 0
    capsys.readouterr()
    assert main(["check", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["warnings"] == {
        "double faces": 16,
        "vertices without a face": 15,
        "zero-area faces": 10,
        "touches the border": 72,
    }
    examples = found["warning_examples"]
    assert {kind: len(keys) for kind, keys in examples.items()} == dict.fromkeys(found["warnings"], 3)
    assert set(examples["zero-area faces"]) < {f"odd{number}_off" for number in range(5)}
    assert main(["check", str(tmp_path / "out")]) == 0
    lines = re.findall(r"  warning: (.*): (\d+) \((\w+), (\w+), (\w+)\)\n", capsys.readouterr().out)
    assert [(kind, int(count)) for kind, count, *_ in lines] == [
        ("touches the border", 72),
        ("double faces", 16),
        ("vertices without a face", 15),
        ("zero-area faces", 10),
    ]
    assert all(keys == examples[kind] for kind, _, *keys in lines)
    page = gallery(str(tmp_path / "out"), num_objects=1, num_views=1)
    shown = re.findall(r"<td>(.*)<td>warning: (.*): (\d+) \((\w+), (\w+), (\w+)\)\n", page)
    assert [(place, kind, int(count)) for place, kind, count, *_ in shown] == [
        ("shapes", "double faces", 16),
        ("shapes", "vertices without a face", 15),
        ("shapes", "zero-area faces", 10),
        ("views/rgb12", "touches the border", 72),
    ]
    assert all(keys == examples[kind] for _, kind, _, *keys in shown)


def test_what_is_counted_is_what_the_renderer_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vertices = rng.integers(0, 3, (90, 3)) / 2
    faces = rng.integers(0, 90, (4000, 3))
    kept = unique_faces(weld(vertices)[faces])
    a, b, c = vertices[faces[kept]].transpose(1, 0, 2)
    drawn = np.cross(b - a, c - a).any(axis=1)
    zero_area, double = undrawn_faces(vertices, faces)
    assert zero_area > 100
    assert double > 100
    assert len(faces) - zero_area - double == np.count_nonzero(drawn)
    monkeypatch.setattr("renderers.normals._EXACT", 10)
    assert undrawn_faces(vertices, faces) == (zero_area, double)
    assert undrawn_faces(Mesh(CUBE, CUBE_FACES).vertices, CUBE_FACES) == (0, 0)


def test_a_list_of_views_goes_together_with_keys_inside_it(tmp_path: Path) -> None:
    write(tmp_path / "mine/right.off", CUBE, CUBE_FACES)
    assert build(tmp_path / "mine", tmp_path / "out", 'views=["rgb12"]') == 0
    assert [path.name for path in (tmp_path / "out/views").iterdir()] == ["rgb12"]
    views = stored(tmp_path / "out", "rgb12")["right_off"].json["views"]
    assert {view["width"] for view in views} == {32}
