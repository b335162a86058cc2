"""Weights files of other projects and of our own: what kind a file is, and its tensors under our names.

Nothing in a file is ever run: torch reads tensors only (weights_only), the few classes that training scripts leave
beside them are bound to a class that does nothing, and of a TorchScript archive only the tensors are read.
Sources of the names: the released code of OpenAI CLIP, ULIP, Point-BERT, Cross-MoST, OpenShape, Uni3D and SLIP.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from manifests.errors import Refused

Who = Literal["student", "teacher"]

OURS, OPENAI, OPEN_CLIP, RELEASED = "ours", "openai_clip", "open_clip", "cross_most_released"
ULIP, ULIP2, POINT_BERT, DVAE = "ulip", "ulip2", "point_bert", "dvae"
SLIP, OPENSHAPE, UNI3D = "slip", "openshape", "uni3d"
KINDS = {  # kind -> what it is, in words
    OURS: "a checkpoint of this program",
    OPENAI: "CLIP as OpenAI published it",
    OPEN_CLIP: "an open_clip model",
    RELEASED: "Cross-MoST of the released code",
    ULIP: "ULIP's Point-BERT",
    ULIP2: "ULIP-2's Point-BERT",
    POINT_BERT: "Point-BERT",
    DVAE: "Point-BERT's dVAE",
    SLIP: "SLIP",
    OPENSHAPE: "OpenShape's point encoder",
    UNI3D: "Uni3D's point encoder",
}
OTHER_TOWERS = {  # kinds none of whose tensors fit a tower of ours, and why
    SLIP: "its image tower is timm's ViT with a bias in the patches and no first norm, not a CLIP ViT",
    OPENSHAPE: "it is no Point-BERT: set abstraction over coloured points, no positions, a linear readout of one token",
    UNI3D: "it is no Point-BERT: a plain ViT over coloured points, positions added once, a linear readout of one token",
}

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
    """Stands for a class or function that a file names: takes whatever it is given and does nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


@dataclass(frozen=True)
class WeightsFile:
    """One file's tensors under our names: `image.*`, `points.*`, `text.*` as in CrossModalModel, `classifier`,
    `logit_scale`.

    left_over: names, as in the file, of tensors that none of our towers has a place for. projection: (D, E) of the
    image tower that its embedding space belongs to, None where the file has none; space says the same in words.
    """

    path: str
    kind: str
    space: str
    tensors: dict[str, Tensor]
    left_over: tuple[str, ...]
    projection: Tensor | None = None

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of one tower, by their names inside it."""
        return {n.removeprefix(prefix): value for n, value in self.tensors.items() if n.startswith(prefix)}


def read_weights_file(path: str | Path, who: Who = "student") -> WeightsFile:
    """Reads, recognises and renames. who: which of the two models of a file that holds a student and a teacher.

    Raises Refused, in one line naming the path, when the file is missing, damaged, names code, is of no known kind, or
    holds a number that is not finite.
    """
    given = read_tensors(path, who)
    kind = recognise(given)
    if not kind:
        first = ", ".join(sorted(given)[:3])
        raise Refused(f"{path}: no weights of a kind that is known here ({len(given)} tensors, such as {first})")
    tensors, left_over = _rename(kind, given)
    for name, dims in (("logit_scale", None), ("classifier", 2)):
        value = tensors.get(name)
        if value is not None and (value.numel() != 1 if dims is None else value.ndim != dims):
            raise Refused(f"{path}: {name} is {tuple(value.shape)}")
    require_finite(tensors, path)
    return WeightsFile(str(path), kind, _space(kind, given), tensors, left_over, _projection(kind, given))


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it, or None; the device is waited for once."""
    floating = {name: value for name, value in tensors.items() if value.is_floating_point()}
    if not floating:
        return None
    finite = torch.stack([torch.isfinite(value).all() for value in floating.values()]).tolist()
    return next((name for name, sound in zip(floating, finite, strict=True) if not sound), None)


def require_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises Refused, naming the file and the first tensor, where a number is not finite: every answer would be NaN."""
    name = first_not_finite(tensors)
    if name is not None:
        raise Refused(f"{path}: {name} is not finite (NaN or infinity)")


def recognise(names: Iterable[str]) -> str:
    """The kind of a file by the names of its tensors, without `module.`; empty where none fits."""
    names = set(names)

    def some(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if some("image.visual."):
        return OURS
    if some("ppat."):
        return OPENSHAPE
    if some("point_encoder.encoder2trans.", "point_encoder.trans2embed."):
        return UNI3D
    if some("point_encoder."):
        if "visual.class_embedding" in names:
            return RELEASED
        return ULIP2 if some("open_clip_model.") else ULIP
    if some("transformer_q.") or {"reduce_dim.weight", "encoder.first_conv.0.weight"} <= names:
        return POINT_BERT
    if some("encoder.first_conv.", "first_conv."):
        return DVAE
    if "visual.cls_token" in names:
        return SLIP
    if some("visual."):
        return OPENAI if "input_resolution" in names else OPEN_CLIP
    return ""


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
        reason = f"names code ({code[1]}) that no weights need, and is not read" if code else "is damaged or no weights"
        words = "" if code else f" ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        raise Refused(f"{path} {reason}{words}") from error
    return _strip(_unwrap(loaded, str(path), who))


def _open(file: Path) -> Any:
    """What a file holds: safetensors, a zip of torch.save, a TorchScript archive, or torch's older format."""
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

    Such as one whose members are larger than its file (torch stores tensors as they are; only the text of code, which
    is never read, is packed); a tar (torch before 0.1.10); a pickle that is cut or names something very long, for which
    torch searches its own message in quadratic time.
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


def _rename(kind: str, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors under our names, and the names, as in the file, of the others."""
    naming = {OURS: _ours, OPENAI: _clip, OPEN_CLIP: _clip, RELEASED: _released, ULIP: _ulip, ULIP2: _ulip}
    naming |= {POINT_BERT: _point_bert, DVAE: _dvae}
    tensors, left_over = {}, []
    for name, value in given.items():
        our = naming[kind](name) if kind in naming else ""
        if our == "image.decoder.weight" and value.ndim == 4:  # a 1x1 convolution is a linear map
            value = value.flatten(1)
        if our:
            tensors[our] = value
        else:
            left_over.append(name)
    return tensors, tuple(left_over)


def _ours(name: str) -> str:
    return name


def _clip(name: str) -> str:
    if name.startswith("visual."):
        return f"image.{name}"
    if name in _SIZES_OF_CLIP:
        return ""
    return name if name == "logit_scale" else f"text.clip.{name}"


def _released(name: str) -> str:
    """method.md 4.5: the image projection and f^P lie at the top; the decoder is a 1x1 convolution in a Sequential."""
    renamed = {
        "image_projection": "image.visual.proj",
        "visual.mask_token_embedding": "image.mask_token",
        "visual.decoder.0.weight": "image.decoder.weight",
        "visual.decoder.0.bias": "image.decoder.bias",
        "visual.ln_patch.weight": "image.ln_patch.weight",
        "visual.ln_patch.bias": "image.ln_patch.bias",
        "classifier": "classifier",
    }
    if name in renamed:
        return renamed[name]
    return _ulip(name) or ("" if name.startswith("point_encoder.") else _clip(name))


def _ulip(name: str) -> str:
    """Only the point half: image and text tower are SLIP's (ULIP) or open_clip's (ULIP-2), and so is the scale."""
    if name == "pc_projection":
        return "points.projection"
    if name == "point_encoder.proj":
        return "points.own_projection"
    return _point_tower(name.removeprefix("point_encoder.")) if name.startswith("point_encoder.") else ""


def _point_bert(name: str) -> str:
    """Pre-trained (`transformer_q.`; its momentum copy, dVAE and heads are left over), fine-tuned or bare.

    Its lm_head tells which of 8,192 tokens of the dVAE was hidden; ours predicts the token itself.
    """
    inside = name.removeprefix("transformer_q.")
    if name == "pc_projection":
        return "points.projection"
    return "" if inside.startswith("lm_head.") else _point_tower(inside)


def _point_tower(name: str) -> str:
    """A name inside Point-BERT's transformer; its token and class heads are not ours."""
    if name.startswith("blocks.blocks."):
        return f"points.{name.removeprefix('blocks.')}"
    ours = ("encoder.", "reduce_dim.", "pos_embed.", "norm.", "cls_token", "cls_pos", "mask_token", "lm_head.")
    return f"points.{name}" if name.startswith(ours) else ""


def _dvae(name: str) -> str:
    """The mini-PointNet alone (`encoder.`)."""
    inside = name.removeprefix("encoder.")
    return f"points.encoder.{inside}" if inside.startswith(("first_conv.", "second_conv.")) else ""


def _projection(kind: str, given: dict[str, Tensor]) -> Tensor | None:
    names = {OURS: "image.visual.proj", OPENAI: "visual.proj", OPEN_CLIP: "visual.proj"}
    names |= {ULIP2: "open_clip_model.visual.proj"}
    return given.get(names.get(kind, "image_projection"))


def _space(kind: str, given: dict[str, Tensor]) -> str:
    """In words, to which image tower a file's features are aligned."""
    if kind == ULIP:
        return "SLIP's ViT-B/16" if "visual.cls_token" in given else "an image tower that the file does not hold"
    if kind in (POINT_BERT, DVAE):
        return "an image tower that the file does not hold" if "pc_projection" in given else "none"
    names = {
        ULIP2: "open_clip's ViT-bigG-14",
        SLIP: "SLIP's ViT-B/16",
        OPENSHAPE: "open_clip's ViT-bigG-14 or ViT-L-14",
        UNI3D: "open_clip's EVA02-E-14-plus",
    }
    return names.get(kind, "its own image tower")
