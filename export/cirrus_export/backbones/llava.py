"""A LLaVA as an encoder of images and texts: LLaVA-1.5, LLaVA-NeXT and the embedding models that are trained from it.

E5-V (arXiv 2407.12580) and VLM2Vec-LLaVa-Next (arXiv 2410.05160) are LLaVA-NeXTs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cirrus_client.errors import CheckpointError
from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_client.tokenizer import TokenizerSpec
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.family import BackboneOptions
from cirrus_export.backbones.llava_config import check_config, check_resolutions, spec_of_view
from cirrus_export.backbones.vlm import VlmBackbone, VlmFamily, check_largest
from cirrus_export.checkpoints.tokenizer_file import TOKENIZER
from cirrus_export.checkpoints.transformers_folder import load_model
from cirrus_export.heads.last_token import line_positions
from cirrus_export.heads.llava import LlavaTower, Size, Tiling, Whole, WholeAndTiles, best_side_px, packing, tiling_of
from cirrus_export.heads.prompts import NO_TOKEN

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaNextConfig, LlavaNextForConditionalGeneration


class LlavaBackbone(VlmBackbone):
    """LLaVA-1.5, which sees an image once. Its image tokens are counted like words."""

    tower: LlavaTower
    label = "LLaVA"
    wordings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any, tokenizer: Path, spec: PreprocessSpec) -> None:
        """tokenizer: the checkpoint's `tokenizer.json`."""
        super().__init__(model, tokenizer)
        self._spec = spec
        self.tower = self._tower()
        self.axes = torch.zeros_like(model.language_model.rotary_emb.inv_freq, dtype=torch.int64)
        self._num_image_tokens = self._count()

    @property
    def preprocess(self) -> PreprocessSpec:
        """The published processor's."""
        return self._spec

    @property
    def num_image_tokens(self) -> int:
        """See `VlmBackbone.num_image_tokens`."""
        return self._num_image_tokens

    @property
    def vision(self) -> nn.Module:
        """The vision tower and the projector."""
        return nn.ModuleDict({"vision": self.model.vision_tower, "projector": self.model.multi_modal_projector})

    @property
    def longest_message(self) -> int | None:
        """See `VlmBackbone.longest_message`: a Mistral's window."""
        text = self.model.config.text_config
        return text.sliding_window if text.model_type == "mistral" else None

    @property
    def seeing(self) -> str:
        """See `VlmBackbone.seeing`."""
        return f", layers {self.tower.layers} of the vision tower from token {self.tower.first}"

    def positions(self, *, grid: bool) -> Tensor:
        """Return the positions of the image's tokens, int64 [3, N]: those of words, whatever a wording says."""
        return line_positions(self.num_image_tokens)

    def original(
        self,
        before: tuple[int, ...],
        pixels: Tensor | None,
        behind: tuple[int, ...],
        token_ids: Tensor,
        *,
        grid_positions: bool,
    ) -> Tensor:
        """See `VlmBackbone.original`.

        An image's tokens are put between the words here and not by the model, since E5-V's image token has no word
        embedding.
        """
        batch, language = token_ids.shape[0], self.language
        words = [torch.tensor(ids, dtype=torch.int64).expand(batch, -1) for ids in (before, behind)]
        first, *rest = (language.embed_tokens(ids.clamp(min=0)) for ids in (*words, token_ids))
        image = first[:, :0] if pixels is None else self(pixels)
        sequence = torch.cat([first, image, *rest], dim=1)
        mask = torch.cat([torch.ones(batch, sequence.shape[1] - token_ids.shape[1]), token_ids != NO_TOKEN], dim=1)
        read = language(inputs_embeds=sequence, attention_mask=mask.long(), use_cache=False).last_hidden_state
        found: Tensor = read[torch.arange(batch), mask.cumsum(dim=1).argmax(dim=1)]
        return found

    def write_tokenizer(self, root: Path, prompt: Prompt) -> TokenizerSpec:
        """See `Backbone.write_tokenizer`. The image's token is special, so that its spelling in a text is text."""
        spec = super().write_tokenizer(root, prompt)
        content = json.loads((root / spec.file).read_bytes())
        for token in content["added_tokens"]:
            if token["content"] == self.image_word and not token["special"]:
                token["special"] = True  # `tokenizer.add_tokens("<image>")`, as E5-V's was added
                (root / spec.file).write_text(json.dumps(content))
        return spec

    def forward(self, pixels: Tensor) -> Tensor:
        """See `VlmBackbone.forward`."""
        return torch.stack(list(self.model.get_image_features(pixel_values=pixels).pooler_output))

    def _tower(self) -> LlavaTower:
        return LlavaTower(self.model, Whole())

    def _count(self) -> int:
        vision = self.model.config.vision_config
        return (int(vision.image_size) // int(vision.patch_size)) ** 2 + 1 - self.tower.first


class LlavaNextBackbone(LlavaBackbone):
    """LLaVA-NeXT, which sees an image whole and in tiles."""

    label = "LLaVA-NeXT"
    wordings = ("e5-v", "vlm2vec")

    @property
    def seeing(self) -> str:
        """See `VlmBackbone.seeing`."""
        tiling = self._tiling(self._square)
        return f"{super().seeing}, whole and in tiles of {tiling.tile_px} px of {tiling.resolution}"

    def forward(self, pixels: Tensor) -> Tensor:
        """See `VlmBackbone.forward`. pixels: of any size, as published."""
        given = (int(pixels.shape[2]), int(pixels.shape[3]))
        views = self.tower.views if given == self._square else self._views(given)
        sizes = torch.tensor([given] * len(pixels))
        return torch.stack(self.model.get_image_features(pixel_values=views(pixels), image_sizes=sizes).pooler_output)

    def count_tokens(self, given: Size) -> int:
        """Return the number of tokens of an image of a height and a width."""
        return len(packing(self.model, given, self._tiling(given).views))

    @property
    def _square(self) -> Size:
        return self._spec.size_px, self._spec.size_px

    def _tower(self) -> LlavaTower:
        views = self._views(self._square)
        return LlavaTower(self.model, views, packing(self.model, self._square, views.count))

    def _views(self, given: Size) -> WholeAndTiles:
        return WholeAndTiles(self._spec, self._tiling(given))

    def _tiling(self, given: Size) -> Tiling:
        config = self.model.config
        return tiling_of(given, config.image_grid_pinpoints, int(config.vision_config.image_size))

    def _count(self) -> int:
        assert self.tower.order is not None
        return len(self.tower.order)


class LlavaFamily(VlmFamily):
    """Checkpoint folders of LLaVA-1.5."""

    backbone_type: ClassVar[type[LlavaBackbone]] = LlavaBackbone
    name = "llava"
    model_type = "llava"
    model_class: ClassVar[Any] = LlavaForConditionalGeneration
    config_class: ClassVar[Any] = LlavaConfig

    def check_folder(self, folder: Path, config: Mapping[str, Any]) -> None:
        """See `VlmFamily.check_folder`."""
        path = folder / "config.json"
        try:
            parsed = self.config_class.from_dict(dict(config))
        except Exception as error:  # transformers raises whatever a value leads to
            raise CheckpointError(f"checkpoint {path}: can't be read: {error}") from error
        check_config(parsed, path)
        self.spec(folder, parsed, BackboneOptions())

    def read_model(self, folder: Path, what: str) -> Any:
        """See `VlmFamily.read_model`. transformers finds the names of its fourth release in the whole model alone."""
        return load_model(self.model_class, folder, what=what, spare=frozenset({"lm_head.weight"})).model

    def spec(self, folder: Path, config: Any, options: BackboneOptions) -> PreprocessSpec:
        """Return how the published processor prepares an image. Raises CheckpointError if Cirrus can't do it so."""
        return spec_of_view(folder, config)

    def build(self, model: Any, folder: Path, options: BackboneOptions) -> LlavaBackbone:
        """See `VlmFamily.build`."""
        return self.backbone_type(model, folder / TOKENIZER, self.spec(folder, model.config, options))


class LlavaNextFamily(LlavaFamily):
    """Checkpoint folders of LLaVA-NeXT."""

    options = frozenset({"image_size_px"})
    backbone_type = LlavaNextBackbone
    name = "llava-next"
    model_type = "llava_next"
    model_class = LlavaNextForConditionalGeneration
    config_class = LlavaNextConfig

    def spec(self, folder: Path, config: Any, options: BackboneOptions) -> PreprocessSpec:
        """Return a square, of the size that no tile is resized from unless an option says otherwise."""
        spec = spec_of_view(folder, config)
        resolutions = check_resolutions(folder, config)
        side_px = options.image_size_px or best_side_px(resolutions)
        check_largest(f"--option image_size_px={side_px}", side_px)
        return spec.model_copy(update={"size_px": side_px, "pad": Pad.STRETCH})
