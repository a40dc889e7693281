"""SPRC: sentence-level prompts from BLIP-2's Q-Former (arXiv 2310.05473), and what shares its form."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from cirrus_client.bundle import TensorSpec
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.names import EnsembleName, GraphName, TensorName
from cirrus_export.backbones.family import Sizes
from cirrus_export.checkpoints import sprc as checkpoint
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph, token_ids, vector, vectors
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.matching import Matching
from cirrus_export.heads.qformer import QFormer
from cirrus_export.recipes.qformer import QFormerRecipe
from cirrus_export.recipes.recipe import Options, Parts
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.wiring import ensemble


class SprcOptions(Options):
    """reranker: export BLIP-2's head for matching as well, a second stage of search; see `Matching`."""

    reranker: bool = False


@register("sprc")
class Sprc(QFormerRecipe):
    """A query makes its own prompt in a first pass and reads it with the text in a second."""

    options_type = SprcOptions

    def __init__(self, parts: Parts, options: SprcOptions) -> None:
        whole = parts.head
        if options.reranker and whole is not None:
            parts = replace(parts, head=checkpoint.without_matching(whole))
        super().__init__(parts, options)
        self.matching = self._matching(whole) if options.reranker else None
        second = self.qformer if parts.head is None else checkpoint.load_second_pass(parts.head, self.qformer)
        self._query_head = (_Query if self.matching is None else _ConditionedQuery)(self.qformer, freeze(second))

    def _matching(self, head: StateDict | None) -> Matching:
        itm_head = nn.Linear(self.qformer.size.width, 2)
        if head is not None:
            checkpoint.load_matching(head, itm_head)
        return freeze(Matching(self.qformer, itm_head))

    @staticmethod
    def check(sizes: Sizes, head: StateDict | None, options: Options) -> None:
        """Compare the width of the image tokens, and look for the head of a reranker that is asked for."""
        QFormerRecipe.check(sizes, head, options)
        if head is not None and isinstance(options, SprcOptions) and options.reranker:
            checkpoint.check_matching(head)

    @property
    def query_head(self) -> _Query:
        """Both passes; with option reranker they give the prompt between them as well."""
        return self._query_head

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return `inference` of the released class, up to the similarity."""
        return self.query_head.second.sentence(self.condition(pixels, token_ids), token_ids)

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
        """Return those of every Q-Former, and with option reranker the head for matching."""
        return [*super().graphs(), *([] if self.matching is None else [self._matching_graph(self.matching)])]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Wire what every Q-Former has, and with option reranker its two halves."""
        found = super().ensembles()
        if self.matching is not None:
            vision, query = self.backbone.vision_graph(), self._query_graph()
            matching = self._matching_graph(self.matching)
            found[EnsembleName.ENCODE_CONDITION] = ensemble(vision, query, output=TensorName.CONDITION)
            found[EnsembleName.SCORE_CANDIDATE] = ensemble(vision, matching, output=TensorName.SCORE)
        return found

    def _condition(self) -> TensorSpec:
        return vectors(TensorName.CONDITION, self.vectors, self.qformer.size.width)

    def _query_outputs(self) -> tuple[TensorSpec, ...]:
        return (*super()._query_outputs(), *([] if self.matching is None else [self._condition()]))

    def _matching_graph(self, matching: Matching) -> Graph:
        return Graph(
            GraphName.MATCHING_HEAD,
            matching,
            inputs=(self._image_tokens(), self._condition(), token_ids(self.text_lengths)),
            outputs=(vector(TensorName.SCORE, 1),),
            text_lengths=self.text_lengths,
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
