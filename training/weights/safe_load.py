"""Reads the tensors of any weights file (safetensors, torch, TorchScript) without running any code in it."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from manifests.errors import Refused
from training.settings.model import Who
from training.weights.other_files import NoWeights, refuse_other_files
from training.weights.tensor_names import recognise

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
_STUDENT = (
    "state_dict",
    "base_model",
    "module",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "student",
    "weights",
)
_TEACHER = ("model_ema", "ema", "teacher", "state_dict_ema", "ema_state_dict", "ema_model", "model_ema_state_dict")
_DEEPEST = 4  # dictionaries inside each other in which weights are looked for
_LONGEST_NAME = 1000  # of a class
_PICKLES = 5  # in a file of torch's older format, before the values: magic, version, system, what was saved, keys
_INSERTED = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # of torch itself
_OF_TEACHER = ("teacher", "ema", "model_ema", "ema_model")
_WRAPPER = re.compile(  # names of attributes by which other people's classes hold the whole model
    r"((module|model|clip_model|clip|net|network|base_model|state_dict|student|_forward_module|"
    + "|".join(_OF_TEACHER)
    + r")\.)+"
)
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
        refuse_other_files(file)
        loaded = _open(file)
    except NoWeights as error:
        raise Refused(f"{path} is damaged or no weights: {error}") from error
    except Exception as error:  # a damaged file fails in as many ways as there are opcodes and records
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            reason = f"names code ({code[1]}) that no weights need, and is not read"
        else:
            reason = f"is damaged or no weights: its {file.stat().st_size:,} bytes are cut, or of another format"
        raise Refused(f"{path} {reason}") from error
    return _strip(_unwrap(loaded, str(path), who), who)


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
    """Raises ValueError for an archive that torch would unpack or search for minutes, and for what is no plain file.

    That is an archive whose members are larger than its file (torch stores tensors uncompressed; only the text of code,
    which is never read, is compressed); or a pickle that is cut or names something very long: torch searches its own
    message about that in quadratic time. A device may be read without end.
    """
    if not file.is_file():
        raise NoWeights("no plain file")
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            sizes = [info.file_size for info in archive.infolist() if "/code/" not in info.filename]
            if sum(sizes) > file.stat().st_size:
                raise NoWeights("an archive whose members are larger than itself")
            for pickled in [name for name in archive.namelist() if name.endswith("/data.pkl")]:
                _require_short_names(archive.read(pickled))
    else:
        with open(file, "rb") as opened:
            for _ in range(_PICKLES):
                _require_short_names(opened)


def _require_short_names(pickled: bytes | BinaryIO) -> None:
    for opcode, named, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST") and len(str(named)) > _LONGEST_NAME:
            raise NoWeights("a pickle that names something very long")


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
    if isinstance(loaded, dict) and who == "teacher":
        levels = [each for each in (loaded, *map(loaded.get, _STUDENT)) if isinstance(each, dict)]
        teachers = (_inside(each.get(name), _STUDENT) for each in levels for name in _TEACHER)
        if found := next((found for found in teachers if found), {}):
            return found
    found = _inside(loaded, _STUDENT) or _inside(loaded, _TEACHER)
    if not found:
        raise Refused(f"{path} holds no tensors by name")
    if who == "teacher" and isinstance(loaded.get("model"), dict) and not any(map(_is_of_teacher, found)):
        raise Refused(f"{path} holds no teacher (no model_ema): init.take=student")
    return found


def _is_of_teacher(name: str) -> bool:
    """Whether a prefix or the name of a tensor says that it is a teacher's."""
    return not set(name.split(".")).isdisjoint(_OF_TEACHER)


def _inside(values: Any, names: tuple[str, ...], depth: int = _DEEPEST) -> dict[str, Tensor]:
    """The tensors of the first of these entries that has some, dictionaries inside each other too; else its own."""
    if not isinstance(values, dict) or not depth:
        return {}
    deeper = (_inside(values.get(name), (*_STUDENT, *_TEACHER), depth - 1) for name in names)
    return next((found for found in deeper if found), {}) or _tensors(values)


def _tensors(values: Any) -> dict[str, Tensor]:
    """The entries of a dictionary that are tensors; {} of anything else."""
    if not isinstance(values, dict):
        return {}
    return {n: value.detach() for n, value in values.items() if isinstance(n, str) and isinstance(value, Tensor)}


def _strip(tensors: dict[str, Tensor], who: Who) -> dict[str, Tensor]:
    """The tensors without the prefix that most of those that are known here have: of wrappers, in any order.

    Names with a part of that prefix lose it too, where that makes no name twice. The others keep their names.
    """
    plain = {_INSERTED.sub("", name): value for name, value in tensors.items()}
    by_prefix = defaultdict[str, list[str]](list)
    for name in plain:
        found = _WRAPPER.match(name)
        by_prefix[found[0] if found else ""].append(name)

    def worth(prefix: str) -> tuple[bool, bool, int]:
        inside = [name.removeprefix(prefix) for name in by_prefix[prefix]]
        return bool(recognise(inside)), _is_of_teacher(prefix) == (who == "teacher"), len(inside)

    best = max(by_prefix, key=worth)
    if not worth(best)[0]:  # of no kind that is known
        return plain
    stripped = {name.removeprefix(best): plain[name] for name in by_prefix[best]}
    for prefix, names in by_prefix.items():
        for name in names if prefix != best else ():
            short = name.removeprefix(prefix) if best.startswith(prefix) else name
            stripped[name if short in stripped else short] = plain[name]
    return stripped
