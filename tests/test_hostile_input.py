"""No input path runs code: what the four packages may call and import, read off their source.

What the readers do with hostile files is tried in tests/pipeline/test_fuzz_pipeline.py and
tests/training/test_fuzz_training.py.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("manifests", "renderers", "pipeline", "training")
FILES = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "code", "runpy"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "literal_eval"}
FORBIDDEN_NAMES = {"os.system", "os.popen", "torch.jit.load", "torch.hub.load", "pickle.load", "subprocess.getoutput"}


RUN_WHERE_A_PERSON_NAMES_IT = {"manifests/plugins.py": {"exec", "compile"}}  # --plugin FILE.py


def problems(source: str) -> list[str]:
    """Lines of a module that could run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: import {n}" for n in names if n.partition(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            if name in FORBIDDEN_CALLS | FORBIDDEN_NAMES:
                found.append(f"{node.lineno}: {name}")
            if name == "torch.load" and options.get("weights_only") != "True":
                found.append(f"{node.lineno}: torch.load without weights_only=True")
            if name in ("np.load", "np.save", "numpy.load") and options.get("allow_pickle") != "False":
                found.append(f"{node.lineno}: {name} without allow_pickle=False")
            if options.get("shell", "False") != "False":
                found.append(f"{node.lineno}: {name} through a shell")
            if options.get("trust_remote_code", "False") != "False":
                found.append(f"{node.lineno}: {name} with trust_remote_code")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_code_of_a_file_is_run(path) -> None:
    run = RUN_WHERE_A_PERSON_NAMES_IT.get(str(path.relative_to(REPOSITORY)), set())
    assert [each for each in problems(path.read_text()) if each.partition(": ")[2] not in run] == []


def test_the_scan_sees_what_it_forbids() -> None:
    for line in (
        "import pickle",
        "from yaml import safe_load",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "subprocess.run(words, shell=True)",
        "os.system(words)",
        "torch.jit.load(path)",
    ):
        assert len(problems(line)) == 1, line
    assert problems("model.eval()\ntorch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)") == []
