"""How fast a source is listed: folders of files, a listing of them, and ModelNet's layout, on the local disk.

    python tests/bench/bench_listing.py [--files 100000] [--folder DIR]

Files are empty: listing opens none. A plan is what `build` makes before work: the list, its keys, its hash, its jobs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from machine import describe_machine

from manifests.dataset_info import load_table
from pipeline.datasets import dataset_module
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import make_plan

CLASSES = 40


def make_files(root: Path, count: int, suffix: str, table_classes: tuple[str, ...] = ()) -> None:
    """Empty files <class>/<split>/<class>_<number><suffix>."""
    names = table_classes or tuple(f"class_{number:02d}" for number in range(CLASSES))
    for number in range(count):
        name, split = names[number % len(names)], "test" if number % 5 == 0 else "train"
        path = root / name / split / f"{name}_{number:06d}{suffix}"
        if number < 2 * 5 * len(names):
            path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def rate(count: int, call: Callable[[], object], times: int = 3) -> float:
    """Files a second, the best of some times."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return count / best


def main() -> None:
    """Prints one line a way of listing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    print(describe_machine())
    root = Path(tempfile.mkdtemp(prefix="bench-listing-", dir=options.folder))
    try:
        own, modelnet = root / "own", root / "modelnet"
        make_files(own, options.files, ".ply")
        make_files(modelnet, options.files, ".off", load_table("modelnet40").classes)
        rows = (
            json.dumps({"path": p.relative_to(own).as_posix(), "class": p.parent.parent.name})
            for p in own.rglob("*.ply")
        )
        (root / "own.jsonl").write_text("\n".join(rows).replace('"path": "', '"path": "own/'))
        ways = {
            "meshes, folders": ("meshes", own, {}),
            "meshes, a listing": ("meshes", root, {"listing": str(root / "own.jsonl")}),
            "modelnet40": ("modelnet40", modelnet, {"allow_partial": True}),
        }
        for title, (name, source, changes) in ways.items():
            recipe, table = read_recipe(name, changes), load_table(name)
            module = dataset_module(table)
            listed = rate(
                options.files, lambda m=module, s=source, t=table, r=recipe: list(m.assets(s, t, r.options()))
            )
            planned = rate(options.files, lambda r=recipe, s=source: make_plan(r, str(s), str(root / "out")), 1)
            print(f"{title:18} {listed:>9,.0f} files/s listed, {planned:>9,.0f} files/s planned")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
