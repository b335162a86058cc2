"""Messy folders through whole builds: every file is an object or a Failure, and nothing else is touched."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import trimesh
from builders import SMALL
from PIL import Image

from manifests.dataset_info import load_table
from manifests.errors import Refused
from manifests.layout import meshes_tar, shapes_tar
from manifests.samples import decode_array, read_samples
from pipeline.datasets.objaverse import complete
from pipeline.formats.glb import decode_mesh
from pipeline.formats.mesh import read_mesh
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import make_plan

FEW = (*SMALL[:2], "views.depth10.image_size=32", "views.depth10.name=depth10")

# What becomes of every file of the real samples: faces or points of the object, or why there is none.
SAMPLES = {
    "AlphaBlendModeTest.glb": ("faces", 61),
    "BoxTextured.glb": ("faces", 12),
    "CesiumMilkTruck.glb": ("faces", 3624),
    "Duck.glb": ("faces", 4212),
    "bunny.ply": ("faces", 16301),
    "busted.STL": ("faces", 3878),
    "comments.off": ("faces", 12),
    "cube_blender_uv.ply": ("faces", 12),
    "empty.obj": ("failure", "load: the file holds neither faces nor points"),
    "fuze.obj": ("faces", 1000),
    "monkey.glb": ("faces", 968),
    "nancolor.obj": ("faces", 12),
    "negative_indices.obj": ("faces", 12),
    "noimg.obj": ("faces", 1000),
    "notenoughindices.obj": ("faces", 1),
    "points_ascii.ply": ("points", 5),
    "points_bin.ply": ("points", 5),
    "points_emptyface.ply": ("points", 256),
    "simple_pole.glb": ("faces", 580),
    "teapot.stl": ("faces", 894),
    "whitespace.off": ("faces", 12),
}


def built(pipeline, out: Path, *command: object, code: int = 0) -> tuple[dict, dict[str, str], dict[str, dict]]:
    """(what check says, id -> failure, id -> json) of a build in this process."""
    pipeline("build", *command, "--out", out, "--workers", 0, "max_failed_fraction=1", code=code)
    found = json.loads(pipeline("check", out, "--json").stdout)
    assert found["ok"], found["problems"]
    failures = {f["id"]: f"{f['stage']}: {f['reason']}" for f in found["failures"]}
    objects = {}
    for tar in sorted((out / "shapes").glob("*.tar")):
        objects |= {s.json["id"]: s.json for _, s in read_samples(io.BytesIO(tar.read_bytes()))}
    assert len(objects) == found["samples"]
    assert not set(objects) & set(failures)
    return found, failures, objects


def contents(folder: Path) -> dict[str, tuple]:
    """Every path below a folder with what it holds and when it was changed."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() and not p.is_symlink() else 0)
        for p in sorted(folder.rglob("*"))
    }


def test_every_real_messy_file_has_its_outcome(pipeline, shared, tmp_path) -> None:
    source = shared / "samples" / "meshes"
    _, failures, objects = built(pipeline, tmp_path / "out", "meshes", "--source", source, *SMALL)
    found = {Path(id).name: ("failure", reason) for id, reason in failures.items()}
    for id, values in objects.items():
        faces = values["num_faces"]
        found[Path(id).name] = ("faces", faces) if faces else ("points", values["num_points"])
    assert found == SAMPLES
    meshes = [p for p in source.rglob("*") if p.suffix.lower() in (".off", ".obj", ".ply", ".stl", ".glb", ".gltf")]
    assert len(objects) + len(failures) == len(meshes)


def off(vertices: list[list[float]], faces: list[list[int]]) -> str:
    lines = [f"OFF\n{len(vertices)} {len(faces)} 0", *(" ".join(map(repr, v)) for v in vertices)]
    return "\n".join([*lines, *(f"{len(f)} " + " ".join(map(str, f)) for f in faces)]) + "\n"


def messy_meshes(source: Path) -> dict[str, str | None]:
    """Writes a messy folder; id -> the beginning of its failure, or None for an object."""
    triangle = [[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]
    texts = {
        "nan.off": (off([*triangle[:2], [float("nan"), 0, 0]], [[0, 1, 2]]), "load: a vertex is not finite"),
        "huge.off": (off([*triangle[:2], [0, 1e38, 0]], [[0, 1, 2]]), "load: a coordinate of 1.0e+38 is no length"),
        "unused_nan.off": (off([*triangle, [float("nan"), 0, 0]], [[0, 1, 2]]), None),
        "one_point.off": (off([[1, 2, 3]], []), "sample: the object has no extent"),
        "same_points.off": (off([[1, 2, 3]] * 50, []), "sample: the object has no extent"),
        "no_area.off": (off([[1, 2, 3]] * 3, [[0, 1, 2]]), "sample: zero area"),
        "far_away.off": (off([[1e6 + x, y, z] for x, y, z in triangle], [[0, 1, 2]]), None),
        "tiny.off": (off([[x * 1e-9, y * 1e-9, z] for x, y, z in triangle], [[0, 1, 2]]), None),
        "index.off": (off(triangle, [[0, 1, 7]]), "load: a face names vertex 7 of 3"),
        "empty.off": ("", "load: the file is empty"),
        "obj/nan.obj": ("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "load: a vertex is not finite"),
        "obj/huge.obj": ("v 0 0 0\nv 1e38 0 0\nv 0 1 0\nf 1 2 3\n", "load: a coordinate of 1.0e+38"),
        "obj/words.obj": ("v a b c\nf 1 2 3\n", "load: "),
        "a.b.c d-e.off": (off(triangle, [[0, 1, 2]]), None),
        "a_b_c_d-e.off": (off(triangle, [[0, 1, 2]]), None),
        "Stuhl/grün/椅子.off": (off(triangle, [[0, 1, 2]]), None),
        "Stuhl/grün/桌子.off": (off(triangle, [[0, 1, 2]]), None),
        "-rf.off": (off(triangle, [[0, 1, 2]]), None),
        f"{'long' * 50}.off": (off(triangle, [[0, 1, 2]]), None),
        "$(touch x).off": (off(triangle, [[0, 1, 2]]), None),
        "line\nbreak.off": (off(triangle, [[0, 1, 2]]), None),
        "text.glb": ("hello", "load: not a readable glb file"),
        "text.stl": ("solid x\nendsolid x\n", "load: "),
        "text.ply": ("hello", "load: not a readable ply file"),
        "text.gltf": ('{"asset": {"version": "2.0"}}', "load: "),
    }
    expected: dict[str, str | None] = {}
    for name, (text, reason) in texts.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
        expected[name] = reason
    (source / "round.off").symlink_to(source / "round.off")
    (source / "folder.off").mkdir()
    os.mkfifo(source / "pipe.off")
    with open(os.fsencode(source) + b"/latin\xfc.off", "w") as file:
        file.write(off(triangle, [[0, 1, 2]]))
    expected["round.off"] = "load: cannot be read: "
    (source / "loop").symlink_to(source / "obj", target_is_directory=True)
    expected["loop"] = "load: a link to a folder is not followed"
    expected["pipe.off"] = "load: a pipe or device"
    expected["latin\\xfc.off"] = "load: its name is not UTF-8"
    return expected


def test_a_messy_folder_is_accounted_for_file_by_file(pipeline, tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    expected = messy_meshes(source)
    before = contents(tmp_path)
    _, failures, objects = built(pipeline, tmp_path / "out", "meshes", "--source", source, *SMALL)
    assert len(failures) + len(objects) == len(expected)
    for id, reason in expected.items():
        if reason is None:
            assert id in objects, failures.get(id)
        else:
            assert failures[id].startswith(reason), (id, failures[id])
    assert {name: value for name, value in contents(tmp_path).items() if name.partition("/")[0] != "out"} == before
    keys = {values["key"] for values in objects.values()}
    assert len(keys) == len(objects)
    assert all(key.isascii() and len(key) <= 80 for key in keys)
    assert objects["a.b.c d-e.off"]["key"].startswith("a_b_c_d-e_off-")
    assert objects["Stuhl/grün/椅子.off"]["class"] == "Stuhl"


SECRET = (7, 200, 31)


def test_materials_and_textures_do_not_leave_the_source(tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for folder in (tmp_path, source):
        picture = Image.new("RGB", (8, 8), SECRET if folder == tmp_path else (200, 10, 10))
        picture.save(folder / "picture.png")
    (tmp_path / "secret.mtl").write_text("newmtl m\nKd 0.03 0.78 0.12\n")
    (source / "link.png").symlink_to(tmp_path / "picture.png")
    (source / "link.mtl").symlink_to(tmp_path / "secret.mtl")
    body = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nusemtl m\nf 1/1 2/2 3/3\n"
    absolute = str(tmp_path / "picture.png")
    names = ["../picture.png", absolute, "..\\picture.png", "link.png", f"file://{absolute}", "x/../../picture.png"]
    for number, name in enumerate(names):
        (source / f"{number}.mtl").write_text(f"newmtl m\nmap_Kd {name}\n")
        (source / f"{number}.obj").write_text(f"mtllib {number}.mtl\n{body}")
    materials = ["../secret.mtl", str(tmp_path / "secret.mtl"), "link.mtl"]
    for number, name in enumerate(materials, len(names)):
        (source / f"{number}.obj").write_text(f"mtllib {name}\n{body}")
    for number in range(len(names) + len(materials)):
        raw = read_mesh(source / f"{number}.obj", source)
        for material in raw.mesh.materials:
            if material.texture is not None:
                assert not (material.texture[..., :3] == SECRET).all(axis=-1).any(), number
            np.testing.assert_raises(
                AssertionError, np.testing.assert_allclose, material.base_color[:3], (0.03, 0.78, 0.12), atol=0.01
            )
    (source / "good.mtl").write_text("newmtl m\nmap_Kd picture.png\n")
    (source / "good.obj").write_text(f"mtllib good.mtl\n{body}")
    assert read_mesh(source / "good.obj", source).mesh.materials[0].texture is not None


def test_buffers_of_a_gltf_do_not_leave_the_source(tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    files = trimesh.Scene(trimesh.creation.box()).export(file_type="gltf")
    for name, data in files.items():
        (tmp_path / name if name.endswith(".bin") else source / name).write_bytes(data)
    (model,) = source.glob("*.gltf")
    text = model.read_text()
    uri = json.loads(text)["buffers"][0]["uri"]
    for place in (f"../{uri}", str(tmp_path / uri), f"file://{tmp_path / uri}", "http://127.0.0.1:9/x.bin"):
        model.write_text(text.replace(uri, place))
        with pytest.raises(ValueError, match=r"its buffer .* is not in the source folder"):
            read_mesh(model, source)
    for buffer in tmp_path.glob("*.bin"):
        buffer.rename(source / buffer.name)
    model.write_text(text)
    assert len(read_mesh(model, source).mesh.faces) == 12


def test_messy_clouds_through_a_listing(pipeline, tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    good = np.random.default_rng(0).normal(size=(300, 3))
    np.save(source / "good.npy", good.astype(np.float32))
    np.savetxt(source / "good.txt", np.concatenate([good, np.full((300, 3), 9)], axis=1))
    np.save(source / "nan.npy", np.where(np.arange(900).reshape(300, 3) == 5, np.nan, good))
    np.save(source / "huge.npy", good * 1e38)
    np.save(source / "one.npy", good[:1])
    np.save(source / "same.npy", np.repeat(good[:1], 300, axis=0))
    np.save(source / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    names = [p.name for p in sorted(source.iterdir())] + ["gone.npy", "good.npy"]
    rows = [{"path": name, "class": "thing", "id": name} for name in names]
    rows[-1] |= {"id": "again", "split": "test"}
    (source / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ("points", "--source", source, f"listing={source / 'list.jsonl'}", *FEW)
    found, failures, objects = built(pipeline, tmp_path / "out", *command)
    assert set(objects) == {"good.npy", "good.txt", "again", "nan.npy"}
    assert objects["nan.npy"]["warnings"] == [{"type": "points without a place", "count": 1}]
    assert {id: reason.split(" (")[0] for id, reason in failures.items()} == {
        "huge.npy": next(r for i, r in failures.items() if i == "huge.npy"),
        "one.npy": "sample: the object has no extent: all its points are one",
        "same.npy": "sample: the object has no extent: all its points are one",
        "pickled.npy": "load: an npy file of object; numbers are needed",
        "gone.npy": "load: cannot be read: No such file or directory",
    }
    assert "is no length" in failures["huge.npy"]
    assert len(objects) + len(failures) == len(rows)
    assert found["classes"] == {"all": {"thing": 3}, "test": {"thing": 1}}
    assert found["view_sets"]["depth10"] == {"samples": 4, "failures": 0, "skipped": 0}


def objaverse(folder: Path, without: str = "") -> dict[str, list[str]]:
    """A miniature of the official downloader's folder: three categories, one uid in two of them, one not annotated."""
    uids = [f"{number:032x}" for number in range(5)]
    categories = {"bat_(animal)": uids[:2], "armchair": [uids[2]], "Christmas_tree": [uids[3], uids[0]]}
    for number, uid in enumerate(uids):
        path = folder / "glbs" / f"000-{number:03d}" / f"{uid}.glb"
        path.parent.mkdir(parents=True)
        if uid != without:
            path.write_bytes(trimesh.Scene(trimesh.creation.box(extents=(1, 2, 3 + number))).export(file_type="glb"))
    (folder / "lvis-annotations.json").write_text(json.dumps(categories))
    return categories


def test_objaverse_lvis_as_its_downloader_lays_it_out(pipeline, tmp_path) -> None:
    source = tmp_path / "hf-objaverse-v1"
    categories = objaverse(source)
    views = ("num_points=64", "fps_prefix=16", "views.rgb12.image_size=32", "views.rgb12.name=rgb12")
    command = ("objaverse_lvis", "--source", source, *views)
    found, failures, objects = built(pipeline, tmp_path / "out", *command)
    assert failures == {}
    assert set(objects) == {uid for uids in categories.values() for uid in uids}
    first = next(iter(categories["bat_(animal)"]))
    assert objects[first]["class"] == "Christmas_tree"  # of two categories, the first by name
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["classes"] == ["Christmas_tree", "armchair", "bat_(animal)"]
    assert manifest["prompt_names"] == ["Christmas tree", "armchair", "bat"]
    assert found["classes"] == {"all": {"Christmas_tree": 2, "armchair": 1, "bat_(animal)": 1}}
    turn = np.array(objects[first]["world_from_source"])[:3, :3]
    np.testing.assert_allclose(turn / np.cbrt(np.linalg.det(turn)) @ [1, 2, 3], [-1, 2, -3], atol=1e-9)
    text = (source / "lvis-annotations.json").read_bytes()
    (source / "lvis-annotations.json").unlink()
    (source / "lvis-annotations.json.gz").write_bytes(gzip.compress(text))
    assert (
        "4 objects are already there" in pipeline("build", *command, "--out", tmp_path / "out", "--workers", 0).stderr
    )


def test_an_objaverse_that_is_not_whole_is_refused(tmp_path) -> None:
    source = tmp_path / "part"
    objaverse(source, without=f"{2:032x}")

    def plan_of(**changes: object):
        return make_plan(read_recipe("objaverse_lvis", changes), str(source), str(tmp_path / "out"))

    with pytest.raises(Refused, match="not the whole objaverse_lvis: all 3 of 4"):
        plan_of()
    plan, jobs = plan_of(allow_partial=True)
    assert len(jobs[0].assets) == 3
    assert "armchair" in plan.classes  # of the annotation file, though its object is not there
    annotations = source / "lvis-annotations.json"
    for text, words in (
        ("{", "cannot be read"),
        ("[]", "no table of categories"),
        ('{"x": ["../../etc/passwd"]}', "category 'x' holds something that is no uid"),
        ('{"x": 3}', "no uid"),
    ):
        annotations.write_text(text)
        with pytest.raises(Refused, match=words):
            plan_of()
    annotations.unlink()
    with pytest.raises(Refused, match="load_lvis_annotations"):
        plan_of()


def test_a_gzip_bomb_in_place_of_the_annotations_is_refused(tmp_path) -> None:
    (tmp_path / "lvis-annotations.json.gz").write_bytes(gzip.compress(b" " * (200 << 20), 1))
    with pytest.raises(Refused, match="more than 67,108,864 bytes"):
        complete(load_table("objaverse_lvis"), tmp_path)


def test_a_million_faces_need_less_than_the_limit_of_a_worker(pipeline, tmp_path) -> None:
    side = 708  # 2 * 707 * 707 = 999,698 faces
    x, z = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side), indexing="ij")
    vertices = np.stack([x, 0.3 * np.sin(9 * x) * np.cos(7 * z), z], axis=-1).reshape(-1, 3)
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    faces = np.concatenate([np.stack([corner, corner + 1, corner + side], 1)] * 2)
    faces[len(corner) :] = np.stack([corner + 1, corner + side + 1, corner + side], 1)
    (tmp_path / "mine").mkdir()
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    (tmp_path / "mine" / "large.stl").write_bytes(mesh.export(file_type="stl"))  # a soup: three million vertices
    pipeline("build", "meshes", "--source", tmp_path / "mine", "--out", tmp_path / "out", "--workers", 0)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["splits"]["all"]["samples"] == 1
    assert manifest["max_rss_mb"] < 1500
    with open(shapes_tar(str(tmp_path / "out"), "all", 0), "rb") as file:
        ((_, sample),) = read_samples(file)
    assert sample.json["num_faces"] == len(faces)
    with open(meshes_tar(str(tmp_path / "out"), "all", 0), "rb") as file:
        ((_, stored),) = read_samples(file)
    drawn = decode_mesh(stored.members["mesh.glb"])
    assert len(drawn.vertices) == len(vertices)
    moved = np.array(sample.json["world_from_source"])
    corners = vertices[faces[::5000]] @ moved[:3, :3].T + moved[:3, 3]
    np.testing.assert_allclose(drawn.vertices[drawn.faces[::5000]], corners, atol=1e-6)
    assert decode_array(sample.members["points.npy"]).shape == (8192, 3)
