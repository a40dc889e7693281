"""A LLaVA's vision tower for images of one size, with every tile and place a constant.

LLaVA (arXiv 2310.03744) sees an image once. LLaVA-NeXT sees it whole and in tiles of a resolution that it picks by the
image's size (anyres; transformers, `image_processing_llava_next.py` and `modeling_llava_next.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cirrus_client.image.preprocess import Interpolation, PreprocessSpec

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension

_FILTERS = {Interpolation.BICUBIC: Image.Resampling.BICUBIC, Interpolation.BILINEAR: Image.Resampling.BILINEAR}
_WHITE = 255
Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class Tiling:
    """How an image is seen in tiles. fitted: its size before it is padded to `resolution`. tile_px: of a tile."""

    given: Size
    fitted: Size
    resolution: Size
    tile_px: int

    @property
    def views(self) -> int:
        """Number of views: the whole image and its tiles."""
        rows, columns = (length // self.tile_px for length in self.resolution)
        return 1 + rows * columns


def tiling_of(given: Size, resolutions: Sequence[Sequence[int]], tile_px: int) -> Tiling:
    """Return how transformers' LlavaNextImageProcessor sees an image. resolutions: heights and widths."""
    resolution = select_best_resolution(given, [tuple(size) for size in resolutions])
    image = np.broadcast_to(np.uint8(0), (3, *given))
    height, width = get_patch_output_size(image, resolution, ChannelDimension.FIRST)
    return Tiling(given, (int(height), int(width)), (int(resolution[0]), int(resolution[1])), tile_px)


def best_side_px(resolutions: Sequence[Sequence[int]]) -> int:
    """Return the side of the largest square image that is not resized to be seen in tiles."""
    largest = max(side for size in resolutions for side in size)
    return min(select_best_resolution((largest, largest), [tuple(size) for size in resolutions]))


class Whole(nn.Module):
    """The image as one view."""

    count = 1

    def forward(self, pixels: Tensor) -> Tensor:
        """Return views [B, 1, 3, S, S] of pixels float32 [B, 3, S, S]."""
        return pixels[:, None]


class WholeAndTiles(nn.Module):
    """The image in a tile's size, then its tiles in rows.

    Both are resized from the image to 256 levels, as Pillow does: first each row, then each column.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: PreprocessSpec, tiling: Tiling) -> None:
        """spec: how the image that is given was normalised."""
        super().__init__()
        given, tile_px, fitted = tiling.given, tiling.tile_px, tiling.fitted
        self.tile_px = tile_px
        self.count = tiling.views
        self.whole = _Resize(given, (tile_px, tile_px), spec.interpolation)
        self.fitted = None if fitted == given else _Resize(given, fitted, spec.interpolation)
        self.margins = [
            half
            for wanted, length in zip(reversed(tiling.resolution), reversed(fitted), strict=True)
            for half in (math.floor((wanted - length) / 2), math.ceil((wanted - length) / 2))
        ]
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return views [B, 1 + R * C, 3, P, P] of pixels float32 [B, 3, H, W]."""
        levels = ((pixels * self.std + self.mean) * _WHITE).round()
        whole = self._normalised(self.whole(levels))
        tiled = pixels
        if self.fitted is not None or any(self.margins):
            fitted = levels if self.fitted is None else self.fitted(levels)
            tiled = self._normalised(F.pad(fitted, self.margins))
        cut = tiled.unflatten(3, (-1, self.tile_px)).unflatten(2, (-1, self.tile_px))
        return torch.cat([whole[:, None], cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)], dim=1)

    def _normalised(self, levels: Tensor) -> Tensor:
        return (levels / _WHITE - self.mean) / self.std


class _Resize(nn.Module):
    """Pillow's resize of levels [B, 3, H, W] to another size."""

    across: Tensor
    down: Tensor

    def __init__(self, given: Size, wanted: Size, interpolation: Interpolation) -> None:
        super().__init__()
        down, across = (_weights(*lengths, interpolation) for lengths in zip(given, wanted, strict=True))
        self.register_buffer("across", across.T.contiguous(), persistent=False)
        self.register_buffer("down", down, persistent=False)

    def forward(self, levels: Tensor) -> Tensor:
        return _to_levels(self.down @ _to_levels(levels @ self.across))


def _weights(given: int, wanted: int, interpolation: Interpolation) -> Tensor:
    """Return the weight of each given value in each wanted one, float32 [wanted, given], as Pillow resizes them."""
    one_each = Image.fromarray(np.eye(given, dtype=np.float32))
    return torch.from_numpy(np.array(one_each.resize((given, wanted), _FILTERS[interpolation])))


def _to_levels(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, _WHITE)


class LlavaTower(nn.Module):
    """Pixels to the tokens that the language model reads."""

    order: Tensor | None

    def __init__(self, model: Any, views: Whole | WholeAndTiles, order: Tensor | None = None) -> None:
        """Keep what of the model sees. model: transformers' LlavaModel or LlavaNextModel, with a CLIP.

        order: of the tokens of all views, int64 [N]; a number behind theirs is the new line's. None leaves them as they
        are.
        """
        super().__init__()
        self.views = views
        self.vision: Any = model.vision_tower
        self.projector = model.multi_modal_projector
        self.new_line = None if order is None else model.image_newline
        chosen, states = model.config.vision_feature_layer, len(self.vision.encoder.layers) + 1
        self.layers = [layer % states for layer in ([chosen] if isinstance(chosen, int) else chosen)]
        self.first = 1 if model.config.vision_feature_select_strategy == "default" else 0
        self.register_buffer("order", order, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return image_tokens [B, N, W] of pixels float32 [B, 3, S, S]."""
        states = [self.vision.pre_layrnorm(self.vision.embeddings(self.views(pixels).flatten(0, 1)))]
        for layer in self.vision.encoder.layers[: max(self.layers)]:
            states.append(layer(states[-1], attention_mask=None))
        chosen = torch.cat([states[layer] for layer in self.layers], dim=-1)[:, self.first :]
        tokens: Tensor = self.projector(chosen).unflatten(0, (-1, self.views.count)).flatten(1, 2)
        if self.order is None or self.new_line is None:
            return tokens
        new_line = self.new_line.expand(tokens.shape[0], 1, -1)
        return torch.cat([tokens, new_line], dim=1).index_select(1, self.order)


def packing(model: Any, given: Size, views: int) -> Tensor:
    """Return the order of a LlavaNextModel's tokens of an image, see `LlavaTower`: its own, made of numbers."""
    vision = model.config.vision_config
    per_view = (int(vision.image_size) // int(vision.patch_size)) ** 2
    numbers = torch.arange(views * per_view).view(views, per_view, 1)
    (order,), _ = model.pack_image_features(
        [numbers],
        [list(given)],
        vision_feature_select_strategy="default",
        image_newline=torch.tensor([views * per_view]),
    )
    return order.flatten()
