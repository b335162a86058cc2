"""The structure of the code, read from its imports: rooms, the arrows between them, circles of files, sizes.

    python tests/support/structure.py

A room is a folder of Python files, such as `pipeline/jobs`. An import is an arrow from the file that states it to the
file that it names, inside functions and under TYPE_CHECKING, too.
"""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("manifests", "renderers", "pipeline", "training")
BELOW_JOBS = ("manifests", "renderers", "pipeline/sources", "pipeline/formats", "pipeline/datasets", "pipeline/plan")
BELOW_DATASETS = ("pipeline/sources", "pipeline/formats")
BELOW_OBJECTIVES = ("manifests", "training/settings", "training/networks", "training/models", "training/data")
BELOW_LOOP = (*BELOW_OBJECTIVES, "training/objectives")
PIPELINE = ("sources", "formats", "datasets", "datasets/synthetic", "plan", "shards", "jobs", "inspect", "export")
TRAINING = (
    *("settings", "data", "networks", "models", "objectives", "weights", "loop", "evaluation", "plots", "reports"),
)
ROOM_MAY_IMPORT = {  # beside itself; docs/architecture.md draws it
    "manifests": (),
    "renderers": ("manifests",),
    "pipeline": ("manifests", "renderers", *(f"pipeline/{room}" for room in PIPELINE)),
    "pipeline/sources": ("manifests", "renderers"),
    "pipeline/formats": ("manifests", "renderers", "pipeline/sources"),
    "pipeline/datasets": ("manifests", "pipeline/sources", "pipeline/formats"),
    "pipeline/datasets/synthetic": ("manifests", "renderers", *BELOW_DATASETS, "pipeline/datasets"),
    "pipeline/plan": ("manifests", "renderers", *BELOW_DATASETS, "pipeline/datasets", "pipeline/datasets/synthetic"),
    "pipeline/shards": BELOW_JOBS,
    "pipeline/jobs": (*BELOW_JOBS, "pipeline/shards"),
    "pipeline/inspect": BELOW_JOBS,
    "pipeline/export": ("manifests",),
    "training": ("manifests", "training/paper_tables", *(f"training/{room}" for room in TRAINING)),
    "training/settings": ("manifests",),
    "training/plots": ("manifests",),
    "training/data": ("manifests", "renderers", "training/settings"),
    "training/networks": ("manifests", "training/settings"),
    "training/models": ("manifests", "training/settings", "training/networks"),
    "training/objectives": BELOW_OBJECTIVES,
    "training/weights": BELOW_LOOP,
    "training/loop": (*BELOW_LOOP, "training/weights"),
    "training/evaluation": (*BELOW_LOOP, "training/weights", "training/plots"),
    "training/reports": (*BELOW_LOOP, "training/weights", "training/plots", "training/loop", "training/evaluation"),
    "training/paper_tables": ("manifests", "training/settings", "training/networks", "training/models"),
}
FOR_ALL_ROOMS = {  # files beside the rooms that rooms of their program may import
    "pipeline/__init__.py",
    "training/distributed.py",
    "training/child_commands.py",
}
TORCH_RENDERERS = ("renderers/point_depth_torch.py", "renderers/rasterize.py")
HOME = {
    "ray": {"pipeline/jobs/ray_cluster.py"},
    "trimesh": {"pipeline/formats/glb.py"},
    "DracoPy": {"pipeline/formats/gltf_data.py"},
    "meshopt": {"pipeline/formats/gltf_data.py"},
    "h5py": {"pipeline/formats/hdf5.py"},
    "pyarrow": {"pipeline/export/parquet_index.py"},
    "open3d": {"renderers/raycast.py"},
    "pytorch3d": {"renderers/rasterize.py"},
    "open_clip": {"training/models/clip.py"},
    "sklearn": {  # t-SNE, confusion matrices, classifiers
        "training/evaluation/embed.py",
        "training/evaluation/metrics.py",
        "training/evaluation/linear_probe.py",
    },
    "scipy": {"training/objectives/transport.py", "training/paper_tables/seed_statistics.py"},
    "umap": {"training/evaluation/embed.py"},
}


@cache
def modules() -> tuple[str, ...]:
    """Paths of all files of the product, relative to the repository."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in found))


def room_of(name: str) -> str:
    """`pipeline/jobs/driver.py` -> `pipeline/jobs`."""
    return name.rpartition("/")[0]


def imports(name: str) -> list[tuple[str, tuple[str, ...], int]]:
    """(module, imported names, line) of every import statement of a file."""
    found: list[tuple[str, tuple[str, ...], int]] = []
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, (), node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            found.append((node.module or "", tuple(alias.name for alias in node.names), node.lineno))
    return found


def _file_of(module: str) -> str | None:
    path = module.replace(".", "/")
    return next((each for each in (f"{path}.py", f"{path}/__init__.py") if each in modules()), None)


@cache
def arrows() -> dict[str, dict[str, int]]:
    """file -> file that it imports -> line. `from room import file` is an arrow to the file."""
    found: dict[str, dict[str, int]] = {name: {} for name in modules()}
    for name in modules():
        for module, names, line in imports(name):
            if module.partition(".")[0] not in PACKAGES:
                continue
            below = [_file_of(f"{module}.{each}") for each in names]
            targets = [each or _file_of(module) for each in below] or [_file_of(module)]
            for target in filter(None, targets):
                found[name].setdefault(target, line)
    return found


def circles() -> list[list[str]]:
    """Files that import one another, directly or over others: the strongly connected components (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in arrows()[name]:
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            members = [stack.pop()]
            while members[-1] != name:
                members.append(stack.pop())
            if len(members) > 1 or name in arrows()[name]:
                found.append(sorted(members))

    for name in modules():
        if name not in order:
            visit(name)
    return found


def room_arrows() -> Counter[tuple[str, str]]:
    """(room, other room) -> imports between them."""
    pairs = ((room_of(name), room_of(target)) for name, targets in arrows().items() for target in targets)
    return Counter(pair for pair in pairs if pair[0] != pair[1])


def sizes() -> dict[str, int]:
    """Lines of each file."""
    return {name: len((ROOT / name).read_text().splitlines()) for name in modules()}


def main() -> None:
    """Prints the figures."""
    lines = sizes()
    largest = max(lines, key=lambda name: lines[name])
    rooms = Counter(map(room_of, modules()))
    fullest = max(rooms, key=lambda room: rooms[room])
    print(f"files {len(lines)}, lines {sum(lines.values()):,}, median {median(lines.values()):g}")
    print(f"largest {largest} ({lines[largest]}), fullest room {fullest} ({rooms[fullest]} files)")
    for package in ("pipeline", "training"):
        inside = {pair: n for pair, n in room_arrows().items() if all(room.startswith(package) for room in pair)}
        print(f"{package}: {len(inside)} arrows between rooms, {sum(inside.values())} imports")
    print(f"circles of files {len(circles())}")
    for members in circles():
        print("  " + ", ".join(members))


if __name__ == "__main__":
    main()
