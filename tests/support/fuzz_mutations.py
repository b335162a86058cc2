"""Hostile versions of small valid files: every form is damaged as bytes, as text and as what it is.

`mutate(rng, name, data, places)` gives other bytes; `damage(rng, root, path)` puts something else in a file's place.
Everything follows from the generator alone.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import pickletools
import random
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

Rng = random.Random
Mutation = Callable[[Rng, bytes, "Places"], bytes]

NUMBERS = (
    *("0", "-1", "1", "7", "255", "65536", "2147483647", "2147483648", "-2147483649", "4294967295", "4294967296"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + "0" * 30, "9" * 5000),
    *("nan", "inf", "-inf", "1e308", "1e400", "-1e38", "1e-320", "0.5", "-0.0", "0x7f", "1_000", "१२"),
)
_INTEGERS = (0, 1, 2, 3, 255, 4096, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    *("", ".", "..", "\0", "x" * 5000, "é\u202e\ud83d\ude00", "\x1b[2J", "a\nb", "{}", "%s%n", "[red]x[/red]", "<b>x"),
    *("<script>alert(1)</script>", "$(touch pwned)", "|touch pwned", "pipe:touch pwned", "__import__('os').getpid()"),
    *("file:///etc/hostname", "http://127.0.0.1:9/x.bin", "s3://nowhere/x", "C:\\x.png", "\\\\host\\x", "~/x", "nan"),
    *("data:application/octet-stream;base64,AAAA", "data:image/png;base64,!!!", "a/../../b", "NUL", "-rf"),
)
_BROKEN_UTF8 = (b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xf0\x9f", b"\x80", b"\0")


@dataclass(frozen=True)
class Places:
    """Files that nobody may open. outside: their absolute paths. others: bytes of other files to splice in."""

    outside: tuple[str, ...] = ()
    others: tuple[bytes, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Names that lead to them from folders of several depths."""
        tails = tuple(f"canary/{Path(path).name}" for path in self.outside)
        return (*self.outside, *(f"{'../' * up}{tail}" for up in range(1, 8) for tail in tails))


def _text(rng: Rng, places: Places) -> str:
    return rng.choice(places.names() or _TEXTS) if rng.random() < 0.4 else rng.choice(_TEXTS)


# -- any bytes


def _flip(rng: Rng, data: bytes, places: Places) -> bytes:
    found = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        found[_place(rng, len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _place(rng: Rng, size: int) -> int:
    """Half of all places are in the head, where counts and sizes stand."""
    return rng.randrange(min(size, 300)) if rng.random() < 0.5 else rng.randrange(size)


def _overwrite(rng: Rng, data: bytes, places: Places) -> bytes:
    form = rng.choice(["<B", ">B", "<H", ">H", "<I", ">I", "<Q", ">Q", "<f", "<d"])
    if form[1] in "fd":
        value = struct.pack(form, rng.choice((float("nan"), float("inf"), -1e38, 1e-40)))
    else:
        value = struct.pack(form, rng.choice(_INTEGERS) & (256 ** struct.calcsize(form) - 1))
    place = _place(rng, len(data))
    return data[:place] + value + data[place + len(value) :]


def _cut(rng: Rng, data: bytes, places: Places) -> bytes:
    return data[: rng.choice((0, 1, len(data) // 2, len(data) - 1, _place(rng, len(data))))]


def _splice(rng: Rng, data: bytes, places: Places) -> bytes:
    other = rng.choice(places.others) if places.others and rng.random() < 0.5 else data
    start = rng.randrange(max(len(other), 1))
    piece = other[start : start + rng.choice((1, 16, 512, 4096))]
    place = _place(rng, len(data))
    return data[:place] + piece + data[place + rng.choice((0, len(piece))) :]


def _repeat(rng: Rng, data: bytes, places: Places) -> bytes:
    start = _place(rng, len(data))
    piece = data[start : start + rng.choice((1, 8, 512, len(data)))]
    return data[:start] + piece * rng.choice((2, 3, 100)) + data[start + len(piece) :]


def _erase(rng: Rng, data: bytes, places: Places) -> bytes:
    start = _place(rng, len(data))
    count = min(rng.choice((4, 64, 1024)), len(data) - start)
    return data[:start] + rng.choice((b"\0", b"\xff", b" ")) * count + data[start + count :]


def _remove(rng: Rng, data: bytes, places: Places) -> bytes:
    start = _place(rng, len(data))
    return data[:start] + data[start + rng.choice((1, 4, 512)) :]


def _break_text(rng: Rng, data: bytes, places: Places) -> bytes:
    place = _place(rng, len(data))
    return data[:place] + rng.choice(_BROKEN_UTF8) + data[place:]


def _replace(rng: Rng, data: bytes, places: Places) -> bytes:
    whole = (b"", b" \n", b"\0" * 600, b"PK\x05\x06" + b"\0" * 18, b"\x1f\x8b\x08", b"[" * 100_000, b"\x80\x04.")
    return rng.choice((*whole, rng.randbytes(300), *places.others[:3]))


ANY: tuple[Mutation, ...] = (_flip, _overwrite, _cut, _splice, _repeat, _erase, _remove, _break_text, _replace)

# -- text


def _number(rng: Rng, data: bytes, places: Places) -> bytes:
    """Another number, often one in the first lines, where counts stand."""
    found = list(re.finditer(rb"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?", data[: 1 << 16]))
    if not found:
        return _flip(rng, data, places)
    one = rng.choice(found[:6] if rng.random() < 0.4 else found)
    return data[: one.start()] + rng.choice(NUMBERS).encode() + data[one.end() :]


def _word(rng: Rng, data: bytes, places: Places) -> bytes:
    found = list(re.finditer(rb"[A-Za-z_./\\-]+[A-Za-z0-9_./\\-]*", data[: 1 << 16]))
    if not found:
        return _flip(rng, data, places)
    one = rng.choice(found)
    word = _text(rng, places).encode("utf-8", "surrogatepass") if rng.random() < 0.6 else rng.choice(found)[0]
    return data[: one.start()] + word + data[one.end() :]


def _lines(rng: Rng, data: bytes, places: Places) -> bytes:
    lines = data[: 1 << 20].split(b"\n")
    number = rng.randrange(min(len(lines), 40) if rng.random() < 0.5 else len(lines))
    what = rng.randrange(5)
    if what == 0:
        del lines[number]
    elif what == 1:
        lines.insert(rng.randrange(len(lines)), lines[number])
    elif what == 2:
        lines[number] = lines[number] * rng.choice((2, 50, 2000))
    elif what == 3:
        lines[number : number + 1] = [lines[number]] * rng.choice((3, 300))
    else:
        other = rng.randrange(len(lines))
        lines[number], lines[other] = lines[other], lines[number]
    return b"\n".join(lines)


def _long_line(rng: Rng, data: bytes, places: Places) -> bytes:
    place = _place(rng, len(data) + 1)
    return data[:place] + rng.choice((b"1 ", b"a", b"(", b"#", b'"', b",", b"-", b"\t", b"[[")) * 100_000 + data[place:]


TEXT: tuple[Mutation, ...] = (_number, _number, _number, _word, _word, _lines, _lines, _long_line)

# -- JSON


def _nodes(value: Any, path: tuple = ()) -> Iterable[tuple]:
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        if not isinstance(key, int) or key < 40:
            yield from _nodes(inner, (*path, key))


def _hostile(rng: Rng, old: Any, places: Places) -> Any:
    plain = [None, True, 0, -1, 1.5, float("nan"), float("inf"), 2**31, 2**63, 10**30, [], {}, [[]], {"a": {}}, [None]]
    plain += [_text(rng, places), _text(rng, places), [old], {"x": old}, [old, old], str(old)]
    if isinstance(old, list) and old:
        plain += [old[:-1], old * 2, old[:1] * 1000, old[::-1], [*old, None], [*old, "x"]] * 2
    if isinstance(old, bool | int | float):
        plain += [-old, old + 1, old * 1000, 10**12, 1e308, str(old), 10**9, -(2**31), 0.0] * 2
    if isinstance(old, str):
        plain += [_text(rng, places), old + "/..", "../" + old, old.upper(), 7] * 3
    return rng.choice(plain)


def change_json(rng: Rng, value: Any, places: Places) -> Any:
    """Another value; one node of it is changed, left out or doubled."""
    value = json.loads(json.dumps(value))
    path = rng.choice(list(_nodes(value)))
    if not path:
        return _hostile(rng, value, places) if rng.random() < 0.3 else change_one(rng, value, places)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    key, what = path[-1], rng.random()
    if what < 0.2:
        del parent[key]
    elif what < 0.3 and isinstance(parent, dict):
        parent[_text(rng, places)] = parent[key]
    else:
        parent[key] = _hostile(rng, parent[key], places)
    return value


def change_one(rng: Rng, value: Any, places: Places) -> Any:
    """A change one level below the top."""
    if isinstance(value, dict) and value:
        key = rng.choice(sorted(value, key=str))
        return value | {key: _hostile(rng, value[key], places)}
    if isinstance(value, list) and value:
        place = rng.randrange(len(value))
        return [*value[:place], _hostile(rng, value[place], places), *value[place + 1 :]]
    return _hostile(rng, value, places)


def _dumped(rng: Rng, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    what = rng.random()
    if what < 0.06:  # nested too deep
        found = [m.start() for m in re.finditer(r"[:\[] ?", text)] or [0]
        place = rng.choice(found) + 1
        deep = rng.choice(("[" * 100_000, '{"a":' * 100_000, "[" * 5000 + "]" * 5000, "[" * 900 + "]" * 900))
        text = text[:place] + deep + text[place:]
    elif what < 0.12:  # a key that comes twice
        keys = re.findall(r'"[^"\\]*": ', text)
        if keys:
            key = rng.choice(keys)
            text = text.replace("{", "{" + key + rng.choice(("null", "[]", "7", '"x"')) + ", ", 1)
            text = text.replace(key, key + rng.choice(("0", "{}", '"../x"')) + ", " + key, 1)
    elif what < 0.16:  # numbers of more digits than Python reads
        text = re.sub(r"\d+", "9" * 5000, text, count=1)
    return text.encode("utf-8", "surrogatepass")


def _json(rng: Rng, data: bytes, places: Places) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _flip(rng, data, places)
    return _dumped(rng, change_json(rng, value, places))


def _json_line(rng: Rng, data: bytes, places: Places) -> bytes:
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    lines[number] = _json(rng, lines[number], places) if lines[number].strip() else b"{}"
    return b"\n".join(lines)


# -- gzip


@lru_cache(maxsize=4)
def gzip_bomb(megabytes: int, inside: bytes = b" ") -> bytes:
    """So many megabytes of one byte, gzipped twice as fast as others."""
    return gzip.compress(inside * (megabytes << 20), 1, mtime=0)


def _gzipped(mutation: Mutation) -> Mutation:
    def inside(rng: Rng, data: bytes, places: Places) -> bytes:
        try:
            plain = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return _flip(rng, data, places)
        return gzip.compress(mutation(rng, plain, places), 1, mtime=0)

    return inside


def _gzip_form(rng: Rng, data: bytes, places: Places) -> bytes:
    bomb = gzip_bomb(300, b"[" if rng.random() < 0.3 else b" ")
    return rng.choice((bomb, data + bomb, data + data, data + b"garbage", data[:-8] + b"\0" * 8, data[:-4]))


# -- pictures


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@lru_cache(maxsize=16)
def png_bomb(width: int, height: int, bits: int = 8, colour: int = 0) -> bytes:
    """A whole PNG of one colour."""
    row = (width * bits * {0: 1, 2: 3, 6: 4}[colour] + 7) // 8 + 1
    packer, body = zlib.compressobj(9), b""
    for _ in range(0, row * height, 1 << 24):
        body += packer.compress(bytes(1 << 24))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (_chunk(b"IHDR", head), _chunk(b"IDAT", body + packer.flush()), _chunk(b"IEND", b""))
    )


def _png(rng: Rng, data: bytes, places: Places) -> bytes:
    """Another head with a right checksum, another chunk, or a bomb."""
    if rng.random() < 0.2:
        sizes = ((12_000, 12_000), (9000, 7000), (60_000, 200), (20_000, 20_000), (1 << 20, 1 << 10))
        return png_bomb(*rng.choice(sizes), *rng.choice(((8, 0), (1, 0), (16, 0), (8, 2), (8, 6))))
    if not data.startswith(b"\x89PNG") or len(data) < 33:
        return _flip(rng, data, places)
    head = bytearray(data[16:29])
    if rng.random() < 0.7:
        field = rng.choice(((0, ">I"), (4, ">I"), (8, ">B"), (9, ">B"), (12, ">B")))
        value = rng.choice((0, 1, 2, 3, 4, 6, 7, 16, 17, 255, 30_000, 2**31 - 1, 2**32 - 1))
        struct.pack_into(field[1], head, field[0], value & (256 ** struct.calcsize(field[1]) - 1))
        return data[:8] + _chunk(b"IHDR", bytes(head)) + data[33:]
    text = zlib.compress(b"x" * (100 << 20), 9) if rng.random() < 0.3 else b"\0\0"
    extra = rng.choice(
        (
            _chunk(b"zTXt", b"a\0\0" + text),
            _chunk(b"iCCP", b"a\0\0" + text),
            _chunk(b"tRNS", b"\0\0"),
            _chunk(b"PLTE", b"\0" * 9),
            _chunk(b"acTL", b"\0\0\0\xff\0\0\0\0"),
            _chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"),
            struct.pack(">I", 2**31 - 1) + b"IDAT",
        )
    )
    return data[:33] + extra + data[33:]


def _jpeg(rng: Rng, data: bytes, places: Places) -> bytes:
    """Other sizes in the frame header, or a segment with another length."""
    frame = re.search(rb"\xff[\xc0-\xc2]", data)
    if frame is None:
        return _flip(rng, data, places)
    found = bytearray(data)
    place = frame.start() + rng.choice((2, 4, 5, 7, 9))
    value = rng.choice((b"\xff\xff", b"\0\0", b"\0\x01", b"\x7f\xff", b"\x04\0"))
    found[place : place + 2] = value
    return bytes(found)


# -- containers


def _with_json_chunk(rng: Rng, data: bytes, places: Places) -> bytes:
    """A GLB whose JSON says something else, of right lengths."""
    if len(data) < 20 or data[:4] != b"glTF":
        return _flip(rng, data, places)
    size = struct.unpack_from("<I", data, 12)[0]
    text = _json(rng, data[20 : 20 + size], places)
    text += b" " * (-len(text) % 4)
    rest = data[20 + size :]
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def _safetensors(rng: Rng, data: bytes, places: Places) -> bytes:
    if len(data) < 8:
        return _flip(rng, data, places)
    size = struct.unpack_from("<Q", data)[0]
    if size > len(data) or rng.random() < 0.1:
        return struct.pack("<Q", rng.choice(_INTEGERS)) + data[8:]
    text = _json(rng, data[8 : 8 + size], places)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def _npy(rng: Rng, data: bytes, places: Places) -> bytes:
    """Another header of the right length."""
    if not data.startswith(b"\x93NUMPY\x01"):
        return _flip(rng, data, places)
    size = struct.unpack_from("<H", data, 8)[0]
    text = data[10 : 10 + size]
    shape = rng.choice(("(%d,)", "(%d, 3)", "(3, %d)", "(%d, %d)", "(1, %d, 3)", "()", "(%d, 0)")).replace("%d", "{}")
    shape = re.sub(r"\{\}", lambda _: rng.choice(NUMBERS[:20]), shape)
    descr = rng.choice(("'|O'", "'<f8'", "'>f4'", "'<c16'", "'|S1'", "'<U9'", "[('a', '<f4')]", "'<M8[s]'", "'|V9'"))
    what = rng.randrange(4)
    if what == 0:
        text = re.sub(rb"'shape': \([^)]*\)", lambda _: f"'shape': {shape}".encode(), text)
    elif what == 1:
        text = re.sub(rb"'descr': '[^']*'", lambda _: f"'descr': {descr}".encode(), text)
    elif what == 2:
        text = rng.choice(
            (b"(" * 5000, b"[" * 900, b"__import__('os').mkdir('pwned')", b"{}", b"9" * 9000, b"-" * 9000)
        )
    else:
        text = _number(rng, text, places)
    return (
        data[:6]
        + rng.choice((b"\x01\0", b"\x01\0", b"\x01\0", b"\x02\0", b"\x03\0"))
        + (struct.pack("<H", len(text) & 0xFFFF) + text + data[10 + size :])
    )


def _members(data: bytes) -> list[tuple[str, bytes]] | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [(info.filename, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zlib.error):
        return None


def _zip(rng: Rng, data: bytes, places: Places) -> bytes:
    """Members of other names, twice, of other bytes, or bombs; directories and sizes that lie."""
    members = _members(data)
    if not members:
        return _flip(rng, data, places)
    number, what = rng.randrange(len(members)), rng.randrange(8)
    name, body = members[number]
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    method = rng.choice(methods) if what != 7 else zipfile.ZIP_DEFLATED
    if what == 0:
        members[number] = (_text(rng, places).replace("\0", "") or "x", body)
    elif what == 1:
        members.append((name, rng.choice(members)[1]))
    elif what == 2:
        members[number] = (name, mutate(rng, name, body, places))
    elif what == 3:
        del members[number]
    elif what == 4:
        members += [(f"{Path(name).parent}/{i:07d}-{i:012d}{Path(name).suffix}", b"") for i in range(3000)]
    elif what in (5, 7):
        members[number] = (name, bytes(80 << 20))
    else:
        members[number] = (name + rng.choice(("/", ".exe", "\n", "é")), body)
    file = io.BytesIO()
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, body in members:
            with contextlib.suppress(ValueError, OSError):
                archive.writestr(zipfile.ZipInfo(name), body, method)
    found = bytearray(file.getvalue())
    if what == 7:  # it says that it is small
        for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            for match in re.finditer(re.escape(mark), bytes(found)):
                if struct.unpack_from("<I", found, match.start() + place)[0] == 80 << 20:
                    struct.pack_into("<I", found, match.start() + place, rng.choice((0, 5, 5000)))
    return bytes(found)


class _Call:
    """Pickled, this calls something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def _evil_pickle(rng: Rng) -> bytes:
    evil = rng.choice(
        (
            _Call(os.mkdir, "pwned"),
            _Call(eval, "1+1"),
            _Call(bytearray, 2**33),
            _Call(os.system, "true"),
            _Call(getattr, "x", "upper"),
            _Call(io.open, "pwned", "w"),
        )
    )
    wrapped = rng.choice((evil, {"state_dict": evil}, {"model": {}, "args": evil}, [evil]))
    return pickle.dumps(wrapped, protocol=rng.choice((2, 2, 4)))


def _pickle_bytes(rng: Rng, data: bytes, places: Places) -> bytes:
    """Opcodes left out, doubled, with other arguments, nested too deep, or calls."""
    what = rng.randrange(7)
    if what == 0:
        return _evil_pickle(rng)
    if what == 1:
        return b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    if what == 2:
        return rng.choice(
            (b"\x80\x02" + b"(" * 500_000 + b".", b"\x80\x02X\xff\xff\xff\x7f", b"\x80\x02\x8b\xff\xff\xff\x7f")
        )
    if what == 3:
        return _number(rng, data, places)
    try:
        found = [place for _, _, place in pickletools.genops(data)]
    except Exception:
        return _flip(rng, data, places)
    place = rng.randrange(len(found) - 1) if len(found) > 1 else 0
    start, stop = found[place], found[place + 1] if len(found) > 1 else len(data)
    if what == 4:
        return data[:start] + data[stop:]
    if what == 5:
        return data[:stop] + data[start:stop] + data[stop:]
    other = rng.randrange(len(found) - 1) if len(found) > 1 else 0
    piece = data[found[other] : found[other + 1]] if len(found) > 1 else b"N"
    return data[:start] + piece + data[stop:]


def _torch_file(rng: Rng, data: bytes, places: Places) -> bytes:
    """The pickle in a file of torch.save, or another member; stored as torch stores them, or packed."""
    members = _members(data)
    if not members:
        return _pickle_bytes(rng, data, places) if rng.random() < 0.5 else _flip(rng, data, places)
    if rng.random() < 0.2:
        return _zip(rng, data, places)
    names = [name for name, _ in members]
    pickles = [number for number, name in enumerate(names) if name.endswith(".pkl")] or [0]
    number = rng.choice(pickles) if rng.random() < 0.8 else rng.randrange(len(members))
    name, body = members[number]
    members[number] = (name, _pickle_bytes(rng, body, places) if name.endswith(".pkl") else _any(rng, body, places))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, body in members:
            archive.writestr(zipfile.ZipInfo(name), body)
    return file.getvalue()


def _any(rng: Rng, data: bytes, places: Places) -> bytes:
    return rng.choice(ANY)(rng, data, places) if data else rng.randbytes(9)


# -- tars


def tar_members(data: bytes) -> list[tuple[int, str, bytes]] | None:
    """(offset, name, bytes) of the members, or None where it is no tar any more."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return [(info.offset, info.name, tar.extractfile(info).read()) for info in tar if info.isreg()]
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, MemoryError):
        return None


def _tar(rng: Rng, data: bytes, places: Places) -> bytes:
    """Members of other names, kinds, sizes and bytes, each with a right checksum."""
    members = [(name, body) for _, name, body in tar_members(data) or ()]
    if not members:
        return _flip(rng, data, places)
    number, what = rng.randrange(len(members)), rng.randrange(12)
    name, body = members[number]
    file = io.BytesIO()
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"S", b"7")
    if what == 0:
        members[number] = (rng.choice((_text(rng, places).replace("\0", "") or "x", f"../{name}", f"/{name}")), body)
    elif what == 1:
        members.insert(rng.randrange(len(members)), (name, body))
    elif what == 2:
        del members[number]
    elif what == 3:
        other = rng.randrange(len(members))
        members[number], members[other] = members[other], members[number]
    elif what == 4:
        members[number] = (name, rng.choice(members)[1])
    elif what == 5:
        members = members[:number]
    elif what >= 7:
        members[number] = (name, mutate(rng, name.partition(".")[2] or name, body, places))
    with tarfile.open(fileobj=file, mode="w", format=rng.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT))) as tar:
        for place, (name, body) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.size = len(body)
            if what == 6 and place == number:
                info.type, info.linkname = rng.choice(kinds), rng.choice(places.outside or ("x",))[:90]
                if info.type != b"S":
                    info.size = 0
            with contextlib.suppress(ValueError, OSError):  # a name too long for ustar
                tar.addfile(info, io.BytesIO(body))
    found = file.getvalue()
    return _lying_header(rng, found) if rng.random() < 0.1 else found


def _lying_header(rng: Rng, data: bytes) -> bytes:
    """A header with another size, or an extended one, whose checksum is right."""
    found = bytearray(data)
    sizes = (
        b"77777777777\0",
        b"00000000001\0",
        b"-0000000001\0",
        b"\x80" + b"\xff" * 11,
        b"            ",
        b"9\0\0\0" * 3,
    )
    found[124:136] = rng.choice(sizes)
    if rng.random() < 0.4:
        found[156:157] = rng.choice((b"x", b"g", b"L", b"K"))
    found[148:156] = b" " * 8
    found[148:156] = b"%06o\0 " % sum(found[:512])
    return bytes(found)


FORMS: dict[str, tuple[Mutation, ...]] = {
    ".json": (_json, _json, _json, _json, *TEXT[:3]),
    ".jsonl": (_json_line, _json_line, *TEXT[:4]),
    ".jgz": (_gzipped(_json), _gzipped(_json), _gzipped(_json), _gzip_form, _gzipped(_number)),
    ".gz": (_gzipped(_json), _gzipped(_json), _gzip_form),
    ".gltf": (_json, _json, _json, _word),
    ".glb": (_with_json_chunk, _with_json_chunk, _with_json_chunk),
    ".png": (_png, _png, _png),
    ".jpg": (_jpeg, _jpeg),
    ".npy": (_npy, _npy),
    ".zip": (_zip, _zip, _zip),
    ".tar": (_tar, _tar, _tar, _tar),
    ".safetensors": (_safetensors, _safetensors, _safetensors),
    ".pt": (_torch_file, _torch_file, _torch_file),
    ".pth": (_torch_file, _torch_file, _torch_file),
}
_TEXTUAL = (".off", ".obj", ".mtl", ".txt", ".csv", ".tsv", ".toml", ".xyz", ".pts", ".ply", ".stl", ".pcd", ".md")


def mutate(rng: Rng, name: str, data: bytes, places: Places) -> bytes:
    """Other bytes for a file of this name: one change, sometimes two or three."""
    suffix = Path(name).suffix.lower()
    forms = FORMS.get(suffix, TEXT if suffix in _TEXTUAL else ())
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        if not data:
            return rng.randbytes(20)
        own = forms and rng.random() < 0.75
        data = rng.choice(forms if own else ANY)(rng, data, places)
    return data


def damage(rng: Rng, path: Path, places: Places) -> str:
    """Puts something that is no file of this kind in a file's place; says what."""
    outside = rng.choice(places.outside or ("nothing",))
    kinds: dict[str, Callable[[], Any]] = {
        "gone": lambda: None,
        "a folder": path.mkdir,
        "a link outside": lambda: path.symlink_to(outside),
        "a relative link outside": lambda: path.symlink_to(os.path.relpath(outside, path.parent)),
        "a link to itself": lambda: path.symlink_to(path.name),
        "a link to nothing": lambda: path.symlink_to("nothing"),
        "a link to a folder": lambda: path.symlink_to("."),
        "a pipe": lambda: os.mkfifo(path),
        "a device": lambda: path.symlink_to("/dev/zero"),
    }
    what = rng.choice(sorted(kinds))
    path.unlink()
    kinds[what]()
    return what
