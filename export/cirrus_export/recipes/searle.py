"""Textual inversion: SEARLE (arXiv 2303.15247), Pic2Word (2302.03084) and LinCIR (2312.01998)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from cirrus_client.bundle import CaptionJoin
from cirrus_client.image.preprocess import Crop, Pad, PreprocessSpec
from cirrus_client.names import GraphName
from cirrus_export.backbones.backbone import Prompt, WordBackbone, require
from cirrus_export.backbones.family import Sizes
from cirrus_export.checkpoints import inversion as checkpoint
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph, token_ids, vector
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.inversion import PromptWithoutWord, PseudoWordQuery, Replaced
from cirrus_export.recipes.recipe import Options, Parts, narrowed
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.two_tower import TwoTowerRecipe


@register("searle")
class Searle(TwoTowerRecipe):
    """phi turns the reference image into a word; "a photo of $ that <text>" with that word is an ordinary CLIP text."""

    works_on = (WordBackbone,)
    text_queries = True
    caption_join = CaptionJoin.BOTH_ORDERS
    head_keys: ClassVar[tuple[str, ...]] = ("layers.0.", "layers.3.", "layers.6.")
    placeholder: ClassVar[str] = "$"
    replaced: ClassVar[Replaced] = Replaced.FIRST

    def __init__(self, parts: Parts, options: Options) -> None:
        self._words = require(parts.backbone, WordBackbone, self.name)
        super().__init__(parts, options)
        self.query_head = freeze(
            PseudoWordQuery(
                self.backbone,
                self.network(parts.head),
                placeholder_id=self.backbone.word_id(self.placeholder),
                replaced=self.replaced,
                normalise_input=self.normalise_input,
            )
        )
        before, after = self.prompt.template.removesuffix("{text}").split(self.placeholder)
        self.text_query_head = freeze(
            PromptWithoutWord(self.backbone, place=1 + len(before.split()), words=1 + len(after.split()))
        )

    @property
    def normalise_input(self) -> bool:
        """True if the network takes a normalised image embedding."""
        return False

    @property
    def backbone(self) -> WordBackbone:
        """The frozen CLIP."""
        return self._words

    @staticmethod
    def check(sizes: Sizes, head: StateDict | None, options: Options) -> None:
        """Raise CheckpointError if the head is of other widths than the backbone's embeddings and words."""
        if head is not None:
            checkpoint.check_phi(head, sizes.dim, sizes.word_width)

    def network(self, head: StateDict | None) -> nn.Module:
        """Return the network from image to word, with the checkpoint's weights."""
        return checkpoint.load_phi(head, self.dim, self.backbone.word_width)

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply `targetpad_transform(1.25, 224)`, the default of `src/validate.py`: RGB after the crop."""
        return narrowed(own, pad=Pad.TARGET, convert_rgb="after_crop")

    @property
    def prompt(self) -> Prompt:
        """Use the prompt of `src/validate.py`. Its queries always have a text; without one, ours ends at the word."""
        return Prompt(template="a photo of $ that {text}", null_text="a photo of $")

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return `encode_with_pseudo_tokens` of the released code, normalised."""
        query: Tensor = self.query_head(self.backbone.embed_image(pixels), token_ids)
        return query

    def text_query(self, token_ids: Tensor) -> Tensor:
        """Return the normalised embedding of the prompt without the image's word: "a photo of <text>"."""
        query: Tensor = self.text_query_head(token_ids)
        return query

    def text_query_graphs(self) -> list[Graph]:
        """Return the text tower over the prompt without the image's word."""
        return [
            Graph(
                "text_query_encoder",
                self.text_query_head,
                inputs=(token_ids(self.text_lengths),),
                outputs=(vector("query_embedding", self.dim),),
                text_lengths=self.text_lengths,
            )
        ]

    def query_graph(self) -> Graph:
        """Return inversion and the text tower in one graph."""
        return Graph(
            GraphName.QUERY_HEAD,
            self.query_head,
            inputs=(vector("image_embedding", self.dim), token_ids(self.text_lengths)),
            outputs=(vector("query_embedding", self.dim),),
            text_lengths=self.text_lengths,
        )


class LinCirOptions(Options):
    """normalise_input: the training flag `--l2_normalize`, which checkpoints don't record."""

    normalise_input: bool = False


@register("lincir")
class LinCir(Searle):
    """phi trained on text alone. Its code replaces every "$", a user's own included, and does not pad images."""

    replaced = Replaced.ALL
    options_type = LinCirOptions

    def __init__(self, parts: Parts, options: LinCirOptions) -> None:
        self._normalise_input = options.normalise_input
        super().__init__(parts, options)

    @property
    def normalise_input(self) -> bool:
        """True if the option of that name is set."""
        return self._normalise_input

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply Hugging Face's `CLIPImageProcessor`, which `build_text_encoder` makes: RGB first, crop rounded down."""
        return narrowed(own, convert_rgb="before_resize", crop=Crop.FLOOR)


@register("pic2word")
class Pic2Word(Searle):
    """The mapping network of Pic2Word, whose checkpoints carry the CLIP as well; "a photo of * , <text>"."""

    caption_join = CaptionJoin.SECOND_FIRST
    head_keys = ("state_dict_img2text.",)
    placeholder = "*"

    @staticmethod
    def read_head(path: Path) -> StateDict:
        """Read the file as `checkpoints.inversion.read_pic2word` does."""
        return checkpoint.read_pic2word(path)

    @staticmethod
    def checkpoint_backbone(head: StateDict) -> StateDict | None:
        """Return the CLIP that is saved beside the network."""
        return checkpoint.pic2word_backbone(head)

    @staticmethod
    def check(sizes: Sizes, head: StateDict | None, options: Options) -> None:
        """Raise CheckpointError if the head is of other widths than the backbone's embeddings and words."""
        if head is not None:
            checkpoint.check_im2text(head, sizes.dim, sizes.word_width)

    def network(self, head: StateDict | None) -> nn.Module:
        """Return `IM2TEXT` with the checkpoint's weights."""
        return checkpoint.load_im2text(head, self.dim, self.backbone.word_width)

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply `_transform` of `model/clip.py`: RGB after the crop, and no padding without `--target-pad`."""
        return narrowed(own, convert_rgb="after_crop")

    @property
    def prompt(self) -> Prompt:
        """Use the prompt of `src/data.py` for CIRR and FashionIQ; without a text, the one that training has."""
        return Prompt(template="a photo of * , {text}", null_text="a photo of *")
