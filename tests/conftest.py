"""Fixtures that every test folder uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("always the same", deadline=None, derandomize=True)  # machines differ in speed and luck
settings.load_profile("always the same")
LONGEST = ("test_demo.py", "test_journeys.py", "test_fuzz_training.py")  # begun first, or one process waits for them
REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def shared_folder() -> Path:
    """The folder of real samples and golden data: environment variable CROSS_MOST_SHARED, default ../shared."""
    return Path(os.environ.get("CROSS_MOST_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; a test that needs it is skipped where it is missing."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set CROSS_MOST_SHARED)")
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Inputs and outputs computed with the upstream implementations."""
    folder = shared / "golden"
    if not folder.is_dir():
        pytest.skip(f"no golden data at {folder}")
    return folder
