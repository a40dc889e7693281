"""The soft prompts of a CIR-LVLM in a file of their own: `{"prompts.keys": [M, W], "prompts.values": [M, L_p, W]}`."""

from __future__ import annotations

from cirrus_client.errors import ExportError
from cirrus_export.checkpoints.state import StateDict, load_strictly
from cirrus_export.heads.lvlm import PromptPool

_PREFIX = "prompts."
_POOL, _LENGTH = 45, 10


def load_pool(head: StateDict | None, width: int, chosen: int) -> PromptPool:
    """Return a file's soft prompts, or random ones in the paper's sizes. chosen: how many an instance takes.

    Raises CheckpointError for a missing, surplus or wrongly shaped key, and ExportError if more are to be chosen than
    there are.
    """
    values = None if head is None else head.get(f"{_PREFIX}values")
    pool, length = (_POOL, _LENGTH) if values is None or values.ndim != 3 else values.shape[:2]
    if chosen > pool:
        raise ExportError(f"--option prompts_chosen={chosen}: there are {pool} soft prompts")
    prompts = PromptPool(pool, length, chosen, width)
    if head is not None:
        load_strictly(
            prompts,
            head.derived({key.removeprefix(_PREFIX): tensor for key, tensor in head.items()}),
            theirs=lambda key: f"{_PREFIX}{key}",
        )
    return prompts
