"""TransAgg and UNION files: `torch.save(model.state_dict())` of the released training code.

The query head (`fusion.`, `combiner_layer.`, `weighted_layer.`, `output_layer.`, `sep_token`), the target head
(`t5_layers.`, `union_weighted_layer.`; in UNION's files alone) and the CLIP or BLIP they were trained with, under
`model.` (UNION) or `pretrained_model.` (TransAgg). A file without it is a head for a frozen backbone.
"""

from __future__ import annotations

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints import widths
from cirrus_export.checkpoints.state import StateDict, Unused, count_layers, load_strictly, pass_over
from cirrus_export.checkpoints.widths import Width
from cirrus_export.heads.transagg import TransAgg
from cirrus_export.heads.union import Union

QUERY_HEAD = ("fusion.", "combiner_layer.", "weighted_layer.", "output_layer.")
UNION = ("t5_layers.", "union_weighted_layer.")
_BACKBONE_PREFIXES = ("model.", "pretrained_model.")
_UNUSED = (Unused(r"t5_layers\.embed_tokens\.weight$", "T5's words, which a stack over two features does not read"),)


def backbone(head: StateDict) -> StateDict | None:
    """Return the CLIP or BLIP that the file carries, in its authors' key names, or None.

    Raises CheckpointError if it carries two.
    """
    parts = [part for prefix in _BACKBONE_PREFIXES if (part := head.under(prefix))]
    if len(parts) > 1:
        raise CheckpointError(
            f"checkpoint {head.source}: holds two backbones, under {' and '.join(_BACKBONE_PREFIXES)}: save the one "
            "that the head was trained with"
        )
    return parts[0] if parts else None


def check_width(head: StateDict, dim: int | None) -> None:
    """Raise CheckpointError if the heads are for embeddings of another width."""
    widths.check_width(head, "weighted_layer.weight", 1, dim, Width.EMBEDDINGS)


def load_query_head(head: StateDict, query_head: TransAgg, *, beside: tuple[str, ...] = UNION) -> None:
    """Load the query head. Raises CheckpointError for a missing, surplus or wrongly shaped key.

    beside: prefixes of keys that the caller loads into other parts.
    """
    check_width(head, query_head.weighted_layer.in_features)
    passed_over = (*beside, *_BACKBONE_PREFIXES)
    query = {key: value for key, value in head.items() if not key.startswith(passed_over)}
    load_strictly(query_head, head.derived(query))


def load_union(head: StateDict, union: Union) -> None:
    """Load the target head. Raises CheckpointError for a missing, surplus or wrongly shaped key."""
    target = {key: value for key, value in head.items() if key.startswith(UNION)}
    load_strictly(union, pass_over(head.derived(target), _UNUSED))


def fusion_layers(head: StateDict | None) -> int:
    """Layers of the query head's transformer: as many as the file has, two in the released configuration."""
    return count_layers(head or (), r"^fusion\.layers\.(\d+)\.", default=2)


def t5_heads(head: StateDict | None, dim: int) -> int:
    """Attention heads of the T5 stack, 64 wide: the file's; the released 12 for CLIP ViT-L/14 (D=768), else 8."""
    query = head.get("t5_layers.block.0.layer.0.SelfAttention.q.weight") if head else None
    if query is not None:
        return int(query.shape[0]) // 64
    return 12 if dim == 768 else 8
