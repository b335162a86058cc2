"""Where public weights are had: `python -m training weights --where`.

Places are those that the projects' own pages name. A size stands where a public page states it, or follows from the
shapes of the tensors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from training.weights.tensor_names import DVAE, OPENAI, OPENSHAPE, OTHER_TOWERS, POINT_BERT, ULIP, ULIP2, UNI3D

_ULIP = "https://storage.cloud.google.com/sfr-ulip-code-release-research"  # needs a Google account


@dataclass(frozen=True)
class PublicFile:
    """One public file. kind: as `weights FILE` names it. project: owner/name on GitHub, whose page says more.

    size: of the file, empty where nobody states it. space: to which image tower its features are aligned. use: the
    keys that take it; empty where it fits no tower of ours, and `reason` says why.
    """

    name: str
    kind: str
    project: str
    where: str
    size: str
    space: str
    fills: tuple[str, ...]
    use: str
    reason: str = ""


FILES = (
    PublicFile(
        "OpenAI CLIP ViT-B/16",
        OPENAI,
        "openai/CLIP",
        "the tag openai of open_clip, or "
        "https://openaipublic.azureedge.net/clip/models/"
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
        "334 MB",
        "its own image tower",
        ("image", "text"),
        "init.image=openai or =FILE, image.model=ViT-B-16-quickgelu",
    ),
    PublicFile(
        "ULIP Point-BERT, 8,192 points",
        ULIP,
        "salesforce/ULIP",
        f"{_ULIP}/pretrained_models/ckpt_zero-sho_classification/checkpoint_pointbert.pt",
        "690 MB of weights, and what training kept beside them",
        "SLIP's ViT-B/16",
        ("points",),
        "init.points=FILE init.other_space=drop (or keep), points.groups=512",
    ),
    PublicFile(
        "ULIP-2 Point-BERT, 8,192 points",
        ULIP2,
        "salesforce/ULIP",
        f"{_ULIP}/pretrained_models/ckpt_zero-sho_classification/pointbert_ULIP-2.pt",
        "",
        "open_clip's ViT-bigG-14",
        ("points",),
        "init.points=FILE init.other_space=drop (or keep), points.groups=512",
    ),
    PublicFile(
        "ULIP-2 Point-BERT, 10,000 coloured points",
        ULIP2,
        "salesforce/ULIP",
        f"{_ULIP}/ULIP-2/models/ULIP-2-PointBERT-10k-colored-pc-pretrained.pt",
        "",
        "open_clip's ViT-bigG-14",
        (),
        "",
        "its tokenizer reads colours, ours places alone",
    ),
    PublicFile(
        "Point-BERT, pre-trained on ShapeNet",
        POINT_BERT,
        "Julie-tang00/Point-BERT",
        "a link on the project's page",
        "",
        "none",
        ("points",),
        "init.points=FILE (the projection stays random)",
    ),
    PublicFile(
        "Point-BERT's dVAE",
        DVAE,
        "Julie-tang00/Point-BERT",
        "a link on the project's page",
        "",
        "none",
        ("points",),
        "init.points=FILE (the tokenizer alone)",
    ),
    PublicFile(
        "OpenShape Point-BERT, ViT-bigG-14",
        OPENSHAPE,
        "Colin97/OpenShape_code",
        "hf-hub:OpenShape/openshape-pointbert-vitg14-rgb/model.pt",
        "",
        "open_clip's ViT-bigG-14",
        (),
        "",
        OTHER_TOWERS[OPENSHAPE],
    ),
    PublicFile(
        "Uni3D, tiny to giant",
        UNI3D,
        "baaivision/Uni3D",
        "hf-hub:BAAI/Uni3D/modelzoo/uni3d-{ti,s,b,l,g}/model.pt",
        "12.8 MB (ti)",
        "open_clip's EVA02-E-14-plus",
        (),
        "",
        OTHER_TOWERS[UNI3D],
    ),
)


def as_json() -> list[dict[str, Any]]:
    """All files, for `--json`."""
    return [asdict(file) for file in FILES]


def in_words() -> list[str]:
    """The same for a person, a few lines each."""
    lines = []
    for file in FILES:
        size = file.size or "size not stated there"
        lines += [f"{file.name} ({size}), github.com/{file.project}", f"  {file.where}"]
        fills = f"{' and '.join(file.fills)} tower: {file.use}" if file.fills else f"not usable here: {file.reason}"
        lines += [f"  embedding space: {file.space}", f"  {fills}"]
    return lines
