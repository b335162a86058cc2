"""What reaches the disk in which order: every fsync and rename of this process, as they happen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class DiskOrder:
    """events: ("sync", path, bytes of the file then) and ("rename", from, to), in order, paths without links."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str, str | int]] = []
        sync, replace = os.fsync, os.replace

        def noted_sync(descriptor: int) -> None:
            path = os.path.realpath(f"/proc/self/fd/{descriptor}")
            self.events.append(("sync", path, os.fstat(descriptor).st_size))
            sync(descriptor)

        def noted_replace(source: str | Path, target: str | Path) -> None:
            replace(source, target)
            self.events.append(("rename", os.path.realpath(source), os.path.realpath(target)))

        monkeypatch.setattr(os, "fsync", noted_sync)
        monkeypatch.setattr(os, "replace", noted_replace)

    def assert_lasting(self, path: Path) -> int:
        """A file or folder at `path` outlasts a loss of power; the place of its rename among the events.

        All its bytes were on the disk before it had its name, and its name was on the disk after.
        """
        final = os.path.realpath(path)
        renames = [i for i, event in enumerate(self.events) if event[0] == "rename" and event[2] == final]
        assert renames, f"{path} was not renamed to its name"
        renamed = renames[-1]
        temporary = self.events[renamed][1]
        before, after = self.events[:renamed], self.events[renamed:]
        for file in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
            name = os.path.join(temporary, file.relative_to(path)) if path.is_dir() else temporary
            assert ("sync", name, file.stat().st_size) in before, f"{file} was renamed before its bytes were written"
        parent = os.path.dirname(final)
        assert any(event[:2] == ("sync", parent) for event in after), f"the name of {path} was not written"
        return renamed
