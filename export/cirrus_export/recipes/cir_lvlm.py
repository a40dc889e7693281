"""CIR-LVLM: a large vision-language model encodes queries and targets (arXiv 2412.11087)."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cirrus_client.bundle import DType, TensorSpec
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.errors import ExportError
from cirrus_client.names import EnsembleName, TensorName
from cirrus_export.backbones.backbone import check_kind
from cirrus_export.backbones.llava import LlavaBackbone
from cirrus_export.backbones.lvlm import LvlmBackbone
from cirrus_export.backbones.qwen2_vl import Qwen2VlBackbone
from cirrus_export.backbones.vlm import VlmBackbone
from cirrus_export.checkpoints.prompt_pool import load_pool
from cirrus_export.graph import Graph, token_ids, vector, vectors
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.lvlm import Pooling, PromptedLanguage, PromptPool, read
from cirrus_export.heads.prompts import NO_TOKEN, Constants, padded
from cirrus_export.recipes.recipe import Options, Parts, Recipe
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.wiring import ensemble

_LANGUAGE, _QUERY, _TARGET = "language_model", "query_prompt", "target_prompt"
_CHOSEN = 4


class CirLvlmOptions(Options):
    """What the paper leaves open, and what is trained with it.

    query_prompt, target_prompt: the tasks' prompts in words; empty ones are those of the checkpoint's `config.json`.
    prompts_chosen: how many soft prompts an instance takes where `config.json` does not say it; 0 is 4.
    """

    query_prompt: str = ""
    target_prompt: str = ""
    pooling: Pooling = Pooling.POSITION_WEIGHTED
    prompts_chosen: int = Field(default=0, ge=0)


@register("cir-lvlm")
class CirLvlm(Recipe):
    """One pass over visual tokens, a task prompt, chosen soft prompts and the text, pooled over all of them.

    The paper leaves open the wording of its task prompts, the distance by which soft prompts are chosen and the weights
    of its mean. Here: prompts of the checkpoint or of an option, the cosine between the keys and the mean of an
    instance's visual tokens plus that of its words, and weights that grow with the place unless an option says
    otherwise. Queries and targets share one language model in one graph. A target is a task without a text.

    A published vision-language model has no soft prompts of its own: they are the head. Its visual tokens are counted
    like words, as transformers counts what it is given as embeddings.
    """

    works_on = (LvlmBackbone, LlavaBackbone, Qwen2VlBackbone)
    needs_head = False
    needs_head_on = (LlavaBackbone, Qwen2VlBackbone)
    head_keys = ("prompts.keys", "prompts.values")
    options_type = CirLvlmOptions

    def __init__(self, parts: Parts, options: CirLvlmOptions) -> None:
        super().__init__(parts, options)
        check_kind(type(parts.backbone), self.works_on, self.name)
        assert isinstance(parts.backbone, LvlmBackbone | VlmBackbone)
        self._backbone = parts.backbone
        self._query_prompt, self._target_prompt = self._prompts_of(self._backbone, options)
        pool, pad_id = self._pool_of(self._backbone, parts, options)
        self._model = PromptedLanguage(self._backbone.language, pool, pad_id, options.pooling)
        if isinstance(self._backbone, VlmBackbone):
            self._backbone.check_length(self._prompt_length + pool.chosen * pool.values.shape[1])

    @staticmethod
    def _prompts_of(backbone: LvlmBackbone | VlmBackbone, options: CirLvlmOptions) -> list[tuple[int, ...]]:
        if isinstance(backbone, LvlmBackbone):
            config = backbone.config
            said = (options.query_prompt or config.query_prompt, options.target_prompt or config.target_prompt)
            return [backbone.prompt_ids(prompt) for prompt in said]
        if not options.query_prompt or not options.target_prompt:
            raise ExportError(
                f"a {backbone.label} has no task prompts of its own: say --option query_prompt=WORDS and --option "
                "target_prompt=WORDS"
            )
        return [backbone.prompt_ids(prompt) for prompt in (options.query_prompt, options.target_prompt)]

    @staticmethod
    def _pool_of(backbone: LvlmBackbone | VlmBackbone, parts: Parts, options: CirLvlmOptions) -> tuple[PromptPool, int]:
        """Return the soft prompts, and what pads texts."""
        if isinstance(backbone, LvlmBackbone):
            if options.prompts_chosen:
                raise ExportError("--option prompts_chosen: the checkpoint's config.json says it")
            return backbone.prompts, backbone.config.pad_id
        return freeze(load_pool(parts.head, backbone.width, options.prompts_chosen or _CHOSEN)), NO_TOKEN

    @property
    def backbone(self) -> LvlmBackbone | VlmBackbone:
        """The whole model, fine-tuned parts merged."""
        return self._backbone

    @property
    def dim(self) -> int:
        """Width of the language model."""
        return self.backbone.width

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return the query task's pass."""
        return self._embedded(pixels, self._query_prompt, token_ids)

    def target(self, pixels: Tensor) -> Tensor:
        """Return the target task's pass, without a text."""
        return self._embedded(pixels, self._target_prompt, None)

    def graphs(self) -> list[Graph]:
        """Return vision tower with connector, each task's prompt, and the language model."""
        return [
            *(self.backbone.vision_graph(), self._prompt_graph(_QUERY), self._prompt_graph(_TARGET)),
            self._language_graph(),
        ]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Wire queries, which need an image, and targets."""
        vision, language = self.backbone.vision_graph(), self._language_graph()
        return {
            EnsembleName.ENCODE_QUERY: ensemble(vision, self._prompt_graph(_QUERY), language),
            EnsembleName.ENCODE_TARGET: ensemble(vision, self._prompt_graph(_TARGET), language),
        }

    def target_modules(self) -> dict[str, nn.Module]:
        """Return the whole model, and the soft prompts that are not part of it."""
        if isinstance(self.backbone, VlmBackbone):
            return {"backbone": self.backbone.model, "prompts": self._model.prompts}
        return {"backbone": self.backbone}

    def pooling(self) -> str:
        """Return the pooling, with the prompt that a target is read with."""
        backbone, pooling = self.backbone, self._model.pooling
        said = f"{pooling}, l2-normalised, target prompt {self._target_prompt}"
        if isinstance(backbone, VlmBackbone):
            return f"{said}, {self._model.prompts.chosen} soft prompts{backbone.seeing}"
        return said

    def _embedded(self, pixels: Tensor, prompt: tuple[int, ...], token_ids: Tensor | None) -> Tensor:
        return F.normalize(read(self._model, self.backbone(pixels), prompt, token_ids), dim=-1)

    def _language_graph(self) -> Graph:
        return Graph(
            _LANGUAGE,
            self._model,
            inputs=(*self._image_tokens(), self._prompt(), token_ids(self.text_lengths)),
            outputs=(vector("query_embedding", self.dim),),
            text_lengths=self.text_lengths,
        )

    def _prompt_graph(self, task: str) -> Graph:
        prompt = self._target_prompt if task == _TARGET else self._query_prompt
        no_text = ((self._model.pad_id,) * self.text_lengths[0],) if task == _TARGET else ()
        return Graph(
            task,
            Constants(padded(prompt, self._prompt_length), *no_text),
            inputs=self._image_tokens(),
            outputs=(self._prompt(), *(_ids(TensorName.TOKEN_IDS, len(ids)) for ids in no_text)),
        )

    @property
    def _prompt_length(self) -> int:
        return max(len(self._query_prompt), len(self._target_prompt))

    def _image_tokens(self) -> tuple[TensorSpec, ...]:
        return (vectors("image_tokens", self.backbone.num_image_tokens, self.dim),)

    def _prompt(self) -> TensorSpec:
        return _ids("prompt_ids", self._prompt_length)


def _ids(name: str, length: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=DType.INT64, shape=(length,))
