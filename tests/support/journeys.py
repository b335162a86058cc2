"""The commands that headers and the README tell, typed as they stand where miniature releases and weights lie.

What is small, and all that is: releases of a few objects, drawn pictures of 32 pixels, the towers' sizes, two steps of
small batches, this machine's CPU and processes. Views, channels, classes, objects, points and groups are the recipes'.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
import trimesh
from builders import REPOSITORY, Commands, write_off
from co3d_release import write_category
from redwood_release import write_release
from releases import modelnet40_h5, scanobjectnn_h5, shapenetpart
from shapenet_release import CAR, CHAIR, box, write_v1, write_v2
from shapes import chair
from training_runs import typed
from weight_files import as_point_bert

from manifests.config import parse_changes
from manifests.layout import read_manifest
from manifests.presets import load_preset
from pipeline.plan import build_recipe
from training.models import clip
from training.networks.point_bert import PointTower
from training.settings.fit_recipe import READ_BY, keys_in, method_of
from training.settings.model import PointSettings

OFF_CLASSES = ("bathtub", "desk", "toilet")  # of ModelNet10 and of ModelNet40
POINTS = {"width": 24, "depth": 1, "heads": 2, "tokenizer_widths": [8, 8, 16], "tokenizer_width": 16}
OF_FIT = (
    "image.model=cross_most_small",
    "init.image=CLIP.pt",
    "mask.image_cell=16",
    *(f"points.{name}={value}" for name, value in POINTS.items()),
    "optimizer.steps=2",
    "optimizer.batch_size=2",
    "data.workers=0",
)
OF_MACHINE = (
    (r"--device cuda", "--device cpu"),
    (r"--workers \d+", "--workers 0"),
    (r"^torchrun .* -m -- ", "python -m "),
)


def commands(text: str, indent: str) -> list[str]:
    """The commands of a text whose lines begin with this indent, with the lines that go on after \\ or within '...'."""
    word = r"""(?:'[^']*'|[^'\n])*"""
    plain = re.sub(r" +# .*$", "", text.replace("\\\n", " "), flags=re.MULTILINE)
    lines = re.findall(rf"^{indent}((?:python -m|torchrun) {word})$", plain, re.MULTILINE)
    return [shlex.join(shlex.split(line)) for line in lines]


def of_header(path: Path) -> list[str]:
    """The commands in the header of a recipe."""
    return commands("\n".join(line[1:] for line in path.read_text().splitlines() if line.startswith("#")), " {1,3}")


def of_readme(section: str) -> list[str]:
    """The commands of a section of the README."""
    page = (REPOSITORY / "README.md").read_text()
    return commands(page.partition(f"\n## {section}\n")[2].partition("\n## ")[0], "    ")


def parsed(command: str) -> tuple[list[str], dict[str, str], list[str]]:
    """Words before the options, options by name, changes of keys."""
    words, names, options, changes = shlex.split(command)[2:], [], {}, []
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            options[word] = words.pop(0) if words and not words[0].startswith("--") else ""
        else:
            (changes if "=" in word else names).append(word)
    return names, options, changes


def miniature(command: str) -> list[str]:
    """The words of a command with the miniature changes and no other."""
    for as_written, here in OF_MACHINE:
        command = re.sub(as_written, here, command)
    names, _, changes = parsed(command)
    words = shlex.split(command)[2:]
    if names[:2] == ["pipeline", "build"]:
        views = build_recipe.read_recipe(names[2], parse_changes(changes)).views
        drawn = [name for name, keys in views.items() if load_preset(name, keys)[1].backend != "frames"]
        small = [f"views.{name}.{change}" for name in drawn for change in ("image_size=32", f"name={name}")]
        return [*words, *small, "allow_partial=true"]
    if names[1] == "fit":
        method = method_of(names[2], {})
        return [*words, *(each for each in OF_FIT if {*keys_in(parse_changes([each]))} <= READ_BY[method])]
    return [*words, *OF_FIT] if names[1] == "table" else words


def write_modelnet(folder: Path) -> None:
    """Three train and two test objects of each of three classes."""
    for number in range(5 * len(OFF_CLASSES)):
        of, split = OFF_CLASSES[number % len(OFF_CLASSES)], "train" if number // len(OFF_CLASSES) < 3 else "test"
        write_off(folder / of / split / f"{of}_{number:04}.off", 1 + number / 10)


def write_shapenet(folder: Path) -> None:
    """Two chairs and two cars, of v1 or of v2."""
    write = write_v1 if folder.name.endswith("v1") else write_v2
    for number, synset in enumerate((CHAIR, CAR, CHAIR, CAR)):
        write(folder, synset, f"a{number}", box(0.4, 0.6, 0.3 + number / 5), (200, 50 * number, 0))


def write_redwood(folder: Path) -> None:
    """Five scans of each of two classes."""
    scans = {name: [f"{10 * row + n:05}" for n in range(5)] for row, name in enumerate(("chair", "sofa"), 1)}
    vertices = chair().vertices * [0.5, -0.5, -0.5] + [0.1, 0.2, 2.0]
    write_release(folder, scans, (vertices, chair().faces))


def write_co3d(folder: Path) -> None:
    """Five sequences of each of two categories."""
    for category in ("apple", "cup"):
        names = [f"{category}_{n}_0" for n in range(5)]
        write_category(folder, category, int(folder.name[-1]), names, num_frames=22)


def write_objaverse(folder: Path) -> None:
    """As the downloader lays it out: annotations, and a GLB an object."""
    uids = [f"{number:032x}" for number in range(3)]
    for number, uid in enumerate(uids):
        path = folder / "glbs" / "000-000" / f"{uid}.glb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(trimesh.Scene(trimesh.creation.box(extents=(1, 2, 3 + number))).export(file_type="glb"))
    (folder / "lvis-annotations.json").write_text(json.dumps({"armchair": uids[:2], "Christmas_tree": uids[2:]}))


def write_own(folder: Path, clouds: bool, listed: bool) -> None:
    """Two files of each of two classes, meshes or clouds; listed: and list.csv, the first two as test."""
    rows = ["path,class,split,id"]
    for number, name in enumerate(("chair", "lamp", "chair", "lamp")):
        mesh = trimesh.creation.box(extents=(1, 2, 3 + number))
        file = folder / name / f"{name}{number}.{'npy' if clouds else 'off'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, mesh.sample(300).astype(np.float32)) if clouds else mesh.export(file)
        rows.append(f"{name}/{file.name},{name},{'test' if number < 2 else 'train'},{number}")
    if listed:
        (folder / "list.csv").write_text("\n".join(rows) + "\n")


def write_weights(folder: Path) -> None:
    """CLIP.pt, as open_clip saves one, and POINT_BERT.pth, as Point-BERT's pre-training saves it; small and random."""
    torch.manual_seed(0)
    open_clip.add_model_config(clip.SMALL_CONFIG)
    model = open_clip.create_model(clip.SMALL_CONFIG.stem)
    torch.save(model.state_dict(), folder / "CLIP.pt")
    points = PointTower(PointSettings(**POINTS), model.visual.proj.shape[1]).state_dict()
    torch.save({"base_model": as_point_bert(points)}, folder / "POINT_BERT.pth")


RELEASES: dict[str, Callable[[Path], object]] = {  # as the commands name a source -> what writes it there
    "ModelNet10": write_modelnet,
    "ModelNet40": write_modelnet,
    "ModelNet40_manually_aligned": write_modelnet,
    "modelnet40_ply_hdf5_2048": lambda folder: modelnet40_h5(folder.parent),
    "h5_files": lambda folder: scanobjectnn_h5(folder.parent),
    "hdf5_data": lambda folder: shapenetpart(folder.parent),
    "ShapeNetCore.v1": write_shapenet,
    "ShapeNetCore.v2": write_shapenet,
    "redwood-3dscan": write_redwood,
    "co3d_v1": write_co3d,
    "co3d_v2": write_co3d,
    "~/.objaverse/hf-objaverse-v1": write_objaverse,
}


class Journey:
    """A folder in which a person types. said: what each command printed, by the command."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, dict[str, str]()
        self._pipeline = Commands(folder)
        self._pipeline.environment |= {"PYTHONPATH": str(REPOSITORY), "HOME": str(folder)}

    def type(self, command: str, *more: str) -> str:
        """Runs a command as it is told, once; gives what it printed on stdout, and keeps all of it."""
        program, *words = [*miniature(command), *more]
        if program == "pipeline":
            source = parsed(command)[1].get("--source", "")
            place = self.folder / source.replace("~", ".")
            if source and not place.exists():
                RELEASES[source](place)
            if source:
                words[words.index("--source") + 1] = str(place)
            ended = self._pipeline(*words)
            self.said[command] = ended.stderr
            return ended.stdout
        with contextlib.chdir(self.folder):
            out, self.said[command] = typed(*words)
        return out

    def next_command(self, command: str) -> str:
        """What the last line of a training tells to type next."""
        return self.said[command].splitlines()[-1].partition(": ")[2]

    def log(self, run: str) -> list[dict[str, str]]:
        """The rows of a run's log."""
        with open(self.folder / run / "log.csv", newline="") as file:
            return list(csv.DictReader(file))

    def objects(self, build: str, split: str) -> int:
        """How many objects a build has in a split."""
        return read_manifest(str(self.folder / build)).splits[split].samples
