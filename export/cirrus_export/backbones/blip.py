"""BLIP's retrieval model (ViT-B/16 at 384 px, 256-d features) through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from cirrus_client.errors import ExportError
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_client.tokenizer import TokenizerSpec
from cirrus_export.backbones.backbone import Prompt, TextToken, TokenBackbone
from cirrus_export.backbones.bert_tokenizer import bert_null_token_ids, write_bert_tokenizer
from cirrus_export.backbones.family import Family, Sizes, Weights, refuse_tokenizer
from cirrus_export.checkpoints.key_map import KeyMap
from cirrus_export.checkpoints.state import StateDict, Unused, count_layers, load_strictly, pass_over

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

CONTEXT_LENGTH = 35
_KIND = "a BLIP (blip-base-coco)"
_HEAD_WIDTH = 64
_DIM = 256
_RANDOM_STD = 0.02  # with transformers' default, 1e-10, a random model sees every image alike
_BLOCK, _LAYER = "visual_encoder.blocks.{n}.", "vision_model.encoder.layers.{n}."
BLIP_KEYS = KeyMap(
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.norm.", "vision_model.post_layernorm."),
    (f"{_BLOCK}norm1.", f"{_LAYER}layer_norm1."),
    (f"{_BLOCK}norm2.", f"{_LAYER}layer_norm2."),
    (f"{_BLOCK}attn.proj.", f"{_LAYER}self_attn.projection."),
    (f"{_BLOCK}attn.qkv.", f"{_LAYER}self_attn.qkv."),
    (f"{_BLOCK}mlp.", f"{_LAYER}mlp."),
)
_UNUSED = (
    Unused(r"(visual_encoder_m|text_encoder_m|vision_proj_m|text_proj_m)\.", "momentum twins, which training follows"),
    Unused(r"(image_queue|text_queue|idx_queue|ptr_queue|queue_ptr|temp)$", "queues and temperature of training"),
    Unused(r"itm_head\.", "the head for matching, which reranks and does not retrieve"),
    Unused(r"text_encoder\.encoder\.layer\.\d+\.crossattention\.", "layers that read an image for matching"),
    Unused(r"text_encoder\.embeddings\.position_ids$", "a constant: 0, 1, 2, ..."),
)


class BlipBackbone(TokenBackbone):
    """A BLIP whose encoders return the global embedding and all tokens, projected and unnormalised.

    `encode_image(return_local=True)` and `encode_text` of `BLIP/models/blip_retrieval.py` in Code-kunkun/ZS-CIR and
    baohl00/UNION_for_IGROT: the image stands in its CLS token, the text in its first.
    """

    label = "BLIP"
    text_token = TextToken.FIRST
    reads_padding = False  # masked

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig, dim: int) -> None:
        super().__init__()
        self.vision_model = BlipVisionModel(vision)
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
        self.vision_proj = nn.Linear(vision.hidden_size, dim)
        self.text_proj = nn.Linear(text.hidden_size, dim)
        self.eval().requires_grad_(False)

    @staticmethod
    def base() -> BlipBackbone:
        """Build BLIP-B with random weights, as `blip_retrieval(image_size=384, vit="base")` does."""
        vision = BlipVisionConfig(image_size=384, patch_size=16, layer_norm_eps=1e-6, initializer_range=_RANDOM_STD)
        return BlipBackbone(vision, _text_config(vocabulary=30524, width=768, layers=12, inner=3072), dim=_DIM)

    @staticmethod
    def shaped_as(state: StateDict) -> BlipBackbone:
        """Build a BLIP with random weights in the sizes of a checkpoint. Attention heads are 64 wide."""
        patches = state["visual_encoder.patch_embed.proj.weight"]
        words = state["text_encoder.embeddings.word_embeddings.weight"]
        width, patch_px = patches.shape[0], patches.shape[-1]
        side = round((state["visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
        vision = BlipVisionConfig(
            hidden_size=width,
            intermediate_size=state["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=count_layers(state, r"^visual_encoder\.blocks\.(\d+)\."),
            num_attention_heads=max(1, width // _HEAD_WIDTH),
            image_size=side * patch_px,
            patch_size=patch_px,
            layer_norm_eps=1e-6,
            initializer_range=_RANDOM_STD,
        )
        text = _text_config(
            vocabulary=words.shape[0],
            width=words.shape[1],
            layers=count_layers(state, r"^text_encoder\.encoder\.layer\.(\d+)\."),
            inner=state["text_encoder.encoder.layer.0.intermediate.dense.weight"].shape[0],
            positions=state["text_encoder.embeddings.position_embeddings.weight"].shape[0],
        )
        return BlipBackbone(vision, text, dim=state["vision_proj.weight"].shape[0])

    @property
    def dim(self) -> int:
        """Width D of the shared embedding."""
        return self.vision_proj.out_features

    @property
    def preprocess(self) -> PreprocessSpec:
        """CLIP's mean and standard deviation, in the model's size: BLIP's `transform_test`."""
        return PreprocessSpec(size_px=int(self.vision_model.config.image_size))

    @property
    def pooling(self) -> str:
        """The CLS token through the projection."""
        return "cls, projected"

    @property
    def context_length(self) -> int:
        """Number of text tokens T."""
        return CONTEXT_LENGTH

    @property
    def num_image_tokens(self) -> int:
        """Number of image tokens N, the CLS token included."""
        return int(self.vision_model.embeddings.num_positions)

    @property
    def vision(self) -> nn.Module:
        """The vision transformer and its projection."""
        return nn.ModuleDict({"vision_model": self.vision_model, "vision_proj": self.vision_proj})

    @property
    def text(self) -> nn.Module:
        """The text encoder and its projection."""
        return nn.ModuleDict({"text_encoder": self.text_encoder, "text_proj": self.text_proj})

    @property
    def null_token_ids(self) -> Tensor:
        """The empty text, int64 [1, T]."""
        return bert_null_token_ids(CONTEXT_LENGTH)

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (image_embedding [B, D], image_tokens [B, N, D]) of normalised pixels float32 [B, 3, H, W]."""
        tokens = self.vision_proj(self.vision_model(pixels).last_hidden_state)
        return tokens[:, 0], tokens

    def encode_text(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (text_embedding [B, D], text_tokens [B, T, D]) of int64 [B, T] token ids, padded with 0."""
        is_text = (token_ids != 0).long()
        tokens = self.text_proj(self.text_encoder(token_ids, attention_mask=is_text).last_hidden_state)
        return tokens[:, 0], tokens

    def write_tokenizer(self, root: Path, prompt: Prompt) -> TokenizerSpec:
        """See `Backbone.write_tokenizer`."""
        return write_bert_tokenizer(root, context_length=CONTEXT_LENGTH, prompt=prompt)


class BlipFamily(Family):
    """BLIP-B as it is fine-tuned for retrieval, on COCO or Flickr."""

    backbone_type = BlipBackbone

    def names(self) -> Sequence[str]:
        """Return the two published models' names; they are one architecture."""
        return ("blip-base-coco", "blip-base-flickr")

    def kind_named(self, name: str) -> str:
        """Return the one kind that there is."""
        return _KIND

    def kind_of(self, state: StateDict) -> str | None:
        """Recognise timm's vision transformer with a final norm, under BLIP's name."""
        return _KIND if "visual_encoder.norm.weight" in state else None

    def sizes(self, name: str) -> Sizes:
        """Return BLIP-B's width of the embeddings."""
        return Sizes(dim=_DIM)

    def load(self, name: str | None, weights: Weights, tokenizer: Path | None) -> BlipBackbone:
        """See `Family.load`."""
        refuse_tokenizer(name, tokenizer)
        if weights.folder is not None:
            raise ExportError(f"--pretrained {weights.folder}: a BLIP's weights are a file")
        state = weights.state
        if state is None:
            return BlipBackbone.base()
        blip = BlipBackbone.shaped_as(state) if name is None else BlipBackbone.base()
        load_strictly(blip, blip_state(state), theirs=BLIP_KEYS.theirs)
        return blip


def blip_state(state: StateDict) -> StateDict:
    """Return a BLIP retrieval checkpoint in `BlipBackbone`'s key names, without what retrieval does not use."""
    return state.derived({BLIP_KEYS.ours(key): value for key, value in pass_over(state, _UNUSED).items()})


def _text_config(*, vocabulary: int, width: int, layers: int, inner: int, positions: int = 512) -> BlipTextConfig:
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        max_position_embeddings=positions,
        layer_norm_eps=1e-12,
        is_decoder=False,
        pad_token_id=0,
    )
