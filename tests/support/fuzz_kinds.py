"""Every form of input with small valid files of it and the code that reads them, for tests/support/fuzz.py.

`make` writes valid files into a folder, `run` reads a folder. Both are called in the child process alone, so their
imports stand inside. A `run` raises what is none of its kind's `errors` only where something is wrong.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SMALL_SAMPLE = 60_000  # bytes
REFUSED = ("Refused", "Stopped")
TINY = {
    "num_points": 64,
    "fps_prefix": 16,
    "max_failed_fraction": 1.0,
    "allow_partial": True,
    "views": {
        "rgb12": {"image_size": 16, "azimuth_deg": [0, 90], "name": "rgb12"},
        "depth10": {"image_size": 16, "name": "depth10"},
    },
}


@dataclass(frozen=True)
class Kind:
    """files: patterns of those that are changed. errors: types with which `run` may end. weight: share of all cases.

    writable: the only folder of a case that may be written to. seal: makes what stands beside a changed file fit it
    again, or readers would look no further. follows: links out of the folder are a person's own business there.
    """

    name: str
    role: str
    make: Callable[[Path], None]
    run: Callable[[Path], Any]
    files: tuple[str, ...] = ("in/**/*",)
    errors: tuple[str, ...] = REFUSED
    weight: float = 1.0
    writable: str = "out"
    seal: Callable[[Path, Path], None] | None = None
    follows: bool = False


def require(true: bool, words: object) -> None:
    """A test's own error where something does not hold."""
    if not true:
        raise AssertionError(words)


def one_line(text: str) -> None:
    """A reason is one line, and can be stored."""
    require("\n" not in text and len(text) <= 400, f"not one line: {text!r}")
    text.encode()


def tried(call: Callable[[], Any], errors: tuple[type[Exception], ...]) -> Any:
    """What a call gives, None where it ends with one of these errors in one line."""
    try:
        return call()
    except errors as error:
        if not isinstance(error, UnicodeError):
            require("\n" not in str(error), f"not one line: {error}")
        return None


def write_off(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n")


# -- sources of the pipeline


def build_and_check(recipe_name: str, case: Path, out: str = "out", **changes: Any) -> str:
    """Each object is read, then all is built: every file is an object or a Failure, and `check` finds all well."""
    from manifests.config import merge
    from manifests.errors import Refused
    from pipeline.datasets import dataset_module
    from pipeline.inspect.check import check
    from pipeline.jobs.build import build
    from pipeline.jobs.driver import Workers
    from pipeline.plan.build_recipe import read_recipe
    from pipeline.plan.plan import make_plan

    os.fsync = lambda descriptor: None  # a thousand of them would be most of the time
    recipe = read_recipe(recipe_name, merge(TINY, changes))
    plan, jobs = make_plan(recipe, str(case / "in"), str(case / out))
    for asset in [asset for job in jobs for asset in job.assets]:
        tried(lambda asset=asset: dataset_module(plan.table).read(asset, plan.root, recipe.options()), (ValueError,))
    try:
        summary = build(plan, jobs, Workers(0), lambda *_: None, lambda *_: None)
    except Refused as error:  # before anything is written, or not at all
        raise AssertionError(f"refused midway: {error}") from error
    for failure in summary.failures:
        one_line(failure.reason)
    found = check(str(case / out))
    require(not found.problems, found.problems[:3])
    return f"{summary.samples} objects, {len(summary.failures)} failures"


def make_off(case: Path) -> None:
    write_off(case / "in" / "plain.off")
    colours = "COFF\n# a comment\n3 1 0\n0 0 0 255 0 0 255\n1 0 0 0 255 0 255\n0 1 0 0 0 255 255\n3 0 1 2\n"
    (case / "in" / "colours.off").write_text(colours)
    (case / "in" / "polygons.off").write_text("OFF4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 1\n4 0 1 2 3\n3 0 1 2 0.1 0.2 0.3\n")


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 8), **options: Any) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(size[0])
    bands = {"RGB": 3, "RGBA": 4}.get(mode)
    shape = (size[1], size[0], bands) if bands else (size[1], size[0])
    array = rng.integers(0, 200, shape, np.uint8)
    Image.fromarray(array if mode != "1" else array > 100).save(path, **options)


def make_obj(case: Path) -> None:
    folder = case / "in" / "thing"
    for name, mode in (("colour.png", "RGB"), ("alpha.png", "L"), ("photo.jpg", "RGB")):
        picture(folder / "images" / name, mode)
    (folder / "model.mtl").write_text(
        "newmtl first\nKd 0.8 0.1 0.1\nd 0.9\nmap_Kd -s 1 1 1 images/colour.png\nmap_d images/alpha.png\n"
        "newmtl second\nKd 1 1 1\nTr 0\nmap_Kd .\\images\\photo.jpg\n"
    )
    (folder / "model.obj").write_text(
        "# made here\nmtllib model.mtl\no thing\nv 0 0 0\nv 1 0 0 0.5 0.5 0.5\nv 0 1 0\nv 0 0 1\n"
        "vt 0 0\nvt 1 0\nvt 0 1\n"
        "vn 0 0 1\nusemtl first\nf 1/1/1 2/2/1 3/3/1\nf 1/1 3/2 4/3\nusemtl second\ns off\nf -4 -3 -1\nf 2 3 4 1\n"
    )


def make_ply(case: Path) -> None:
    folder = case / "in"
    head = "ply\nformat {} 1.0\ncomment made here\nelement vertex 3\n"
    head += "property float x\nproperty float y\nproperty float z\n"
    head += "property uchar red\nproperty uchar green\nproperty uchar blue\n{}end_header\n"
    face = "element face 1\nproperty list uchar int vertex_indices\n"
    rows = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]
    text = "".join(f"{x} {y} {z} 250 20 20\n" for x, y, z in rows)
    (folder / "text.ply").write_text(head.format("ascii", face) + text + "3 0 1 2\n")
    (folder / "points.ply").write_text(head.format("ascii", "") + text)
    for order, name in (("<", "little"), (">", "big")):
        data = b"".join(np.array(row, f"{order}f4").tobytes() + bytes((250, 20, 20)) for row in rows)
        data += b"\3" + np.arange(3, dtype=f"{order}i4").tobytes()
        (folder / f"{name}.ply").write_bytes(head.format(f"binary_{name}_endian", face).encode() + data)


def make_stl(case: Path) -> None:
    import trimesh

    box = trimesh.creation.box((1, 2, 3))
    (case / "in" / "binary.stl").write_bytes(box.export(file_type="stl"))
    (case / "in" / "text.stl").write_text(box.export(file_type="stl_ascii"))


def gltf_scene() -> Any:
    import trimesh
    from PIL import Image

    plane = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]], [[0, 1, 2], [1, 3, 2]], process=False)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image, baseColorFactor=[255, 200, 200, 255])
    plane.visual = trimesh.visual.TextureVisuals(uv=[[0, 0], [1, 0], [0, 1], [1, 1]], material=material)
    box = trimesh.creation.box((0.5, 0.5, 0.5))
    box.visual.vertex_colors = np.tile([200, 30, 30, 255], (8, 1))
    scene = trimesh.Scene(plane)
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([1, 0, 0]))
    return scene


def make_glb(case: Path) -> None:
    (case / "in" / "scene.glb").write_bytes(gltf_scene().export(file_type="glb"))


def make_gltf(case: Path) -> None:
    import base64

    (case / "in" / "parts").mkdir(parents=True)
    files = gltf_scene().export(file_type="gltf")
    for name, data in files.items():
        (case / "in" / "parts" / name).write_bytes(data)
    (model,) = (case / "in" / "parts").glob("*.gltf")
    values = json.loads(model.read_text())
    for buffer in values["buffers"][:2]:
        data = files[buffer["uri"]]
        buffer["uri"] = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    (case / "in" / "inline.gltf").write_text(json.dumps(values))
    for name, data in files.items():
        if not name.endswith(".gltf"):
            (case / "in" / name).write_bytes(data)


def samples_folder() -> Path:
    """The folder of real samples, which may not be there."""
    default = Path(__file__).resolve().parents[3] / "shared"
    return Path(os.environ.get("CROSS_MOST_SHARED", default)) / "samples"


def make_samples(case: Path) -> None:
    """Small real files, one of each few; without the real ones, a file made here."""
    found = [
        p for p in sorted(samples_folder().rglob("*")) if p.suffix.lower() in (".off", ".obj", ".ply", ".stl", ".glb")
    ]
    for path in found:
        if path.stat().st_size <= SMALL_SAMPLE and "meshes" in path.parts:
            shutil.copyfile(path, case / "in" / path.name)
    if not found:
        write_off(case / "in" / "plain.off")


def run_samples(case: Path) -> str:
    """Only what was changed is built: what differs from the seed."""
    files = sorted((case / "in").iterdir())
    kept = [path.name for path in files if _differs(case, path)] or [path.name for path in files[:1]]
    listing = case / "out" / "list.jsonl"
    listing.write_text("".join(json.dumps({"path": f"../in/{name}"}) + "\n" for name in kept))
    return build_and_check("meshes", case, out="out/build", listing=str(listing))


def make_clouds(case: Path) -> None:
    folder = case / "in"
    points = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    colours = np.tile([200, 30, 30], (12, 1))
    np.save(folder / "points.npy", points)
    np.save(folder / "colours.npy", np.concatenate([points, colours], axis=1))
    np.savetxt(folder / "points.xyz", points)
    np.savetxt(folder / "points.csv", np.concatenate([points, colours], axis=1), delimiter=",", header="x,y,z,r,g,b")
    np.savetxt(folder / "points.txt", points, header="a comment")
    (folder / "points.pts").write_text("12\n" + "".join(f"{x} {y} {z} 9 200 30 30\n" for x, y, z in points))
    fields = "VERSION .7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH 12\nHEIGHT 1\n"
    fields += "VIEWPOINT 0 0 0 1 0 0 0\nPOINTS 12\nDATA "
    rows = np.concatenate([points, np.zeros((12, 1), np.float32)], axis=1)
    (folder / "text.pcd").write_text(fields + "ascii\n" + "".join(" ".join(map(str, r)) + "\n" for r in rows.tolist()))
    (folder / "binary.pcd").write_bytes(fields.encode() + b"binary\n" + rows.tobytes())


def make_listing(case: Path) -> None:
    folder = case / "in"
    for name in ("a.off", "b/c.off"):
        write_off(folder / name)
    (folder / "list.csv").write_text("path,class,split,id\na.off,chair,train,one\nb/c.off,table,test,two\n")
    (folder / "list.tsv").write_text("path\tclass\na.off\tchair\n")
    rows = [{"path": "a.off", "class": "chair", "split": "train"}, {"path": "b/c.off", "id": "two", "class": None}]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_listing(case: Path) -> str:
    from manifests.errors import Refused

    told = []
    for number, name in enumerate(("list.csv", "list.tsv", "list.jsonl")):
        part = case / "out" / str(number)
        part.mkdir(parents=True)
        (part / "in").symlink_to(case / "in")
        told.append(tried(lambda part=part, name=name: _listed(part, case / "in" / name), (Refused,)))
    return str(told)


def _listed(part: Path, listing: Path) -> str:
    from manifests.config import merge
    from pipeline.plan.build_recipe import read_recipe
    from pipeline.plan.plan import make_plan

    recipe = read_recipe("meshes", merge(TINY, {"listing": str(listing)}))
    plan, jobs = make_plan(recipe, str(listing.parent), str(part / "out"))
    for job in jobs:
        require(plan.out in os.path.realpath(f"{plan.out}/shapes/{job.split}-00000.tar"), job.split)
    return f"{sum(len(job.assets) for job in jobs)}"


def make_rows(case: Path) -> None:
    import h5py

    folder = case / "in" / "modelnet40_ply_hdf5_2048"
    folder.mkdir(parents=True)
    points = np.random.default_rng(0).normal(size=(2, 32, 3)).astype(np.float32)
    for name, packed in (("train0", "gzip"), ("test0", None)):
        with h5py.File(folder / f"ply_data_{name}.h5", "w") as file:
            file.create_dataset("data", data=points, compression=packed)
            file.create_dataset("label", data=np.array([[0], [39]], np.uint8))
    for split in ("train", "test"):
        (folder / f"{split}_files.txt").write_text(f"data/modelnet40_ply_hdf5_2048/ply_data_{split}0.h5\n")
    from manifests.dataset_info import load_table

    (folder / "shape_names.txt").write_text("\n".join(load_table("modelnet40_d").classes) + "\n")


def make_parts(case: Path) -> None:
    import h5py

    folder = case / "in" / "hdf5_data"
    folder.mkdir(parents=True)
    points = np.random.default_rng(0).normal(size=(2, 32, 3)).astype(np.float32)
    for split in ("train", "val", "test"):
        with h5py.File(folder / f"ply_data_{split}0.h5", "w") as file:
            file["data"], file["label"] = points, np.array([0, 15], np.uint8)
            file["pid"] = np.arange(64).reshape(2, 32) % 50
        (folder / f"{split}_hdf5_file_list.txt").write_text(f"ply_data_{split}0.h5\n")


def make_resampled(case: Path) -> None:
    folder = case / "in" / "modelnet40_normal_resampled"
    for name in ("chair_0001", "night_stand_0001"):
        path = folder / name.rpartition("_")[0] / f"{name}.txt"
        path.parent.mkdir(parents=True)
        rows = np.random.default_rng(1).normal(size=(9, 6))
        path.write_text("".join(",".join(f"{v:.6f}" for v in row) + "\n" for row in rows))
    (folder / "modelnet40_train.txt").write_text("chair_0001\n")
    (folder / "modelnet40_test.txt").write_text("night_stand_0001\n")


def make_scans(case: Path) -> None:
    from releases import write_scan

    folder = case / "in" / "ScanObjectNN"
    points = np.random.default_rng(0).normal(size=(2100, 3))
    write_scan(folder / "object_dataset" / "chair" / "scene_1.bin", points, np.full(2100, 9))
    write_scan(folder / "object_dataset" / "bag" / "scene_2.bin", points, np.full(2100, 5))
    (folder / "training_data").mkdir()
    (folder / "training_data" / "main_split.txt").write_text("scene_1.bin\t4\nscene_2.bin\t0\tt\n")


def make_scan_rows(case: Path) -> None:
    import h5py

    folder = case / "in" / "h5_files" / "main_split"
    folder.mkdir(parents=True)
    points = np.random.default_rng(0).normal(size=(2, 32, 3)).astype(np.float32)
    for prefix in ("training", "test"):
        with h5py.File(folder / f"{prefix}_objectdataset.h5", "w") as file:
            file["data"], file["label"] = points, np.array([4, 9], np.int32)
            file["mask"] = np.full((2, 32), -1)


CO3D_VIEWS = {"frames20": {"name": "frames20", "num_frames": 2, "image_size": 16, "channels": ["rgb", "depth"]}}


def make_co3d(version: int) -> Callable[[Path], None]:
    def make(case: Path) -> None:
        from co3d_release import write_category

        write_category(case / "in", "apple", version, ["110_1", "220_2"], num_frames=2, size=(24, 32))
        cloud = case / "in" / "apple" / "110_1" / "pointcloud.ply"
        from redwood_release import write_ply

        for path in (cloud, case / "in" / "apple" / "220_2" / "pointcloud.ply"):
            write_ply(path, np.random.default_rng(0).normal(size=(40, 3)), colors=np.full((40, 3), 90))

    return make


def run_co3d(version: int) -> Callable[[Path], str]:
    def run(case: Path) -> str:
        name = f"co3d_v{version}"
        options = {name: {"split": "set_lists"}} if case.name[-1] in "02468" else {}
        views = {"views": CO3D_VIEWS | {"depth10": TINY["views"]["depth10"]}}
        return build_and_check(name, case, **views, **options)

    return run


def make_redwood(case: Path) -> None:
    from redwood_release import write_release

    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    faces = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])
    write_release(case / "in", {"chair": ["00001"], "table": ["00002"]}, (vertices, faces), frames=3)
    shutil.rmtree(case / "in" / "data" / "rgbd" / "00002.zip", ignore_errors=True)


def run_redwood(case: Path) -> str:
    views = {"frames20": {"name": "frames20", "num_frames": 2, "image_size": 16, "channels": ["rgb", "depth"]}}
    return build_and_check("redwood", case, views=views)


def make_shapenet(version: int) -> Callable[[Path], None]:
    def make(case: Path) -> None:
        import shapenet_release as release

        write = release.write_v1 if version == 1 else release.write_v2
        write(case / "in", release.CHAIR, "aaa1", release.box(1, 2, 1), (200, 30, 30))
        write(case / "in", release.CAR, "bbb2", release.box(3, 1, 1), None)
        lists = case / "lists"
        lists.mkdir()
        rows = [(release.CHAIR, "aaa1"), (release.CAR, "bbb2")]
        (lists / "train.txt").write_text("".join(f"{synset}-{id}.npy\n" for synset, id in rows))
        head = "id,synsetId,subSynsetId,modelId,split\n"
        (lists / "all.csv").write_text(head + "".join(f"1,{s},{s},{id},train\n" for s, id in rows))
        (lists / "r2n2.json").write_text(json.dumps({"train": {s: {id: [0, 1]} for s, id in rows}, "test": {}}))
        (lists / "portions.json").write_text(json.dumps({"chair": {"id": release.CHAIR, "name": "chair"}}))

    return make


def run_shapenet(version: int) -> Callable[[Path], str]:
    def run(case: Path) -> str:
        names = ("", "train.txt", "all.csv", "r2n2.json", "portions.json")
        chosen = [names[hash_of(case.name) % len(names)]] if "good" not in case.name else [""]
        changed = [p.name for p in (case / "lists").iterdir() if p.name in names and _differs(case, p)]
        path = (changed or chosen)[0]
        return build_and_check(f"shapenet_v{version}", case, split_list=str(case / "lists" / path) if path else "")

    return run


def hash_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def _differs(case: Path, path: Path) -> bool:
    """Whether a file of a case is another one than in its seed."""
    for seed in (case.parent.parent / "seeds").iterdir():
        if case.name.startswith(f"{seed.name}-"):
            same = path.is_file() and not path.is_symlink()
            return not same or (seed / path.relative_to(case)).read_bytes() != path.read_bytes()
    return False


def make_modelnet(case: Path) -> None:
    for name in ("chair", "night_stand"):
        for split in ("train", "test"):
            write_off(case / "in" / name / split / f"{name}_000{1 if split == 'train' else 2}.off")
    (case / "lists").mkdir()
    (case / "lists" / "ids.txt").write_text("chair_0001\nfolder/night_stand_0002.off\n")


def run_modelnet(case: Path) -> str:
    given = str(case / "lists" / "ids.txt") if hash_of(case.name) % 2 else ""
    return build_and_check("modelnet40", case, split_list=given, split="mvcnn80_20" if given else "")


def make_objaverse(case: Path) -> None:
    uids = [f"{number:032x}" for number in range(2)]
    for uid in uids:
        path = case / "in" / "glbs" / "000-000" / f"{uid}.glb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gltf_scene().export(file_type="glb"))
    text = json.dumps({"bat_(animal)": uids[:1], "armchair": uids}).encode()
    (case / "in" / "lvis-annotations.json.gz").write_bytes(gzip.compress(text, mtime=0))


# -- pictures of one's own


def tiny_build(out: Path, objects: int = 4, *more: str) -> None:
    """A small finished build with clouds, meshes, pictures of meshes and of points."""
    command = [sys.executable, "-m", "pipeline", "build", "parametric", "--out", str(out), "--workers", "0"]
    sizes = [f"parametric.objects={objects}", "parametric.test_fraction=0.5", "num_points=48", "fps_prefix=16"]
    views = ["views.rgb12.image_size=16", "views.rgb12.azimuth_deg=[0, 90]", "views.rgb12.name=rgb12"]
    views += ["views.depth10.image_size=16", "views.depth10.name=depth10", "shard_size=3", *more]
    subprocess.run([*command, *sizes, *views], check=True, capture_output=True)
    for name in ("build.lock",):
        (out / name).unlink(missing_ok=True)


def make_pictures(case: Path) -> None:
    tiny_build(case / "out", 2)
    lines = [json.loads(line) for line in (case / "out" / "assets.jsonl").read_text().splitlines()]
    forms = (("png", "RGBA"), ("jpg", "RGB"), ("webp", "RGB"), ("bmp", "RGB"), ("tif", "RGB"), ("png", "L"))
    for number, (_, _, id, _, _) in enumerate(lines):
        for view in range(3):
            suffix, mode = forms[(3 * number + view) % len(forms)]
            picture(case / "in" / f"{id}_{view:03d}.{suffix}", mode, (12, 10))


def run_pictures(case: Path) -> str:
    from pipeline.__main__ import main

    options = ["pattern={id}_{view:03d}.{ext}", "name=mine", *([] if hash_of(case.name) % 2 else ["image_size=16"])]
    code = main(
        ["views", "files", "--shards", str(case / "out"), "--source", str(case / "in"), "--workers", "0", *options]
    )
    require(code in (0, 1, 2, 3), code)
    require(main(["check", str(case / "out")]) == 0, "check finds damage")
    return str(code)


# -- what a build holds


def make_build(case: Path) -> None:
    tiny_build(case / "out")
    write_off(case / "in" / "a.off")


def seal(case: Path, path: Path) -> None:
    """Makes the record beside a changed tar say what the tar now holds."""
    from fuzz_mutations import tar_members

    if not path.is_file() or path.is_symlink():
        return
    if path.name == "assets.jsonl":
        manifest = path.with_name("manifest.json")
        assets_hash = hashlib.sha256(path.read_bytes()).hexdigest()
        with contextlib.suppress(ValueError, TypeError, OSError, RecursionError):  # it may have been changed, too
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"assets_hash": assets_hash}))
    if path.suffix != ".tar":
        return
    data = path.read_bytes()
    record_path = path.with_suffix(".json")
    try:
        record = json.loads(record_path.read_text())
        record |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    except (ValueError, TypeError, OSError, RecursionError):
        return
    members = tar_members(data)
    if members:
        keys: dict[str, dict[str, bytes]] = {}
        offsets: dict[str, int] = {}
        for offset, name, body in members:
            key, _, suffix = name.partition(".")
            offsets.setdefault(key, offset)
            keys.setdefault(key, {})[suffix] = body
        suffixes = sorted({suffix for bodies in keys.values() for suffix in bodies})
        record |= {"keys": list(keys), "offsets": list(offsets.values()), "count": len(keys)}
        for name, measure in (("sizes", len), ("checks", zlib.crc32)):
            record[name] = {s: [None if s not in b else measure(b[s]) for b in keys.values()] for s in suffixes}
    record_path.write_text(json.dumps(record))


def run_build(case: Path) -> str:
    """All commands that read a build; each ends with an exit code, what it writes lies in OUT or beside it in `out`."""
    from pipeline.__main__ import main

    os.fsync = lambda descriptor: None
    out = str(case / "out")
    commands = (
        ("check", out),
        ("check", out, "--deep"),
        ("check", out, "--against", out),
        ("inspect", out, "--png", f"{out}/sheet.png"),
        ("inspect", out, "--html", f"{out}/page.html"),
        ("export", out, "--format", "wids"),
        ("export", out, "--format", "colmap", "--overwrite"),
        ("export", out, "--format", "hf", "--overwrite"),
        ("views", "depth10", "--shards", out, "--workers", "0", "image_size=8", "name=small"),
        ("views", "rgb12", "--shards", out, "--workers", "0", "image_size=8", "azimuth_deg=[0]", "name=seen"),
        ("build", "parametric", "--out", out, "--workers", "0", *REBUILD, "--retry", "data"),
    )
    chosen = commands if case.name.endswith("good") else [commands[0], commands[1 + hash_of(case.name) % 10]]
    codes = [main(list(command)) for command in chosen]
    require(set(codes) <= {0, 1, 2, 3}, codes)
    require(not case.name.endswith("good") or set(codes) == {0}, codes)
    page = case / "out" / "page.html"
    require(not page.is_file() or "<script>alert" not in page.read_text(), "the page runs what a build says")
    return str(codes)


REBUILD = (
    *("parametric.objects=4", "parametric.test_fraction=0.5", "num_points=48", "fps_prefix=16", "shard_size=3"),
    *("views.rgb12.image_size=16", "views.rgb12.azimuth_deg=[0, 90]", "views.rgb12.name=rgb12"),
    *("views.depth10.image_size=16", "views.depth10.name=depth10"),
)


# -- recipes and tables in TOML


def make_recipes(case: Path) -> None:
    from manifests import dataset_info, presets
    from pipeline.plan.build_recipe import RECIPES

    for folder, target in ((RECIPES, "pipeline"), (presets.FOLDER, "views"), (dataset_info.FOLDER, "datasets")):
        (case / "in" / target).mkdir(parents=True)
        for path in sorted(folder.glob("*.toml"))[::2]:
            shutil.copyfile(path, case / "in" / target / path.name)
    text = 'dataset = "meshes"\nnum_points = 64\n[views.rgb12]\nname = "mine"\nimage_size = 16\n[views.depth10]\n'
    for number in range(4):
        (case / "in" / "pipeline" / f"own{number}.toml").write_text(text)
    write_off(case / "source" / "a.off")


def run_recipes(case: Path) -> str:
    from manifests.config import load_toml, parse_recipe
    from manifests.dataset_info import DatasetTable
    from manifests.errors import Refused
    from manifests.presets import parse_preset

    told = 0
    for path in sorted((case / "in").rglob("*")):
        if path.suffix == ".toml" and (case.name.endswith("good") or _differs(case, path)):
            calls: dict[str, Callable[[], Any]] = {
                "pipeline": lambda path=path: _planned(case, path),
                "views": lambda path=path: parse_preset(load_toml(path), str(path)),
                "datasets": lambda path=path: parse_recipe(DatasetTable, load_toml(path), str(path)),
            }
            told += tried(calls[path.parent.name], (Refused,)) is not None
    return str(told)


def _planned(case: Path, path: Path) -> bool:
    """A plan by a recipe, and the manifests of its view sets written."""
    from manifests.config import load_toml, to_toml
    from pipeline.jobs.build_manifest import write_view_set_manifest
    from pipeline.plan.build_recipe import read_recipe, stored_recipe
    from pipeline.plan.plan import make_plan

    recipe = read_recipe(str(path), {})
    again = stored_recipe(recipe.model_dump(exclude_none=True), "again")
    require(again == recipe, "a recipe is not what was read")
    saved = case / "out" / "saved.toml"
    saved.write_text(to_toml(recipe.model_dump(mode="json", exclude_none=True)))
    require(stored_recipe(load_toml(saved), "saved").shapes_hash() == recipe.shapes_hash(), "another hash")
    if recipe.dataset == "meshes":
        plan, _ = make_plan(recipe, str(case / "source"), str(case / "out" / "build"))
        for view_set in plan.view_sets:
            write_view_set_manifest(plan, view_set)
    return True


# -- training


def make_shards(case: Path) -> None:
    tiny_build(case / "in", 6)


def run_shards(case: Path) -> str:
    """An epoch without labels, one with them, and a whole split as evaluation reads it."""
    from training.data.dataset import open_source
    from training.data.labels import labelled
    from training.data.loader import Form, SupervisedSamples, UnlabelledSamples
    from training.settings.data import AugmentSettings, DataSettings

    seen = 0
    number = hash_of(case.name)
    views, channel = (("rgb12", "rgb"), ("depth10", "depth"))[number % 2]
    subset = {"objects": "mvcnn80_20"} if number % 3 == 0 else {}
    for split in ("train", "test"):
        settings = DataSettings(split=split, views=views, channel=channel, num_points=32, shuffle=2, **subset)
        source = tried_open(lambda settings=settings: open_source(str(case / "in"), settings))
        if source is None:
            continue
        for kind in (UnlabelledSamples, SupervisedSamples):
            seen += (
                tried_open(
                    lambda kind=kind, s=source, d=settings: _count(
                        kind(s, d, AugmentSettings(), Form(16, 4, 8, 0.5), 1, 0)
                    )
                )
                or 0
            )
        seen += tried_open(lambda s=source, d=settings: _count(labelled(s, d, 16, range(s.total), 2))) or 0
    return str(seen)


def _count(samples: Any) -> int:
    return sum(1 for _ in samples)


def tried_open(call: Callable[[], Any]) -> Any:
    from manifests.errors import Refused, Stopped

    return tried(call, (Refused, Stopped))


FIT = (
    *("data.num_points=32", "data.split=train", "optimizer.batch_size=2", "optimizer.steps=1", "tensorboard=false"),
    *("points.depth=1", "points.groups=8", "points.group_size=4", "log_every=1", "save_every=1", "data.shuffle=4"),
)


def make_run(case: Path) -> None:
    from training.__main__ import main

    tiny_build(case / "in", 6)
    fitted = main(["fit", "small_cross_most", "--shards", str(case / "in"), "--run", str(case / "out" / "run"), *FIT])
    require(fitted == 0, fitted)
    shutil.rmtree(case / "out" / "run" / "checkpoints" / "step-00000000")


def run_run(case: Path) -> str:
    """A run is opened, asked for its models, gone on with, and its log read."""
    import torch

    from manifests.config import parse_changes
    from training.evaluation import classifier
    from training.evaluation.predict import BuildKeys
    from training.loop.fit import prepare
    from training.reports import report
    from training.settings.fit_recipe import read_recipe
    from training.weights.checkpoint import open_checkpoint
    from training.weights.open_models import open_models
    from training.weights.pretrained import read_path
    from training.weights.run_folder import last_step

    run, told = case / "out" / "run", []
    checkpoint = tried_open(lambda: open_checkpoint(str(run)))
    if checkpoint is not None:
        told.append(tried_open(lambda: open_models(checkpoint)) is not None)
        told.append(
            tried_open(lambda: BuildKeys.of(checkpoint).recipe("meshes", Path("x"), ("x", "y", "z"))) is not None
        )
    told.append(tried_open(lambda: classifier.load(run)) is not None)
    told.append(tried_open(lambda: report._read_log(run / "log.csv")) is not None)
    told.append(tried_open(lambda: read_path(run, "student")) is not None)
    recipe = read_recipe("small_cross_most", parse_changes(FIT))
    state = tried_open(lambda: prepare(recipe, str(case / "in"), str(run), torch.device("cpu")))
    if state is not None:
        told.append(tried_open(lambda: state.resume(last_step(run)) or True) is not None)
        tried_open(lambda: state.samples.set_epoch(*state.progress()))
    require(not case.name.endswith("good") or all(told), told)
    return str(told)


def make_weights(case: Path) -> None:
    """A small file of every kind: open_clip's own CLIP, our point tower by the names of others, an archive."""
    import torch
    import weight_files as files
    from safetensors.torch import save_file

    from training.models.clip import create_clip
    from training.weights.pretrained import initial_towers

    folder = case / "in"
    recipe = small_recipe()
    clip = {name: value.contiguous() for name, value in create_clip(recipe.image, "image").state_dict().items()}
    towers = initial_towers(recipe)
    ours = {n.replace("blocks.", "blocks.blocks.", 1): v for n, v in towers.points.state_dict().items()}
    points = {f"point_encoder.{n}": v for n, v in ours.items() if n not in ("projection", "own_projection")}
    points |= {"pc_projection": ours["projection"], "point_encoder.proj": ours["own_projection"]}
    released = {n: v for n, v in clip.items() if n.startswith("visual.") and n != "visual.proj"}
    released |= points | {"image_projection": clip["visual.proj"], "logit_scale": clip["logit_scale"]}
    save_file(clip, folder / "clip.safetensors")
    torch.save(clip, folder / "clip.pt")
    files.save_ulip(folder / "ulip.pt", points)
    files.save_released(folder / "released.pth", released)
    torch.save({"base_model": {f"module.transformer_q.{n}": v for n, v in ours.items()}}, folder / "point-bert.pth")
    encoder = {f"module.{n}": v for n, v in ours.items() if n.startswith("encoder.")}
    torch.save({"base_model": encoder}, folder / "dvae.pth", _use_new_zipfile_serialization=False)
    torch.save({"module": {"ppat.cls_token": torch.zeros(4)}}, folder / "openshape.pt")
    torch.save(
        {"module": {"point_encoder.encoder2trans.weight": torch.zeros(4), "point_encoder.cls_token": torch.zeros(3)}},
        folder / "uni3d.pt",
    )
    torch.save({"state_dict": {"module.visual.cls_token": torch.zeros(4)}}, folder / "slip.pt")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files.save_archive(folder / "openai.pt", clip)


_SMALL: list[Any] = []


def small_recipe() -> Any:
    """A recipe of towers of a few thousand numbers, known to open_clip in this process."""
    import tempfile

    import weight_files as files

    from training.settings.model import PointSettings

    if not _SMALL:
        points = PointSettings(groups=4, group_size=4, tokenizer_width=16, width=24, depth=1, heads=2, drop_path=0.0)
        small = {
            "vision": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16},
            "text": {"layers": 1, "width": 32, "heads": 2},
        }
        with tempfile.TemporaryDirectory() as scratch:
            _SMALL.append(files.recipe_of(files.register(Path(scratch), "fuzz-small", 16, **small), points))
    return _SMALL[0]


def run_weights(case: Path) -> str:
    """The changed file is described, as student and teacher, and put into towers."""
    from training.settings.model import InitSettings
    from training.weights.describe import describe, in_words
    from training.weights.pretrained import initial_towers

    recipe, told = small_recipe(), []
    for path in sorted((case / "in").iterdir()):
        if not case.name.endswith("good") and not _differs(case, path):
            continue
        for who in ("student", "teacher"):
            about = tried_open(lambda path=path, who=who: describe(str(path), who))
            if about is not None:
                json.dumps(about)
                in_words(about)
        for key in ("all", "image", "points"):
            init = InitSettings.model_validate({key: str(path), "other_space": "keep", "classifier": "text"})
            towers = tried_open(lambda init=init: initial_towers(recipe.model_copy(update={"init": init})))
            told.append(f"{path.name}.{key}" if towers is not None else "")
    require(not case.name.endswith("good") or len([t for t in told if t]) >= 6, told)
    return " ".join(filter(None, told))


def make_classifier(case: Path) -> None:
    from training.evaluation import classifier

    make_run(case)
    (case / "file").mkdir()
    classifier.load(case / "out" / "run").save(case / "file" / "one.safetensors")
    shutil.rmtree(case / "out")
    shutil.rmtree(case / "in")
    (case / "in").mkdir()


def run_classifier(case: Path) -> str:
    from training.evaluation import classifier

    found = classifier.load(case / "file" / "one.safetensors")
    answers = found.classify(points=np.random.default_rng(0).normal(size=(40, 3)))
    pictures = found.classify(pictures=np.zeros((20, 20, 3), np.uint8))
    return f"{answers.names} {pictures.names}"


def make_tables(case: Path) -> None:
    from training.paper_tables.table_rows import TABLES
    from training.settings.fit_recipe import RECIPES

    (case / "in" / "recipes").mkdir(parents=True)
    (case / "in" / "tables").mkdir()
    for path in sorted(RECIPES.glob("*.toml"))[::2]:
        shutil.copyfile(path, case / "in" / "recipes" / path.name)
    for path in sorted(TABLES.glob("*/*.toml"))[::2]:
        shutil.copyfile(path, case / "in" / "tables" / path.name)
    rows = '[[rows]]\nname = "a"\nlabel = "A"\nrecipe = "small_cross_most"\nrun = "one"\npaper = {image = 60.5}\n'
    for number in range(4):
        (case / "in" / "tables" / f"own{number}.toml").write_text(f'title = "Own"\n{rows}')
    (case / "in" / "prompts.txt").write_text("# mine\na photo of a {}.\na drawing of {}.\n")
    (case / "in" / "ids.txt").write_text("# some\nchair_0001\n")
    student = {"image": 60.0, "image_star": 61.0, "points": 58.5, "mean_per_class": {}}
    values = {"identity": "0" * 64, "student": student, "n": 9, "step": 4, "teacher": None}
    (case / "in" / "result.json").write_text(json.dumps(values))


def run_tables(case: Path) -> str:
    from training.data.subsets import _listed as listed_ids
    from training.settings.fit_recipe import read_recipe

    told = []
    for path in sorted((case / "in").rglob("*")):
        if path.is_dir() or not (case.name.endswith("good") or _differs(case, path)):
            continue
        calls: dict[str, Callable[[], Any]] = {
            "recipes": lambda path=path: read_recipe(str(path), {}),
            "tables": lambda path=path: _table(case, path),
            "prompts.txt": lambda path=path: read_recipe("small_cross_most", {"prompts": str(path)}),
            "ids.txt": lambda path=path: listed_ids(str(path)) or True,
            "result.json": lambda path=path: _result(case, path),
        }
        found = tried_open(calls[path.name if path.name in calls else path.parent.name])
        told.append(path.name if found is not None else "")
        require(not case.name.endswith("good") or found is not None, path)
    return " ".join(told)


def _table(case: Path, path: Path) -> bool:
    """A table's rows, its plan and what is printed of it; the recipe of each row is written as `table` writes it."""
    from manifests import store
    from training.paper_tables.compare_with_paper import cells, compare, write
    from training.paper_tables.judged_rows import resolve
    from training.paper_tables.place import Place
    from training.paper_tables.results import known_outcome
    from training.paper_tables.runner import plan_lines
    from training.paper_tables.table_builds import Builds
    from training.paper_tables.table_rows import read_table

    table, place = read_table(str(path)), Place(case / "out")
    judged = resolve(table.rows, Builds({}, (), None), {})
    plan_lines(judged, place)
    for each in judged[:3]:
        store.write_bytes(str(place.folder / "recipes" / f"{each.row.run}.toml"), b"")
        store.write_bytes(str(place.result_path(each)), b"")
    comparison = compare(path.stem, table, {each.row.name: {0: known_outcome(each, place)} for each in judged})
    cells(comparison)
    write(comparison, place.folder)
    return True


def _result(case: Path, path: Path) -> bool:
    from training.paper_tables.compare_with_paper import cells, compare, write
    from training.paper_tables.judged_rows import Judged
    from training.paper_tables.place import Place
    from training.paper_tables.results import known_outcome
    from training.paper_tables.table_rows import Row, Table
    from training.settings.fit_recipe import read_recipe

    row = Row(name="a", label="A", recipe="small_cross_most", run="one", paper={"image": 60.5})
    judged, place = Judged(row, read_recipe("small_cross_most", {}), "somewhere", "0" * 64), Place(case / "out")
    target = place.result_path(judged)
    target.parent.mkdir(parents=True)
    shutil.copyfile(path, target, follow_symlinks=False) if path.is_file() else None
    comparison = compare("own", Table(title="Own", rows=(row,)), {"a": {0: known_outcome(judged, place)}})
    cells(comparison)
    write(comparison, place.folder)
    return True


def _meshes(name: str, make: Callable[[Path], None], weight: float = 1.0) -> Kind:
    return Kind(name, "pipeline", make, lambda case: build_and_check("meshes", case), weight=weight)


def _dataset(name: str, recipe: str, make: Callable[[Path], None], weight: float = 1.0) -> Kind:
    return Kind(name, "pipeline", make, lambda case: build_and_check(recipe, case), weight=weight)


_BOTH = ("in/**/*", "lists/*")
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _meshes("off", make_off),
        _meshes("obj", make_obj, 2),
        _meshes("ply", make_ply, 2),
        _meshes("stl", make_stl),
        _meshes("glb", make_glb, 3),
        _meshes("gltf", make_gltf, 2),
        Kind("samples", "pipeline", make_samples, run_samples, weight=2),
        _dataset("clouds", "points", make_clouds, 3),
        Kind("listing", "pipeline", make_listing, run_listing, ("in/list.*",), follows=True),
        _dataset("modelnet40_h5", "modelnet40_d", make_rows, 2),
        _dataset("shapenetpart", "shapenetpart", make_parts),
        _dataset("modelnet40_text", "modelnet40_d", make_resampled),
        _dataset("scanobjectnn_raw", "scanobjectnn_obj", make_scans),
        _dataset("scanobjectnn_h5", "scanobjectnn_bg", make_scan_rows),
        Kind("co3d_v1", "pipeline", make_co3d(1), run_co3d(1), weight=2),
        Kind("co3d_v2", "pipeline", make_co3d(2), run_co3d(2), weight=2),
        Kind("redwood", "pipeline", make_redwood, run_redwood, weight=2),
        Kind("shapenet_v1", "pipeline", make_shapenet(1), run_shapenet(1), _BOTH),
        Kind("shapenet_v2", "pipeline", make_shapenet(2), run_shapenet(2), _BOTH),
        Kind("modelnet40", "pipeline", make_modelnet, run_modelnet, _BOTH),
        _dataset("objaverse", "objaverse_lvis", make_objaverse),
        Kind("pictures", "pipeline", make_pictures, run_pictures, weight=2),
        Kind("build", "pipeline", make_build, run_build, ("out/**/*",), weight=6, seal=seal, follows=True),
        Kind("recipes", "pipeline", make_recipes, run_recipes, weight=3, follows=True),
        Kind("shards", "training", make_shards, run_shards, weight=6, seal=seal, follows=True),
        Kind("run", "training", make_run, run_run, ("out/run/**/*",), weight=5, follows=True),
        Kind("weights", "training", make_weights, run_weights, weight=6, follows=True),
        Kind("classifier", "training", make_classifier, run_classifier, ("file/*",), weight=1, follows=True),
        Kind("tables", "training", make_tables, run_tables, weight=3, follows=True),
    )
}
