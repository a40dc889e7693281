"""Retrieval-DPO of GautamaShastry/zscir (`retrieval/src/validate_dpo.py`): CLIP with another text transformer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cirrus_client.bundle import CaptionJoin
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.errors import ExportError, UnsupportedQuery
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_client.names import EnsembleName
from cirrus_export.backbones.backbone import Prompt, WordBackbone, require
from cirrus_export.backbones.family import Sizes
from cirrus_export.checkpoints.state import StateDict, load_strictly
from cirrus_export.checkpoints.widths import Width, check_width
from cirrus_export.graph import Graph, token_ids, vector
from cirrus_export.heads.frozen import freeze
from cirrus_export.recipes.recipe import Options, Parts, narrowed
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.two_tower import TwoTowerRecipe
from cirrus_export.recipes.wiring import ensemble


class RetrievalDpoOptions(Options):
    """project_text: apply CLIP's text projection. The released evaluation leaves it out, so its queries and its
    gallery are in different spaces and its published recall is at chance; a query is then reproduced, not repaired.
    """

    project_text: bool = False


@register("retrieval-dpo")
class RetrievalDpo(TwoTowerRecipe):
    """A text alone is the query; the checkpoint is the bare state dict of the text tower's transformer.

    The released evaluation takes the reference image for the target, so its figures are no retrieval quality.
    """

    works_on = (WordBackbone,)
    caption_join = CaptionJoin.EACH
    options_type = RetrievalDpoOptions
    head_keys = ("resblocks.0.",)

    def __init__(self, parts: Parts, options: RetrievalDpoOptions) -> None:
        super().__init__(parts, options)
        words = require(parts.backbone, WordBackbone, self.name)
        self.check(Sizes(dim=self.dim, word_width=words.word_width), parts.head, options)
        if parts.head is not None:
            load_strictly(words.text_transformer, parts.head)
        self.text_query_head = freeze(_TextQuery(words, project=options.project_text))

    @staticmethod
    def check(sizes: Sizes, head: StateDict | None, options: Options) -> None:
        """Compare the widths of the text transformer and, where the projection is left out, of the embeddings."""
        assert isinstance(options, RetrievalDpoOptions)
        if head is not None:
            check_width(head, "resblocks.0.ln_1.weight", 0, sizes.word_width, Width.WORDS)
        if sizes.word_width != sizes.dim and not options.project_text:
            raise ExportError(
                f"recipe retrieval-dpo leaves out the text projection, as its released code does; that needs a CLIP "
                f"whose text tower is as wide as its embedding, like ViT-L-14; this one has {sizes.word_width} and "
                f"{sizes.dim}: choose another --backbone, or --option project_text=true"
            )

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply the transform of `validate_dpo.py`: RGB first, then resize and crop, without padding."""
        return narrowed(own, convert_rgb="before_resize")

    @property
    def prompt(self) -> Prompt:
        """Use the released code's literal marker, which CLIP's tokenizer spells out."""
        return Prompt(template="<|image|> {text}")

    def text_query(self, token_ids: Tensor) -> Tensor:
        """Return the normalised end-of-text token."""
        query: Tensor = self.text_query_head(token_ids)
        return query

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Raise UnsupportedQuery: a query has no image."""
        raise UnsupportedQuery(f"recipe {self.name} does not define queries with an image")

    def query_graph(self) -> Graph:
        """Return the text tower, from token ids to the query."""
        return Graph(
            "text_query_encoder",
            self.text_query_head,
            inputs=(token_ids(self.text_lengths),),
            outputs=(vector("query_embedding", self.dim),),
            text_lengths=self.text_lengths,
        )

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Wire queries of a text alone, and targets."""
        return {
            EnsembleName.ENCODE_TEXT_QUERY: ensemble(self.query_graph()),
            EnsembleName.ENCODE_TARGET: ensemble(self.gallery_graph()),
        }


class _TextQuery(nn.Module):
    def __init__(self, words: WordBackbone, *, project: bool) -> None:
        super().__init__()
        self.words = words
        self.project = project

    def forward(self, token_ids: Tensor) -> Tensor:
        if self.project:
            return F.normalize(self.words.embed_text(token_ids), dim=-1)
        return F.normalize(self.words.encode_text_unprojected(token_ids), dim=-1)
