"""Every other two-tower model of open_clip, as one embedding per image and per text: SigLIP, SigLIP 2, PE-Core,
MobileCLIP, EVA-02, CLIPA, MetaCLIP 2, CoCa, ConvNeXt and ResNet CLIPs.

How a model pools, normalises and prepares its inputs is open_clip's `encode_image` and `encode_text`, and its
configuration of the model and the tag.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from cirrus_client.errors import ExportError
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_client.tokenizer import Tokenizer, TokenizerSpec
from cirrus_export.backbones.backbone import Activation, PooledBackbone, Prompt
from cirrus_export.backbones.clip_config import (
    OF_OPEN_CLIP,
    ClipConfig,
    check_architecture,
    config_beside,
    tokenizer_beside,
)
from cirrus_export.backbones.clip_shape import CLIP_KIND, has_openai_keys, is_said_to_differ, shows_every_token
from cirrus_export.backbones.clip_tokenizer import write_clip_tokenizer
from cirrus_export.backbones.family import FROM_CHECKPOINT, Family, Sizes, Weights, refuse_tokenizer
from cirrus_export.backbones.hub_tokenizer import HubTokenizer, find_hub_tokenizer
from cirrus_export.backbones.metaclip_2 import check_named, create_metaclip_2, is_metaclip_2, metaclip_2_config
from cirrus_export.backbones.open_clip_models import (
    LOGIT_BIAS,
    Config,
    activation_in_space,
    create,
    fetch,
    preprocess_of,
    tags_of,
    uses_quick_gelu,
    warn_if_a_file_could_be_several,
)
from cirrus_export.checkpoints.hugging_face_clip import KEYS as CLIP_KEYS
from cirrus_export.checkpoints.hugging_face_clip import in_openai_names, is_hugging_face_clip
from cirrus_export.checkpoints.hugging_face_siglip import KEYS as SIGLIP_KEYS
from cirrus_export.checkpoints.hugging_face_siglip import (
    follow_config_beside,
    in_open_clips_names,
    is_hugging_face_siglip,
)
from cirrus_export.checkpoints.state import StateDict, load_strictly, pass_over

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
import open_clip

_CONTEXT_LENGTH = 77
_HUB_TOKENIZER = "hf_tokenizer_name"
_KIND_KEYS = ("visual.trunk.", "visual.attnpool.", "visual.attn_pool.", "text.")
_FOLDER = "local-dir:"
"""What open_clip's name of a model that a folder describes begins with."""
_POOLED = "a pooled model of open_clip"


class PooledOpenClipBackbone(PooledBackbone):
    """A model of open_clip behind its own `encode_image` and `encode_text`, unnormalised."""

    label = "pooled open_clip"

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        preprocess: PreprocessSpec,
        hub_tokenizer: HubTokenizer | None,
        activation: Activation | None = None,
    ) -> None:
        """hub_tokenizer: None is CLIP's byte-pair tokenizer."""
        super().__init__()
        self.activation = activation
        self.model = model
        self._config = config
        self._preprocess = preprocess
        self._hub_tokenizer = hub_tokenizer

    @property
    def preprocess(self) -> PreprocessSpec:
        """How the weights' trainers turned an image into pixels."""
        return self._preprocess

    @property
    def pooling(self) -> str:
        """Open_clip's `encode_image`, with what its configuration says of the pooling."""
        vision = self._config["vision_cfg"]
        settings = {key: value for key, value in vision.items() if "pool" in key or key == "timm_proj"}
        return "open_clip encode_image" + "".join(f", {key} {value}" for key, value in sorted(settings.items()))

    @property
    def vision(self) -> nn.Module:
        """The vision tower."""
        visual: nn.Module = self.model.visual  # type: ignore[assignment]
        return visual

    @property
    def text(self) -> nn.Module:
        """The whole model, which holds the text tower's parts."""
        return self.model

    @property
    def dim(self) -> int:
        """Width D of the shared embedding."""
        return int(self._config["embed_dim"])

    @property
    def context_length(self) -> int:
        """Number of text tokens T."""
        return int(self._config["text_cfg"].get("context_length", _CONTEXT_LENGTH))

    @property
    def null_token_ids(self) -> Tensor:
        """The empty text, int64 [1, T]."""
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = Tokenizer(self.write_tokenizer(Path(folder), Prompt()), Path(folder))
        return torch.from_numpy(tokenizer([""]))

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Return unnormalised image embeddings [B, D] of pixels float32 [B, 3, H, W]."""
        embedding: Tensor = self.model.encode_image(pixels, normalize=False)  # type: ignore[operator]
        return embedding

    def embed_text(self, token_ids: Tensor) -> Tensor:
        """Return unnormalised text embeddings [B, D] of token ids int64 [B, T]."""
        embedding: Tensor = self.model.encode_text(token_ids, normalize=False)  # type: ignore[operator]
        return embedding

    def write_tokenizer(self, root: Path, prompt: Prompt) -> TokenizerSpec:
        """See `Backbone.write_tokenizer`."""
        if self._hub_tokenizer is None:
            return write_clip_tokenizer(root, context_length=self.context_length, prompt=prompt)
        return self._hub_tokenizer.write(root, context_length=self.context_length, prompt=prompt)


class PooledOpenClipFamily(Family):
    """Models of open_clip that do not show every token, or pool them otherwise than OpenAI's CLIP does."""

    backbone_type = PooledOpenClipBackbone
    options = frozenset({"quick_gelu"})

    def names(self) -> Sequence[str]:
        """Return open_clip's names of such models."""
        return [name for name in open_clip.list_models() if not shows_every_token(open_clip.get_model_config(name))]

    def kind_named(self, name: str) -> str:
        """Return whether a file of the model has a CLIP's keys, as CLIPA's and MetaCLIP 2's have, or others."""
        config = open_clip.get_model_config(name)
        vision = config["vision_cfg"]
        of_timm = "timm_model_name" in vision or not isinstance(vision.get("layers"), int)
        return _POOLED if of_timm or config.get("custom_text") else CLIP_KIND

    def kind_of(self, state: StateDict) -> str | None:
        """Recognise a timm tower, an attention pooling, a text tower under a name of its own, SigLIP and MetaCLIP 2.

        Also a file with a CLIP's keys of which the configuration beside it says that it is another model.
        """
        if is_metaclip_2(state) or (has_openai_keys(state) and is_said_to_differ(state)):
            return CLIP_KIND
        found = is_hugging_face_siglip(state) or any(key.startswith(_KIND_KEYS) for key in state)
        return _POOLED if found else None

    def tags(self, name: str) -> Sequence[str]:
        """Return the tags of a model's published weights."""
        return tags_of(name)

    def check(self, name: str) -> None:
        """Refuse a text tower that is a language model of transformers."""
        _check_towers(f"backbone {name}", open_clip.get_model_config(name))

    def sizes(self, name: str) -> Sizes:
        """Return the width of the embeddings."""
        return Sizes(dim=int(open_clip.get_model_config(name)["embed_dim"]))

    def preprocess(self, name: str, weights: Weights) -> PreprocessSpec:
        """Return the preprocessing of a tag or a file."""
        return preprocess_of(name, open_clip.get_model_config(name), weights)

    def load(self, name: str | None, weights: Weights, tokenizer: Path | None) -> PooledOpenClipBackbone:
        """See `Family.load`."""
        weights = weights.from_folder()
        state, beside = weights.state, config_beside(weights)
        is_siglip = state is not None and is_hugging_face_siglip(state)
        of_clip = in_openai_names(state) if state is not None and is_hugging_face_clip(state) else None
        config, build = _form(name, beside, of_clip)
        if tokenizer is None and _HUB_TOKENIZER in config["text_cfg"]:
            tokenizer = tokenizer_beside(weights)
        hub_tokenizer = self._tokenizer(
            name or FROM_CHECKPOINT, config, tokenizer, of_transformers=is_siglip or of_clip is not None
        )
        preprocess = preprocess_of(name or FROM_CHECKPOINT, config, weights)
        check_architecture(beside, config)
        quick_gelu = uses_quick_gelu(name, config, weights, from_openai=weights.fine_tuned, beside=beside)
        if name is not None:
            warn_if_a_file_could_be_several(name, config, weights)
        model = build(quick_gelu=quick_gelu)
        if state is not None and is_siglip:
            load_strictly(model, in_open_clips_names(state), theirs=SIGLIP_KEYS.theirs)
            follow_config_beside(model, state)
        elif of_clip is not None:
            load_strictly(model, of_clip, theirs=CLIP_KEYS.theirs)
            if name is not None and beside is not None:
                check_named(model, config, beside)
        elif state is not None:
            unused = () if "logit_bias" in model.state_dict() else (LOGIT_BIAS,)
            load_strictly(model, pass_over(state, unused))
        elif name is not None and weights.tag is not None:
            fetch(model, name, weights.tag)
        activation = activation_in_space(quick_gelu, config, weights, from_openai=weights.fine_tuned)
        return PooledOpenClipBackbone(model, config, preprocess, hub_tokenizer, activation)

    def _tokenizer(self, name: str, config: Config, file: Path | None, *, of_transformers: bool) -> HubTokenizer | None:
        text = config["text_cfg"]
        if _HUB_TOKENIZER not in text:
            refuse_tokenizer(name, file)
            return None
        return find_hub_tokenizer(name, text, file, of_transformers=of_transformers)


class _Build(Protocol):
    def __call__(self, *, quick_gelu: bool) -> nn.Module: ...


def _form(name: str | None, beside: ClipConfig | None, of_clip: StateDict | None) -> tuple[Config, _Build]:
    """Return a model's configuration in open_clip's terms, by its name or the file beside its weights, and its builder.

    of_clip: the weights of a CLIP of transformers, in OpenAI's key names. Raises ExportError if neither says the form,
    or if the text tower is a language model of transformers.
    """
    if name is not None:
        return open_clip.get_model_config(name), partial(create, name)
    if of_clip is not None and beside is not None and beside.end_id is not None:
        return metaclip_2_config(of_clip, beside), partial(create_metaclip_2, of_clip, beside)
    if beside is None or beside.architecture is None:
        raise ExportError(
            f"--backbone {FROM_CHECKPOINT}: the file holds a model of open_clip whose form can't be told from its "
            f"keys: name it, like --backbone ViT-B-16-SigLIP2, or put its {OF_OPEN_CLIP} beside it"
        )
    config = dict(beside.architecture)
    _check_towers(f"checkpoint {beside.file}", config)
    return config, partial(create, f"{_FOLDER}{beside.file.parent}")


def _check_towers(where: str, config: Config) -> None:
    """Refuse towers that are built by what is fetched."""
    language_model = config["text_cfg"].get("hf_model_name")
    if language_model is not None:
        raise ExportError(
            f"{where}: its text tower is transformers' {language_model}, whose configuration and padding mask are "
            "fetched from a hub; Cirrus exports the text towers that are open_clip's own: name another --backbone"
        )
    vision = str(config["vision_cfg"].get("timm_model_name", ""))
    if ":" in vision:
        raise ExportError(f"{where}: timm_model_name is {vision}, which is fetched from a hub: name another --backbone")
