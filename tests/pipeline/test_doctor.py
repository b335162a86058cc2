"""`doctor`: every finding with the command that mends it; a machine that lacks things is told so."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import doctor
from pipeline.doctor import examine


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
    assert (findings["trimesh"].state, findings["trimesh"].command) == ("missing", "pip install 'cross-most[build]'")
    assert (findings["torch"].state, findings["torch"].command) == ("note", "pip install 'cross-most[train]'")
    assert findings["ruff"].command == "pip install 'cross-most[dev]'"


def test_missing_system_libraries_name_their_packages(monkeypatch) -> None:
    def load(name: str) -> None:
        if name in ("libGL.so.1", "libEGL.so.1"):
            raise OSError(name)

    monkeypatch.setattr(doctor.ctypes, "CDLL", load)
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


def test_the_packages_are_those_that_set_up_installs() -> None:
    script = (Path(__file__).resolve().parents[2] / ".ci" / "system_libraries.sh").read_text()
    pairs = dict(pair.split(":") for pair in script.split("for pair in ")[1].split(";")[0].split())
    assert pairs.items() <= doctor.SYSTEM_LIBRARIES.items()
