"""The command that installs what a role of this project needs, as it can be typed where the program runs.

The project is in no package index, where a stranger could take its name: it is installed from a checkout or a wheel.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

from manifests.errors import Refused

CHECKOUT = Path(__file__).parent.parent


def install_command(role: str) -> str:
    """Such as `.venv/bin/python -m pip install '.[train]'`. role: build, train, export or dev, of pyproject.toml."""
    return f"{_python()} -m pip install {shlex.quote(f'{_origin()}[{role}]')}"


def missing(library: str, role: str, otherwise: str = "") -> Refused:
    """The refusal of a command that needs a library which is not there. otherwise: what can be done without it."""
    return Refused(f"{library} is missing: {install_command(role)}{otherwise and f', or {otherwise}'}")


def _python() -> str:
    """How this Python is called: by its name where the shell finds it under it, else by its path."""
    found = shutil.which("python")
    if found and os.path.realpath(os.path.dirname(found)) == os.path.realpath(os.path.dirname(sys.executable)):
        return "python"
    return shlex.quote(_near(sys.executable))


def _origin() -> str:
    """The checkout that runs, the file that was installed, or WHEEL where pip has kept no note of it."""
    if (CHECKOUT / "pyproject.toml").is_file():
        return _near(str(CHECKOUT))
    try:
        note = json.loads(distribution("cross-most").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        note = {}
    url = urlparse(note.get("url", ""))
    return _near(unquote(url.path)) if url.scheme == "file" else "WHEEL"


def _near(path: str) -> str:
    """A path as seen from the current folder, where it lies inside; else whole."""
    try:
        near = os.path.relpath(path)
    except (OSError, ValueError):  # another drive, or no current folder
        return path
    return path if near.startswith("..") else near
