"""Image and text tower on open_clip: mask tokens, a linear pixel decoder, a convolutional stem. Home of open_clip.

Shape letters: B pictures, L patches, D token width, E embedding, p patch size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.model import resize_pos_embed
from torch import Tensor, nn
from torch.nn.functional import normalize

from manifests.errors import Refused, one_line
from manifests.picture_mapping import NORMALIZE, Statistics
from training.models.precision import project, widened
from training.settings.fit_recipe import FitRecipe
from training.settings.model import ImageSettings

SMALL_CONFIG = Path(__file__).parent / "cross_most_small.json"


@dataclass(frozen=True)
class ImageTokens:
    """Output of a pass: feature (B, E), not normalised, and patches (B, L, D), before any last norm."""

    feature: Tensor
    patches: Tensor


def create_clip(settings: ImageSettings, key: str = "image.pretrained") -> open_clip.CLIP:
    """The CLIP model of the settings, with its weights where `pretrained` is a tag; random weights without one.

    key: where the tag was given, for messages. Raises Refused when the name or the tag is unknown, or the weights are
    unreachable or made for QuickGELU only.
    """
    if settings.model == SMALL_CONFIG.stem:
        open_clip.add_model_config(SMALL_CONFIG)
    if settings.model not in open_clip.list_models():
        raise Refused(f"image.model={settings.model}: open_clip has no such model (open_clip.list_models() names them)")
    tag = settings.pretrained
    if tag and not is_tag(settings.model, tag):
        raise Refused(f"{key}={tag}: no open_clip tag of image.model={settings.model}")
    if tag == "openai" or (tag and open_clip.get_pretrained_cfg(settings.model, tag).get("quick_gelu")):
        refuse_gelu(settings.model, f"{key}={tag}")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)  # open_clip also logs what it raises, and warns of random weights
    try:
        return open_clip.create_model(
            settings.model,
            pretrained=tag or None,
            precision="fp32",
            force_image_size=settings.image_size or None,
            weights_only=True,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise Refused(f"{key}={tag}: no usable weights ({one_line(error, 200)})") from error
    finally:
        root.setLevel(level)


def is_tag(model: str, name: str) -> bool:
    """Whether open_clip knows the weights `name` of a model."""
    return bool(name and open_clip.get_pretrained_cfg(model, name))


def is_cached(model: str, tag: str) -> bool:
    """Whether the weights of a tag are on this machine already, where open_clip looks first."""
    about = open_clip.get_pretrained_cfg(model, tag)
    if "file" in about:
        return Path(about["file"]).is_file()
    if not about.get("hf_hub"):
        return (Path.home() / ".cache/clip" / about.get("url", "").rpartition("/")[2]).is_file()
    repository, _, name = about["hf_hub"].rpartition("/")
    names = [name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    return any(isinstance(try_to_load_from_cache(repository, each), str) for each in names)


def pixel_statistics(recipe: FitRecipe) -> Statistics | None:
    """The mean and deviation of the pictures that the tower's weights were trained with; None for the view preset's.

    They are those of the open_clip tag that the weights came from; files and runs are taken for CLIP's.
    """
    image = recipe.image
    if image.normalize == "preset":
        return None
    tags = [tag for tag in (image.pretrained, recipe.init.image) if is_tag(image.model, tag)]
    about = open_clip.get_pretrained_cfg(image.model, tags[-1]) if tags else {}
    mean, deviation = NORMALIZE["clip"]
    return tuple(about.get("mean", mean)), tuple(about.get("std", deviation))


def refuse_gelu(model: str, what: str) -> None:
    """Weights made for QuickGELU load without complaint under GELU, and give other features. Raises Refused."""
    if not (open_clip.get_model_config(model) or {}).get("quick_gelu"):
        raise Refused(f"{what} needs QuickGELU: image.model={model}-quickgelu")


def resize_positions(positions: Tensor, visual: Any) -> Tensor:
    """Position embeddings (1 + L, D) resized to those of a transformer of other pictures, bicubic (open_clip)."""
    state = {"visual.positional_embedding": positions}
    if round((len(positions) - 1) ** 0.5) ** 2 == len(positions) - 1:
        resize_pos_embed(state, SimpleNamespace(visual=visual))
    return state["visual.positional_embedding"]


class ImageTower(nn.Module):
    """A CLIP vision transformer that can be shown masked pictures and can reconstruct them."""

    def __init__(self, visual: Any, stem: Literal["patch", "conv"] = "patch") -> None:
        super().__init__()
        self.visual = visual
        self.stem = stem
        width = visual.class_embedding.shape[0]
        self.patch = int(visual.patch_size[0])
        self.image_size = int(visual.image_size[0])
        self.grid = self.image_size // self.patch
        if stem == "conv":
            visual.conv1 = conv_stem(width, self.patch)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.ln_patch = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, 3 * self.patch**2)

    @property
    def embed_dim(self) -> int:
        """E."""
        return self.visual.proj.shape[1]

    def forward(self, pictures: Tensor, mask: Tensor | None = None) -> ImageTokens:
        """pictures (B, 3, S, S), normalised; mask (B, S/p, S/p), true for hidden patches.

        Masked patch embeddings become the mask token before class token and positions are added (MUST).
        """
        if mask is not None and self.stem == "conv":
            pictures = pictures * (1 - pixel_mask(mask, self.patch).to(pictures.dtype))[:, None]
        x = widened(self.visual.conv1(pictures)).flatten(2).transpose(1, 2)
        if mask is not None:
            x = torch.lerp(x, self.mask_token.expand_as(x), mask.flatten(1).to(x.dtype)[..., None])
        cls = self.visual.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([cls, x], dim=1) + self.visual.positional_embedding
        x = self.visual.transformer(self.visual.ln_pre(x))
        feature = project(self.visual.ln_post(x[:, 0]), self.visual.proj)
        return ImageTokens(feature, x[:, 1:])

    def project_tokens(self, patches: Tensor) -> Tensor:
        """f^I of patches (B, L, D) -> (B, L, E)."""
        return self.ln_patch(patches) @ self.visual.proj

    def reconstruct(self, patches: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) predicted from patches, one linear map a patch (MUST)."""
        pixels = self.decoder(self.ln_patch(patches)).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return nn.functional.pixel_shuffle(pixels, self.patch)


def conv_stem(width: int, patch: int) -> nn.Sequential:
    """Stride-2 3x3 convolutions down to one token a patch, group norm and GELU between them.

    Raises Refused unless the patch is a power of two.
    """
    steps = patch.bit_length() - 1
    if 2**steps != patch or steps < 1:
        raise Refused(f"image.stem=conv needs a patch size that is a power of two, not {patch}")
    widths = [3, *(max(width // 2 ** (steps - 1 - i), 8) for i in range(steps))]
    layers: list[nn.Module] = []
    for i in range(steps):
        last = i == steps - 1
        layers.append(nn.Conv2d(widths[i], width if last else widths[i + 1], 3, stride=2, padding=1))
        if not last:
            layers += [nn.GroupNorm(1, widths[i + 1]), nn.GELU()]
    return nn.Sequential(*layers)


def pixel_mask(mask: Tensor, patch: int) -> Tensor:
    """A patch mask (B, g, g) at pixel resolution (B, g p, g p)."""
    return mask.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)


class TextTower(nn.Module):
    """The text half of a CLIP model and its tokenizer."""

    def __init__(self, clip: open_clip.CLIP, tokenizer: Any) -> None:
        super().__init__()
        self.clip = clip
        self._tokenizer = tokenizer

    def tokens(self, texts: list[str]) -> Tensor:
        """int64 (P, L): the tokens of texts as they stand."""
        return self._tokenizer(texts)

    def captions(self, class_names: tuple[str, ...], prompts: tuple[str, ...]) -> Tensor:
        """int64 (C, P, L): the tokens of every class name in every prompt; a prompt's `{}` is the name's place."""
        return torch.stack([self.tokens([prompt.format(name) for prompt in prompts]) for name in class_names])

    def encode(self, tokens: Tensor) -> Tensor:
        """Embeddings (P, E), not normalised, of tokens (P, L)."""
        return self.clip.encode_text(tokens)

    @torch.no_grad()
    def average(self, tokens: Tensor) -> Tensor:
        """The classifier's column (E,) of one class: its prompts (P, L) encoded and averaged."""
        return average_prompts(self.encode(tokens))

    def classifier(self, class_names: tuple[str, ...], prompts: tuple[str, ...]) -> Tensor:
        """(E, C): for each class the prompts' unit embeddings averaged and made unit again."""
        return torch.stack([self.average(tokens) for tokens in self.captions(class_names, prompts)], dim=1)


def average_prompts(embeddings: Tensor) -> Tensor:
    """(P, E) prompt embeddings -> unit (E,): normalised, averaged, normalised again."""
    return normalize(normalize(embeddings, dim=1).mean(dim=0), dim=0)


def build_towers(settings: ImageSettings) -> tuple[ImageTower, TextTower, float]:
    """Image tower, text tower and the initial logit_scale (a logarithm) of one CLIP model. Raises Refused."""
    clip = create_clip(settings)
    visual, scale = clip.visual, float(clip.logit_scale.detach())
    plain = hasattr(visual, "class_embedding") and visual.attn_pool is None and visual.pool_type == "tok"
    if not plain:
        raise Refused(
            f"image.model={settings.model} is no plain vision transformer read out at its class token: choose another, "
            "such as ViT-B-16-quickgelu"
        )
    tower = ImageTower(visual, settings.stem)
    clip.visual = None
    return tower, TextTower(clip.eval(), open_clip.get_tokenizer(settings.model)), scale
