"""CLIP as transformers saves it (openai/clip-vit-*, FashionCLIP, BGE-VL), in OpenAI's key names."""

from __future__ import annotations

from torch import Tensor

from cirrus_export.checkpoints.hugging_face_towers import TEXT_LAYER, VISION_LAYER, renamed_towers
from cirrus_export.checkpoints.key_map import KeyMap
from cirrus_export.checkpoints.state import StateDict

_MARKS = ("text_model.embeddings.token_embedding.weight", "vision_model.embeddings.class_embedding")
_OUR_TEXT, _OUR_VISION = "transformer.resblocks.{n}.", "visual.transformer.resblocks.{n}."
KEYS = KeyMap(
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_projection.weight", "text_projection"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("visual_projection.weight", "visual.proj"),
    *(
        (f"{theirs}{their_part}", f"{ours}{our_part}")
        for theirs, ours in ((TEXT_LAYER, _OUR_TEXT), (VISION_LAYER, _OUR_VISION))
        for their_part, our_part in (
            ("self_attn.out_proj.", "attn.out_proj."),
            ("self_attn.q_proj.", "attn.in_proj_"),
            ("layer_norm1.", "ln_1."),
            ("layer_norm2.", "ln_2."),
            ("mlp.fc1.", "mlp.c_fc."),
            ("mlp.fc2.", "mlp.c_proj."),
        )
    ),
)
_TRANSPOSED = ("text_projection.weight", "visual_projection.weight")


def is_hugging_face_clip(state: StateDict) -> bool:
    """Return whether a file holds both towers of a CLIP in transformers' key names."""
    return all(key in state for key in _MARKS)


def in_openai_names(state: StateDict) -> StateDict:
    """Return a CLIP of transformers in OpenAI's key names: query, key and value in one, projections transposed.

    Raises CheckpointError if one of the three is missing.
    """

    def other(key: str, value: Tensor) -> dict[str, Tensor]:
        return {KEYS.ours(key): value.T if key in _TRANSPOSED else value}

    return renamed_towers(state, KEYS, other)
