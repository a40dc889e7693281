"""SigLIP and SigLIP 2 of one image size as transformers saves them (google/siglip-*), in open_clip's key names."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.hugging_face_towers import TEXT_LAYER, VISION_LAYER, renamed_towers
from cirrus_export.checkpoints.image_settings import read_settings
from cirrus_export.checkpoints.key_map import KeyMap
from cirrus_export.checkpoints.state import StateDict

_MARKS = ("text_model.embeddings.token_embedding.weight", "vision_model.head.probe")
_OUR_TEXT, _OUR_VISION, _POOL = "text.transformer.resblocks.{n}.", "visual.trunk.blocks.{n}.", "visual.trunk.attn_pool."
KEYS = KeyMap(
    ("text_model.embeddings.token_embedding.", "text.token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "text.positional_embedding"),
    ("text_model.final_layer_norm.", "text.ln_final."),
    ("text_model.head.", "text.text_projection."),
    ("vision_model.embeddings.patch_embedding.", "visual.trunk.patch_embed.proj."),
    ("vision_model.embeddings.position_embedding.weight", "visual.trunk.pos_embed"),
    ("vision_model.post_layernorm.", "visual.trunk.norm."),
    ("vision_model.head.probe", f"{_POOL}latent"),
    ("vision_model.head.attention.out_proj.", f"{_POOL}proj."),
    ("vision_model.head.layernorm.", f"{_POOL}norm."),
    ("vision_model.head.mlp.", f"{_POOL}mlp."),
    (f"{TEXT_LAYER}self_attn.out_proj.", f"{_OUR_TEXT}attn.out_proj."),
    (f"{TEXT_LAYER}self_attn.q_proj.", f"{_OUR_TEXT}attn.in_proj_"),
    (f"{TEXT_LAYER}layer_norm1.", f"{_OUR_TEXT}ln_1."),
    (f"{TEXT_LAYER}layer_norm2.", f"{_OUR_TEXT}ln_2."),
    (f"{TEXT_LAYER}mlp.fc1.", f"{_OUR_TEXT}mlp.c_fc."),
    (f"{TEXT_LAYER}mlp.fc2.", f"{_OUR_TEXT}mlp.c_proj."),
    (f"{VISION_LAYER}self_attn.out_proj.", f"{_OUR_VISION}attn.proj."),
    (f"{VISION_LAYER}self_attn.q_proj.", f"{_OUR_VISION}attn.qkv."),
    (f"{VISION_LAYER}layer_norm1.", f"{_OUR_VISION}norm1."),
    (f"{VISION_LAYER}layer_norm2.", f"{_OUR_VISION}norm2."),
    (f"{VISION_LAYER}mlp.", f"{_OUR_VISION}mlp."),
)
_POOLING = re.compile(r"^vision_model\.head\.attention\.in_proj_(?P<kind>weight|bias)$")
_ACTIVATION = "gelu_pytorch_tanh"
_FIELDS = ("num_attention_heads", "hidden_act", "layer_norm_eps")
_UNSEEN = {
    "vision_config": ("visual.trunk.blocks.0.attn", "visual.trunk.norm"),
    "text_config": ("text.transformer.resblocks.0.attn", "text.ln_final"),
}


def is_hugging_face_siglip(state: StateDict) -> bool:
    """Return whether a file holds both towers of a SigLIP in transformers' key names."""
    return all(key in state for key in _MARKS)


def in_open_clips_names(state: StateDict) -> StateDict:
    """Return a SigLIP of transformers in open_clip's key names: query, key and value in one, the pooling's query apart.

    Raises CheckpointError if one of the three is missing.
    """

    def other(key: str, value: Tensor) -> dict[str, Tensor]:
        pooling = _POOLING.match(key)
        if pooling is None:
            return {KEYS.ours(key): _in_open_clips_shape(key, value)}
        width, kind = len(value) // 3, pooling["kind"]
        return {f"{_POOL}q.{kind}": value[:width], f"{_POOL}kv.{kind}": value[width:]}

    return renamed_towers(state, KEYS, other)


def follow_config_beside(model: nn.Module, state: StateDict) -> None:
    """Give a model of open_clip the GELU of transformers' SigLIP, which is approximated by tanh in both towers.

    Raises CheckpointError if the `config.json` beside a file can't be read, or describes another model than this.
    Attention heads, the activation function and the epsilon of layer norms are not in the weights.
    """
    path = Path(state.source).parent / "config.json"
    content = read_settings(path)
    for tower, (attention, norm) in _UNSEEN.items():
        said = content.get(tower)
        said = said if isinstance(said, dict) else {}
        own = model.get_submodule(attention).num_heads, _ACTIVATION, model.get_submodule(norm).eps
        found = tuple(said.get(field, value) for field, value in zip(_FIELDS, own, strict=True))
        if found != own:
            raise CheckpointError(
                f"checkpoint {path}: {found[0]} attention heads with {found[1]} and layer_norm_eps {found[2]}, and the "
                f"architecture has {own[0]} with {own[1]} and {own[2]}: name another --backbone"
            )
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


def _in_open_clips_shape(key: str, value: Tensor) -> Tensor:
    if key == "vision_model.embeddings.position_embedding.weight":
        return value[None]
    return value.reshape(()) if key in ("logit_scale", "logit_bias") else value
