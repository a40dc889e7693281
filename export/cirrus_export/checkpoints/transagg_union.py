"""TransAgg and UNION files: `torch.save(model.state_dict())` of the released training code.

The query head (`fusion.`, `combiner_layer.`, `weighted_layer.`, `output_layer.`, `sep_token`), the target head
(`t5_layers.`, `union_weighted_layer.`) and the CLIP they were trained with, under `model.` (UNION) or
`pretrained_model.` (TransAgg). A file without the CLIP is a head for a frozen backbone.
"""

from __future__ import annotations

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.state import StateDict, load_strictly
from cirrus_export.heads.transagg import TransAgg
from cirrus_export.heads.union import Union

_BACKBONE_PREFIXES = ("model.", "pretrained_model.")
_UNION_PREFIXES = ("t5_layers.", "union_weighted_layer.")
_EMBED_TOKENS = "t5_layers.embed_tokens.weight"


def backbone(head: StateDict) -> StateDict | None:
    """Return the CLIP that the file carries, in OpenAI's key names, or None."""
    for prefix in _BACKBONE_PREFIXES:
        part = head.under(prefix)
        if part:
            return part
    return None


def load(head: StateDict, query_head: TransAgg, union: Union) -> None:
    """Load both heads. Raises CheckpointError for a missing, surplus or wrongly shaped key.

    Newer transformers save an unused `embed_tokens` table with the T5 stack; it is the one key that is ignored.
    """
    _check_width(head, query_head)
    target = {key: value for key, value in head.items() if key.startswith(_UNION_PREFIXES) and key != _EMBED_TOKENS}
    load_strictly(union, StateDict(target, head.source))
    passed_over = (*_UNION_PREFIXES, *_BACKBONE_PREFIXES)
    query = {key: value for key, value in head.items() if not key.startswith(passed_over)}
    load_strictly(query_head, StateDict(query, head.source))


def t5_heads(dim: int) -> int:
    """Attention heads of the released T5 stack: 12 for CLIP ViT-L/14 (D=768), else 8."""
    return 12 if dim == 768 else 8


def _check_width(head: StateDict, query_head: TransAgg) -> None:
    weight = head.get("weighted_layer.weight")
    width = query_head.weighted_layer.in_features
    if weight is not None and weight.shape[-1] != width:
        found = int(weight.shape[-1])
        known = {512: "ViT-B-32 or ViT-B-16", 768: "ViT-L-14", 256: "a BLIP backbone"}
        hint = f"; it looks like a head for {known[found]}" if found in known else ""
        raise CheckpointError(
            f"checkpoint {head.source}: the head is for embeddings of width {found}, "
            f"the backbone's width is {width}{hint}"
        )
