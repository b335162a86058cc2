"""Folders of private Rays: another user cannot have a live build's deleted, and what is no one's is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from manifests.errors import Stopped
from pipeline.jobs import ray_cleanup

NOBODY = 65534
DEAD = "1:0:"  # process 1 began at another time


@pytest.fixture(autouse=True)
def own_prefix(monkeypatch) -> None:
    """Builds of other tests clean up as well."""
    monkeypatch.setattr(ray_cleanup, "_PREFIX", f"ray-{os.getpid()}-")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize("opened", ["Ray's folder", "both"])
def test_another_user_cannot_have_a_live_builds_folder_deleted(opened: str) -> None:
    folder = ray_cleanup.new_folder()
    try:
        os.chmod(ray_cleanup.folder_of_ray(folder), 0o777)  # what Ray does
        if opened == "both":  # what earlier versions let it do
            os.chmod(folder, 0o777)
        attack = f"mv {folder}/driver {folder}/x; printf {DEAD}{ray_cleanup._namespace()} > {folder}/driver"
        done = subprocess.run(["sh", "-c", attack], user=NOBODY, group=NOBODY, capture_output=True, check=False)
        assert (done.returncode == 0) == (opened == "both"), done.stderr
        ray_cleanup.end_left_behind()
        assert os.path.isdir(ray_cleanup.folder_of_ray(folder))
    finally:
        ray_cleanup.delete_folder(folder)


def test_folders_of_dead_drivers_are_deleted_where_only_we_can_have_written_their_names(tmp_path) -> None:
    dead = [Path(ray_cleanup.new_folder()) for _ in range(3)]
    for folder in dead:
        (folder / "driver").write_text(DEAD + ray_cleanup._namespace())
    live, nameless = Path(ray_cleanup.new_folder()), Path(ray_cleanup.new_folder())
    (nameless / "driver").unlink()
    dead[1].chmod(0o770)
    dead[2].rename(tmp_path / "elsewhere")
    dead[2].symlink_to(tmp_path / "elsewhere")
    try:
        ray_cleanup.end_left_behind()
        assert [folder.exists() for folder in (*dead, live, nameless)] == [False, True, True, True, True]
        assert (tmp_path / "elsewhere" / "driver").exists()
    finally:
        dead[2].unlink()
        for folder in (dead[1], live, nameless):
            ray_cleanup.delete_folder(str(folder))


def test_a_place_that_takes_no_temporary_files_is_named(pipeline, tmp_path, monkeypatch) -> None:
    """Before anything is written where RAY_TMPDIR is no folder; a disk that is full may have been none before."""
    monkeypatch.setitem(pipeline.environment, "RAY_TMPDIR", "/tmp/not/there")
    message = pipeline("build", "parametric", "--out", tmp_path / "out", "--workers", 1, code=2).stderr
    assert message == "RAY_TMPDIR=/tmp/not/there: no folder that can be written to; name another, or use --workers 0\n"
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("RAY_TMPDIR", "/proc/1")  # a folder, and not even root's to write to
    with pytest.raises(Stopped, match=r"cannot be written \(.*/proc/1/"):
        ray_cleanup.new_folder()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_leaves_no_folder(tmp_path, monkeypatch) -> None:
    disk = Path(f"/tmp/d{os.getpid()}")
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=8", "tmpfs", str(disk)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no right to mount a small disk here")
        (disk / "full").write_bytes(b"x" * 4096)
        monkeypatch.setenv("RAY_TMPDIR", str(disk))
        with pytest.raises(Stopped, match=r"No space left on device.*RAY_TMPDIR.*--workers 0"):
            ray_cleanup.new_folder()
        assert [path.name for path in disk.iterdir()] == ["full"]
    finally:
        subprocess.run(["umount", "-l", str(disk)], capture_output=True, check=False)
        disk.rmdir()
