"""Small mesh and cloud files through `python -m pipeline build` in this process, and what is stored of each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from builders import stored

from manifests.layout import read_manifest
from manifests.samples import decode_array, decode_picture, read_samples
from pipeline.__main__ import main
from pipeline.formats.glb import decode_mesh
from renderers.geometry import Mesh
from renderers.normals import face_normals

QUICK = ("num_points=256", "fps_prefix=16", "max_failed_fraction=1")
QUICK += (
    "views.rgb12.image_size=16",
    "views.rgb12.name=rgb",
    "views.depth10.image_size=16",
    "views.depth10.name=depth",
)


@dataclass
class StoredFile:
    """What a build keeps of one file. reason: of its Failure, or empty. Points and vertices are in the file's frame."""

    reason: str = ""
    warnings: dict[str, int] = field(default_factory=dict)
    points: np.ndarray | None = None
    colors: np.ndarray | None = None
    mesh: Mesh | None = None
    seen: list[int] | None = None

    @property
    def area(self) -> float:
        return float(np.linalg.norm(face_normals(self.mesh.vertices[self.mesh.faces]), axis=1).sum() / 2)

    @property
    def color(self) -> list[int] | None:
        """The colour that all points have but for rounding; None where they have none."""
        if self.colors is None:
            return None
        assert np.ptp(self.colors.astype(int), axis=0).max() <= 2
        return np.rint(self.colors.mean(axis=0)).astype(int).tolist()


def build_files(folder: Path, files: dict[str, str | bytes], recipe: str = "meshes") -> dict[str, StoredFile]:
    """Builds files by their names. seen: the colour in the middle of the front view, where a mesh is drawn."""
    for name, data in files.items():
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return build_folder(folder / "in", folder / "out", recipe)


def build_folder(source: Path, out: Path, recipe: str = "meshes") -> dict[str, StoredFile]:
    """Builds all files of a folder, by their ids."""
    changes = QUICK if recipe == "meshes" else [each for each in QUICK if "rgb12" not in each]
    assert main(["build", recipe, "--source", str(source), "--out", str(out), "--workers", "0", *changes]) in (0, 1)
    found: dict[str, StoredFile] = {}
    ids = {}
    for key, sample in stored(out).items():
        back = np.linalg.inv(np.array(sample.json["world_from_source"]))
        points = decode_array(sample.members["points.npy"]) @ back[:3, :3].T + back[:3, 3]
        colors = decode_array(sample.members["colors.npy"]) if "colors.npy" in sample.members else None
        ids[key] = sample.json["id"]
        warnings = {row["type"]: row["count"] for row in sample.json["warnings"]}
        found[ids[key]] = StoredFile(warnings=warnings, points=points, colors=colors)
        found[ids[key]].mesh = _mesh(out, key, back)
    for key, sample in stored(out, "rgb").items() if recipe == "meshes" else ():
        found[ids[key]].seen = decode_picture(sample.members["v00.rgb.jpg"])[8, 8].tolist()
    for path in (out / "shapes").glob("*.json"):
        for failure in json.loads(path.read_text()).get("failures", []):
            found[failure["id"]] = StoredFile(reason=failure["reason"])
    return found


def _mesh(out: Path, key: str, back: np.ndarray) -> Mesh | None:
    for split in read_manifest(str(out)).num_shards:
        for path in out.glob(f"meshes/{split}-*.tar"):
            with open(path, "rb") as file:
                for _, sample in read_samples(file):
                    if sample.key == key and "mesh.glb" in sample.members:
                        return decode_mesh(sample.members["mesh.glb"]).transformed(back)
    return None
