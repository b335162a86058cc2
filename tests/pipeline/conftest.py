"""Fixtures of the pipeline's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from builders import REPOSITORY, Commands


@pytest.fixture(scope="session")
def pipeline() -> Commands:
    return Commands(REPOSITORY)


@pytest.fixture
def planted_tree(tmp_path: Path) -> Path:
    """A copy of the code, into which a test plants a dataset of its own."""
    tree = tmp_path / "tree"
    for package in ("manifests", "renderers", "pipeline"):
        shutil.copytree(REPOSITORY / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tree
