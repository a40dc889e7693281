"""A large vision-language model as an encoder: vision tower, connector with learnable queries, language model.

CIR-LVLM (arXiv 2412.11087) has no public code, so the checkpoint layout is ours: a folder with

    config.json         LvlmConfig: transformers' configurations of both towers, and what the paper leaves open
    tokenizer.json      the language model's tokenizer (Hugging Face `tokenizers`)
    model.safetensors   vision.* (CLIPVisionModel), connector.*, language.* (the language model's bare stack), prompts.*
                        or its shards and their index

LoRA factors `<layer>.lora_A.weight` and `<layer>.lora_B.weight` beside a language layer's `<layer>.weight` are merged.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from cirrus_client.errors import CheckpointError
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_client.names import GraphName
from cirrus_client.records import Record, parse_record
from cirrus_client.tokenizer import TextCleaning, TokenizerSpec
from cirrus_export.backbones.backbone import Backbone, Prompt
from cirrus_export.backbones.family import Family, Weights, refuse_tokenizer
from cirrus_export.checkpoints.adapter import refuse_adapter
from cirrus_export.checkpoints.config_code import code_named_in
from cirrus_export.checkpoints.folder import weights_file
from cirrus_export.checkpoints.key_map import KeyMap
from cirrus_export.checkpoints.rotation import check_rotation
from cirrus_export.checkpoints.state import StateDict, key_problems, load_strictly, read_state_dict
from cirrus_export.checkpoints.tokenizer_file import TOKENIZER, read_tokenizer
from cirrus_export.checkpoints.wrappers import listed
from cirrus_export.graph import Call, Graph, pixels, vectors
from cirrus_export.heads.lvlm import Connector, PromptPool

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import AutoConfig, AutoModel, CLIPVisionConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.clip.modeling_clip import CLIPVisionModel

_LORA_A, _LORA_B = ".lora_A.weight", ".lora_B.weight"
_FP32_BYTES = 4
_KEYS = KeyMap(("vision.", "vision_tower."))


class LvlmConfig(Record):
    """`config.json` of a checkpoint folder.

    vision, language: keyword arguments of CLIPVisionConfig, and of AutoConfig with its `model_type` (llama, qwen2).
    connector_queries: visual tokens that the language model reads. context_length, start_id, end_id, pad_id: of the
    texts. prompt_pool, prompt_length, prompts_chosen: M, L_p and K of the soft prompts; the paper's best are M = 45 and
    L_p * K = 40. query_prompt, target_prompt: the two task prompts, in words or as token ids. lora_scale: alpha / rank.
    """

    vision: dict[str, Any]
    language: dict[str, Any]
    connector_queries: int = Field(gt=0)
    connector_heads: int = Field(gt=0)
    context_length: int = Field(gt=2)
    start_id: int
    end_id: int
    pad_id: int
    prompt_pool: int = Field(default=45, gt=0)
    prompt_length: int = Field(default=10, gt=0)
    prompts_chosen: int = Field(default=4, gt=0)
    query_prompt: str | tuple[int, ...]
    target_prompt: str | tuple[int, ...]
    lora_scale: float = 1.0

    @field_validator("vision", "language")
    @classmethod
    def _names_no_code(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Refuse arguments for which transformers would import or fetch code: modules, kernels, quantisers."""
        code = code_named_in(arguments)
        if code is not None:
            raise ValueError(f"'{code}' names code, and a configuration is data: leave it out")
        return arguments

    @field_validator("language")
    @classmethod
    def _is_a_language_model(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        kind = arguments.get("model_type")
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ValueError(f"model_type {kind!r} is no causal language model of transformers, like llama or qwen2")
        return arguments


@dataclass(frozen=True)
class Footprint:
    """What an export at fp32 needs, from the configuration alone.

    disk_bytes: the graphs. memory_bytes: the weights, and the largest graph's copy of them while it is written.
    """

    parameters: int
    disk_bytes: int
    memory_bytes: int


class LvlmBackbone(Backbone):
    """The model with random weights; `load_lvlm` reads a checkpoint."""

    label = "LVLM"
    offers = "a language model that reads visual tokens"
    reads_padding = False  # causal, padding comes last and is left out of the pooling

    def __init__(self, config: LvlmConfig, folder: Path | None = None) -> None:
        """folder: where `tokenizer.json` lies."""
        super().__init__()
        self.config = config
        self._folder = folder
        self.vision_tower = CLIPVisionModel(CLIPVisionConfig(**config.vision))
        arguments = dict(config.language)
        language = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
        self.language = AutoModel.from_config(language, trust_remote_code=False)
        width = int(language.hidden_size)
        self.connector = Connector(
            int(self.vision_tower.config.hidden_size), width, config.connector_queries, config.connector_heads
        )
        self.prompts = PromptPool(config.prompt_pool, config.prompt_length, config.prompts_chosen, width)
        self.eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Width of the language model, and of an embedding."""
        return int(self.language.config.hidden_size)

    @property
    def preprocess(self) -> PreprocessSpec:
        """CLIP's, in the vision tower's size."""
        return PreprocessSpec(size_px=int(self.vision_tower.config.image_size))

    @property
    def num_image_tokens(self) -> int:
        """Number of visual tokens that the language model reads."""
        return self.config.connector_queries

    @property
    def context_length(self) -> int:
        """Number of text tokens T."""
        return self.config.context_length

    @property
    def vision(self) -> nn.Module:
        """Vision tower and connector."""
        return nn.ModuleDict({"vision": self.vision_tower, "connector": self.connector})

    def forward(self, pixels: Tensor) -> Tensor:
        """Return visual tokens [B, Q, W] of pixels float32 [B, 3, H, W]."""
        tokens: Tensor = self.connector(self.vision_tower(pixels).last_hidden_state)
        return tokens

    def vision_graph(self) -> Graph:
        """Return vision tower and connector as a graph, from pixels to `image_tokens` [B, Q, W]."""
        return Graph(
            GraphName.VISION_ENCODER,
            Call(self.forward, self.vision),
            inputs=(pixels(self.image_size_px),),
            outputs=(vectors("image_tokens", self.num_image_tokens, self.width),),
        )

    def prompt_ids(self, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
        """Return the token ids of a task prompt in words. Raises CheckpointError without a tokenizer that can be read.

        Ids stay as they are.
        """
        if not isinstance(prompt, str):
            return prompt
        return tuple(read_tokenizer(self._tokenizer_file()).encode(prompt, add_special_tokens=False).ids)

    def write_tokenizer(self, root: Path, prompt: Prompt) -> TokenizerSpec:
        """See `Backbone.write_tokenizer`."""
        config = self.config
        spec = prompt.spec(
            context_length=config.context_length,
            start_id=config.start_id,
            end_id=config.end_id,
            pad_id=config.pad_id,
            cleaning=TextCleaning.NONE,
        )
        shutil.copyfile(self._tokenizer_file(), root / spec.file)
        return spec

    def _tokenizer_file(self) -> Path:
        file = (self._folder or Path()) / TOKENIZER
        if self._folder is None or not file.is_file():
            raise CheckpointError(f"checkpoint {self._folder}: {TOKENIZER} is missing; copy the language model's there")
        return file


class LvlmFamily(Family):
    """Checkpoint folders of CIR-LVLM in the layout above."""

    backbone_type = LvlmBackbone

    def names(self) -> Sequence[str]:
        """Return the one name; the sizes are in the folder."""
        return ("lvlm",)

    def kind_named(self, name: str) -> str:
        """Return the one kind that there is."""
        return "an LVLM's folder"

    def kind_of(self, state: StateDict) -> None:
        """Return None: no single file is an LVLM."""

    def load(self, name: str | None, weights: Weights, tokenizer: Path | None) -> LvlmBackbone:
        """See `Family.load`."""
        refuse_tokenizer(name, tokenizer)
        if weights.folder is None:
            raise CheckpointError("--backbone lvlm: an LVLM's checkpoint is a folder; give it as --pretrained FOLDER")
        return load_lvlm(weights.folder)


def load_lvlm(folder: Path) -> LvlmBackbone:
    """Return the model of a checkpoint folder.

    The folder is data: nothing that its configuration names is imported or fetched. Raises CheckpointError for a file
    or key that is missing or wrong, before a weight is allocated.
    """
    refuse_adapter(folder)
    config = read_config(folder)
    shape = _without_weights(config, folder / "config.json")
    check_rotation(shape.language.config, folder / "config.json")
    merged = merge_lora(read_state_dict(weights_file(folder)), config.lora_scale)
    state = merged.derived({_KEYS.ours(key): value for key, value in merged.items()})
    problems = key_problems(shape, state, theirs=_KEYS.theirs)
    if problems:
        raise CheckpointError(f"checkpoint {state.source}: {listed(problems, separator='; ')}")
    backbone = LvlmBackbone(config, folder)
    load_strictly(backbone, state, theirs=_KEYS.theirs)
    return backbone


def read_config(folder: Path) -> LvlmConfig:
    """Read `config.json`. Raises CheckpointError."""
    path = folder / "config.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: {error.strerror}; an LVLM's checkpoint is a folder") from None
    return parse_record(
        content,
        LvlmConfig,
        source=f"checkpoint {path}",
        raises=CheckpointError,
        way_out="backbones/lvlm.py says what belongs there",
    )


def _without_weights(config: LvlmConfig, path: Path) -> LvlmBackbone:
    """Return the model with shapes and no values. Raises CheckpointError for sizes that don't go together."""
    try:
        with torch.device("meta"):
            return LvlmBackbone(config)
    except Exception as error:  # transformers raises whatever a value leads to
        raise CheckpointError(f"checkpoint {path}: no model can be built of it: {error}") from error


def merge_lora(state: StateDict, scale: float) -> StateDict:
    """Return W + scale * B A for every weight that has factors. Raises CheckpointError for a factor without partner."""
    merged = {key: value for key, value in state.items() if not key.endswith((_LORA_A, _LORA_B))}
    for key in state:
        if key.endswith((_LORA_A, _LORA_B)):
            layer = key.removesuffix(_LORA_A).removesuffix(_LORA_B)
            for needed in (f"{layer}{_LORA_A}", f"{layer}{_LORA_B}", f"{layer}.weight"):
                if needed not in state:
                    raise CheckpointError(f"checkpoint {state.source}: '{key}' is there, but '{needed}' is missing")
            factors = state[f"{layer}{_LORA_B}"] @ state[f"{layer}{_LORA_A}"]
            merged[f"{layer}.weight"] = state[f"{layer}.weight"] + scale * factors
    return state.derived(merged)


def footprint(config: LvlmConfig) -> Footprint:
    """Return what a full export needs, without allocating a weight."""
    backbone = _without_weights(config, Path("config.json"))
    total, language = (
        sum(parameter.numel() for parameter in part.parameters()) for part in (backbone, backbone.language)
    )
    return Footprint(
        parameters=total,
        disk_bytes=_FP32_BYTES * total,
        memory_bytes=_FP32_BYTES * (total + language),
    )
