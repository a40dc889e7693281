"""SPRC: sentence-level prompts from BLIP-2's Q-Former (arXiv 2310.05473), and what shares its form."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from cirrus_client.bundle import Similarity
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_client.names import EnsembleName, GraphName
from cirrus_client.tokenizer import TextCleaning
from cirrus_export.backbones.backbone import Prompt, require
from cirrus_export.backbones.blip2 import Blip2Backbone
from cirrus_export.backbones.family import Sizes
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.checkpoints import sprc as checkpoint
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph, pixels, token_ids, vector, vectors
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.qformer import QFormer, QFormerSize
from cirrus_export.recipes.recipe import Options, Parts, Recipe, narrowed
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.wiring import ensemble


@register("sprc")
class Sprc(Recipe):
    """A query makes its own prompt in a first pass and reads it with the text in a second; a target is 32 vectors.

    Of a plain CLIP the vision tower is taken, its last layer norm as `ln_vision`.
    """

    works_on = (Blip2Backbone, OpenClipBackbone)
    similarity = Similarity.MAX_COSINE
    head_keys = ("Qformer.bert.", "query_tokens", "vision_proj.", "text_proj.")

    def __init__(self, parts: Parts, options: Options) -> None:
        super().__init__(parts, options)
        backbone = parts.backbone
        if isinstance(backbone, OpenClipBackbone):
            backbone = Blip2Backbone(backbone.clip.visual, backbone.preprocess, backbone.activation)
        self._backbone = require(backbone, Blip2Backbone, self.name)
        size = (
            QFormerSize(self.backbone.width) if parts.head is None else checkpoint.size(parts.head, self.backbone.width)
        )
        self.qformer = QFormer(size)
        if parts.head is not None:
            checkpoint.load(parts.head, self.qformer)
        freeze(self.qformer)
        second = self.qformer if parts.head is None else checkpoint.load_second_pass(parts.head, self.qformer)
        self.query_head = _Query(self.qformer, freeze(second))

    @property
    def backbone(self) -> Blip2Backbone:
        """The frozen image encoder; the text goes to the Q-Former."""
        return self._backbone

    @property
    def dim(self) -> int:
        """Width D of every vector."""
        return self.qformer.size.dim

    @property
    def vectors(self) -> int:
        """Number of learned queries: each gives one vector."""
        return self.qformer.size.num_queries

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply `targetpad_transform(1.25, 224)` of `src/data_utils.py`: RGB after the crop."""
        return narrowed(own, pad=Pad.TARGET, convert_rgb="after_crop")

    @property
    def prompt(self) -> Prompt:
        """Use LAVIS's `blip_caption` evaluation processor."""
        return Prompt(cleaning=TextCleaning.BLIP_CAPTION)

    @staticmethod
    def read_head(path: Path) -> StateDict:
        """Read the file as `checkpoints.sprc.read` does: SPRC's, or SPN4CIR's with a second pass of its own."""
        return checkpoint.read(path)

    @staticmethod
    def checkpoint_backbone(head: StateDict) -> StateDict | None:
        """Return the BLIP-2 that is saved beside the head."""
        return checkpoint.backbone(head)

    @staticmethod
    def check(sizes: Sizes, head: StateDict | None, options: Options) -> None:
        """Compare the width of the image tokens."""
        if head is not None:
            checkpoint.check_width(head, sizes.image_width)

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return `inference` of the released class, up to the similarity."""
        query: Tensor = self.query_head(self.backbone(pixels), token_ids)
        return query

    def text_query(self, token_ids: Tensor) -> Tensor:
        """Return the Q-Former's text path, which BLIP-2 was trained to match with an image's vectors."""
        return self.qformer.text(token_ids)

    def target(self, pixels: Tensor) -> Tensor:
        """Return `extract_target_features` of the released class."""
        return self.qformer.target(self.backbone(pixels))

    def graphs(self) -> list[Graph]:
        """Return image encoder, two-pass query, text query, the target's vectors, and encoder and target in one."""
        tokens = vectors("image_tokens", self.backbone.num_image_tokens, self.backbone.width)
        target = (vectors("target_embeddings", self.vectors, self.dim),)
        return [
            self.backbone.vision_graph(),
            self._query_graph(),
            self._text_query_graph(),
            Graph(GraphName.TARGET_HEAD, _Target(self.qformer), inputs=(tokens,), outputs=target),
            self._gallery_graph(),
        ]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Wire queries of image and text or of a text alone, and targets.

        Beside an image an absent text is the empty one.
        """
        return {
            EnsembleName.ENCODE_QUERY: ensemble(self.backbone.vision_graph(), self._query_graph()),
            EnsembleName.ENCODE_TEXT_QUERY: ensemble(self._text_query_graph()),
            EnsembleName.ENCODE_TARGET: ensemble(self._gallery_graph()),
        }

    def target_modules(self) -> dict[str, nn.Module]:
        """Return the image encoder and the Q-Former."""
        return {"backbone": self.backbone.vision, "target_head": self.qformer}

    def pooling(self) -> str:
        """Return how the target side gets its vectors out of an image."""
        return "learned queries, projected, l2-normalised"

    def _query_graph(self) -> Graph:
        tokens = vectors("image_tokens", self.backbone.num_image_tokens, self.backbone.width)
        return Graph(
            GraphName.QUERY_HEAD,
            self.query_head,
            inputs=(tokens, token_ids(self.text_lengths)),
            outputs=(vector("query_embedding", self.dim),),
            text_lengths=self.text_lengths,
        )

    def _text_query_graph(self) -> Graph:
        return Graph(
            "text_query_encoder",
            _TextQuery(self.qformer),
            inputs=(token_ids(self.text_lengths),),
            outputs=(vector("query_embedding", self.dim),),
            text_lengths=self.text_lengths,
        )

    def _gallery_graph(self) -> Graph:
        return Graph(
            GraphName.GALLERY,
            nn.Sequential(self.backbone, _Target(self.qformer)),
            inputs=(pixels(self.backbone.image_size_px),),
            outputs=(vectors("target_embeddings", self.vectors, self.dim),),
        )


@register("blip2-qformer")
class Blip2QFormer(Sprc):
    """BLIP-2 fine-tuned for FashionIQ (GautamaShastry/zscir): its model file is SPRC's, byte for byte.

    Its `finetune.py` saves `{"epoch": ..., "state": state_dict}`, where SPRC names the entry after the class; the
    reader takes the one state dict of a file, whatever its name.
    """


@register("ptha")
class Ptha(Sprc):
    """PTHA, prototypical two-hop alignment (arXiv 2504.05316), as far as its paper tells: SPRC's form at inference.

    No code is public. Hop 1, image and text to a multimodal prototype by the Q-Former, is SPRC's first pass; hop 2,
    the prototype with the modification text through BLIP-2's text encoder, its second. Losses differ, in training
    alone. A checkpoint must be in SPRC's key names.
    """


class _Query(nn.Module):
    """The two passes of a query. second: SPN4CIR's Q-Former of the second, else that of the first."""

    def __init__(self, qformer: QFormer, second: QFormer) -> None:
        super().__init__()
        self.qformer = qformer
        self.second = second

    def forward(self, image_tokens: Tensor, token_ids: Tensor) -> Tensor:
        return self.second.sentence(self.qformer.prompt(image_tokens, token_ids), token_ids)


class _TextQuery(nn.Module):
    def __init__(self, qformer: QFormer) -> None:
        super().__init__()
        self.qformer = qformer

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.qformer.text(token_ids)


class _Target(nn.Module):
    def __init__(self, qformer: QFormer) -> None:
        super().__init__()
        self.qformer = qformer

    def forward(self, image_tokens: Tensor) -> Tensor:
        return self.qformer.target(image_tokens)
