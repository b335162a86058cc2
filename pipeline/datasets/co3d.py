"""CO3D v1 and v2: <category>/{frame,sequence}_annotations.jgz and <category>/<sequence>/pointcloud.ply, images/, ...

Records are those of co3d/dataset/data_types.py. Cameras are PyTorch3D's: row vectors, X_cam = X R + T, x left, y up.
The unit is one of the sequence's own, and so is the direction of up: the mean up of the cameras becomes +Y. Frames of
the challenge's hidden sets are black and are passed over by the set lists.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manifests.dataset_info import DatasetTable
from manifests.errors import Refused, first_problem
from manifests.records import Asset
from pipeline.datasets.options import DatasetOptions
from pipeline.datasets.seeded_split import seeded_split
from pipeline.formats.frame import MAX_PIXELS, Frame, FrameCamera, png_numbers
from pipeline.formats.mesh import read_mesh
from pipeline.sources.json_stream import JsonLimits, load_json, load_records
from pipeline.sources.pictures import FORMATS
from pipeline.sources.raw_shape import RawShape
from pipeline.sources.source_files import noted, source_file

SAVES_SPLITS = True
PAPER_CLASSES = 42  # the first 42 classes of the table are the paper's
FRAMES, SEQUENCES = "frame_annotations.jgz", "sequence_annotations.jgz"
_CV_FROM_P3D = np.diag([-1.0, -1.0, 1.0])
_NOT_RIGID = 1e-2
_USUAL = JsonLimits(megabytes=256, depth=32)  # sequence annotations have about a megabyte
_MASKED = 127
_SPLITS = ("train", "val", "test")


class Co3dV2Options(DatasetOptions):
    """How the sequences of a category are divided, which frames are black, and limits of annotations.

    split: `seeded` by train_fraction and split_seed, or by the set list of `subset` (v1 has one list and no subset): a
    sequence is train if any of its frames is, else val, else test, and left out if the list does not name it. hidden:
    set lists whose frames are black, `<subset>.<list>` (v1: `<list>`). Limits, in no hash: annotations_mb of a file
    when unpacked, json_depth of its nesting.
    """

    IN_TABLE: ClassVar[bool] = True
    LIMITS: ClassVar[frozenset[str]] = frozenset({"annotations_mb", "json_depth"})

    split: Literal["seeded", "set_lists"] = "seeded"
    subset: str = "fewview_dev"
    train_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.8
    split_seed: int = 0
    hidden: tuple[str, ...] = ("fewview_test.test", "manyview_test.test")
    annotations_mb: Annotated[int, Field(ge=1)] = 2048
    json_depth: Annotated[int, Field(ge=1, le=200)] = 32

    @property
    def limits(self) -> JsonLimits:
        """What annotations may hold."""
        return JsonLimits(self.annotations_mb, self.json_depth)


class Co3dV1Options(Co3dV2Options):
    """The same of v1: one set list (train_known, train_unseen, test_known, test_unseen), and no frame is black."""

    subset: str = ""
    hidden: tuple[str, ...] = ()


OPTIONS: dict[str, type[DatasetOptions]] = {"co3d_v1": Co3dV1Options, "co3d_v2": Co3dV2Options}


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Image(_Record):
    path: str
    size: tuple[int, int]


class _Depth(_Record):
    path: str
    scale_adjustment: float = 1.0
    mask_path: str | None = None


class _Mask(_Record):
    path: str


Pair = tuple[float, float]
Triple = tuple[float, float, float]


class Viewpoint(_Record):
    """A camera as annotated. R, T: PyTorch3D's. focal_length, principal_point: NDC of `intrinsics_format`."""

    R: tuple[Triple, Triple, Triple]
    T: Triple
    focal_length: Pair
    principal_point: Pair
    intrinsics_format: Literal["ndc_norm_image_bounds", "ndc_isotropic"] = "ndc_norm_image_bounds"


class FrameAnnotation(_Record):
    """One frame as annotated."""

    sequence_name: str
    frame_number: int
    frame_timestamp: float = 0.0
    image: _Image
    depth: _Depth | None = None
    mask: _Mask | None = None
    viewpoint: Viewpoint | None = None


class _Cloud(_Record):
    path: str


class _Sequence(_Record):
    sequence_name: str
    category: str
    point_cloud: _Cloud | None = None


Clouds = tuple[tuple[str, str], ...]


def complete(table: DatasetTable, root: Path) -> DatasetTable:
    """The table, expecting every cloud that the annotations list; `assets` says what is wrong with these."""
    try:
        expected = sum(len(_clouds(root, name, _USUAL)) for name in _categories(root, table))
    except Refused:
        return table
    return table.model_copy(update={"counts": {"all": expected}})


def assets(root: Path, table: DatasetTable, options: Co3dV2Options) -> Iterator[Asset]:
    """Every sequence of the table's classes whose point cloud is there; the split is taken over all annotated ones.

    Raises Refused when the folder holds no CO3D or another version, or when an annotation is broken.
    """
    for category in _categories(root, table):
        clouds = _clouds(root, category, options.limits)
        split = _division(root, category, [sequence for sequence, _ in clouds], options)
        for sequence, path in clouds:
            if sequence in split and os.path.exists(root / path):
                yield Asset(f"{category}-{sequence}", path, split[sequence], category)


def _categories(root: Path, table: DatasetTable) -> list[str]:
    """The table's classes that are there. Raises Refused where no class is, or the version is the other one."""
    there = [name for name in table.classes if (root / name / SEQUENCES).is_file()]
    if not there:
        raise Refused(f"no {table.name} in {root}: expected files such as {root}/apple/{SEQUENCES}")
    for name in there:
        second = (root / name / "set_lists").is_dir()
        if second == (table.name == "co3d_v1") and (second or (root / name / "set_lists.json").is_file()):
            raise Refused(f"{root / name} is of CO3D v{1 + second}: build the recipe co3d_v{1 + second}")
    return there


@lru_cache(maxsize=64)
def _clouds(root: Path, category: str, limits: JsonLimits) -> Clouds:
    """(sequence, path of its cloud) of all sequences that have one, sorted."""
    found = {}
    try:
        for values in load_records(source_file(root, f"{category}/{SEQUENCES}"), limits):
            record = _Sequence.model_validate(values)
            if record.category != category:
                raise Refused(
                    f"{root / category / SEQUENCES}: {record.sequence_name[:60]} is of the category "
                    f"{record.category[:60]!r}; {category!r} is expected"
                )
            if record.point_cloud is not None:
                found[record.sequence_name] = record.point_cloud.path
    except ValueError as error:
        raise Refused(f"{root / category}: {_short(error)}") from error
    odd = next((name for name in found if not name or "/" in name or name in (".", "..")), None)
    if odd is not None:
        raise Refused(f"{root / category / SEQUENCES}: {odd[:40]!r} is no name of a sequence")
    return tuple(sorted(found.items()))


def _short(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return f"a record without its schema: {first_problem(error)}"
    return str(error)


def _division(root: Path, category: str, sequences: list[str], options: Co3dV2Options) -> dict[str, str]:
    """sequence -> split."""
    if options.split == "seeded":
        return seeded_split(sequences, options.train_fraction, options.split_seed)
    try:
        lists = _set_lists(root, category, options.subset, options.limits)
    except ValueError as error:
        raise Refused(f"{root / category}: {error}") from error
    if lists is None:
        raise Refused(f"{root / category} has no set list {options.subset or 'set_lists.json'}")
    found: dict[str, str] = {}
    for split in _SPLITS:
        for name, entries in lists.items():
            if name.partition("_")[0] == split:
                for sequence, _ in entries:
                    found.setdefault(sequence, split)
    return found


def _set_lists(root: Path, category: str, subset: str, limits: JsonLimits) -> dict[str, list[tuple[str, int]]] | None:
    """list -> (sequence, frame number) of a set list, or None where the category has no such list.

    subset: fewview_dev and the like in v2, empty in v1. Raises ValueError when it is broken.
    """
    relative = f"{category}/set_lists/set_lists_{subset}.json" if subset else f"{category}/set_lists.json"
    if not (root / relative).exists():
        return None
    values = load_json(source_file(root, relative), limits)
    try:
        return {str(name): [(str(e[0]), int(e[1])) for e in entries] for name, entries in values.items()}
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise ValueError(f"{relative} is no set list") from error


@lru_cache(maxsize=64)
def _hidden(root: Path, category: str, names: tuple[str, ...], limits: JsonLimits) -> frozenset[tuple[str, int]]:
    """(sequence, frame number) of all black frames of a category."""
    found: set[tuple[str, int]] = set()
    for name in names:
        subset, _, one = name.rpartition(".")
        found.update((_set_lists(root, category, subset, limits) or {}).get(one, ()))
    return frozenset(found)


def shortfalls(options: Co3dV2Options, table: DatasetTable, found: list[Asset], splits: tuple[str, ...]) -> list[str]:
    """Clouds that are annotated and not there, and categories of the paper that are not."""
    there = {asset.class_name for asset in found}
    lost = [name for name in table.classes[:PAPER_CLASSES] if name not in there]
    wrong = [f"no {', '.join(lost[:5])}{f' and {len(lost) - 5} more' if len(lost) > 5 else ''}"] if lost else []
    expected = table.counts.get("all", len(found))
    if options.split == "seeded" and len(found) != expected:
        wrong.append(f"{len(found):,} of {expected:,} point clouds")
    return wrong


def read(asset: Asset, root: Path, options: Co3dV2Options) -> RawShape:
    """The cloud of one sequence, to be turned so that the mean up of its cameras is +Y.

    Raises ValueError when the cloud or the annotations cannot be read.
    """
    raw = read_mesh(source_file(root, asset.source), root)
    if raw.points is None:
        raise ValueError("faces in place of a point cloud")
    annotated = _annotated(root, *_names(asset), options.limits)
    poses = [None if frame.viewpoint is None else (frame.viewpoint.R, frame.viewpoint.T) for frame in annotated]
    noted(FRAMES, repr(poses).encode())  # of a file of all sequences: what tells this one's up
    cameras = [_camera(frame) for frame in annotated]
    turn = upright([c.camera_from_source for c in cameras if c is not None and c.camera_from_source is not None])
    warnings = dict(raw.warnings) | ({"no camera tells up": 1} if turn is None else {})
    return RawShape(points=raw.points, colors=raw.colors, upright=turn, warnings=warnings)


def _names(asset: Asset) -> tuple[str, str]:
    """(category, sequence)."""
    category = asset.class_name or ""
    return category, asset.id.removeprefix(f"{category}-")


@lru_cache(maxsize=2)  # read() and frames() of one object
def _annotated(root: Path, category: str, sequence: str, limits: JsonLimits) -> tuple[FrameAnnotation, ...]:
    """The frames of a sequence by time, then number. Raises ValueError when an annotation is broken."""
    path = source_file(root, f"{category}/{FRAMES}")
    try:
        found = [FrameAnnotation.model_validate(values) for values in load_records(path, limits, sequence)]
    except ValidationError as error:
        raise ValueError(f"{path.name}: {_short(error)}") from error
    return tuple(sorted(found, key=lambda frame: (frame.frame_timestamp, frame.frame_number)))


def camera_from_source(pose: Viewpoint) -> np.ndarray:
    """camera_from_source (4, 4), x right, y down, z forward: diag(-1, -1, 1) R^T and diag(-1, -1, 1) T.

    Raises ValueError when R is no rotation; rounding is mended.
    """
    R, T = np.array(pose.R), np.array(pose.T)
    if not np.isfinite(R).all() or not np.isfinite(T).all() or np.abs(R @ R.T - np.eye(3)).max() > _NOT_RIGID:
        raise ValueError("its camera's R is no rotation")
    u, _, vt = np.linalg.svd(R)
    if np.linalg.det(u @ vt) < 0:
        raise ValueError("its camera's R mirrors")
    matrix = np.eye(4)
    matrix[:3, :3] = _CV_FROM_P3D @ (u @ vt).T
    matrix[:3, 3] = _CV_FROM_P3D @ T
    return matrix


def pixel_K(pose: Viewpoint, width: int, height: int) -> np.ndarray:
    """K (3, 3) of a picture. NDC run to the left and up from the picture's centre.

    ndc_isotropic: 1 is half the shorter side in both axes. ndc_norm_image_bounds: 1 is half the width and half the
    height. Source: PyTorch3D's implicitron/dataset/utils.py and frame_data.py.
    """
    if pose.intrinsics_format == "ndc_isotropic":
        half = np.full(2, min(width, height) / 2)
    else:
        half = np.array([width, height]) / 2
    focal, centre = half * pose.focal_length, np.array([width, height]) / 2 - half * pose.principal_point
    if not (np.isfinite(focal).all() and np.isfinite(centre).all() and (focal > 0).all()):
        raise ValueError("its camera's focal length is no length")
    return np.array([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1.0]])


def upright(cameras: list[np.ndarray]) -> np.ndarray | None:
    """The smallest rotation (4, 4) that turns the mean up of cameras to +Y, or None where their ups cancel out."""
    up = np.sum([-camera[1, :3] for camera in cameras], axis=0) if cameras else np.zeros(3)
    length = np.linalg.norm(up)
    if length < 0.05 * max(len(cameras), 1):
        return None
    up = up / length
    turn = np.eye(4)
    if up[1] < -1 + 1e-9:
        turn[:3, :3] = np.diag([1.0, -1.0, -1.0])
        return turn
    axis = np.array([-up[2], 0.0, up[0]])  # up x Y
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn[:3, :3] += cross + cross @ cross / (1 + up[1])
    return turn


@contextmanager
def frames(asset: Asset, root: Path, options: Co3dV2Options) -> Iterator[list[Frame]]:
    """The frames of a sequence without those of hidden sets. Raises ValueError when annotations cannot be read."""
    category, sequence = _names(asset)
    hidden = _hidden(root, category, options.hidden, options.limits)
    known = _annotated(root, category, sequence, options.limits)
    yield [_frame(root, one) for one in known if (sequence, one.frame_number) not in hidden]


def _frame(root: Path, one: FrameAnnotation) -> Frame:
    return Frame(
        name=one.image.path,
        rgb=lambda: source_file(root, one.image.path).read_bytes(),
        depth=None if one.depth is None else partial(_depth, root, one.depth),
        mask=None if one.mask is None else partial(_mask, root, one.mask.path),
        camera=_camera(one),
    )


def _camera(one: FrameAnnotation) -> FrameCamera | None:
    """The camera of a frame, or None where it is not annotated or its numbers describe no camera."""
    if one.viewpoint is None:
        return None
    height, width = one.image.size
    try:
        return FrameCamera(pixel_K(one.viewpoint, width, height), width, height, camera_from_source(one.viewpoint))
    except ValueError:
        return None


def _mask(root: Path, relative: str) -> np.ndarray:
    """bool (H, W), where a frame shows the object."""
    return _gray(root, relative) > _MASKED


def _gray(root: Path, relative: str) -> np.ndarray:
    """uint8 (H, W) of a mask."""
    with Image.open(io.BytesIO(source_file(root, relative).read_bytes()), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"a mask of {image.width} x {image.height} pixels")
        return np.asarray(image.convert("L"))


def _depth(root: Path, depth: _Depth) -> np.ndarray:
    """float32 (H, W) in the sequence's unit, +inf where unknown."""
    valid = None if depth.mask_path is None else _gray(root, depth.mask_path) > 0
    found = decode_depth(source_file(root, depth.path).read_bytes(), depth.scale_adjustment)
    if valid is not None and valid.shape != found.shape:
        raise ValueError(f"its depth mask is {valid.shape}, its depth {found.shape}")
    return found if valid is None else np.where(valid, found, np.float32(np.inf))


def decode_depth(data: bytes, scale: float) -> np.ndarray:
    """float32 (H, W), +inf where unknown, of a PNG whose 16 bits are those of a float16; times `scale`."""
    bits = png_numbers(data).astype(np.uint16)
    with np.errstate(invalid="ignore", over="ignore"):
        depth = bits.view(np.float16).astype(np.float32) * np.float32(scale)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.inf))
