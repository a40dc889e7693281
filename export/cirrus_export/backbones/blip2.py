"""BLIP-2's frozen image encoders: EVA-CLIP ViT-g/14, and CLIP ViT-L/14 without its last block."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cirrus_client.errors import ExportError
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_client.names import GraphName
from cirrus_client.tokenizer import TokenizerSpec
from cirrus_export.backbones.backbone import Activation, Backbone, Prompt
from cirrus_export.backbones.bert_tokenizer import write_bert_tokenizer
from cirrus_export.backbones.family import Family, Sizes, Weights, refuse_tokenizer
from cirrus_export.checkpoints.key_map import KeyMap
from cirrus_export.checkpoints.state import (
    StateDict,
    Unused,
    count_layers,
    load_strictly,
    pass_over,
    report_problems,
)
from cirrus_export.graph import Graph, pixels, vectors

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from open_clip.transformer import QuickGELU, VisionTransformer
from transformers import Blip2VisionConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

CONTEXT_LENGTH = 32
VIT_G, VIT_L = "blip2-vit-g", "blip2-vit-l"
_KINDS = {VIT_G: "BLIP-2's ViT-g (blip2-vit-g)", VIT_L: "BLIP-2's ViT-L (blip2-vit-l)"}
_WIDTHS = {VIT_G: 1408, VIT_L: 1024}
_LN_VISION_EPS = 1e-5
_EVA_HEAD_WIDTH = 88
_CLIP_HEAD_WIDTH = 64
_RANDOM_STD = 0.02  # with transformers' default, 1e-10, a random model sees every image alike
_BLOCK, _LAYER = "visual_encoder.blocks.{n}.", "visual.encoder.layers.{n}."
_EVA_KEYS = KeyMap(
    ("visual_encoder.cls_token", "visual.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "visual.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "visual.embeddings.patch_embedding."),
    (f"{_BLOCK}norm1.", f"{_LAYER}layer_norm1."),
    (f"{_BLOCK}norm2.", f"{_LAYER}layer_norm2."),
    (f"{_BLOCK}attn.q_bias", f"{_LAYER}self_attn.qkv.bias"),
    (f"{_BLOCK}attn.qkv.", f"{_LAYER}self_attn.qkv."),
    (f"{_BLOCK}attn.proj.", f"{_LAYER}self_attn.projection."),
    (f"{_BLOCK}mlp.", f"{_LAYER}mlp."),
    ("ln_vision.", "visual.post_layernorm."),
    ("visual_encoder.", "visual."),
)
_CLIP_KEYS = KeyMap(("ln_vision.", "visual.ln_post."), ("visual_encoder.", "visual."))
_UNUSED = (
    Unused(
        r"(Qformer|vision_proj|text_proj|itm_head)\.|(query_tokens|prompt_tokens|temp)$",
        "BLIP-2's Q-Former, which the head's file has",
    ),
)
_QV_BIAS = re.compile(r"^(?P<attention>visual_encoder\.blocks\.\d+\.attn)\.(?P<which>[qv])_bias$")


class Blip2Backbone(Backbone):
    """An image encoder and `ln_vision`, which show every token to a Q-Former. The Q-Former reads the text itself."""

    label = "BLIP-2"
    offers = "image tokens for a Q-Former"
    reads_padding = False  # masked in the Q-Former

    def __init__(
        self,
        visual: Blip2VisionModel | VisionTransformer,
        preprocess: PreprocessSpec | None = None,
        activation: Activation | None = None,
    ) -> None:
        """preprocess: None is LAVIS's `BlipImageEvalProcessor`, which has CLIP's mean and standard deviation."""
        super().__init__()
        self.visual = visual
        self.activation = activation
        size = visual.config.image_size if isinstance(visual, Blip2VisionModel) else visual.image_size[0]
        self._preprocess = preprocess or PreprocessSpec(size_px=int(size))
        self.eval().requires_grad_(False)

    @staticmethod
    def vit_g() -> Blip2Backbone:
        """Build EVA-CLIP ViT-g/14 with random weights: 39 blocks of width 1408, as LAVIS's `create_eva_vit_g` does."""
        return Blip2Backbone(_eva(width=_WIDTHS[VIT_G], layers=39, inner=6144, patch_px=14, size_px=224))

    @staticmethod
    def vit_l() -> Blip2Backbone:
        """Build CLIP ViT-L/14 with random weights: 23 blocks of width 1024, as LAVIS's `create_clip_vit_L` does."""
        return Blip2Backbone(_clip(width=_WIDTHS[VIT_L], layers=23, patch_px=14, size_px=224))

    @staticmethod
    def shaped_as(state: StateDict) -> Blip2Backbone:
        """Build an encoder of a checkpoint's kind and sizes. Attention heads are as wide as the published model's."""
        is_eva = "visual_encoder.cls_token" in state
        patches = state[f"visual_encoder.{'patch_embed.proj' if is_eva else 'conv1'}.weight"]
        width, patch_px = patches.shape[0], patches.shape[-1]
        if is_eva:
            side = round((state["visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
            return Blip2Backbone(
                _eva(
                    width=width,
                    layers=count_layers(state, r"^visual_encoder\.blocks\.(\d+)\."),
                    inner=state["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
                    patch_px=patch_px,
                    size_px=side * patch_px,
                )
            )
        side = round((state["visual_encoder.positional_embedding"].shape[0] - 1) ** 0.5)
        layers = count_layers(state, r"^visual_encoder\.transformer\.resblocks\.(\d+)\.")
        return Blip2Backbone(_clip(width=width, layers=layers, patch_px=patch_px, size_px=side * patch_px))

    @property
    def width(self) -> int:
        """Width of an image token."""
        if isinstance(self.visual, Blip2VisionModel):
            return int(self.visual.config.hidden_size)
        return int(self.visual.class_embedding.shape[0])

    @property
    def preprocess(self) -> PreprocessSpec:
        """How the weights' trainers turned an image into pixels."""
        return self._preprocess

    @property
    def num_image_tokens(self) -> int:
        """Number of image tokens N, the CLS token included."""
        if isinstance(self.visual, Blip2VisionModel):
            return int(self.visual.embeddings.num_positions)
        return int(self.visual.positional_embedding.shape[0])

    @property
    def context_length(self) -> int:
        """Number of text tokens T."""
        return CONTEXT_LENGTH

    @property
    def vision(self) -> nn.Module:
        """The image encoder and `ln_vision`."""
        return self.visual

    @property
    def last_norm(self) -> nn.Module:
        """`ln_vision`."""
        norm: nn.Module = (
            self.visual.post_layernorm if isinstance(self.visual, Blip2VisionModel) else self.visual.ln_post
        )
        return norm

    def forward(self, pixels: Tensor) -> Tensor:
        """Return image_tokens [B, N, W] after `ln_vision`, of pixels float32 [B, 3, H, W]."""
        if isinstance(self.visual, Blip2VisionModel):
            tokens: Tensor = self.visual(pixels).last_hidden_state
        else:
            tokens = self.visual.ln_post(self.visual.transformer(self.visual._embeds(pixels)))
        return tokens

    def vision_graph(self) -> Graph:
        """Return the image encoder as a graph, from pixels to `image_tokens` [B, N, W]."""
        return Graph(
            GraphName.VISION_ENCODER,
            self,
            inputs=(pixels(self.image_size_px),),
            outputs=(vectors("image_tokens", self.num_image_tokens, self.width),),
        )

    def write_tokenizer(self, root: Path, prompt: Prompt) -> TokenizerSpec:
        """See `Backbone.write_tokenizer`."""
        return write_bert_tokenizer(root, context_length=CONTEXT_LENGTH, prompt=prompt)


class Blip2Family(Family):
    """The two image encoders that BLIP-2 was published with."""

    backbone_type = Blip2Backbone

    def names(self) -> Sequence[str]:
        """Return our names of them."""
        return tuple(_KINDS)

    def kind_named(self, name: str) -> str:
        """Return which of the two encoders a name is."""
        return _KINDS[name]

    def kind_of(self, state: StateDict) -> str | None:
        """Recognise a vision transformer without a final norm: EVA-CLIP's in timm's key names, or CLIP's in its own."""
        if "visual_encoder.class_embedding" in state:
            return _KINDS[VIT_L]
        is_eva = "visual_encoder.cls_token" in state and "visual_encoder.norm.weight" not in state
        return _KINDS[VIT_G] if is_eva else None

    def sizes(self, name: str) -> Sizes:
        """Return the width of the image tokens."""
        return Sizes(image_width=_WIDTHS[name])

    def load(self, name: str | None, weights: Weights, tokenizer: Path | None) -> Blip2Backbone:
        """See `Family.load`."""
        refuse_tokenizer(name, tokenizer)
        if weights.folder is not None:
            raise ExportError(f"--pretrained {weights.folder}: BLIP-2's weights are a file")
        state = weights.state
        if name is None:
            assert state is not None
            blip2 = Blip2Backbone.shaped_as(state)
        else:
            blip2 = Blip2Backbone.vit_g() if name == VIT_G else Blip2Backbone.vit_l()
        if state is not None:
            load_strictly(blip2, blip2_state(state), theirs=blip2_keys(state).theirs)
        return blip2


def blip2_keys(state: StateDict) -> KeyMap:
    """Return how the file's image encoder names its parameters."""
    return _EVA_KEYS if "visual_encoder.cls_token" in state else _CLIP_KEYS


def blip2_state(state: StateDict) -> StateDict:
    """Return `visual_encoder.*` and `ln_vision.*` of a LAVIS checkpoint in `Blip2Backbone`'s key names.

    EVA stores biases of query and value alone; the key's is zero. Raises CheckpointError if one of them is missing.
    """
    keys = blip2_keys(state)
    renamed: dict[str, Tensor] = {}
    for key, value in pass_over(state, _UNUSED).items():
        block = _QV_BIAS.match(key)
        if block is None:
            renamed[keys.ours(key)] = value
        elif block["which"] == "q":
            value_bias = state.get(f"{block['attention']}.v_bias")
            if value_bias is None:
                report_problems(state.source, [f"key '{block['attention']}.v_bias' is missing"])
                value_bias = torch.zeros_like(value)
            bias = torch.cat([value, torch.zeros_like(value), value_bias])
            renamed[keys.ours(key)] = bias
    return state.derived(renamed)


def _eva(*, width: int, layers: int, inner: int, patch_px: int, size_px: int) -> Blip2VisionModel:
    model = Blip2VisionModel(
        Blip2VisionConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // _EVA_HEAD_WIDTH),
            image_size=size_px,
            patch_size=patch_px,
            layer_norm_eps=1e-6,
            qkv_bias=True,
            initializer_range=_RANDOM_STD,
        )
    )
    model.post_layernorm.eps = _LN_VISION_EPS
    return model


def _clip(*, width: int, layers: int, patch_px: int, size_px: int) -> VisionTransformer:
    visual = VisionTransformer(
        image_size=size_px,
        patch_size=patch_px,
        width=width,
        layers=layers,
        heads=max(1, width // _CLIP_HEAD_WIDTH),
        mlp_ratio=4.0,
        act_layer=QuickGELU,
    )
    visual.proj = None
    return visual
