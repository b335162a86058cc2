"""`doctor`: every finding with the command that mends it; a machine that lacks things is told so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import REPOSITORY

from manifests.install import install_command
from pipeline import doctor
from pipeline.doctor import examine
from renderers import system_libraries


def found() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in examine(start_ray=False)}


def test_this_machine_can_build(pipeline) -> None:
    values = json.loads(pipeline("doctor", "--json").stdout)
    assert values["ok"]
    states = {finding["name"]: finding["state"] for finding in values["findings"]}
    assert states["ray starts"] == "ok"
    assert {"python", "libraries", "open3d", "torch", "open files", "/dev/shm", "this folder"} <= set(states)
    assert all(finding["command"] for finding in values["findings"] if finding["state"] != "ok")


def test_a_missing_library_names_its_extra(monkeypatch) -> None:
    real = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in ("trimesh", "torch", "ruff") else real(name))
    findings = found()
    assert (findings["trimesh"].state, findings["trimesh"].command) == ("missing", install_command("build"))
    assert (findings["torch"].state, findings["torch"].command) == ("note", install_command("train"))
    assert findings["ruff"].command == install_command("dev")


def test_missing_system_libraries_name_their_packages(monkeypatch) -> None:
    def load(name: str) -> None:
        if name in ("libGL.so.1", "libEGL.so.1"):
            raise OSError(name)

    monkeypatch.setattr(system_libraries.ctypes, "CDLL", load)
    finding = next(doctor._system_libraries())
    assert finding.state == "missing"
    assert finding.command == "sudo apt-get install -y libegl1 libgl1"


def test_an_old_python_and_tight_limits_are_told(monkeypatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 2))
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (256, 100_000))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=50e6))
    monkeypatch.setattr(doctor, "_available_bytes", lambda: 1_500_000_000)
    findings = found()
    assert (findings["python"].state, findings["python"].detail) == ("missing", "3.10.2")
    assert (findings["open files"].state, findings["open files"].command) == ("note", "ulimit -n 65535")
    assert findings["/dev/shm"].state == "missing"
    assert "--shm-size" in findings["/dev/shm"].command
    assert findings["this folder"].command == "give --out a larger disk"
    assert findings["workers"].command in ("", "--workers 1")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit('no socket for you')", "no socket for you"),
        ("import time; time.sleep(60)", "no worker after"),
    ],
)
def test_a_ray_that_does_not_start_is_told(monkeypatch, program: str, words: str) -> None:
    real = doctor.subprocess.run

    def run(command: list[str], **options: object):
        return real([command[0], "-c", program], **options)

    monkeypatch.setattr(doctor.subprocess, "run", run)
    monkeypatch.setattr(doctor, "_RAY_SECONDS", 3)
    finding = doctor._ray()
    assert finding.state == "missing"
    assert words in finding.detail
    assert "--workers 0" in finding.command


def test_set_up_installs_the_packages_that_are_missing(tmp_path: Path) -> None:
    """The script itself, on a machine that lacks one library, with an apt-get that only says what it is asked for."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / "renderers").mkdir()
    shutil.copy(REPOSITORY / ".ci/system_libraries.sh", tmp_path / ".ci")
    table = (REPOSITORY / "renderers/system_libraries.py").read_text().replace("libGL.so.1", "libNone.so.1")
    (tmp_path / "renderers/system_libraries.py").write_text(table)
    (tmp_path / "apt-get").write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\n')
    (tmp_path / "apt-get").chmod(0o755)
    (tmp_path / "id").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "id").chmod(0o755)
    environment = dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}")
    command = ["sh", ".ci/system_libraries.sh", sys.executable]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
    assert (tmp_path / "asked").read_text().splitlines() == ["update -qq", "install -y -qq libgl1"]
