"""SPRC: sentence-level prompts from BLIP-2's Q-Former (arXiv 2310.05473), and what shares its form."""

from __future__ import annotations

from torch import Tensor, nn

from cirrus_client.bundle import Similarity, TensorSpec
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_client.names import EnsembleName, GraphName, TensorName
from cirrus_client.tokenizer import TextCleaning
from cirrus_export.backbones.backbone import Prompt, require
from cirrus_export.backbones.blip2 import Blip2Backbone
from cirrus_export.backbones.family import Sizes
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.checkpoints import sprc as checkpoint
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph, pixels, token_ids, vector, vectors
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.matching import Matching
from cirrus_export.heads.qformer import QFormer, QFormerSize
from cirrus_export.recipes.recipe import Options, Parts, Recipe, narrowed
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.wiring import ensemble


class SprcOptions(Options):
    """reranker: export BLIP-2's head for matching as well, a second stage of search; see `Matching`."""

    reranker: bool = False


@register("sprc")
class Sprc(Recipe):
    """A query makes its own prompt in a first pass and reads it with the text in a second; a target is 32 vectors.

    Of a plain CLIP the vision tower is taken, its last layer norm as `ln_vision`.
    """

    options_type = SprcOptions
    works_on = (Blip2Backbone, OpenClipBackbone)
    similarity = Similarity.MAX_COSINE
    head_keys = ("Qformer.bert.", "query_tokens", "vision_proj.", "text_proj.")

    def __init__(self, parts: Parts, options: SprcOptions) -> None:
        super().__init__(parts, options)
        backbone = parts.backbone
        if isinstance(backbone, OpenClipBackbone):
            backbone = Blip2Backbone(backbone.clip.visual, backbone.preprocess, backbone.activation)
        self._backbone = require(backbone, Blip2Backbone, self.name)
        size = (
            QFormerSize(self.backbone.width) if parts.head is None else checkpoint.size(parts.head, self.backbone.width)
        )
        self.qformer = QFormer(size)
        itm_head = nn.Linear(size.width, 2) if options.reranker else None
        head = parts.head
        if head is not None:
            head = head if itm_head is None else checkpoint.load_matching(head, itm_head)
            checkpoint.load(head, self.qformer)
            checkpoint.load_last_norm(head, self.backbone.last_norm)
        freeze(self.qformer)
        second = self.qformer if head is None else checkpoint.load_second_pass(head, self.qformer)
        self.query_head = (_Query if itm_head is None else _ConditionedQuery)(self.qformer, freeze(second))
        self.matching = None if itm_head is None else freeze(Matching(self.qformer, itm_head))

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
    def checkpoint_backbone(head: StateDict) -> StateDict | None:
        """Return the BLIP-2 that is saved beside the head."""
        return checkpoint.backbone(head)

    @staticmethod
    def check(sizes: Sizes, head: StateDict | None, options: Options) -> None:
        """Compare the width of the image tokens, and look for the head of a reranker that is asked for."""
        if head is not None:
            checkpoint.check_width(head, sizes.image_width)
            if isinstance(options, SprcOptions) and options.reranker:
                checkpoint.check_matching(head)

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return `inference` of the released class, up to the similarity."""
        return self.query_head.second.sentence(self.condition(pixels, token_ids), token_ids)

    def text_query(self, token_ids: Tensor) -> Tensor:
        """Return the Q-Former's text path, which BLIP-2 was trained to match with an image's vectors."""
        return self.qformer.text(token_ids)

    def target(self, pixels: Tensor) -> Tensor:
        """Return `extract_target_features` of the released class."""
        return self.qformer.target(self.backbone(pixels))

    def condition(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return the sentence prompt [B, V, H], the first pass of a query."""
        return self.qformer.prompt(self.backbone(pixels), token_ids)

    def score(self, pixels: Tensor, condition: Tensor, token_ids: Tensor) -> Tensor:
        """Return the matching head's scores [B, 1]. Raises UnsupportedQuery without option reranker."""
        if self.matching is None:
            return super().score(pixels, condition, token_ids)
        score: Tensor = self.matching(self.backbone(pixels), condition, token_ids)
        return score

    def graphs(self) -> list[Graph]:
        """Return image encoder, two-pass query, text query, the target's vectors, encoder and target in one, matching.

        Matching is there with option reranker.
        """
        target = (vectors("target_embeddings", self.vectors, self.dim),)
        return [
            self.backbone.vision_graph(),
            self._query_graph(),
            self._text_query_graph(),
            Graph(GraphName.TARGET_HEAD, _Target(self.qformer), inputs=(self._image_tokens(),), outputs=target),
            self._gallery_graph(),
            *([] if self.matching is None else [self._matching_graph(self.matching)]),
        ]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Wire queries of image and text or of a text alone, targets, and with option reranker its two halves.

        Beside an image an absent text is the empty one.
        """
        vision, query = self.backbone.vision_graph(), self._query_graph()
        found = {
            EnsembleName.ENCODE_QUERY: ensemble(vision, query),
            EnsembleName.ENCODE_TEXT_QUERY: ensemble(self._text_query_graph()),
            EnsembleName.ENCODE_TARGET: ensemble(self._gallery_graph()),
        }
        if self.matching is not None:
            matching = self._matching_graph(self.matching)
            found[EnsembleName.ENCODE_CONDITION] = ensemble(vision, query, output=TensorName.CONDITION)
            found[EnsembleName.SCORE_CANDIDATE] = ensemble(vision, matching, output=TensorName.SCORE)
        return found

    def target_modules(self) -> dict[str, nn.Module]:
        """Return the image encoder and the Q-Former."""
        return {"backbone": self.backbone.vision, "target_head": self.qformer}

    def pooling(self) -> str:
        """Return how the target side gets its vectors out of an image."""
        return "learned queries, projected, l2-normalised"

    def _image_tokens(self) -> TensorSpec:
        return vectors("image_tokens", self.backbone.num_image_tokens, self.backbone.width)

    def _condition(self) -> TensorSpec:
        return vectors(TensorName.CONDITION, self.vectors, self.qformer.size.width)

    def _query_graph(self) -> Graph:
        return Graph(
            GraphName.QUERY_HEAD,
            self.query_head,
            inputs=(self._image_tokens(), token_ids(self.text_lengths)),
            outputs=(vector("query_embedding", self.dim), *([] if self.matching is None else [self._condition()])),
            text_lengths=self.text_lengths,
        )

    def _matching_graph(self, matching: Matching) -> Graph:
        return Graph(
            GraphName.MATCHING_HEAD,
            matching,
            inputs=(self._image_tokens(), self._condition(), token_ids(self.text_lengths)),
            outputs=(vector(TensorName.SCORE, 1),),
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

    def forward(self, image_tokens: Tensor, token_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.second.sentence(self.qformer.prompt(image_tokens, token_ids), token_ids)


class _ConditionedQuery(_Query):
    """The two passes of a query, and between them the prompt that conditions a candidate's score."""

    def forward(self, image_tokens: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        prompt = self.qformer.prompt(image_tokens, token_ids)
        return self.second.sentence(prompt, token_ids), prompt


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
