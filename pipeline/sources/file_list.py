"""A person's list of objects: csv, tsv or jsonl with the columns path, class, split, id (the last three optional).

Paths are relative to the listing; what they name must lie in the source, or in a folder that `--follow-links` names
(there a path may be absolute, too). Every refusal names the listing and the row:
line 1 is the header of a csv file and the first object of a jsonl file.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from manifests import store
from manifests.errors import Refused
from manifests.records import Asset
from pipeline.sources.source_files import is_followed, plain_name

COLUMNS = ("path", "class", "split", "id")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SPLIT = "all"
_MAX_SPLIT = 40


def listed_assets(listing: str, root: Path) -> Iterator[Asset]:
    """The objects of a listing, in its order. Raises Refused, naming the row, when it does not say what to build."""
    file = Path(listing)
    inside, folder = root.resolve(), file.absolute().parent
    seen: dict[tuple[str, str], int] = {}
    for number, row in _rows(file):
        where = f"listing={listing}: row {number}"
        path = row.get("path", "")
        if not path:
            raise Refused(f"{where}: no path")
        source = _inside(folder, path, root, inside)
        if source is None:
            raise Refused(f"{where}: {path} leads out of the source {root}")
        id, split = row.get("id") or source, row.get("split") or _SPLIT
        if not split.replace("-", "").replace("_", "").isalnum() or not split.isascii() or len(split) > _MAX_SPLIT:
            raise Refused(f"{where}: the split {split!r} must be letters, digits, - and _")
        before = seen.setdefault((id, source), number)
        if before != number:
            raise Refused(f"{where}: {path} is already in row {before}; give one of them an id of its own")
        yield Asset(id=id, source=source, split=split, class_name=row.get("class") or None)
    if not seen:
        raise Refused(f"listing={listing}: no row")


def _inside(folder: Path, path: str, root: Path, inside: Path) -> str | None:
    """A listed path relative to the source, or None where it leads out of it. Links are judged when they are read."""
    if "\0" in path or ":" in path.partition("/")[0][1:2]:
        return None
    full = os.path.normpath(folder / path.replace("\\", "/"))
    for base in () if os.path.isabs(path) else (os.path.normpath(root), inside):
        if Path(full).is_relative_to(base) and Path(full) != Path(base):
            return plain_name(Path(full).relative_to(base).as_posix())
    real = os.path.join(os.path.realpath(os.path.dirname(full)), os.path.basename(full))
    return plain_name(os.path.relpath(real, inside)) if is_followed(real) else None


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(row number, its values by column) of every row that is not blank."""
    suffix = file.suffix.lower()
    try:
        text = store.read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise Refused(f"listing={file} cannot be read: {why}") from error
    if suffix == ".jsonl":
        yield from _json_rows(file, text)
    elif suffix in _SEPARATORS:
        yield from _csv_rows(file, text, _SEPARATORS[suffix])
    else:
        raise Refused(f"listing={file} is no .csv, .tsv or .jsonl file")


def _csv_rows(file: Path, text: str, separator: str) -> Iterator[tuple[int, dict[str, str]]]:
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    try:
        for cells in lines:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not header:
                header = [cell.lower() for cell in cells]
                _check_columns(f"listing={file}: row {lines.line_num}", header)
            elif len(cells) != len(header):
                raise Refused(f"listing={file}: row {lines.line_num}: {len(cells)} cells under {len(header)} columns")
            else:
                yield lines.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise Refused(f"listing={file}: row {lines.line_num}: {error}") from error


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"listing={file}: row {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Refused(f"{where}: not JSON ({type(error).__name__})") from error
        if not isinstance(values, dict):
            raise Refused(f"{where}: not a JSON object")
        _check_columns(where, list(values))
        for key, value in values.items():
            if value is not None and not isinstance(value, str):
                raise Refused(f"{where}: {key} is no text: {json.dumps(value)[:40]}")
            if value is not None and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise Refused(f"{where}: {key} is no Unicode text")
        yield number, {key: value.strip() for key, value in values.items() if value is not None}


def _check_columns(where: str, names: list[str]) -> None:
    wrong = next((name for name in names if name not in COLUMNS or names.count(name) > 1), None)
    if wrong is not None:
        raise Refused(f"{where}: column {wrong!r} is not one of {', '.join(COLUMNS)}, or comes twice")
    if "path" not in names:
        raise Refused(f"{where}: no column path; it may have {', '.join(COLUMNS)}")
