"""MagicLens files: the public release of google-deepmind/magiclens, and its tensors as safetensors or of torch.save.

The release, `magic_lens_clip_base.pkl`, is the pickle of one bytes object: flax's msgpack of a tree of arrays. Nothing
in it runs: a pickle that would build anything but bytes is refused. The names of a tree's tensors are its paths, like
`params/multimodal_encoder/x_layers_0/self_attention/query/w`; dots may stand for the slashes.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints import widths
from cirrus_export.checkpoints.key_map import KeyMap
from cirrus_export.checkpoints.state import (
    StateDict,
    as_state_dict,
    count_layers,
    load_strictly,
    read_state_dict,
    report_problems,
)
from cirrus_export.checkpoints.widths import Width
from cirrus_export.heads.magiclens import MagicLens, MagicLensSize

HEAD = ("multimodal_encoder.", "contrastive_multimodal_pooler.")
_LAYER_0 = "multimodal_encoder.x_layers_0."
_NDARRAY = 1
_TEXT, _VISION = "text.transformer.resblocks_{n}.", "visual.transformer.resblocks_{n}."
KEYS = KeyMap(
    ("text.token_embedding.embedding", "token_embedding.weight"),
    ("text.positional_embedding", "positional_embedding"),
    ("text.ln_final.scale", "ln_final.weight"),
    ("text.ln_final.", "ln_final."),
    ("text.text_projection.kernel", "text_projection"),
    ("visual.conv1.kernel", "visual.conv1.weight"),
    ("visual.proj.kernel", "visual.proj"),
    ("visual.ln_pre.scale", "visual.ln_pre.weight"),
    ("visual.ln_post.scale", "visual.ln_post.weight"),
    *(
        (f"{theirs}{their_part}", f"{ours}{our_part}")
        for theirs, ours in ((_TEXT, "transformer.resblocks.{n}."), (_VISION, "visual.transformer.resblocks.{n}."))
        for their_part, our_part in (
            ("attn.out.kernel", "attn.out_proj.weight"),
            ("attn.out.", "attn.out_proj."),
            ("attn.query.kernel", "attn.in_proj_weight"),
            ("attn.query.bias", "attn.in_proj_bias"),
            ("ln_1.scale", "ln_1.weight"),
            ("ln_2.scale", "ln_2.weight"),
            ("mlp.c_fc.kernel", "mlp.c_fc.weight"),
            ("mlp.c_proj.kernel", "mlp.c_proj.weight"),
            ("", ""),
        )
    ),
)


def read(path: Path) -> StateDict:
    """Read a file of MagicLens; names have dots. Raises CheckpointError."""
    content = _release(path)
    state = read_state_dict(path) if content is None else as_state_dict(_tensors(content, path), str(path))
    named = {key.replace("/", ".").removeprefix("params."): value for key, value in state.items()}
    return state.derived(named)


def backbone(head: StateDict) -> StateDict | None:
    """Return the CLIP of a file in OpenAI's key names, or None. Raises CheckpointError if one of q, k, v is missing."""
    clip = head.under("clip.")
    if not clip:
        return None
    renamed: dict[str, Tensor] = {}
    for key, value in clip.items():
        if ".attn.key." in key or ".attn.value." in key:
            continue
        three = [key.replace(".attn.query.", f".attn.{one}.") for one in ("query", "key", "value")]
        if three[0] == three[1]:
            renamed[KEYS.ours(key)] = _in_torch_layout(key, value)
            continue
        report_problems(clip.source, [f"key '{clip.prefix}{one}' is missing" for one in three if one not in clip])
        renamed[KEYS.ours(key)] = torch.cat([_in_torch_layout(one, clip.get(one, value)) for one in three])
    return clip.derived(renamed)


def check_width(head: StateDict, dim: int | None) -> None:
    """Raise CheckpointError if the head is for embeddings of another width."""
    widths.check_width(head, f"{_LAYER_0}self_attention.query.w", 0, dim, Width.EMBEDDINGS)


def load(head: StateDict | None, dim: int) -> MagicLens:
    """Return the head with a file's weights and sizes, or random ones in the released sizes.

    Raises CheckpointError for a missing, surplus or wrongly shaped key.
    """
    released = MagicLensSize.released(dim)
    if head is None:
        return MagicLens(released)
    pooled = head.get("contrastive_multimodal_pooler.pool_attn.query.b")
    size = MagicLensSize(
        dim,
        layers=count_layers(head, r"^multimodal_encoder\.x_layers_(\d+)\.", default=released.layers),
        heads=_axis(head, f"{_LAYER_0}self_attention.query.w", 1, released.heads),
        hidden=_axis(head, f"{_LAYER_0}ff_layer.ffn_layer1.linear.w", 1, released.hidden),
        pooled=released.pooled if pooled is None else pooled.numel(),
    )
    if dim % size.heads or size.pooled % size.heads:
        raise CheckpointError(f"checkpoint {head.source}: {size.heads} heads do not divide widths {dim}, {size.pooled}")
    module = MagicLens(size)
    load_strictly(module, head.derived({key: value for key, value in head.items() if not key.startswith("clip.")}))
    return module


def _in_torch_layout(key: str, value: Tensor) -> Tensor:
    """Return a tensor of scenic's CLIP as torch lays it out."""
    if key.endswith("conv1.kernel"):
        return value.permute(3, 2, 0, 1) if value.ndim == 4 else value
    if ".attn.out.kernel" in key:
        return value.flatten(0, -2).T if value.ndim == 3 else value
    if ".attn." in key and key.endswith(".kernel"):
        return value.flatten(1).T if value.ndim == 3 else value
    if ".attn." in key and not key.endswith("out.bias"):
        return value.flatten()
    return value.T if ".mlp." in key and value.ndim == 2 else value


def _axis(head: StateDict, key: str, axis: int, default: int) -> int:
    tensor = head.get(key)
    return default if tensor is None or tensor.ndim <= axis else max(1, int(tensor.shape[axis]))


class _BytesAlone(pickle.Unpickler):
    """Opens a pickle of plain data, and nothing that names a class or a function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a reference")


def _release(path: Path) -> Mapping[str, Any] | None:
    """Return the tree of the public release, or None if the file is another kind of checkpoint."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(1) != b"\x80":
            return None
        file.seek(0)
        try:
            content = _BytesAlone(file).load()
        except (pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError, OverflowError):
            return None
    if not isinstance(content, bytes):
        return None
    try:
        tree = msgpack.unpackb(content, ext_hook=_array, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CheckpointError(
            f"checkpoint {path}: its msgpack is cut or broken ({error or type(error).__name__}); copy it again"
        ) from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"checkpoint {path}: its msgpack holds a {type(tree).__name__}, expected flax's tree")
    return tree


def _array(code: int, data: bytes) -> Any:
    """Return the array that flax's `serialization.msgpack_serialize` made an extension of."""
    if code != _NDARRAY:
        raise ValueError(f"extension {code}")
    shape, dtype, content = msgpack.unpackb(data, raw=False)
    if dtype not in ("float16", "float32", "float64", "int32", "int64"):
        raise ValueError(f"arrays of {dtype}")
    array = np.frombuffer(content, dtype=dtype)
    if array.size != math.prod(shape):
        raise ValueError(f"{array.size} values for shape {tuple(shape)}")
    return array.reshape(shape).copy()


def _tensors(tree: Mapping[str, Any], path: Path, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= _tensors(value, path, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray):
            found[f"{prefix}{name}"] = torch.from_numpy(value)
        else:
            raise CheckpointError(f"checkpoint {path}: '{prefix}{name}' is a {type(value).__name__}, expected an array")
    return found
