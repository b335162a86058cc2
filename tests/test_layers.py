"""The architecture, held by reading imports: who may import whom, and where each heavy library is at home."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("manifests", "renderers", "pipeline", "training")
MAY_IMPORT = {
    "manifests": {"manifests"},
    "renderers": {"manifests", "renderers"},
    "pipeline": {"manifests", "renderers", "pipeline"},
    "training": {"manifests", "training"},
}
HOME = {
    "ray": {"pipeline/jobs/ray_cluster.py"},
    "trimesh": {"pipeline/formats/mesh.py", "pipeline/formats/glb.py"},
    "h5py": {"pipeline/formats/hdf5.py"},
    "pyarrow": {"pipeline/export/parquet_index.py"},
    "open3d": {"renderers/raycast.py"},
    "pytorch3d": {"renderers/rasterize.py"},
    "open_clip": {"training/models/clip.py"},
    "sklearn": {"training/evaluation/embed.py"},
    "umap": {"training/evaluation/embed.py"},
}
ROLE_BLOCKS = {
    "pipeline": ("torch", "torchvision", "open_clip", "timm", "safetensors"),
    "training": ("ray", "open3d", "trimesh", "h5py"),
}
WAITS = {"wait", "result", "join", "communicate", "recv", "accept", "acquire", "get"}  # for ever, without an argument
RUNS = {"run", "call", "check_call", "check_output"}  # of subprocess
LOCKS = {"flock", "lockf"}
WAITS_FOR_EVER = {  # what may, and why
    "training/__main__.py: found.result()": "figures, not a future",
    "training/evaluation/evaluate.py: "
    "examine([checkpoint], shards, split, device, options, on_progress)[0].result()": "figures",
    "training/reports/evaluation_files.py: examined.result()": "figures",
    "training/reports/report.py: each.result()": "figures",
    "pipeline/jobs/isolated_worker.py: connection.recv()": "in the child, which ends with its parent",
    "pipeline/jobs/isolated_worker.py: self._connection.recv()": "polled before",
    "pipeline/jobs/ray_cluster.py: ray.get(ray.remote(max_retries=0)(_answer).remote())": "inside _RAY.call, limited",
    "pipeline/jobs/time_limits.py: self._calls.get()": "a daemon thread that waits for work",
    "pipeline/formats/source_files.py: _WATCHED.get()": "a context variable",
}
SUPERVISED = {
    "training/objectives/pretrain.py",
    "training/objectives/supervised.py",
}  # beside evaluation: they may see labels


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]


def imports(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """(module, imported names) of every import statement, also of those inside functions."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((node.module or "", tuple(alias.name for alias in node.names)))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_imports_go_one_way(path: Path) -> None:
    name = path.relative_to(REPOSITORY).as_posix()
    package = name.partition("/")[0]
    for module, _ in imports(path):
        top = module.partition(".")[0]
        if top in PACKAGES:
            live = package == "training" and module == "renderers.point_depth_torch"
            assert top in MAY_IMPORT[package] or live, f"{name} imports {module}"
        for library, homes in HOME.items():
            assert top != library or name in homes, f"{name} imports {library}, whose home is {homes}"
        if top == "torch" and package in ("manifests", "pipeline", "renderers"):
            assert name in ("renderers/point_depth_torch.py", "renderers/rasterize.py"), f"{name} imports torch"


def test_only_evaluation_may_see_labels() -> None:
    allowed = {
        "training/evaluation/evaluate.py",
        "training/evaluation/embed.py",
        "training/data/loader.py",
        "training/data/labels.py",
        *SUPERVISED,
    }
    for path in modules():
        name = path.relative_to(REPOSITORY).as_posix()
        for module, names in imports(path):
            if name not in allowed:
                assert module != "training.data.labels", name
                assert module != "training.data.batch" or not any("Labelled" in each for each in names), name
                assert (
                    module != "training.data.loader"
                    or "SupervisedSamples" not in names
                    or name == "training/loop/fit.py"
                ), name


def test_modules_are_of_a_readable_size() -> None:
    sizes = {path.relative_to(REPOSITORY).as_posix(): len(path.read_text().splitlines()) for path in modules()}
    assert max(sizes.values()) <= 600, max(sizes, key=sizes.get)
    assert sorted(sizes.values())[len(sizes) // 2] <= 220


def waits_for_ever(path: Path) -> list[str]:
    """Calls that may wait without a limit: no timeout is said, and no argument that could be one."""
    found = []
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        if not isinstance(call.func, ast.Attribute) or any(keyword.arg == "timeout" for keyword in call.keywords):
            continue
        name, of, words = call.func.attr, ast.unparse(call.func.value).rpartition(".")[2], ast.unparse(call)
        if (
            (name in WAITS and not call.args)
            or (name in RUNS and of == "subprocess")
            or (name in ("get", "wait") and of in ("ray", "_ray"))
            or (name in LOCKS and "LOCK_NB" not in words and "LOCK_UN" not in words)
        ):
            found.append(words)
    return found


def test_nothing_waits_for_ever() -> None:
    found = {
        f"{path.relative_to(REPOSITORY).as_posix()}: {call}" for path in modules() for call in waits_for_ever(path)
    }
    assert found == set(WAITS_FOR_EVER), found ^ set(WAITS_FOR_EVER)


def test_a_wait_without_a_limit_is_seen(tmp_path) -> None:
    endless = ("process.wait()", "thread.join()", "future.result()", "subprocess.run(['ls'], check=True)")
    endless += ("self._ray.get(next(stream))", "fcntl.flock(file, fcntl.LOCK_EX)", "self._connection.recv()")
    limited = ("process.wait(5)", "future.result(timeout=5)", "'/'.join(names)", "subprocess.run(['ls'], timeout=5)")
    limited += ("ray.get(x, timeout=1)", "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "values.get('key')")
    path = tmp_path / "module.py"
    path.write_text("\n".join(endless + limited))
    assert sorted(waits_for_ever(path)) == sorted(endless)


def run_blocked(code: str, blocked: tuple[str, ...]) -> subprocess.CompletedProcess:
    hook = (
        "import sys\n"
        f"blocked = {blocked!r}\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in blocked:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    return subprocess.run(
        [sys.executable, "-c", hook + code], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("role", ROLE_BLOCKS)
def test_a_role_needs_nothing_of_the_other(role: str) -> None:
    files = [p for p in modules() if p.relative_to(REPOSITORY).parts[0] in (role, "manifests")]
    names = [".".join(p.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for p in files]
    names = [name for name in names if not name.endswith("__main__")] + [f"{role}.__main__"]
    result = run_blocked("".join(f"import {name}\n" for name in names), ROLE_BLOCKS[role])
    assert result.returncode == 0, result.stderr


def test_importing_renderers_loads_numpy_only() -> None:
    heavy = ("torch", "open3d", "trimesh", "ray", "scipy", "matplotlib")
    code = f"import renderers.backend_table, sys\nassert not set({heavy!r}) & set(sys.modules)\n"
    assert run_blocked(code, ()).returncode == 0


def test_a_train_machine_without_its_libraries_is_told_what_to_type() -> None:
    code = "import sys, runpy\nsys.argv = ['training', 'fit', 'small_cross_most', '--shards', 'x', '--run', 'y']\n"
    result = run_blocked(code + "runpy.run_module('training', run_name='__main__')\n", ("open_clip",))
    assert result.returncode == 2
    assert result.stderr.strip() == "open_clip is missing: pip install 'cross-most[train]'"


def test_the_packages_that_are_installed_are_those_that_there_are() -> None:
    import tomllib

    listed = set(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("__init__.py")
    }
    assert listed == there


def test_constraints_name_no_registry_and_pin_what_belongs_together() -> None:
    text = (REPOSITORY / "constraints.txt").read_text()
    assert "://" not in text
    assert "--" not in text
    pins = dict(line.split("==") for line in text.splitlines() if "==" in line)
    assert pins["torch"].startswith("2.15")
    assert pins["torchvision"].startswith("0.29")


def unguarded(source: str) -> list[str]:
    """Lines of a module that could show text from outside as it is."""
    names = ("print", "Console", "escape", "csv.writer", "csv.DictWriter", "logging.basicConfig", "html.escape")
    names += ("sys.stdout.write", "sys.stderr.write", "Text.from_markup", "rich.print", "logging.StreamHandler")
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            found.append(f"{node.lineno}: {ast.unparse(node.func)}")
        if isinstance(node, ast.keyword) and node.arg in ("markup", "emoji") and ast.unparse(node.value) != "False":
            found.append(f"{node.value.lineno}: {node.arg}")
    return found


def test_text_from_outside_is_shown_by_one_module() -> None:
    for path in modules():
        found = unguarded(path.read_text())
        assert path.name == "plain_text.py" or not found, f"{path}: {found}, see manifests/plain_text.py"


@pytest.mark.parametrize(
    "line",
    [
        "print(f'{out}: done')",
        "Console(stderr=True).print(f'{out}: done')",
        "console.print(f'[red]{out}[/red]', markup=True)",
        "csv.writer(file).writerow(names)",
        "csv.DictWriter(file, names)",
        "table.add_row(escape(name))",
        "logging.basicConfig(format='%(message)s')",
        "Text.from_markup(name)",
    ],
)
def test_the_scan_for_unguarded_text_sees(line: str) -> None:
    assert unguarded(line)
