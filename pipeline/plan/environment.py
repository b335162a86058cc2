"""Versions of the libraries and of our own code on this machine: where they differ, a shard's bytes may differ."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import manifests
import pipeline
import renderers
from manifests.layout import library_versions
from pipeline.plan.plan import LIBRARIES

CODE = "our code"
PACKAGES = (manifests, renderers, pipeline)
_ENDINGS = (".py", ".toml")


def package_folders() -> list[str]:
    """The folders of our packages that a build needs, wherever they were imported from."""
    return [package.__path__[0] for package in PACKAGES]


@functools.cache
def versions_here() -> dict[str, str]:
    """Python, the libraries that make bytes, and 12 hex digits of the sha256 of our own files, as they are here."""
    return {**library_versions(*LIBRARIES), CODE: _digest(package_folders())}


def _digest(folders: list[str]) -> str:
    sha256 = hashlib.sha256()
    for folder in map(Path, folders):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in _ENDINGS and p.is_file()):
            sha256.update(f"{folder.name}/{path.relative_to(folder).as_posix()}\0".encode())
            sha256.update(hashlib.sha256(path.read_bytes()).digest())
    return sha256.hexdigest()[:12]


def difference(driver: dict[str, str], worker: dict[str, str]) -> str | None:
    """`numpy 2.3.1 here, 2.4.0 there` of the first thing that differs, or None."""
    for name in sorted(driver | worker):
        if driver.get(name) != worker.get(name):
            return f"{name} {driver.get(name, 'missing')} here, {worker.get(name, 'missing')} there"
    return None
