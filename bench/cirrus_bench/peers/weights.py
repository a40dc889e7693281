"""Write the bench's CLIP in the forms that peers read: an open_clip state dict, and a transformers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import Regex
from tokenizers.normalizers import NFC, Lowercase, Replace, Sequence
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.recipes.recipe import Recipe

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_VISION = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
}
_TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final": "final_layer_norm",
}


def write_weights(recipe: Recipe, folder: Path) -> Path:
    """Write `open_clip.pt` and `transformers/` (with image processor and tokenizer) into a folder, and return it."""
    backbone = recipe.backbone
    assert isinstance(backbone, OpenClipBackbone)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(backbone.clip.state_dict(), folder / "open_clip.pt")
    target = folder / "transformers"
    model = CLIPModel(CLIPConfig(**_configuration(backbone)))
    model.load_state_dict(transformers_state(backbone.clip.state_dict()), strict=True)
    model.save_pretrained(target)
    CLIPImageProcessor().save_pretrained(target)
    write_tokenizer(backbone, recipe.prompt, target)
    return folder


def write_tokenizer(backbone: OpenClipBackbone, prompt: Prompt, folder: Path) -> None:
    """Write the backbone's tokenizer as transformers reads it: it cleans texts and sets their start and end itself."""
    written = backbone.write_tokenizer(folder, prompt)
    path = folder / written.file
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    path.unlink()
    tokenizer.normalizer = Sequence([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    assert written.start_id is not None  # a CLIP's texts have a start and an end
    assert written.end_id is not None
    ends = [(str(tokenizer.id_to_token(token_id)), token_id) for token_id in (written.start_id, written.end_id)]
    (start, _), (end, _) = ends
    tokenizer.post_processor = TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    configuration = {"tokenizer_class": "CLIPTokenizerFast", **names, "model_max_length": written.context_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))


def transformers_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an open_clip CLIP's state dict under the names of transformers' CLIPModel."""
    renamed = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "text_projection.weight": state["text_projection"].T.contiguous(),
    }
    for key, tensor in state.items():
        tower, names, rest = (
            ("vision_model", _VISION, key.removeprefix("visual."))
            if key.startswith("visual.")
            else ("text_model", _TEXT, key)
        )
        if rest.startswith("transformer.resblocks."):
            number, part = rest.removeprefix("transformer.resblocks.").split(".", 1)
            renamed |= _block(f"{tower}.encoder.layers.{number}", part, tensor)
        else:
            for ours, theirs in names.items():
                if rest == ours or rest.startswith(f"{ours}."):
                    renamed[f"{tower}.{theirs}{rest.removeprefix(ours)}"] = tensor
    return renamed


def _block(layer: str, part: str, tensor: Tensor) -> dict[str, Tensor]:
    if part.startswith("attn.in_proj_"):
        kind = part.removeprefix("attn.in_proj_")
        return {
            f"{layer}.self_attn.{name}_proj.{kind}": piece.clone()
            for name, piece in zip("qkv", tensor.chunk(3), strict=True)
        }
    module, kind = part.rsplit(".", 1)
    return {f"{layer}.{_BLOCK[module]}.{kind}": tensor}


def _configuration(backbone: OpenClipBackbone) -> dict[str, Any]:
    clip = backbone.clip
    visual = clip.visual
    shared = {"hidden_act": "quick_gelu", "projection_dim": backbone.dim}
    return {
        "projection_dim": backbone.dim,
        "vision_config": shared
        | {
            "hidden_size": visual.conv1.out_channels,
            "intermediate_size": visual.transformer.resblocks[0].mlp.c_fc.out_features,
            "num_hidden_layers": len(visual.transformer.resblocks),
            "num_attention_heads": visual.transformer.resblocks[0].attn.num_heads,
            "image_size": backbone.image_size_px,
            "patch_size": visual.conv1.kernel_size[0],
        },
        "text_config": shared
        | {
            "hidden_size": clip.token_embedding.embedding_dim,
            "intermediate_size": clip.transformer.resblocks[0].mlp.c_fc.out_features,
            "num_hidden_layers": len(clip.transformer.resblocks),
            "num_attention_heads": clip.transformer.resblocks[0].attn.num_heads,
            "vocab_size": clip.token_embedding.num_embeddings,
            "max_position_embeddings": clip.context_length,
            "bos_token_id": clip.token_embedding.num_embeddings - 2,
            "eos_token_id": clip.token_embedding.num_embeddings - 1,
        },
    }
