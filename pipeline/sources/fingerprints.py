"""Fingerprints of source files in the json of shapes: they tell whether a source has changed since a build.

Objects of a made dataset (parametric) and of builds of older versions have no fingerprint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from manifests import store
from manifests.errors import Stopped
from manifests.records import Asset, Failure
from manifests.samples import JSON, read_samples
from pipeline.sources.source_files import Fingerprint

_SHA256 = re.compile(r"[0-9a-f]{64}")


def fingerprint_values(found: Fingerprint | None) -> dict[str, Any]:
    """The keys of a shape's json that say what it was made of."""
    return {} if found is None else {"source_bytes": found.bytes, "source_sha256": found.sha256}


def fingerprint_of(values: dict[str, Any]) -> Fingerprint | None:
    """What a shape's json says that it was made of, None where it says nothing."""
    size, sha256 = values.get("source_bytes"), values.get("source_sha256")
    if isinstance(size, int) and isinstance(sha256, str) and _SHA256.fullmatch(sha256):
        return Fingerprint(size, sha256)
    return None


def stored_values(tar: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, json) of the objects of a tar of shapes with or without its record, as far as a damaged one can be read."""
    try:
        with store.open_reading(tar) as file:
            for _, sample in read_samples(file, lambda sample, suffix: suffix == JSON):
                try:
                    values = from_json(sample.members.get(JSON, b""))
                except ValueError:
                    continue
                if isinstance(values, dict):
                    yield sample.key, values
    except (ValueError, OSError):
        return  # missing, or damaged behind what was found


def known_fingerprints(tar: str) -> dict[str, Fingerprint]:
    """Key -> fingerprint of the objects of a tar that is about to be made again; {} where there is no tar."""
    found = {key: fingerprint_of(values) for key, values in stored_values(tar)}
    return {key: fingerprint for key, fingerprint in found.items() if fingerprint is not None}


def require_unchanged(
    asset: Asset, before: Fingerprint | None, now: Fingerprint | Failure | None, place: str, mend: str = ""
) -> None:
    """Raises Stopped where an object was made of other bytes before, or gave an object then and its data fails now.

    place: the tar or folder that says so. mend: one more thing that a person can do.
    """
    if before is None or before == now or (isinstance(now, Failure) and now.kind != "data"):
        return
    what = f"it fails now ({now.reason})" if isinstance(now, Failure) else "its bytes are others"
    raise Stopped(
        f"{asset.source} has changed since {place} was made ({asset.key}: {what}): put the old file back, or choose "
        f"another --out{mend}"
    )
