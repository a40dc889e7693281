"""A Qwen-VL as an encoder of images and texts: what Qwen2-VL, Qwen2.5-VL and Qwen3-VL have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from cirrus_client.errors import CheckpointError, ExportError
from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_export.backbones.family import BackboneOptions
from cirrus_export.backbones.vlm import VlmBackbone, VlmFamily, check_largest
from cirrus_export.checkpoints.image_settings import image_settings
from cirrus_export.checkpoints.rotation import check_rotation
from cirrus_export.checkpoints.tokenizer_file import TOKENIZER
from cirrus_export.heads.last_token import line_positions
from cirrus_export.heads.prompts import NO_TOKEN
from cirrus_export.heads.qwen_vl import VisionTower, grid_positions, patches

_IMAGE_SIZE_PX = 448
_STEPS: dict[str, object] = {
    "resample": Image.Resampling.BICUBIC.value,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
Levels = tuple[float, float, float]


class QwenVlBackbone(VlmBackbone):
    """Transformers' model for images of one size, and its tokenizer."""

    tower: VisionTower
    tower_type: ClassVar[type[VisionTower]]
    mean: ClassVar[Levels]
    std: ClassVar[Levels]

    def __init__(self, model: Any, tokenizer: Path, image_size_px: int) -> None:
        """tokenizer: the checkpoint's `tokenizer.json`. image_size_px: a multiple of patch size times merge size."""
        super().__init__(model, tokenizer)
        self.tower = self.tower_type(model.visual, image_size_px)
        self.axes = self.axes_of(model.language_model.rotary_emb)
        self._image_size_px = image_size_px

    @staticmethod
    @abstractmethod
    def axes_of(rotary: Any) -> Tensor:
        """Return the axis of each frequency of the language model's rotation, see `LastToken`."""

    @property
    def preprocess(self) -> PreprocessSpec:
        """A square. The published processor keeps an image's proportions."""
        return PreprocessSpec(size_px=self._image_size_px, pad=Pad.STRETCH, mean=self.mean, std=self.std)

    @property
    def grid(self) -> int:
        """Side G of the grid of image tokens."""
        return self._image_size_px // self.token_side_px

    @property
    def token_side_px(self) -> int:
        """Side of the square of pixels that becomes one image token."""
        return _token_side_px(self.model)

    def count_tokens(self, given: tuple[int, int]) -> int:
        """Return the number of tokens of an image of a height and a width, multiples of an image token's side."""
        height, width = given
        return height * width // self.token_side_px**2

    @property
    def num_image_tokens(self) -> int:
        """See `VlmBackbone.num_image_tokens`."""
        return self.grid**2

    def positions(self, *, grid: bool) -> Tensor:
        """See `VlmBackbone.positions`."""
        return grid_positions(self.grid) if grid else line_positions(self.num_image_tokens)

    @property
    def image_token_width(self) -> int:
        """Width of an image token: the language model's, once for its input and once for each deepstack layer."""
        return self.width * (1 + len(self.tower.deepstack()))

    @property
    def vision(self) -> nn.Module:
        """The vision tower."""
        visual: nn.Module = self.model.visual
        return visual

    def forward(self, pixels: Tensor) -> Tensor:
        """See `VlmBackbone.forward`. What deepstack adds to them is not among them."""
        return torch.stack(list(self.model.get_image_features(**self._of_images(pixels)).pooler_output))

    def original(
        self,
        before: tuple[int, ...],
        pixels: Tensor | None,
        behind: tuple[int, ...],
        token_ids: Tensor,
        *,
        grid_positions: bool,
    ) -> Tensor:
        """See `VlmBackbone.original`. pixels: of any multiples of an image token's side."""
        config, batch = self.model.config, token_ids.shape[0]
        rows, columns = (0, 0) if pixels is None else (side // self.token_side_px for side in pixels.shape[2:])
        image = (config.image_token_id,) * (rows * columns)
        prompt = torch.tensor((*before, *image, *behind), dtype=torch.int64)
        ids = torch.cat([prompt.expand(batch, -1), token_ids], dim=1)
        mask = ids != NO_TOKEN
        ids = ids.clamp(min=0)
        positions = None if grid_positions else torch.arange(ids.shape[1]).expand(3, batch, -1)
        of_images = {} if pixels is None else self._of_images(pixels)
        hidden = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions,
            mm_token_type_ids=(ids == config.image_token_id).int() if pixels is not None else torch.zeros_like(ids),
            use_cache=False,
            **of_images,
        ).last_hidden_state
        last = mask.long().cumsum(dim=1).argmax(dim=1)
        found: Tensor = hidden[torch.arange(batch), last]
        return found

    def _of_images(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return transformers' arguments of images; an image is its own second frame."""
        vision = self.model.config.vision_config
        values, (height, width) = patches(pixels, vision), (side // int(vision.patch_size) for side in pixels.shape[2:])
        twice = values[:, :, :, None].expand(-1, -1, -1, int(vision.temporal_patch_size), -1, -1)
        return {
            "pixel_values": twice.flatten(2).flatten(0, 1),
            "image_grid_thw": torch.tensor([[1, height, width]]).expand(len(pixels), -1),
        }


class QwenVlFamily(VlmFamily):
    """Checkpoint folders of one generation of Qwen-VL."""

    options = frozenset({"image_size_px"})
    backbone_type: ClassVar[type[QwenVlBackbone]]

    def check_folder(self, folder: Path, config: Mapping[str, Any]) -> None:
        """See `VlmFamily.check_folder`."""
        _check_settings(folder, self.backbone_type)

    def build(self, model: Any, folder: Path, options: BackboneOptions) -> QwenVlBackbone:
        """See `VlmFamily.build`."""
        _check_layers(model, folder)
        size_px = options.image_size_px or _IMAGE_SIZE_PX
        check_size(f"--option image_size_px={size_px}", size_px, _token_side_px(model))
        return self.backbone_type(model, folder / TOKENIZER, size_px)


def _check_settings(folder: Path, backbone: type[QwenVlBackbone]) -> None:
    """Refuse a model whose processor makes pixels of an image in another way than its generation's does."""
    found = image_settings(folder)
    if found is None:
        return
    file, settings = found
    for name, own in (_STEPS | {"image_mean": list(backbone.mean), "image_std": list(backbone.std)}).items():
        said = settings.get(name)
        if said is not None and not _same(said, own):
            raise CheckpointError(f"checkpoint {file}: {name} is {said}, and a {backbone.label}'s is {own}")


def _same(said: object, own: object) -> bool:
    if isinstance(said, list) and isinstance(own, list):
        return len(said) == len(own) and all(map(_same, said, own))
    return isinstance(said, int | float) and isinstance(own, int | float) and abs(said - own) < 1e-6


def _check_layers(model: Any, folder: Path) -> None:
    if "sliding_attention" in (getattr(model.config.text_config, "layer_types", None) or ()):
        raise CheckpointError(f"checkpoint {folder}: has layers with a sliding window, which can't be exported")
    check_rotation(model.config.text_config, folder)


def _token_side_px(model: Any) -> int:
    vision = model.config.vision_config
    return int(vision.patch_size) * int(vision.spatial_merge_size)


def check_size(said: str, size_px: int, token_side_px: int) -> None:
    """Raise ExportError unless a square can be cut into image tokens. said: the option and its value."""
    check_largest(said, size_px)
    if size_px % token_side_px:
        raise ExportError(f"{said}: must be a multiple of {token_side_px}, the side of an image token")
