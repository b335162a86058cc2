"""The architecture, held by reading imports: which room may import which, and where each heavy library is at home."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

import pytest
import structure
from structure import FOR_ALL_ROOMS, HOME, PACKAGES, ROOM_MAY_IMPORT, TORCH_RENDERERS, imports, modules

from manifests.install import missing

REPOSITORY = Path(__file__).resolve().parent.parent
LARGEST, MEDIAN, FULLEST = 400, 140, 22  # lines of a file, and files of a folder (design.md)
ENTRIES = {"training.demo", "training.oracle", "training.paper_demo"}  # what a person types after `python -m`
NAMED_BY_STRING = {"renderers/backend_table.py", "pipeline/datasets/__init__.py"}
ROLE_BLOCKS = {
    "pipeline": ("torch", "torchvision", "open_clip", "timm", "safetensors"),
    "training": ("ray", "open3d", "trimesh", "h5py"),
}
WAITS = {"wait", "result", "join", "communicate", "recv", "accept", "acquire", "get"}  # for ever, without an argument
RUNS = {"run", "call", "check_call", "check_output"}  # of subprocess
LOCKS = {"flock", "lockf"}
WAITS_FOR_EVER = {  # what may, and why
    "training/__main__.py: found.result()": "figures, not a future",
    "training/reports/evaluation_files.py: examined.result()": "figures",
    "training/reports/report.py: each.result()": "figures",
    "pipeline/jobs/isolated_worker.py: connection.recv()": "in the child, which ends with its parent",
    "pipeline/jobs/isolated_worker.py: self._connection.recv()": "polled before",
    "pipeline/jobs/ray_cluster.py: ray.get(ray.remote(max_retries=0)(_answer).remote())": "inside _RAY.call, limited",
    "pipeline/jobs/time_limits.py: self._calls.get()": "a daemon thread that waits for work",
    "pipeline/sources/source_files.py: _WATCHED.get()": "a context variable",
    "pipeline/sources/source_files.py: _FOLLOWED.get()": "a context variable",
}
LABEL_READERS = {  # beside them no file may see a label
    "training/objectives/pretrain.py",
    "training/objectives/adapter.py",
    "training/objectives/supervised.py",
    "training/objectives/part_segmentation.py",
    "training/objectives/pointcmt.py",
    "training/evaluation/evaluate.py",
    "training/evaluation/part_iou.py",
    "training/evaluation/embed.py",
    "training/evaluation/view_weights.py",
    "training/evaluation/probed_features.py",
    "training/data/loader.py",
    "training/data/labels.py",
    "training/data/part_samples.py",
}


@pytest.mark.parametrize("name", modules())
def test_imports_go_one_way(name: str) -> None:
    room = structure.room_of(name)
    for target, line in structure.arrows()[name].items():
        theirs = structure.room_of(target)
        shared = target in FOR_ALL_ROOMS and theirs == room.partition("/")[0]
        allowed = theirs in (room, *ROOM_MAY_IMPORT[room]) or shared
        assert allowed, f"{name}:{line} imports {target}: {room} may import {', '.join(ROOM_MAY_IMPORT[room])}"
    for module, _, line in imports(name):
        library = module.partition(".")[0]
        assert name in HOME.get(library, {name}), f"{name}:{line} imports {library}, whose home is {HOME[library]}"
        if library == "torch" and not name.startswith("training/"):
            assert name in TORCH_RENDERERS, f"{name}:{line} imports torch"


def test_no_circle_of_files() -> None:
    assert structure.circles() == []


def test_a_circle_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = {"a": {"b": 1}, "b": {"c": 1}, "c": {"a": 1, "d": 1}, "d": {}}
    monkeypatch.setattr(structure, "modules", lambda: tuple(edges))
    monkeypatch.setattr(structure, "arrows", lambda: edges)
    assert structure.circles() == [["a", "b", "c"]]


def test_only_evaluation_may_see_labels() -> None:
    for name in modules():
        for module, names, line in imports(name):
            if name not in LABEL_READERS:
                where = f"{name}:{line}"
                assert module != "training.data.labels", where
                assert module != "training.data.batch" or not any("Labelled" in each for each in names), where
                supervised = module == "training.data.loader" and "SupervisedSamples" in names
                supervised |= module == "training.data.part_samples"
                assert not supervised or name == "training/loop/fit.py", where


def test_names_are_used_once() -> None:
    files = Counter(name.rpartition("/")[2] for name in modules())
    assert {name for name, count in files.items() if count > 1} == {"__init__.py", "__main__.py"}
    classes: dict[str, list[str]] = defaultdict(list)
    for name in modules():
        for node in ast.walk(ast.parse((REPOSITORY / name).read_text())):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(name)
    assert {name: files for name, files in classes.items() if len(files) > 1} == {}


def test_files_and_folders_are_of_a_readable_size() -> None:
    sizes = structure.sizes()
    assert {name: lines for name, lines in sizes.items() if lines > LARGEST} == {}
    assert median(sizes.values()) <= MEDIAN
    rooms = Counter(map(structure.room_of, modules()))
    assert {room: files for room, files in rooms.items() if files > FULLEST} == {}


def docstrings(tree: ast.Module) -> set[int]:
    """Ids of the constants that are docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and node.body]
    return {id(first.value) for first in bodies if isinstance(first, ast.Expr)}


def test_modules_are_named_by_imports_not_by_strings() -> None:
    known = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in modules()}
    pattern = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:\.[a-z_0-9]+)+")
    for name in modules():
        tree = ast.parse((REPOSITORY / name).read_text())
        prose = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                found = {text for text in pattern.findall(node.value) if text in known} - ENTRIES
                assert not found or name in NAMED_BY_STRING, f"{name}:{node.lineno} names {found} in a string"


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
    found = {f"{name}: {call}" for name in modules() for call in waits_for_ever(REPOSITORY / name)}
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
    files = [name for name in modules() if name.partition("/")[0] in (role, "manifests")]
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files]
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
    assert result.stderr.strip() == str(missing("open_clip", "train"))


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
    for name in modules():
        found = unguarded((REPOSITORY / name).read_text())
        assert name == "manifests/plain_text.py" or not found, f"{name}: {found}, see manifests/plain_text.py"


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


def test_nobody_changes_a_logger_of_another_module() -> None:
    """By its name: that breaks without an error when the module moves."""
    for name in modules():
        for node in ast.walk(ast.parse((REPOSITORY / name).read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger":
                assert [ast.unparse(argument) for argument in node.args] in ([], ["__name__"]), name
