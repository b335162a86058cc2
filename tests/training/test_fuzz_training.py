"""Hostile files against every reader of training/: each ends well, with a typed error, or as a Failure.

500 cases in `make test`, 10,000 in `make test-slow`, shared among the kinds of tests/support/fuzz_kinds.py here and
in the other folder. A case that fails is kept in runs/fuzz, with the command that runs it again.
"""

from __future__ import annotations

import pytest
from fuzz import Fuzz, shares
from fuzz_kinds import KINDS

OURS = [kind for kind in KINDS.values() if kind.role == "training"]


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory) -> Fuzz:
    found = Fuzz(tmp_path_factory.mktemp("fuzz"))
    yield found
    found.close()


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.name)
def test_hostile_files(fuzz, kind) -> None:
    count = shares(list(KINDS.values()), 500)[kind.name]
    wrong = fuzz.run_many(kind, 0, count)
    assert not wrong, "\n\n".join(wrong[:5])
    assert fuzz.outcomes[kind.name].total() == count


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 5))
@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.name)
def test_many_hostile_files(fuzz, kind, part) -> None:
    """A quarter of the 10,000 each."""
    wrong = fuzz.run_many(kind, part, shares(list(KINDS.values()), 2500)[kind.name])
    assert not wrong, "\n\n".join(wrong[:5])
