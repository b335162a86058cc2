"""The lists of mutants hold together with the code: every line that a mutant changes is still there."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("mutants", HERE / "mutants.py")
mutants = importlib.util.module_from_spec(_SPEC)
sys.modules["mutants"] = mutants  # its dataclasses look themselves up
_SPEC.loader.exec_module(mutants)
FOUND = mutants.read_mutants()
PACKAGES = ("manifests", "renderers", "pipeline", "training")


def test_every_mutant_changes_a_line_that_is_there_once(tmp_path: Path):
    lost = []
    for mutant in FOUND:
        copy = tmp_path / mutant.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(mutants.ROOT / mutant.file, copy)
        try:
            mutant.apply(tmp_path)
        except (ValueError, SyntaxError) as error:
            lost.append(str(error))
    assert not lost, "\n".join(lost)


def test_every_mutant_has_tests_that_are_there_and_says_what_is_lost():
    for mutant in FOUND:
        assert mutant.harm.strip(), mutant
        for test in mutant.tests:
            assert (mutants.ROOT / test.partition("::")[0]).is_file(), f"{mutant}: {test}"


def test_there_are_enough_mutants_and_no_two_alike():
    assert len(FOUND) >= 120
    assert len({(mutant.file, mutant.line, mutant.becomes) for mutant in FOUND}) == len(FOUND)
    for package in PACKAGES:
        assert sum(mutant.file.startswith(f"{package}/") for mutant in FOUND) >= 15, package


def test_a_line_that_was_rewritten_fails_loudly(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
    for line in ("z = 1", "= 1"):
        with pytest.raises(ValueError, match="times, not once"):
            mutants.Mutant("a.py", line, "x = 2", "", ()).apply(tmp_path)
