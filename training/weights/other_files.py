"""What is often found in the place of weights (a pointer of git-lfs, a web page, an archive), named for what it is."""

from __future__ import annotations

import html
import json
import re
import tarfile
import zipfile
from pathlib import Path

_HEAD = 1 << 16  # bytes that are looked at
_SHOWN = 80  # characters of a foreign text
_AGAIN = "download the file itself"
_PACKED = "unpack it, and give the file of weights in it"
_MAGIC = {  # first bytes -> what such a file is
    b"\x1f\x8b": f"a gzip archive: {_PACKED}",
    b"BZh": f"a bzip2 archive: {_PACKED}",
    b"\xfd7zXZ\x00": f"an xz archive: {_PACKED}",
    b"7z\xbc\xaf\x27\x1c": f"a 7z archive: {_PACKED}",
    b"Rar!\x1a\x07": f"a rar archive: {_PACKED}",
    b"(\xb5/\xfd": f"a zstandard archive: {_PACKED}",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras and TensorFlow write: weights of torch or safetensors are needed",
    b"GGUF": "a GGUF file, as llama.cpp reads: weights of torch or safetensors are needed",
    b"\x93NUMPY": "an array of numpy: weights of torch or safetensors are needed",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}


class NoWeights(ValueError):
    """What a file is in place of weights, in our words and one line."""


def refuse_other_files(file: Path) -> None:
    """Raises NoWeights where a file is plainly something else than weights of torch or safetensors."""
    with open(file, "rb") as opened:
        head = opened.read(_HEAD)
    if not head.strip(b"\0 \r\n\t"):
        raise NoWeights("the file is empty" if not head else "it begins with empty bytes: a download that broke")
    named = next((words for magic, words in _MAGIC.items() if head.startswith(magic)), None)
    if named:
        raise NoWeights(named)
    if head.startswith(b"PK"):
        _refuse_zip(file)
    elif head[257:262] == b"ustar" or (head[:1] != b"\x80" and tarfile.is_tarfile(file)):
        _refuse_tar(file)
    text = _text(head)
    if text is not None:
        raise NoWeights(_words_of(text))


def _refuse_zip(file: Path) -> None:
    """torch's own files are zip archives, too: they hold NAME/data.pkl."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        if not any(name.endswith("data.pkl") for name in names):
            arrays = bool(names) and all(name.endswith(".npy") for name in names)
            what = "an archive of numpy's arrays" if arrays else "a zip archive"
            raise NoWeights(f"{what} of {_listed(names)}: {_PACKED}")


def _refuse_tar(file: Path) -> None:
    try:
        with tarfile.open(file, "r:") as archive:
            names = [member.name for member, _ in zip(archive, range(100), strict=False)]
    except tarfile.TarError:
        names = []
    if {"storages", "tensors", "pickle"} <= set(names):
        raise NoWeights("a tar archive, torch's format before 0.1.10: load and save it with a newer torch")
    raise NoWeights(f"a tar archive of {_listed(names)}: {_PACKED}")


def _listed(names: list[str]) -> str:
    files = [name for name in names if not name.endswith("/")]
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(_shown(name) for name in files[:3]) + more if files else "no file"


def _text(head: bytes) -> str | None:
    """The beginning of a file as text, or None where it is none."""
    for encoding in ("utf-16",) if head[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig",):
        try:
            text = head.decode(encoding)
        except UnicodeDecodeError as error:
            if len(head) < _HEAD or error.start < len(head) - 4:  # else a letter is cut where the look ends
                return None
            text = head[: error.start].decode(encoding)
        return None if any(letter < " " and letter not in "\r\n\t\f" for letter in text) else text.lstrip()
    return None


def _words_of(text: str) -> str:
    """What a text is that stands in the place of weights, and where the file is."""
    low = text[:2000].lower()
    if low.startswith(("version https://git-lfs", "version https://hawser")):
        size = re.search(r"^size (\d+)", text, re.MULTILINE)
        of = f" to a file of {int(size[1]):,} bytes" if size and len(size[1]) < 16 else ""
        return f"it is a git-lfs pointer{of}, not the file: git lfs pull fetches it"
    if "/annex/objects/" in low[:400]:
        return "it is a git-annex pointer, not the file: git annex get fetches it"
    if low.startswith("outs:") or re.match(r"(md5: \w+\n)?outs:", low):
        return "it is a pointer of DVC, not the file: dvc pull fetches it"
    if low.startswith("<?xml") and "<error>" in low:
        code = re.search(r"<code>(.*?)</code>", text[:2000], re.IGNORECASE | re.DOTALL)
        return f"it is a store's error message ({_shown(code[1]) if code else 'no code'}), not the file: {_AGAIN}"
    if re.match(r"(<!--.*?-->\s*)*<(!doctype html|html|head|body|script|meta|\?xml)", low, re.DOTALL):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        words = re.sub(r"<[^>]*>", " ", text) if title is None else title[1]
        return (
            f"it is a web page ({_shown(html.unescape(words)) or 'without words'}), not the file: open its address in "
            + (f"a browser, sign in or accept the terms where it asks, and {_AGAIN}")
        )
    if low.startswith(("{", "[")):
        return _words_of_json(text)
    return f"it is a text ({_shown(text)!r})"


def _words_of_json(text: str) -> str:
    """What a JSON text in the place of weights is: an error's message, an index of several files, settings."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict) and isinstance(values.get("weight_map"), dict):
        files = sorted({str(name) for name in values["weight_map"].values()})
        return f"it is the index of weights in {len(files)} files ({_listed(files)}): save them as one file"
    message = values.get("error", values.get("message", values.get("detail"))) if isinstance(values, dict) else None
    if message is not None:
        return f"it is an error message ({_shown(str(message))}), not the file: {_AGAIN}"
    return f"it is a JSON text ({_shown(text)}), not the file of weights"


def _shown(text: str) -> str:
    """A foreign text in one short line."""
    return " ".join(text.split())[:_SHOWN]
