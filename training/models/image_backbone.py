"""What the model asks of an image tower, whatever its network: features of pictures, and patch tokens if it has any.

Shape letters: B pictures, S side of a picture, L patches, D token width, W width of a tower's own feature, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

SPACES = (  # the matrix that makes the embedding space, by its name in a tower: one of open_clip's, or a ResNet's
    *("visual.proj", "visual.trunk.head.weight", "visual.trunk.attn_pool.mlp.fc2.weight", "visual.head.proj.weight"),
    *("visual.head.mlp.fc2.weight", "visual.trunk.head.fc.weight", "visual.attnpool.c_proj.weight", "projection"),
)
_BLOCKS = ("transformer.resblocks", "trunk.blocks", "trunk.stages", "trunk.layers")
_STAGES = ("layer1", "layer2", "layer3", "layer4")  # of a ResNet


@dataclass(frozen=True)
class ImageTokens:
    """Output of a pass: feature (B, E), not normalised; patches (B, L, D), before any last norm; cls (B, W), the
    tower's own feature, before its projection. A tower without tokens has L = 0.
    """

    feature: Tensor
    patches: Tensor
    cls: Tensor


class ImageBackbone(nn.Module):
    """An image tower. A subclass has `visual`, the network, and `represent`.

    What stands here is a tower without tokens. One whose patches can be masked has all of it anew, as ImageTower does.
    image_size, patch: sides in pixels; a tower without tokens takes the picture as one patch. without_tokens: why no
    patch can be masked; empty where patches can.
    """

    visual: Any
    image_size: int
    patch: int
    without_tokens: str = "a convolutional network has no patch tokens to be masked"

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch

    @property
    def space(self) -> Tensor:
        """The matrix that makes the embedding space, by which two towers' spaces are compared."""
        return self._space()[1].detach()

    @property
    def embed_dim(self) -> int:
        """E."""
        name, matrix = self._space()
        return matrix.shape[0 if name.endswith(".weight") else 1]

    @property
    def represented(self) -> int:
        """W, of a tower without tokens."""
        name, matrix = self._space()
        return matrix.shape[1 if name.endswith(".weight") else 0]

    def _space(self) -> tuple[str, nn.Parameter]:
        held = dict(self.named_parameters())
        return next((name, held[name]) for name in SPACES if name in held)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks, or the stages of a network that has stages, first to last."""
        inside = dict(self.visual.named_modules())
        listed = next((inside[name] for name in _BLOCKS if name in inside), None)
        return list(listed.children()) if listed is not None else [inside[name] for name in _STAGES]

    def represent(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The tower's own features (B, W) of pictures (B, 3, S, S) and, not rounded, their projections (B, E)."""
        raise NotImplementedError

    def forward(self, pictures: Tensor, mask: Tensor | None = None) -> ImageTokens:
        """pictures (B, 3, S, S), normalised; nothing of them is hidden, whatever the mask."""
        own, feature = self.represent(pictures)
        return ImageTokens(feature, own.new_zeros(len(own), 0, 1), own)

    def project_tokens(self, patches: Tensor) -> Tensor:
        """f^I of patches (B, L, D) -> (B, L, E)."""
        return patches.expand(-1, -1, self.embed_dim)

    def reconstruct(self, patches: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) predicted from patches; without patches they have no pixel."""
        return patches.new_zeros(len(patches), 3, 0, 0)

    def checkpoint_blocks(self) -> None:
        """From now on backward computes each block again; a frozen ResNet, which has no backward, stays as it is."""
        if hasattr(self.visual, "set_grad_checkpointing"):
            self.visual.set_grad_checkpointing(True)

    def compile_inside(self) -> None:
        """Compiles the slow parts in place; the names of weights do not change."""
        for block in self.blocks:
            block.compile()


def through(blocks: list[nn.Module], x: Tensor) -> Tensor:
    """The output of modules one after the other."""
    for block in blocks:
        x = block(x)
    return x
