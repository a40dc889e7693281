"""What a CLIP and a SigLIP have in common as transformers saves them: two towers, with query, key and value apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cirrus_export.checkpoints.key_map import KeyMap
from cirrus_export.checkpoints.state import StateDict, Unused, pass_over, report_problems

TEXT_LAYER, VISION_LAYER = "text_model.encoder.layers.{n}.", "vision_model.encoder.layers.{n}."
_UNUSED = (Unused(r"(text|vision)_model\.embeddings\.position_ids$", "a constant: 0, 1, 2, ..."),)
_QKV = re.compile(r"^(?P<attention>.*\.self_attn)\.(?P<which>[qkv])_proj\.(?P<kind>weight|bias)$")


def renamed_towers(state: StateDict, keys: KeyMap, other: Callable[[str, Tensor], Mapping[str, Tensor]]) -> StateDict:
    """Return both towers in our key names: query, key and value in one, under the query's name.

    other: what one of the other tensors becomes, by our names. Raises CheckpointError if one of the three is missing.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in pass_over(state, _UNUSED).items():
        found = _QKV.match(key)
        if found is None:
            renamed |= other(key, value)
        elif found["which"] == "q":
            three = [f"{found['attention']}.{which}_proj.{found['kind']}" for which in "qkv"]
            missing = [name for name in three if name not in state]
            report_problems(state.source, [f"key '{state.prefix}{name}' is missing" for name in missing])
            renamed[keys.ours(key)] = torch.cat([state.get(name, torch.zeros_like(value)) for name in three])
    return state.derived(renamed)
