"""Read a folder that transformers' `save_pretrained` wrote, without a weight missing or left over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.values import check_finite
from cirrus_export.checkpoints.wrappers import listed
from cirrus_export.quiet import errors_only, no_bars

_UNUSED = re.compile(r"(^|\.)(lm_head\.\w+|rotary_emb\.inv_freq|position_ids)$")
"""An embedder's words are never predicted; the others are constants."""


def load_model(model_class: Any, folder: Path, *, what: str, spare: frozenset[str] = frozenset()) -> Any:
    """Return the model in float32.

    what: the model, for messages, like "an InstructBLIP". spare: keys of weights that may be missing.

    transformers itself only warns of a weight that is not there, and draws it at random. Raises CheckpointError for
    keys that are missing, wrongly shaped or not part of the model, for NaN and infinity, and for what can't be read.
    """
    try:
        with errors_only("transformers"), no_bars():
            model, loading = model_class.from_pretrained(
                folder,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # transformers raises whatever a value leads to
        raise CheckpointError(f"checkpoint {folder}: can't be read as {what}: {error}") from error
    surplus = [key for key in loading["unexpected_keys"] if not _UNUSED.search(key)]
    problems = [f"key '{key}' is missing" for key in sorted(loading["missing_keys"] - spare)]
    problems += [f"key '{key[0]}' has shape {tuple(key[1])}" for key in sorted(loading["mismatched_keys"])]
    problems += [f"key '{key}' is not part of the model" for key in sorted(surplus)]
    if problems:
        raise CheckpointError(f"checkpoint {folder}: {listed(problems, separator='; ')}")
    check_finite(model.state_dict(), f"checkpoint {folder}")
    return model
