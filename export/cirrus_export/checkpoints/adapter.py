"""Adapters that peft trained beside a frozen model (LoRA, arXiv 2106.09685), merged into it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from cirrus_client.errors import CheckpointError
from cirrus_client.extras import need
from cirrus_export.checkpoints.state import read_checkpoint
from cirrus_export.checkpoints.values import in_float32
from cirrus_export.checkpoints.wrappers import listed

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = ".lora_"

M = TypeVar("M", bound=nn.Module)


def refuse_adapter(folder: Path) -> None:
    """Raise CheckpointError if a folder holds an adapter, which whoever reads the folder would overlook."""
    if (folder / _CONFIG).is_file():
        raise CheckpointError(
            f"checkpoint {folder}: holds an adapter ({_CONFIG}), which is not merged: save the whole model, with "
            "peft's `model.merge_and_unload().save_pretrained(FOLDER)`"
        )


def base_folder(folder: Path) -> Path:
    """Return the folder of the model that an adapter was trained on; a folder without an adapter is its own.

    Raises CheckpointError if that model is no folder here, is an adapter itself, or lies in the adapter's own folder.
    """
    path = folder / _CONFIG
    if not path.is_file():
        return folder
    try:
        base = Path(json.loads(path.read_bytes())["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: is no configuration of an adapter: {error}") from None
    if not base.is_dir():
        raise CheckpointError(
            f"checkpoint {path}: the adapter's model is '{base}', which is no folder here: fetch it, and put its path "
            "into base_model_name_or_path"
        )
    refuse_adapter(base)
    if (folder / "config.json").is_file():
        raise CheckpointError(
            f"checkpoint {folder}: holds a model and an adapter ({_CONFIG}), and whether it is merged into the model "
            "can't be told: take one of them away"
        )
    return base


def merge_adapter(model: M, folder: Path) -> M:
    """Merge the adapter of a folder into the layers of a model, in place, and return the model.

    Raises CheckpointError if the folder holds more than factors of LoRA for layers of this model, and MissingPackage
    without peft.
    """
    import cirrus_export.backbones.torchvision_cpu  # noqa: F401  peft imports torchvision

    peft = need("peft", f"merging the adapter {folder}")
    file = folder / _WEIGHTS
    factors = in_float32(_tensors(file), str(file))
    layers = _layers(factors, model, file)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        _check(config, folder / _CONFIG)
        config.target_modules = sorted(layers.values())
        for pattern in ("alpha_pattern", "rank_pattern"):
            setattr(config, pattern, _by_layer(getattr(config, pattern), layers))
        config.exclude_modules = config.layers_to_transform = None
        config.task_type = None  # of the whole that was trained: with CAUSAL_LM, peft asks the model for its head
        adapted = peft.get_peft_model(model, config)
        of_model = {_PREFIX + _renamed(name, layers): factor for name, factor in factors.items()}
        loaded = peft.set_peft_model_state_dict(adapted, of_model)
        missing = [name for name in loaded.missing_keys if _FACTOR in name]
        if missing or loaded.unexpected_keys:
            raise CheckpointError(f"checkpoint {file}: {listed([*missing, *loaded.unexpected_keys])} do not fit")
        merged: M = adapted.merge_and_unload(safe_merge=True)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:  # what peft and torch raise
        raise CheckpointError(f"checkpoint {folder}: the adapter can't be merged: {error}") from error
    return merged


def _by_layer(patterns: Mapping[str, int], layers: Mapping[str, str]) -> dict[str, int]:
    """Return the values of patterns that match the trained names of layers, by this model's names."""
    pattern_of = need("peft.utils.other", "merging an adapter").get_pattern_key
    matches = {own: pattern_of(patterns, trained) for trained, own in layers.items()}
    return {own: patterns[key] for own, key in matches.items() if key in patterns}


def _check(config: Any, path: Path) -> None:
    """Raise CheckpointError for an adapter whose numbers mean something else than factors with one scale."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise CheckpointError(f"checkpoint {path}: is an adapter of the kind {kind}; LoRA can be merged")
    if config.bias != "none" or config.modules_to_save:
        raise CheckpointError(f"checkpoint {path}: has trained more than LoRA's factors: merge it with peft")


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: is missing; peft's save_pretrained writes it")
    return {name: tensor for name, tensor in read_checkpoint(path).items() if isinstance(tensor, Tensor)}


def _layers(factors: Iterable[str], model: nn.Module, path: Path) -> dict[str, str]:
    """Return this model's name of every layer that has factors, by the name in the model that was trained.

    That may have been the whole of which this model is a part, or a whole of an earlier release of transformers, where
    the language model's layers were the model's, and a LLaVA's two towers had their layers one level below.
    """
    known = {name for name, _ in model.named_modules()}
    layers, lost = {}, []
    for name in factors:
        trained = _trained(name)
        inner = trained.removeprefix("model.")
        level_up = inner.replace("language_model.model.", "language_model.").replace(".vision_model.", ".")
        found = [own for own in (trained, inner, f"language_model.{inner}", level_up) if own in known]
        if _FACTOR not in name or not found:
            lost.append(f"'{name}'")
        else:
            layers[trained] = found[0]
    if lost or not layers:
        raise CheckpointError(
            f"checkpoint {path}: {listed(lost) or 'nothing'} is no factor of LoRA for a layer of this model"
        )
    return layers


def _trained(name: str) -> str:
    return name.removeprefix(_PREFIX).split(_FACTOR)[0]


def _renamed(name: str, layers: Mapping[str, str]) -> str:
    return f"{layers[_trained(name)]}{_FACTOR}{name.split(_FACTOR)[1]}"
