"""Textual inversion: SEARLE (arXiv 2303.15247), Pic2Word (2302.03084) and LinCIR (2312.01998)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from cirrus_client.bundle import CaptionJoin
from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.checkpoints import inversion as checkpoint
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph, token_ids, vector
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.inversion import PseudoWordQuery, Replaced
from cirrus_export.recipes.recipe import Options, Parts, register
from cirrus_export.recipes.two_tower import TwoTowerRecipe, backbone_of


@register("searle")
class Searle(TwoTowerRecipe):
    """phi turns the reference image into a word; "a photo of $ that <text>" with that word is an ordinary CLIP text."""

    caption_join = CaptionJoin.BOTH_ORDERS
    placeholder: ClassVar[str] = "$"
    replaced: ClassVar[Replaced] = Replaced.FIRST

    def __init__(self, parts: Parts, options: Options) -> None:
        super().__init__(parts, options)
        self._clip = backbone_of(self, parts, (OpenClipBackbone,))
        self.query_head = freeze(
            PseudoWordQuery(
                self._clip,
                self.network(parts.head),
                placeholder_id=SimpleTokenizer().encode(self.placeholder)[0],
                replaced=self.replaced,
                normalise_input=self.normalise_input,
            )
        )

    @property
    def normalise_input(self) -> bool:
        """Whether the network takes a normalised image embedding."""
        return False

    @property
    def word_width(self) -> int:
        """Width of a word embedding of the text tower."""
        return int(self._clip.clip.token_embedding.embedding_dim)

    def network(self, head: StateDict | None) -> nn.Module:
        """Return the network from image to word, with the checkpoint's weights."""
        return checkpoint.load_phi(head, self.dim, self.word_width)

    @staticmethod
    def preprocess(image_size_px: int) -> PreprocessSpec:
        """`targetpad_transform(1.25, 224)`, the default of `src/validate.py`."""
        return PreprocessSpec(size_px=image_size_px, pad=Pad.TARGET, convert_rgb="after_crop")

    @property
    def prompt(self) -> Prompt:
        """The prompt of `src/validate.py`; without a text, the one that phi was trained with."""
        return Prompt(template="a photo of $ that {text}", null_text="a photo of $")

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """`encode_with_pseudo_tokens`, normalised."""
        query: Tensor = self.query_head(self.backbone.encode_image(pixels)[0], token_ids)
        return query

    def query_graph(self) -> Graph:
        """Inversion and the text tower in one graph."""
        return Graph(
            "query_head",
            self.query_head,
            inputs=(vector("image_embedding", self.dim), token_ids(self.backbone.context_length)),
            outputs=(vector("query_embedding", self.dim),),
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
        """The option of that name."""
        return self._normalise_input

    @staticmethod
    def preprocess(image_size_px: int) -> PreprocessSpec:
        """CLIP's own, the default of `validate.py`."""
        return PreprocessSpec(size_px=image_size_px, convert_rgb="after_crop")


@register("pic2word")
class Pic2Word(Searle):
    """The mapping network of Pic2Word, whose checkpoints carry the CLIP as well; "a photo of * , <text>"."""

    caption_join = CaptionJoin.SECOND_FIRST
    placeholder = "*"

    @staticmethod
    def read_head(path: Path) -> StateDict:
        """See `checkpoints.inversion.read_pic2word`."""
        return checkpoint.read_pic2word(path)

    @staticmethod
    def checkpoint_backbone(head: StateDict) -> StateDict | None:
        """The CLIP is saved beside the network."""
        return checkpoint.pic2word_backbone(head)

    def network(self, head: StateDict | None) -> nn.Module:
        """Return `IM2TEXT` with the checkpoint's weights."""
        return checkpoint.load_im2text(head, self.dim, self.word_width)

    @staticmethod
    def preprocess(image_size_px: int) -> PreprocessSpec:
        """CLIP's own."""
        return PreprocessSpec(size_px=image_size_px, convert_rgb="after_crop")

    @property
    def prompt(self) -> Prompt:
        """The prompt of `src/eval_utils.py` for CIRR and FashionIQ."""
        return Prompt(template="a photo of * , {text}", null_text="a photo of *")
