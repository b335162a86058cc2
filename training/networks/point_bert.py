"""The point tower: Point-BERT with mask tokens. Source: method of Point-BERT and ULIP (sizes as released, by key).

Shape letters: B clouds, N points, G groups, S points a group, D token width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.networks.global_batch_norm import GlobalBatchNorm1d
from training.networks.neighbours import farther, farthest_points
from training.networks.point_backbone import PointBackbone, PointTokens, new_projection
from training.networks.precision import project, widened
from training.settings.model import PointSettings

LARGEST_DISTANCES = 2**26  # of centres to points, 256 MB in float32; 512 groups of 512 clouds would take 8.6 GB


def group_points(
    points: Tensor, groups: int, size: int, step: Callable[..., tuple[Tensor, Tensor]] = farther
) -> tuple[Tensor, Tensor]:
    """Centres (B, G, 3) and neighbourhoods (B, G, S, 3) around them, centred; neighbours sorted by distance.

    Distances are computed for some clouds at a time, at most LARGEST_DISTANCES. Raises ValueError when a cloud has
    fewer points than there are groups, or than a group has.
    """
    if points.shape[1] < max(groups, size):
        raise ValueError(f"{points.shape[1]} points for {groups} groups of {size}")
    rows = torch.arange(len(points), device=points.device)[:, None]
    centres = points[rows, farthest_points(points, groups, step)]
    together = max(1, LARGEST_DISTANCES // (groups * points.shape[1]))
    nearest = torch.cat(
        [
            torch.cdist(some_centres, some_points).topk(size, dim=2, largest=False).indices
            for some_centres, some_points in zip(centres.split(together), points.split(together), strict=True)
        ]
    )
    neighbours = points[rows[..., None], nearest]
    return centres, neighbours - centres[:, :, None]


def block_mask(centres: Tensor, draw: Tensor, low: float = 0.3, high: float = 0.4) -> Tensor:
    """float (B, G), 1 for the int(ratio G) centres nearest to one centre.

    draw: uniform (B, 2); the first picks that centre, the second the ratio. Source: Point-BERT block masking, ratio
    U(0.3, 0.4).
    """
    count = centres.shape[1]
    start = (draw[:, 0] * count).long().clamp(max=count - 1)
    middle = centres[torch.arange(len(centres), device=centres.device), start]
    rank = (centres - middle[:, None]).pow(2).sum(dim=2).argsort(dim=1).argsort(dim=1)
    masked = ((low + (high - low) * draw[:, 1]) * count).long()
    return (rank < masked[:, None]).to(centres.dtype)


class MiniPointNet(nn.Module):
    """A group of points -> one token (Point-BERT's tokenizer encoder)."""

    def __init__(self, width: int, inner: tuple[int, int, int] = (128, 256, 512)) -> None:
        super().__init__()
        a, b, c = inner
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, a, 1), GlobalBatchNorm1d(a), nn.ReLU(inplace=True), nn.Conv1d(a, b, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(2 * b, c, 1), GlobalBatchNorm1d(c), nn.ReLU(inplace=True), nn.Conv1d(c, width, 1)
        )

    def forward(self, neighbourhoods: Tensor) -> Tensor:
        """(B, G, S, 3) -> (B, G, width)."""
        b, g, s, _ = neighbourhoods.shape
        local = self.first_conv(neighbourhoods.reshape(b * g, s, 3).transpose(1, 2))
        whole = local.max(dim=2, keepdim=True).values.expand(-1, -1, s)
        return self.second_conv(torch.cat([whole, local], dim=1)).max(dim=2).values.reshape(b, g, -1)


class PointTower(PointBackbone):
    """Point-BERT: group tokens, position added before every block, readout [CLS; max over tokens] -> projection f^P."""

    def __init__(self, settings: PointSettings, embed_dim: int) -> None:
        super().__init__()
        s = settings
        self.settings = s
        self.farther = farther
        self.encoder = MiniPointNet(s.tokenizer_width, s.tokenizer_widths)
        self.reduce_dim = nn.Linear(s.tokenizer_width, s.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, s.width))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, s.width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, s.width))
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, s.width))
        self.drops = torch.linspace(0, s.drop_path, s.depth).tolist()
        blocks = [Block(s.width, s.heads, 4.0, qkv_bias=False, drop_path=drop) for drop in self.drops]
        self.blocks = nn.ModuleList(blocks)
        for block in blocks:
            block.norm1.eps = block.norm2.eps = 1e-5  # type: ignore[assignment]  # timm has no types for them
        self.norm = nn.LayerNorm(s.width)
        self.lm_head = nn.Linear(s.width, s.width)
        self.projection = new_projection(2 * s.width, embed_dim)
        self.own_projection = nn.Parameter(torch.randn(s.width, embed_dim) * s.width**-0.5)
        for token in (self.cls_token, self.cls_pos, self.mask_token):
            trunc_normal_(token, std=0.02)
        self.apply(_initialise)
        if s.freeze_tokenizer:
            self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> PointTower:
        """Training mode; the batch norms of a frozen tokenizer stay in eval mode."""
        super().train(mode)
        if self.settings.freeze_tokenizer:
            self.encoder.eval()
        return self

    def forward(self, points: Tensor, mask_draw: Tensor | None = None) -> PointTokens:
        """points (B, N, 3) -> tokens; mask_draw (B, 2) uniforms mask a block of groups."""
        return self.encode(*self.tokenize(points), mask_draw)

    def tokenize(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Centres (B, G, 3) and tokens (B, G, D) of clouds (B, N, 3), for a masked and an unmasked pass."""
        centres, neighbours = group_points(points, self.settings.groups, self.settings.group_size, self.farther)
        return centres, widened(self.reduce_dim(self.encoder(neighbours)))

    def drawn_paths(self, tokens: Tensor) -> Tensor | None:
        """(B, depth, 2): the factors of drop path that a pass over tokens (B, G, D) would draw, in the same order.

        None where no path is dropped. With them a batch can be encoded in parts.
        """
        if not (self.training and self.settings.drop_path):
            return None
        factors = tokens.new_ones(len(self.blocks), 2, len(tokens))
        for block, drop in zip(factors, self.drops, strict=True):
            for path in block if drop else ():
                path.bernoulli_(1 - drop).div_(1 - drop)
        return factors.permute(2, 0, 1)

    def encode(
        self, centres: Tensor, original: Tensor, mask_draw: Tensor | None = None, paths: Tensor | None = None
    ) -> PointTokens:
        """The transformer's pass over the tokens of `tokenize`. paths: of `drawn_paths`, or None to draw them."""
        if mask_draw is None:
            mask = torch.zeros(centres.shape[:2], dtype=original.dtype, device=original.device)
            tokens = original
        else:
            mask = block_mask(centres, mask_draw.to(centres.dtype)).to(original.dtype)
            tokens = torch.lerp(original, self.mask_token.expand_as(original), mask[..., None])
        position = torch.cat([self.cls_pos.expand(len(original), -1, -1), self.pos_embed(centres)], dim=1)
        x = torch.cat([self.cls_token.expand(len(original), -1, -1), tokens], dim=1)
        for number, block in enumerate(self.blocks):
            inside = (block, x + position, None if paths is None else paths[:, number, :, None, None])
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(_through, *inside, use_reentrant=False)
            else:
                x = _through(*inside)
        x = self.norm(x)
        cls, tokens = x[:, 0], x[:, 1:]
        feature = project(torch.cat([cls, tokens.max(dim=1).values], dim=1), self.projection)
        return PointTokens(feature, tokens, cls, original, mask)

    def readout(self, found: PointTokens) -> Tensor:
        """(B, 2 D): CLS beside the largest of each dimension over the tokens."""
        return torch.cat([found.cls, found.tokens.max(dim=1).values], dim=1)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """f^P of single tokens (B, G, D) -> (B, G, E): the readout of a one-token sequence, [y; y] (paper)."""
        return torch.cat([tokens, tokens], dim=2) @ self.projection

    def reconstruct(self, tokens: Tensor) -> Tensor:
        """Predicts the input tokens (B, G, D) from the output tokens."""
        return self.lm_head(tokens)

    def compile_inside(self) -> None:
        """Compiles tokenizer, blocks and a step of farthest-point sampling, which has as many steps as groups."""
        self.farther = torch.compile(self.farther)
        self.encoder.compile()
        self.encode = torch.compile(self.encode)  # type: ignore[method-assign]  # it hides the method


def _through(block: nn.Module, x: Tensor, paths: Tensor | None) -> Tensor:
    """A block's pass over x (B, G + 1, D). paths: factors (B, 2, 1, 1) of its two drop paths, or None to draw them."""
    if paths is None:
        return block(x)
    attention, mlp = paths.unbind(dim=1)
    assert isinstance(block, Block)
    out = block.attn(block.norm1(x))
    x = x + out * attention.to(out.dtype)
    out = block.mlp(block.norm2(x))
    return x + out * mlp.to(out.dtype)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv1d)):
        trunc_normal_(module.weight, std=0.02 if isinstance(module, nn.Linear) else (1 / module.in_channels) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
