"""Predicts the labels of single objects, from files or from shards, by the surer of image and point cloud.

Files first become shards by `python -m pipeline build` in a process of its own, with the view preset and the shape keys
of the checkpoint's training. So there is one loader and one renderer, and no import of the pipeline. An object that the
preset cannot draw, as a cloud where it draws meshes, is answered by the point tower alone.

Shape letters: B batch, C classes.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError

from manifests.config import to_toml
from manifests.dataset_info import axes_matrix, default_prompt_name, load_table, table_names
from manifests.errors import Refused, Stopped, first_problem
from manifests.layout import read_manifest
from manifests.plain_text import number_of
from manifests.presets import AnyViews, load_preset, parse_preset, preset_names
from training.child_commands import ENDING_SECONDS, Child, end
from training.data.dataset import Source, open_source
from training.data.whole_split import BATCH, SplitReader, batch_numbers, clouds_alone
from training.evaluation.features import features_of, require_finite
from training.models.clip import pixel_statistics
from training.settings.data import DataSettings
from training.settings.model import Precision
from training.weights.checkpoint import Checkpoint
from training.weights.open_models import Opened, open_models, warn_of_own_heads
from training.weights.run_folder import CLASSES, read_about

CLOUDS = (".pcd", ".npy", ".npz", ".txt", ".xyz", ".csv", ".pts", ".asc")  # for the recipe `points`
MESHES = (".off", ".obj", ".ply", ".stl", ".glb", ".gltf")  # for `meshes`, which gets any other file as well
UPRIGHT = (".glb", ".gltf")  # formats that say which way is up
SHAPE_KEYS = ("seed", "num_points", "fps_prefix", "normalize")
SPLIT = "all"
TOP = 5
BUILD_SECONDS = 600.0  # without a sign of life; a build gives one file asset_seconds at most
ENDED = (0, 1, 2, 3, 130)  # exit codes of a build that ended by itself
POLL_SECONDS = 1.0
PLAIN = ("x", "y", "z")
Say = Callable[[str], None]
Look = Callable[[Source, DataSettings, Mapping[str, str]], None]  # at shards before they go; key -> its file


class _Shapes(BaseModel):
    """How shapes were made, according to run.json: plain values without paths, which go into a build's recipe."""

    dataset: str
    seed: int
    num_points: Annotated[int, Field(ge=1)]
    fps_prefix: Annotated[int, Field(ge=0)]
    normalize: Annotated[str, Field(pattern=r"^[a-z0-9_.]+$")]
    axes: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class BuildKeys:
    """How the objects of a checkpoint's training were built: view preset and shape keys.

    view_set: the preset's name in that build. preset: None where training read no picture. axes: as in a build's
    recipe, for files that do not define "up".
    """

    view_set: str
    preset: AnyViews | None
    shape_keys: dict[str, Any]
    axes: tuple[str, ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> BuildKeys:
        """Reads run.json. Raises Refused where keys are missing, or where the preset cannot draw files."""
        path = checkpoint.folder.parent.parent / CLASSES
        about = read_about(path.parent)
        try:
            shown, values = about.get("judged", about), about["shapes"]
            name = shown["view_set"]
            pictures = "image" in checkpoint.recipe.towers
            preset = parse_preset(shown["preset"], f"{path}: preset") if pictures else None
            keys = {key: values[key] for key in ("dataset", *SHAPE_KEYS)}
            made = _Shapes.model_validate(keys | {"axes": values.get("axes")})
        except ValidationError as error:
            raise Refused(f"{path} is damaged: shapes.{first_problem(error)}") from error
        except KeyError as error:
            raise Refused(
                f"{path} has no {error}: its run is of an older version; build the files and predict with --shards"
            ) from error
        if preset and preset.reads:
            raise Refused(
                f"the checkpoint reads {name}, pictures that come with its dataset and are not drawn: predict --shards"
            )
        known = load_table(made.dataset).axes if made.dataset in table_names() else PLAIN
        return cls(name, preset, made.model_dump(include=set(SHAPE_KEYS)), made.axes or tuple(known))

    def recipe(self, dataset: str, listing: Path, axes: Sequence[str]) -> str:
        """TOML of a build that makes shapes and views in the same way."""
        views: dict[str, Any] = {}
        if self.preset is not None:
            backend = self.preset.backend
            base = next(name for name in self._bases() if load_preset(name)[1].backend == backend)
            views = {base: {"name": self.view_set} | self.preset.model_dump(mode="json")}
        values = {"dataset": dataset, **self.shape_keys, "axes": list(axes), "listing": str(listing)}
        return to_toml({**values, "store_meshes": False, "max_failed_fraction": 1.0, "views": views})

    def _bases(self) -> list[str]:
        """Shipped presets, the view set's own first: every key of one is replaced."""
        return sorted(preset_names(), key=lambda name: name != self.view_set)


def files_in(folder: str) -> tuple[list[str], list[str]]:
    """Files of known formats in a folder, at any depth, sorted by path; and the suffixes of the other files.

    What begins with a dot is left alone, and linked folders are not entered.
    """
    found, others = [], []
    for inside, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            suffix = Path(name).suffix.lower()
            if suffix in (*MESHES, *CLOUDS) and not name.startswith("."):
                found.append(os.path.join(inside, name))
            elif not name.startswith("."):
                others.append(suffix)
    return sorted(found, key=lambda path: path.split(os.sep)), others


def predict_files(
    checkpoint: Checkpoint,
    files: Sequence[str],
    classes: Sequence[str] = (),
    who: str = "student",
    device: torch.device | None = None,
    axes: str = "",
    workers: int = 0,
    say: Say = lambda words: None,
    precision: Precision | None = None,
    look: Look | None = None,
    views_weight: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """Predicts files: `{file, label, confidence, surer, towers, top5, error}` for each, in their order.

    towers: those that answered, `image` and `points`, or `points` alone for an object that the preset cannot draw.
    surer: the modality that gave label and confidence: `image` (all views of the preset, averaged) or `points`; in an
    exact tie `image`. top5: `{label, confidence}` of that modality. error: why a file has no label, else None.
    classes: replace the checkpoint's; their classifier is made from text. axes: as in a build's recipe, such as `y,z,x`
    for files with +Z up; by default those of the training dataset, and +Y up for glTF. workers: of the build; 0: in
    one process. precision: of the towers; None: as trained on CUDA, fp32 on the CPU. look: is shown the shards of the
    files, which are gone afterwards. views_weight: of the views in their mean; empty for the same of all.

    Raises Refused when the checkpoint does not say how to draw, or the pipeline cannot run; Stopped when a build hangs.
    """
    drawn = BuildKeys.of(checkpoint)
    groups = _groups(files, drawn.axes, axes)
    opened = _opened(checkpoint, classes, who, device, precision)
    found: dict[int, dict[str, Any]] = {}
    for out, names in _builds(files, groups, drawn, workers, say):
        settings = _settings(checkpoint, SPLIT)
        settings = settings.model_copy(update={"views": drawn.view_set}) if drawn.view_set else settings
        for key, row in _ask(opened, out, settings, classes, say, views_weight).items():
            found[names[key]] = row
        if look:
            source = open_source(out, settings, warn=False, pictures=drawn.preset is not None)
            look(source, settings, {key: files[number] for key, number in names.items()})
    return [{"file": file} | found.get(number, _failed(absence(file))) for number, file in enumerate(files)]


def shards_of_files(
    checkpoint: Checkpoint, files: Sequence[str], axes: str, workers: int, say: Say
) -> Iterator[tuple[str, dict[str, int]]]:
    """Builds of files, made as the checkpoint's training data were, each gone when the next one is asked for.

    Each comes with the numbers of its files by their keys in it; files that cannot be built are in none.
    """
    drawn = BuildKeys.of(checkpoint)
    yield from _builds(files, _groups(files, drawn.axes, axes), drawn, workers, say)


def _builds(
    files: Sequence[str], groups: dict[tuple[str, tuple[str, ...]], list[int]], drawn: BuildKeys, workers: int, say: Say
) -> Iterator[tuple[str, dict[str, int]]]:
    for (dataset, turned), numbers in groups.items():
        with tempfile.TemporaryDirectory(prefix="predict-") as scratch:
            say(f"building {number_of(len(numbers), 'file')}")
            names = {f"file{number:06d}": number for number in numbers}
            out = _build(Path(scratch), drawn, dataset, turned, {k: files[n] for k, n in names.items()}, workers)
            yield str(out), names


def predict_shards(
    checkpoint: Checkpoint,
    shards: str,
    split: str = "test",
    classes: Sequence[str] = (),
    who: str = "student",
    device: torch.device | None = None,
    say: Say = lambda words: None,
    precision: Precision | None = None,
    look: Look | None = None,
    views_weight: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """Predicts every object of a split; `file` is its key. Reads no label. Raises Refused as `evaluate` does."""
    settings = _settings(checkpoint, split)
    pictures = "image" in checkpoint.recipe.towers
    source = open_source(shards, settings, warn=False, pictures=pictures)  # refuses before weights are read
    found = _ask(_opened(checkpoint, classes, who, device, precision), shards, settings, classes, say, views_weight)
    if look:
        look(source, settings, {key: key for key in found})
    return [{"file": key} | row for key, row in found.items()]


def _settings(checkpoint: Checkpoint, split: str) -> DataSettings:
    """The checkpoint's data settings, for all objects of a split."""
    return checkpoint.recipe.judged_data.model_copy(
        update={"split": split, "classes": (), "objects": "", "candidates": "subset"}
    )


def _opened(
    checkpoint: Checkpoint,
    classes: Sequence[str],
    who: str,
    device: torch.device | None,
    precision: Precision | None,
) -> Opened:
    warn_of_own_heads([checkpoint])
    opened = open_models(checkpoint, who, precision, device or torch.device("cpu"))
    if classes:
        if len(set(classes)) != len(classes) or not all(classes):
            raise Refused(f"--classes {','.join(classes)}: a name is empty or comes twice")
        opened.name_classes([default_prompt_name(name) for name in classes])
    elif opened.prompts:
        opened.name_classes(checkpoint.prompt_names)
    return opened


def _groups(files: Sequence[str], trained: tuple[str, ...], asked: str) -> dict[tuple[str, tuple[str, ...]], list[int]]:
    """(dataset, axes) -> numbers of the files of one build; files that cannot be built are left out."""
    given = tuple(part.strip() for part in asked.split(",")) if asked else None
    if given is not None and len(given) != 3:
        raise Refused(f"--axes {asked}: three signed axes, such as y,z,x")
    try:
        axes_matrix(list(given or trained))
    except ValueError as error:
        raise Refused(f"--axes {asked}: {error}") from error
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for number, file in enumerate(files):
        suffix = Path(file).suffix.lower()
        if not absence(file):
            axes = given or (PLAIN if suffix in UPRIGHT else trained)
            groups.setdefault(("points" if suffix in CLOUDS else "meshes", axes), []).append(number)
    return groups


def absence(file: str) -> str:
    """Why a file cannot be given to a build; empty if it can."""
    if not Path(file).exists():
        return "no such file"
    named = (os.path.realpath(file), _in_its_folder(file))
    plain = all(path.isprintable() and path.strip() == path for path in named)
    return "" if plain else "rename it: its path is no plain text"


def _build(
    scratch: Path, drawn: BuildKeys, dataset: str, axes: Sequence[str], files: dict[str, str], workers: int
) -> Path:
    """Builds shards of files. files: path by key. Raises Refused where the pipeline refuses, Stopped where it stops."""
    paths = {name: _in_its_folder(file) for name, file in files.items()}
    source = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
    behind = sorted({os.path.dirname(os.path.realpath(path)) for path in paths.values() if os.path.islink(path)})
    listing, recipe, out = scratch / "list.jsonl", scratch / "recipe.toml", scratch / "shards"
    rows = [
        {"path": os.path.relpath(path, os.path.realpath(scratch)), "id": name, "split": SPLIT}
        for name, path in paths.items()
    ]
    listing = Path(os.path.realpath(scratch)) / listing.name
    listing.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe.write_text(drawn.recipe(dataset, listing, axes))
    command = [sys.executable, "-m", "pipeline", "build", str(recipe), "--source", source, "--out", str(out)]
    command += [part for folder in behind for part in ("--follow-links", folder)]
    try:
        child = _run([*command, "--workers", str(workers)], scratch)
        crashed = child.process.returncode not in ENDED
    except Stopped:
        crashed = True
    if crashed:  # by a file, or it hangs there: build one file at a time, in a child
        child = _run([*command, "--workers", "1"], scratch)
    code, last = child.process.returncode, child.last_line() or "no reason given"
    if code == 130:
        raise KeyboardInterrupt
    if code == 3:
        raise Stopped(last)
    if code == 2 or read_manifest(str(out)) is None:
        raise Refused(f"python -m pipeline build: {last}")
    return out


def _in_its_folder(file: str) -> str:
    """The real path of a file's folder, and its own name: that of a link says of which format it is."""
    folder, name = os.path.split(os.path.abspath(file))
    return os.path.join(os.path.realpath(folder), name)


def _run(command: list[str], scratch: Path) -> Child:
    """Runs a build to its end. Raises Stopped naming the command where it hangs."""
    child = Child(shlex.join(command), command, scratch / "said.txt", BUILD_SECONDS, [scratch], subprocess.DEVNULL)
    try:
        while child.process.poll() is None:
            if reason := child.hangs():
                raise Stopped(f"{child.name}: {reason}")
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(timeout=POLL_SECONDS)
    except KeyboardInterrupt:
        end(child.process, ENDING_SECONDS)  # Ctrl-C in a terminal reaches the build, too
        raise
    return child


@torch.inference_mode()
def _ask(
    opened: Opened,
    shards: str,
    settings: DataSettings,
    classes: Sequence[str],
    say: Say,
    views_weight: Sequence[float],
) -> dict[str, dict[str, Any]]:
    """The row of every object of a split by its key, in the order of the shards; those without views come last."""
    # each object without views gets a row that says why
    pictures, tower = "image" not in opened.random, pixel_statistics(opened.checkpoint.recipe)
    source = open_source(shards, settings, warn=False, tower=tower, pictures=pictures)
    (model,) = opened.models.values()
    device, names = model.classifier.device, tuple(classes) or opened.checkpoint.classes
    reader = SplitReader(source, settings, model.image.image_size, batch_numbers(source.total, BATCH))
    found: dict[str, dict[str, Any]] = {}
    for batch in reader.batches(settings.workers):
        features = features_of(model, batch, device, views_weight, "points" not in opened.random)
        shares: dict[str, torch.Tensor] = {}
        if pictures:
            shares["image"] = model.image_logits(features.image()).softmax(dim=1).cpu()
        if "points" not in opened.random:
            shares["points"] = model.points_logits(features.points).softmax(dim=1).cpu()
        require_finite(batch.keys, *shares.values())
        for number, key in enumerate(batch.keys):
            found[key] = _row({tower: share[number] for tower, share in shares.items()}, names)
        say(f"{len(found):,} of {number_of(source.total, 'object')}")
    for keys, clouds in clouds_alone(source, settings.num_points) if "points" not in opened.random else ():
        points = model.points_logits(model.point_features(clouds.to(device))).softmax(dim=1).cpu()
        require_finite(keys, points)
        found |= {key: _row({"points": share}, names) for key, share in zip(keys, points, strict=True)}
    return found | {key: _failed(reason) for key, reason in source.absent.items() if key not in found}


def _failed(reason: str) -> dict[str, Any]:
    return {"label": None, "confidence": None, "surer": None, "towers": [], "top5": [], "error": reason}


def _row(shares: dict[str, torch.Tensor], names: tuple[str, ...]) -> dict[str, Any]:
    """The answer of the surer tower. shares: probabilities (C,) by each that was asked, `image` first."""
    surer = max(shares, key=lambda tower: float(shares[tower].max()))
    confidence, label = shares[surer].topk(min(TOP, len(names)))
    top = [
        {"label": names[number], "confidence": round(share, 4)}
        for number, share in zip(label.tolist(), confidence.tolist(), strict=True)
    ]
    return {**top[0], "surer": surer, "towers": list(shares), "top5": top, "error": None}
