"""An object store in memory, `watched://`, that lists the reads it is asked for and fails those it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class WatchedStore(MemoryFileSystem):
    """asked: (path, start, end) of every read. failing: path -> errors of its next reads."""

    protocol = "watched"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    asked: ClassVar[list[tuple[str, int | None, int | None]]] = []
    failing: ClassVar[dict[str, list[Exception]]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("watched://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        inner = self._strip_protocol(path)
        self.asked.append((inner, start, end))
        if self.failing.get(inner):
            raise self.failing[inner].pop(0)
        return super().cat_file(path, start, end, **kwargs)


@contextmanager
def watched_store(**files: bytes) -> Iterator[type[WatchedStore]]:
    """The store, empty but for some files at its root."""
    fsspec.register_implementation("watched", WatchedStore, clobber=True)
    for held in (WatchedStore.store, WatchedStore.asked, WatchedStore.failing):
        held.clear()
    for name, data in files.items():
        fsspec.filesystem("watched").pipe_file(f"watched://{name}", data)
    WatchedStore.asked.clear()
    yield WatchedStore
    WatchedStore.store.clear()
