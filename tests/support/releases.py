"""Miniature releases of clouds, in the layout of their owners: file names, keys, dtypes and lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

NUM_POINTS = 2048


def cloud(seed: int, num_points: int = NUM_POINTS) -> np.ndarray:
    """float32 (N, 3): a box's surface somewhere away from the origin, as a scanner has it."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (num_points, 3))
    points[np.arange(num_points), rng.integers(0, 3, num_points)] = 1.0
    return (points * rng.uniform(0.2, 1.0, 3) + rng.uniform(-5, 5, 3)).astype(np.float32)


def write_h5(path: Path, labels: Any, label_dtype: str = "u1", column: bool = True, **others: Any) -> Path:
    """One file of rows. column: labels as (N, 1), else (N,). others: more datasets, or `data` itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(labels, label_dtype)
    data = np.stack([cloud(i) for i in range(len(values))]) if "data" not in others else others.pop("data")
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=data, compression="gzip", compression_opts=4)
        file.create_dataset("label", data=values.reshape(-1, 1) if column else values)
        for name, array in others.items():
            file.create_dataset(name, data=array)
    return path


def modelnet40_h5(root: Path) -> Path:
    """modelnet40_ply_hdf5_2048: two train files, listed out of order, and one test file."""
    folder = root / "modelnet40_ply_hdf5_2048"
    for name, labels in (("train1", [8, 23]), ("train0", [0, 39, 8]), ("test0", [8, 5])):
        rows = len(labels)
        write_h5(
            folder / f"ply_data_{name}.h5",
            labels,
            normal=np.zeros((rows, NUM_POINTS, 3), np.float32),
            faceId=np.zeros((rows, NUM_POINTS), np.int32),
        )
    prefix = "data/modelnet40_ply_hdf5_2048/ply_data_"
    (folder / "train_files.txt").write_text(f"{prefix}train1.h5\n{prefix}train0.h5\n")
    (folder / "test_files.txt").write_text(f"{prefix}test0.h5\n")
    return folder


def modelnet40_text(root: Path) -> Path:
    """modelnet40_normal_resampled: lines `x,y,z,nx,ny,nz`, lists of bare ids."""
    folder = root / "modelnet40_normal_resampled"
    for seed, name in enumerate(("night_stand_0001", "chair_0001", "chair_0890")):
        path = folder / name.rpartition("_")[0] / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = np.hstack([cloud(seed, 10_000), np.tile([0.0, 1.0, 0.0], (10_000, 1))])
        path.write_text("".join(",".join(f"{v:.6f}" for v in row) + "\n" for row in rows))
    (folder / "modelnet40_train.txt").write_text("night_stand_0001\nchair_0001\n")
    (folder / "modelnet40_test.txt").write_text("chair_0890\n")
    return folder


def scanobjectnn_h5(root: Path) -> Path:
    """h5_files: three variants of main_split, and split1, labels of several whole dtypes."""
    folder = root / "h5_files"
    for partition in ("main_split", "split1"):
        for suffix in ("", "_nobg"):
            for files, train, test in (("", [4, 9, 14], [0, 4]), ("_augmentedrot_scale75", [4, 4, 9, 14], [0, 0, 4])):
                for prefix, labels in (("training", train), ("test", test)):
                    mask = np.zeros((len(labels), NUM_POINTS), np.int32)
                    mask[:, : 0 if suffix else 100] = -1
                    path = folder / f"{partition}{suffix}" / f"{prefix}_objectdataset{files}.h5"
                    dtype = {"training": "<i4", "test": ">i8"}[prefix]
                    write_h5(path, labels, dtype, column=False, mask=mask)
    return folder


def write_scan(path: Path, points: np.ndarray, instances: np.ndarray, announced: int | None = None) -> Path:
    """One raw .bin file: a count, then 11 floats a point, the last of them the instance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.zeros((len(points), 11), "<f4")
    rows[:, :3], rows[:, 9], rows[:, 10] = points, 7, instances
    count = np.array([len(points) if announced is None else announced], "<f4")
    path.write_bytes(count.tobytes() + rows.tobytes())
    return path


def scanobjectnn_raw(root: Path) -> Path:
    """object_dataset and training_data/main_split.txt: a wall before, a second object in, and one object too small."""
    folder = root / "ScanObjectNN"
    objects = folder / "object_dataset"
    scanned, wall, second = cloud(1, 2500), cloud(2, 600) + 9, cloud(3, 500) - 9
    labels = np.repeat([1, 40, 7], [600, 2500, 500])
    write_scan(objects / "chair" / "scene0000_00_00032.bin", np.concatenate([wall, scanned, second]), labels)
    write_scan(objects / "bag" / "005_00020.bin", cloud(4, 2100), np.full(2100, 9))
    small = np.repeat([0, 33], [5000, 2047])
    write_scan(objects / "bag" / "014_00018.bin", cloud(5, 7047), small)
    lines = "scene0000_00_00032.bin\t4\n014_00018.bin\t0\tt\n005_00020.bin\t0\tt\n025_00011.bin\t0\n"
    (folder / "training_data").mkdir()
    (folder / "training_data" / "main_split.txt").write_text(lines)
    return folder


def shapenetpart(root: Path) -> Path:
    """hdf5_data: train, val and test with part numbers over all classes."""
    folder = root / "hdf5_data"
    for split, labels in (("train", [0, 15, 4]), ("val", [0]), ("test", [15])):
        first = {0: 0, 15: 47, 4: 12}
        pid = np.array([np.arange(NUM_POINTS) % 3 + first[label] for label in labels], np.uint8)
        write_h5(folder / f"ply_data_{split}0.h5", labels, pid=pid)
        (folder / f"{split}_hdf5_file_list.txt").write_text(f"ply_data_{split}0.h5\n")
    return folder


def shapenetpart_of_boxes(root: Path, **objects: int) -> Path:
    """hdf5_data whose parts can be learned: airplanes, mugs and tables of boxes, a part each, of 128 points.

    objects: how many of each split.
    """
    folder = root / "hdf5_data"
    for number, (split, count) in enumerate(objects.items()):
        rng, labels, clouds, pid = np.random.default_rng(number), [], [], []
        for each in range(count):
            label, first, parts = ((0, 0, 4), (11, 36, 2), (15, 47, 3))[each % 3]
            own = rng.permutation(np.arange(128) % parts + first)
            middles = np.random.default_rng(label).uniform(-1, 1, (parts, 3)) * (1.5, 1.5, 1.5)
            middles = (middles + rng.uniform(-0.1, 0.1, middles.shape))[own - first]
            sizes = rng.uniform(0.2, 0.4, (parts, 3))[own - first]
            labels.append(label)
            clouds.append((middles + sizes * rng.uniform(-1, 1, (128, 3))).astype(np.float32))
            pid.append(own.astype(np.uint8))
        write_h5(folder / f"ply_data_{split}0.h5", labels, data=np.stack(clouds), pid=np.stack(pid))
        (folder / f"{split}_hdf5_file_list.txt").write_text(f"ply_data_{split}0.h5\n")
    return folder
