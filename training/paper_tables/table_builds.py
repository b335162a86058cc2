"""Where the builds lie that a table trains and judges on: what `--shards` was given, by the names of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from manifests import store
from manifests.config import unknown_name
from manifests.errors import Refused
from manifests.layout import MANIFEST, require_manifest


@dataclass(frozen=True)
class Builds:
    """Where the builds of variants lie. named: by variant; folders: that hold one a variant; other: for all else."""

    named: dict[str, str]
    folders: tuple[str, ...]
    other: str | None

    def find(self, variant: str) -> str | None:
        """The build of a variant, or the one that stands for all, or None. Raises Refused where a folder holds two."""
        return self.own(variant) or self.other

    def own(self, variant: str) -> str | None:
        """The variant's own build, or None."""
        if variant in self.named:
            return self.named[variant]
        for folder in self.folders:
            there = [name for name in store.list_names(folder) if _is_of(name, variant)]
            found = [name for name in there if store.exists(store.join(folder, name, MANIFEST))]
            if variant in found:
                return store.join(folder, variant)
            if len(found) > 1:
                raise Refused(f"--shards {folder} holds {' and '.join(found)}: say which by {variant}=DIR")
            if found:
                return store.join(folder, found[0])
        return None


def _is_of(name: str, variant: str) -> bool:
    """Whether a dataset or a folder is of a variant: of its name, or a version of it, as co3d_v2 of co3d."""
    return name == variant or fnmatch(name, f"{variant}_v[0-9]")


def builds_of(given: Sequence[str], variants: Iterable[str]) -> Builds:
    """Sorts what `--shards` was given: `VARIANT=DIR`, a folder of builds named as the variants, or a build.

    variants: of the table. A build whose dataset is one of them stands for that variant, any other build for all
    variants without one. Raises Refused where there is no build, or the table has no such variant.
    """
    named: dict[str, str] = {}
    folders: list[str] = []
    other = None
    known = sorted(set(variants))
    for text in given:
        variant, equals, path = text.partition("=")
        out = store.absolute(path if equals else text)
        if equals:
            if variant not in known:
                raise unknown_name("variant in --shards", variant, known)
            require_manifest(out, f"--shards {text}")
            named[variant] = out
        elif store.exists(store.join(out, MANIFEST)):
            dataset = require_manifest(out, f"--shards {text}").dataset
            same = [name for name in known if _is_of(dataset, name)]
            if same:
                named[same[0]] = out
            else:
                other = out
        elif any(store.exists(store.join(out, name, MANIFEST)) for name in store.list_names(out)):
            folders.append(out)
        else:
            raise Refused(f"--shards {text} holds no build and no folder of builds")
    return Builds(named, tuple(folders), other)
