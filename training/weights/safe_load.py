"""Reads the tensors of any weights file (safetensors, torch, TorchScript) without running any code in it."""

from __future__ import annotations

import contextlib
import io
import pickletools
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from manifests.errors import Refused, with_type
from training.settings.model import Who

_HARMLESS = (  # classes that training scripts pickle beside their tensors: arguments, scores, paths
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int64DType",
    "pathlib.PosixPath",
)
_DICTIONARIES = ("easydict.EasyDict", "collections.defaultdict")
_CONTAINERS = ("state_dict", "base_model", "module", "model_state_dict", "model")
_LONGEST_NAME = 1000  # of a class
_PICKLES = 5  # in a file of torch's older format, before the values: magic, version, system, what was saved, keys
_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_SIZES_OF_CLIP = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI keeps beside the weights


class _Inert:
    """Stands for a class or function that a file names: takes any arguments and does nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_tensors(path: str | Path, who: Who = "student") -> dict[str, Tensor]:
    """The tensors of a file by their names in it, without the prefixes of wrappers. Runs nothing. Raises Refused."""
    file = Path(path)
    if not file.is_file():
        raise Refused(f"{path}: no such file")
    try:
        loaded = _open(file)
    except Refused:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are opcodes and records
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            reason = f"names code ({code[1]}) that no weights need, and is not read"
        else:
            reason = f"is damaged or no weights ({with_type(error, 120)})"
        raise Refused(f"{path} {reason}") from error
    return _strip(_unwrap(loaded, str(path), who))


def _open(file: Path) -> Any:
    """Loads safetensors, a zip of torch.save, a TorchScript archive, or torch's older format."""
    with open(file, "rb") as opened:
        head = opened.read(9)
    if len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size:
        return load_file(file)
    require_plain(file)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            script = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/constants.pkl")]
            if script:
                return _read_torchscript(archive, script[0].partition("/")[0])
        return _load(file, mmap=True)
    return _load(file, mmap=False)


def require_plain(file: Path) -> None:
    """Raises ValueError for an archive that torch would unpack or search for minutes.

    That is an archive whose members are larger than its file (torch stores tensors uncompressed; only the text of code,
    which is never read, is compressed); a tar (torch before 0.1.10); or a pickle that is cut or names something very
    long: torch searches its own message about that in quadratic time.
    """
    with contextlib.suppress(tarfile.TarError), tarfile.open(file, "r:"):
        raise ValueError("a tar archive, torch's format before 0.1.10: load and save it with a newer torch")
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            sizes = [info.file_size for info in archive.infolist() if "/code/" not in info.filename]
            if sum(sizes) > file.stat().st_size:
                raise ValueError("an archive whose members are larger than itself")
            for pickled in [name for name in archive.namelist() if name.endswith("/data.pkl")]:
                _require_short_names(archive.read(pickled))
    else:
        with open(file, "rb") as opened:
            for _ in range(_PICKLES):
                _require_short_names(opened)


def _require_short_names(pickled: bytes | BinaryIO) -> None:
    for opcode, named, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST") and len(str(named)) > _LONGEST_NAME:
            raise ValueError("a pickle that names something very long")


def _load(file: Path | io.BytesIO, mmap: bool, inert: Iterable[str] = ()) -> Any:
    """torch.load of tensors only; `inert` names further classes that are bound to one that does nothing."""
    known: list[Any] = [(_Inert, name) for name in (*_HARMLESS, *inert)]
    known += [(OrderedDict, name) for name in _DICTIONARIES]
    with torch.serialization.safe_globals(known):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def _read_torchscript(archive: zipfile.ZipFile, root: str) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive. torch.jit.load would run its code; here its records are read as weights.

    Its pickle names classes of the archive (`__torch__...`), whose objects hold parameters as attributes.
    """
    pickled = archive.read(f"{root}/data.pkl")
    named = (str(arg) for opcode, arg, _ in pickletools.genops(pickled) if opcode.name == "GLOBAL")
    classes = {name.replace(" ", ".", 1) for name in named if name.startswith("__torch__.")}
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as plain:
        for name in archive.namelist():
            if name in (f"{root}/data.pkl", f"{root}/version") or name.startswith(f"{root}/data/"):
                plain.writestr(name, archive.read(name))
    copy.seek(0)
    found: dict[str, Tensor] = {}
    _collect(_load(copy, mmap=False, inert=[*sorted(classes), "torch.jit._pickle.restore_type_tag"]), "", found)
    return found


def _collect(module: Any, prefix: str, found: dict[str, Tensor]) -> None:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif isinstance(value, _Inert):
            _collect(value, f"{prefix}{name}.", found)
        elif not prefix and name in _SIZES_OF_CLIP and isinstance(value, int):
            found[name] = torch.tensor(value)


def _unwrap(loaded: Any, path: str, who: Who) -> dict[str, Tensor]:
    """The state dict inside what training scripts save: {"state_dict": ...}, {"model": ..., "model_ema": ...}."""
    if isinstance(loaded, dict):
        if isinstance(loaded.get("model_ema"), dict):
            return _tensors(loaded["model_ema" if who == "teacher" else "model"])
        if who == "teacher" and isinstance(loaded.get("model"), dict):
            raise Refused(f"{path} holds no teacher (no model_ema): init.take=student")
        plain = _tensors(loaded)
        inside = next((found for key in _CONTAINERS if (found := _tensors(loaded.get(key)))), {})
        if inside or plain:
            return inside or plain
    raise Refused(f"{path} holds no tensors by name")


def _tensors(values: Any) -> dict[str, Tensor]:
    """The entries of a dictionary that are tensors; {} of anything else."""
    if not isinstance(values, dict):
        return {}
    return {n: value.detach() for n, value in values.items() if isinstance(n, str) and isinstance(value, Tensor)}


def _strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in tensors)), None):
        tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors
