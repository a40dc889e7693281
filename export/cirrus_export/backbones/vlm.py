"""A vision-language model as an encoder of images and texts: what every family of them has in common.

A checkpoint is the folder that transformers' `save_pretrained` writes, in one file of weights or in several, with the
`tokenizer.json` of its processor.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from cirrus_client.errors import CheckpointError, ExportError
from cirrus_client.names import GraphName
from cirrus_client.tokenizer import TextCleaning, TokenizerSpec
from cirrus_export.backbones.backbone import Backbone, Prompt
from cirrus_export.backbones.family import BackboneOptions, Family, Sizes, Weights, refuse_tokenizer
from cirrus_export.checkpoints.adapter import base_folder, merge_adapter
from cirrus_export.checkpoints.config_code import read_config, refuse_code
from cirrus_export.checkpoints.sentence_transformers import Prompts, model_folder, own_prompts
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.checkpoints.tokenizer_file import TOKENIZER, read_tokenizer
from cirrus_export.checkpoints.transformers_folder import load_model
from cirrus_export.graph import Graph, pixels, vectors
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.prompts import NO_TOKEN

CONTEXT_LENGTH = 128
"""Text tokens with the end of the prompt; an edit has about ten."""
_LARGEST_PX = 4096
_POOLING = "lasttoken"
"""Sentence-transformers' name of what is read."""


class VlmBackbone(Backbone):
    """Transformers' model for images of one size, and its tokenizer.

    wordings: names of how the published embedding models of the generation word their inputs. A space names the target
    message, but not that of the first one. tower: turns pixels into image tokens, as it is exported. axes: of the
    language model's rotary frequencies, see `LastToken`. own_prompts: those that the folder names.
    """

    offers = "a vision-language model"
    reads_padding = False  # causal, and padding comes last
    wordings: ClassVar[tuple[str, ...]]
    tower: nn.Module
    axes: Tensor

    def __init__(self, model: Any, tokenizer: Path) -> None:
        """tokenizer: the checkpoint's `tokenizer.json`."""
        super().__init__()
        self.model = model
        self._tokenizer_file = tokenizer
        self.tokenizer = read_tokenizer(tokenizer)
        self.own_prompts = Prompts()

    @property
    @abstractmethod
    def num_image_tokens(self) -> int:
        """Number N of image tokens that the language model reads."""

    @abstractmethod
    def positions(self, *, grid: bool) -> Tensor:
        """Return the positions of the image's tokens, int64 [3, N]. grid: False counts them like words."""

    @abstractmethod
    def original(
        self,
        before: tuple[int, ...],
        pixels: Tensor | None,
        behind: tuple[int, ...],
        token_ids: Tensor,
        *,
        grid_positions: bool,
    ) -> Tensor:
        """Return the last token's hidden state, [B, W], of transformers' own forward pass.

        before, behind: token ids around the image. pixels: float32 [B, 3, H, W], or None for texts alone. token_ids:
        what comes behind, int64 [B, T], padded with NO_TOKEN. grid_positions: False counts image tokens like words.
        """

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Return image tokens [B, N, W] of pixels float32 [B, 3, H, W], by transformers' own pass."""

    @property
    def language(self) -> Any:
        """The language model's bare stack."""
        return self.model.language_model

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """Return the token ids of a prompt in words, without special tokens around it.

        Raises ExportError if the image's token is among them.
        """
        if self.image_word in prompt:
            raise ExportError(f"prompt {prompt!r}: {self.image_word} stands for the image's tokens: leave it out")
        return tuple(self.tokenizer.encode(prompt, add_special_tokens=False).ids)

    @property
    def width(self) -> int:
        """Width W of the language model, and of an embedding."""
        return int(self.model.config.text_config.hidden_size)

    @property
    def image_token_width(self) -> int:
        """Width of an image token: the language model's, and what its first layers add to it."""
        return self.width

    def vision_graph(self) -> Graph:
        """Return the tower as a graph, from pixels to `image_tokens` [B, N, W'] of `image_token_width` values.

        The first W values are what the language model reads as words, the others what it adds behind its first layers.
        """
        return Graph(
            GraphName.VISION_ENCODER,
            self.tower,
            inputs=(pixels(self.image_size_px),),
            outputs=(vectors("image_tokens", self.num_image_tokens, self.image_token_width),),
        )

    @property
    def image_word(self) -> str:
        """The token in whose places image tokens are put, as the tokenizer spells it."""
        return str(self.tokenizer.id_to_token(self.model.config.image_token_id))

    @property
    def context_length(self) -> int:
        """Number of text tokens T, the prompt's end included."""
        return CONTEXT_LENGTH

    @property
    def seeing(self) -> str:
        """What decides how an image becomes tokens besides weights and pixels, in words. It is part of a space."""
        return ""

    @property
    def longest_message(self) -> int | None:
        """Number of tokens up to which every layer reads a whole message, None if there is no such limit."""
        return None

    def check_length(self, prompt: int) -> None:
        """Raise ExportError if a message with a prompt of so many tokens may be longer than the layers read."""
        longest, limit = prompt + self.num_image_tokens + self.context_length, self.longest_message
        if limit is not None and longest > limit:
            raise ExportError(
                f"a message may have {longest} tokens, and each layer of this model attends to the last {limit} alone "
                "(sliding_window of text_config in its config.json), which can't be exported: take a smaller image"
            )

    def write_tokenizer(self, root: Path, prompt: Prompt) -> TokenizerSpec:
        """See `Backbone.write_tokenizer`."""
        spec = prompt.spec(
            context_length=self.context_length, start_id=None, end_id=None, pad_id=NO_TOKEN, cleaning=TextCleaning.NONE
        )
        shutil.copyfile(self._tokenizer_file, root / spec.file)
        return spec


class VlmFamily(Family):
    """Checkpoint folders of one generation of models. name: of the backbone. model_type: in `config.json`.

    known_code: modules that a configuration may name, because a wording does what they do. They are never run.
    """

    backbone_type: ClassVar[type[VlmBackbone]]
    name: ClassVar[str]
    model_type: ClassVar[str]
    model_class: ClassVar[Any]
    known_code: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def check_folder(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Raise CheckpointError for a model that can't be exported, before its weights are read.

        config: the content of the folder's `config.json`.
        """

    @abstractmethod
    def build(self, model: Any, folder: Path, options: BackboneOptions) -> VlmBackbone:
        """Return the backbone of a frozen model. Raises CheckpointError, and ExportError for an option."""

    def read_model(self, folder: Path, what: str) -> Any:
        """Return the model without its head for words. Raises CheckpointError as `load_model` does."""
        return load_model(self.model_class, folder, what=what)

    def names(self) -> Sequence[str]:
        """Return the one name; the sizes are in the folder."""
        return (self.name,)

    def kind_named(self, name: str) -> str:
        """Return the one kind that there is."""
        return f"a {self.backbone_type.label}'s folder"

    def kind_of(self, state: StateDict) -> None:
        """Return None: a file of weights alone says too little of such a model."""

    def sizes(self, name: str) -> Sizes:
        """Return the wordings; all widths are in the folder."""
        return Sizes(wordings=self.backbone_type.wordings)

    def load(self, name: str | None, weights: Weights, tokenizer: Path | None) -> VlmBackbone:
        """See `Family.load`."""
        refuse_tokenizer(name, tokenizer)
        what = f"a {self.backbone_type.label}"
        if weights.folder is None:
            raise CheckpointError(f"--backbone {self.name}: {what}'s checkpoint is a folder: --pretrained FOLDER")
        given = model_folder(weights.folder, pooling=_POOLING)
        folder = model_folder(base_folder(given), pooling=_POOLING)
        path = folder / "config.json"
        config = read_config(path, self.model_type, what=what)
        refuse_code(config, path, known=self.known_code)
        self.check_folder(folder, config)
        if not (folder / TOKENIZER).is_file():
            raise CheckpointError(f"checkpoint {folder}: {TOKENIZER} is missing; the model's processor saves it")
        model = self.read_model(folder, what)
        if folder != given:
            model = merge_adapter(model, given)
        backbone = self.build(freeze(model), folder, weights.options)
        backbone.own_prompts = own_prompts(weights.folder)
        number = model.config.image_token_id
        if backbone.tokenizer.id_to_token(number) is None:
            field = "image_token_index" if "image_token_index" in config else "image_token_id"
            raise CheckpointError(f"checkpoint {path}: {field} is {number}, and {TOKENIZER} has no token of this id")
        return backbone


def check_largest(said: str, size_px: int) -> None:
    """Raise ExportError if a square is larger than `PreprocessSpec` takes. said: the option and its value."""
    if size_px > _LARGEST_PX:
        raise ExportError(f"{said}: must be at most {_LARGEST_PX}")
