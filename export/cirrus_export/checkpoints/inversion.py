"""Files of textual inversion networks.

SEARLE and LinCIR: `{"epoch": ..., "Phi": state_dict}`. Pic2Word: `{"epoch": ..., "state_dict": CLIP,
"state_dict_img2text": mapping network}`, both with `module.` where training was distributed.
"""

from __future__ import annotations

from pathlib import Path

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.state import StateDict, as_state_dict, count_layers, load_strictly, read_checkpoint
from cirrus_export.checkpoints.widths import Width, check_width
from cirrus_export.checkpoints.wrappers import is_state_dict, report_left_aside
from cirrus_export.heads.inversion import Im2Text, Phi

_NETWORK, _CLIP = "state_dict_img2text", "state_dict"


def load_phi(head: StateDict | None, dim: int, word_width: int) -> Phi:
    """Return phi with a file's weights, or random ones. Raises CheckpointError for a key or shape that is wrong."""
    hidden = _width(head, "layers.0.weight", 4 * dim)
    phi = Phi(dim, hidden, word_width)
    if head is not None:
        load_strictly(phi, head)
    return phi


def load_im2text(head: StateDict | None, dim: int, word_width: int) -> Im2Text:
    """Return Pic2Word's network with a file's weights, or random ones. Raises CheckpointError."""
    if head is None:
        return Im2Text(dim, 512, word_width)
    network = head.under(f"{_NETWORK}.")
    layers = count_layers(network, r"^layers\.(\d+)\.", default=2)
    im2text = Im2Text(dim, _width(network, "fc_out.weight", 512, axis=1), word_width, num_layers=layers)
    load_strictly(im2text, network)
    return im2text


def check_phi(head: StateDict, dim: int | None, word_width: int | None) -> None:
    """Raise CheckpointError if phi is for another width of embeddings or words."""
    check_width(head, "layers.0.weight", 1, dim, Width.EMBEDDINGS)
    check_width(head, "layers.6.weight", 0, word_width, Width.WORDS)


def check_im2text(head: StateDict, dim: int | None, word_width: int | None) -> None:
    """Raise CheckpointError if Pic2Word's network is for another width of embeddings or words."""
    check_width(head, f"{_NETWORK}.layers.0.0.weight", 1, dim, Width.EMBEDDINGS)
    check_width(head, f"{_NETWORK}.fc_out.weight", 0, word_width, Width.WORDS)


def read_pic2word(path: Path) -> StateDict:
    """Read Pic2Word's file; its two state dicts keep their names as prefixes. Raises CheckpointError."""
    content = read_checkpoint(path)
    network = content.get(_NETWORK)
    if not is_state_dict(network):
        raise CheckpointError(
            f"checkpoint {path}: expected Pic2Word's entry '{_NETWORK}', found {', '.join(map(str, content))}"
        )
    parts = {f"{_NETWORK}.{key}": value for key, value in as_state_dict(network, str(path)).items()}
    clip = content.get(_CLIP)
    if is_state_dict(clip):
        parts |= {f"{_CLIP}.{key}": value for key, value in as_state_dict(clip, str(path)).items()}
    report_left_aside(content, [_NETWORK, *([_CLIP] if is_state_dict(clip) else [])], str(path))
    return StateDict(parts, str(path))


def pic2word_backbone(head: StateDict) -> StateDict | None:
    """Return the CLIP that a Pic2Word file carries, or None."""
    return head.under(f"{_CLIP}.") or None


def _width(head: StateDict | None, key: str, default: int, *, axis: int = 0) -> int:
    return int(head[key].shape[axis]) if head is not None and key in head else default
