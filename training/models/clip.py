"""Image and text tower on open_clip: mask tokens, a linear pixel decoder, a convolutional stem. Home of open_clip.

Shape letters: B pictures, S side of one, L patches, D token width, W width of a tower's own feature, E embedding, p
patch size.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.model import resize_pos_embed
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from manifests.errors import Refused, one_line
from manifests.picture_mapping import NORMALIZE, Statistics
from training.models.hub import cached, require_answer
from training.models.image_backbone import ImageBackbone, ImageTokens, through
from training.models.resnet import ResNetTower
from training.networks.precision import project, widened
from training.settings.fit_recipe import FitRecipe
from training.settings.model import CLIP, ImageSettings

SMALL_CONFIG = Path(__file__).parent / "cross_most_small.json"


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
    file = _file_of(settings.model, tag, key) if tag else ""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)  # open_clip also logs what it raises, and warns of random weights
    try:
        return open_clip.create_model(
            settings.model,
            pretrained=file or tag or None,
            precision="fp32",
            force_image_size=settings.image_size or None,
            weights_only=True,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise Refused(f"{key}={tag}: no usable weights ({one_line(error, 200)})") from error
    finally:
        root.setLevel(level)


def _file_of(model: str, tag: str, key: str) -> str:
    """A tag's file in a cache, or an empty text where open_clip finds or fetches it. Raises Refused where it cannot."""
    about, found = open_clip.get_pretrained_cfg(model, tag), _cached_file(model, tag)
    if found is None:
        require_answer(f"{key}={tag}", "" if about.get("hf_hub") else about["url"])
    return str(found) if found and (about.get("file") or about.get("hf_hub")) else ""  # it compares its own checksum


def _cached_file(model: str, tag: str) -> Path | None:
    """The file of a tag, where this machine has it."""
    about = open_clip.get_pretrained_cfg(model, tag)
    if about.get("hf_hub"):
        repository, _, name = about["hf_hub"].rpartition("/")
        return cached(repository, [name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME])
    found = Path(about.get("file") or Path.home() / ".cache/clip" / Path(about["url"]).name)
    return found if found.is_file() else None


def is_tag(model: str, name: str) -> bool:
    """Whether open_clip knows the weights `name` of a model."""
    return bool(name and open_clip.get_pretrained_cfg(model, name))


def is_cached(model: str, tag: str) -> bool:
    """Whether the weights of a tag are on this machine already."""
    return _cached_file(model, tag) is not None


def pixel_statistics(recipe: FitRecipe) -> Statistics | None:
    """The mean and deviation of the pictures that the tower's weights were trained with; None for the view preset's.

    They are those of the open_clip tag that the weights came from. Those of files and runs are taken for what all tags
    of the model agree on (a SigLIP's), or for CLIP's. Those of torchvision's ResNets are ImageNet's.
    """
    image = recipe.image
    if image.normalize == "preset":
        return None
    if image.backbone != CLIP:
        return NORMALIZE["imagenet"]
    tags = [tag for tag in (image.pretrained, recipe.init.image) if is_tag(image.model, tag)]
    mean, deviation = NORMALIZE["clip"]
    known = tags[-1:] or open_clip.list_pretrained_tags_by_model(image.model)
    about = [open_clip.get_pretrained_cfg(image.model, tag) for tag in known]
    found = {(tuple(each.get("mean", mean)), tuple(each.get("std", deviation))) for each in about}
    return found.pop() if len(found) == 1 else (mean, deviation)


def refuse_gelu(model: str, what: str) -> None:
    """Weights made for QuickGELU load without complaint under GELU, and give other features. Raises Refused."""
    if not (open_clip.get_model_config(model) or {}).get("quick_gelu"):
        raise Refused(f"{what} needs QuickGELU: image.model={model}-quickgelu")


def resize_positions(positions: Tensor, rows: int) -> Tensor:
    """Position embeddings (1 + L, D) resized to `rows` = 1 + L' of other pictures, bicubic (open_clip)."""
    state = {"visual.positional_embedding": positions}
    if round((len(positions) - 1) ** 0.5) ** 2 == len(positions) - 1:
        visual = SimpleNamespace(grid_size=round((rows - 1) ** 0.5))
        resize_pos_embed(state, SimpleNamespace(visual=visual))
    return state["visual.positional_embedding"]


class ImageTower(ImageBackbone):
    """A CLIP vision transformer, open_clip's own or timm's, that can be shown masked pictures and reconstruct them."""

    without_tokens = ""

    def __init__(self, visual: Any, stem: Literal["patch", "conv"] = "patch") -> None:
        super().__init__()
        self.visual = visual
        self.stem = stem
        trunk = getattr(visual, "trunk", None)
        width = visual.class_embedding.shape[0] if trunk is None else trunk.embed_dim
        size = visual if trunk is None else trunk.patch_embed
        self.patch = int(size.patch_size[0])
        self.image_size = int(visual.image_size[0] if trunk is None else size.img_size[0])
        if stem == "conv" and trunk is not None:
            raise Refused("image.stem=conv needs a tower of open_clip's own, not of timm")
        if stem == "conv":
            visual.conv1 = conv_stem(width, self.patch)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.ln_patch = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, 3 * self.patch**2)

    def forward(self, pictures: Tensor, mask: Tensor | None = None) -> ImageTokens:
        """pictures (B, 3, S, S), normalised; mask (B, S/p, S/p), true for hidden patches.

        Masked patch embeddings become the mask token before class token and positions are added (MUST).
        """
        if mask is not None and self.stem == "conv":
            pictures = pictures * (1 - pixel_mask(mask, self.patch).to(pictures.dtype))[:, None]
        if hasattr(self.visual, "trunk"):
            return self._through_timm(pictures, mask)
        x = _through_blocks(self.visual, self._hidden(_embedded(self.visual, pictures), mask))
        own = self.visual.ln_post(x[:, 0])
        return ImageTokens(project(own, self.visual.proj), x[:, 1:], own)

    def _hidden(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Patch embeddings (B, L, D) with mask tokens in the places of the hidden ones."""
        if mask is None:
            return x
        return torch.lerp(x, self.mask_token.expand_as(x), mask.flatten(1).to(x.dtype)[..., None])

    def _through_timm(self, pictures: Tensor, mask: Tensor | None) -> ImageTokens:
        """The same in a tower of timm; its patches come out after its last norm."""
        trunk = self.visual.trunk
        hide = trunk.patch_embed.register_forward_hook(lambda module, given, x: self._hidden(widened(x), mask))
        try:
            x = trunk.forward_features(pictures)
        finally:
            hide.remove()
        own, feature = _read_out(self.visual, x)
        return ImageTokens(feature, x[:, trunk.num_prefix_tokens :], own)

    def project_tokens(self, patches: Tensor) -> Tensor:
        """f^I of patches (B, L, D) -> (B, L, E); in a tower of timm the readout of a one-token sequence."""
        if hasattr(self.visual, "trunk"):
            one_token = self.ln_patch(patches).flatten(0, 1)[:, None]
            return _read_out(self.visual, one_token)[1].unflatten(0, patches.shape[:2])
        return self.ln_patch(patches) @ self.visual.proj

    def reconstruct(self, patches: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) predicted from patches, one linear map a patch (MUST)."""
        pixels = self.decoder(self.ln_patch(patches)).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return nn.functional.pixel_shuffle(pixels, self.patch)

    def compile_inside(self) -> None:
        """Compiles the blocks in place, those of open_clip's own transformer as one."""
        if hasattr(self.visual, "trunk"):
            super().compile_inside()
        else:
            self.visual.transformer.compile()


class PooledTower(ImageBackbone):
    """A tower of open_clip whose patches cannot be masked: a ResNet, ConvNeXt, Swin, MobileCLIP, CoCa and others."""

    def __init__(self, visual: Any, without_tokens: str) -> None:
        super().__init__()
        self.visual, self.without_tokens = visual, without_tokens
        embed = getattr(getattr(visual, "trunk", None), "patch_embed", None)
        size = getattr(embed, "img_size", None) or visual.image_size
        self.image_size = self.patch = int(size if isinstance(size, int) else size[0])

    def represent(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """As open_clip; the own feature of CLIP's ResNets, whose readout is attention, is the mean of the last map."""
        visual = self.visual
        if hasattr(visual, "trunk"):
            return _read_out(visual, visual.trunk.forward_features(pictures))
        if hasattr(visual, "attnpool"):
            x = widened(through(self.blocks, visual.stem(pictures)))
            with torch.autocast(x.device.type, enabled=False):
                return x.mean(dim=(2, 3)), visual.attnpool(x)
        own, _ = visual._pool(_through_blocks(visual, _embedded(visual, pictures)))
        return own, project(own, visual.proj)


def _embedded(visual: Any, pictures: Tensor) -> Tensor:
    """Patch embeddings (B, L, D) of a transformer of open_clip's own, without positions."""
    return widened(visual.conv1(pictures)).flatten(2).transpose(1, 2)


def _through_blocks(visual: Any, x: Tensor) -> Tensor:
    """Tokens (B, 1 + L, D), the class token first, that such a transformer makes of patch embeddings (B, L, D)."""
    cls = visual.class_embedding.expand(len(x), 1, -1)
    return visual.transformer(visual.ln_pre(torch.cat([cls, x], dim=1) + visual.positional_embedding))


def _read_out(visual: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Own feature (B, W) and feature (B, E), not rounded, of what the trunk of a tower of timm gives."""
    with torch.autocast(x.device.type, enabled=False):
        own = visual.trunk.forward_head(widened(x), pre_logits=True)
        return own, visual.head(visual.trunk.get_classifier()(own))


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
        captions = self.captions(class_names, prompts).to(next(self.clip.parameters()).device)
        return torch.stack([self.average(tokens) for tokens in captions], dim=1)


def average_prompts(embeddings: Tensor) -> Tensor:
    """(P, E) prompt embeddings -> unit (E,): normalised, averaged, normalised again."""
    return normalize(normalize(embeddings, dim=1).mean(dim=0), dim=0)


def build_towers(settings: ImageSettings) -> tuple[ImageBackbone, TextTower, float]:
    """Image tower, text tower and the initial logit_scale (a logarithm) of one CLIP model. Raises Refused."""
    clip = create_clip(settings)
    scale = float(clip.logit_scale.detach())
    tower = _image_tower(settings, clip.visual)
    clip.visual = None
    if hasattr(clip, "text_decoder"):
        clip.text_decoder = None  # CoCa's, which writes captions
    return tower, TextTower(clip.eval(), _tokenizer(settings.model)), scale


def _image_tower(settings: ImageSettings, visual: Any) -> ImageBackbone:
    """The image tower of the settings, with its CLIP's own network or in its place. Raises Refused."""
    if settings.backbone != CLIP:
        about = open_clip.get_model_config(settings.model) or {}
        size = settings.image_size or about["vision_cfg"]["image_size"]
        return ResNetTower(settings.backbone, about["embed_dim"], size)
    reason, about = unfit(visual), getattr(getattr(visual, "trunk", None), "pretrained_cfg", {})
    if reason and settings.stem == "conv":
        raise Refused(f"image.stem=conv: image.model={settings.model}: {reason}")
    wrong, takes = False, ""
    if about.get("fixed_input_size"):
        wrong, takes = settings.image_size not in (0, about["input_size"][-1]), f"{about['input_size'][-1]} alone"
    elif not hasattr(visual, "transformer"):
        wrong, takes = settings.image_size % 32 != 0, "multiples of 32"
    if wrong:
        raise Refused(f"image.image_size={settings.image_size}: image.model={settings.model} takes {takes}")
    return PooledTower(visual, reason) if reason else ImageTower(visual, settings.stem)


def unfit(visual: nn.Module) -> str:
    """Why an image tower has no tokens that a mask can hide, one a patch; an empty text where it has."""
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        if not (isinstance(trunk, VisionTransformer | Eva) and type(trunk.patch_embed) is PatchEmbed):
            return f"its {type(trunk).__name__} has no tokens that come from one patch each, to be masked"
        side, patch = trunk.patch_embed.img_size[0], trunk.patch_embed.patch_size[0]
        return f"pictures of {side} pixels are no whole patches of {patch}" if side % patch else ""
    if not hasattr(visual, "class_embedding"):
        return "a convolutional network has no patch tokens to be masked"
    plain = visual.attn_pool is None and visual.pool_type == "tok"
    return "" if plain else "it is no plain vision transformer read out at its class token"


def _tokenizer(model: str) -> Any:
    """A model's tokenizer. Raises Refused where it is another project's and cannot be had."""
    name = (open_clip.get_model_config(model) or {})["text_cfg"].get("hf_tokenizer_name")
    if name and cached(name, ["tokenizer.json", "tokenizer_config.json"]) is None:
        require_answer(f"image.model={model}: its tokenizer {name}")
    try:
        return open_clip.get_tokenizer(model)
    except Exception as error:  # of the library that reads it, which may be missing
        raise Refused(f"image.model={model}: its tokenizer {name} needs `pip install transformers`") from error
