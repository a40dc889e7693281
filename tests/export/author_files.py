"""Checkpoints as the authors' own code saves them, with random weights.

`author_keys/*.json` are names and shapes of files that the authors' code saved at a small size: TransAgg and UNION
(Code-kunkun/ZS-CIR, baohl00/UNION_for_IGROT), SPRC (chunmeifeng/SPRC), SEARLE (miccunifi/SEARLE) and Pic2Word
(google-research/composed_image_retrieval).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.encoders.protocol import RECIPES_OF_TEXTS
from cirrus_client.errors import UnsupportedQuery
from cirrus_export.pipeline import ExportRequest

KEYS = Path(__file__).parent / "author_keys"
AUTHORS = {
    "transagg": ("transagg_clip", ""),
    "transagg-union": ("union_blip", ""),
    "union-sketch": ("union_clip", ""),
    "sprc": ("sprc_vit_g", "Blip2QformerCirAlignPrompt"),
    "blip2-qformer": ("sprc_vit_l", "state"),
    "ptha": ("sprc_vit_l", "Ptha"),
    "hint": ("sprc_vit_l", ""),
    "intent": ("sprc_vit_l", ""),
    "habit": ("sprc_vit_l", ""),
    "conesep": ("sprc_vit_l", ""),
    "searle": ("searle", "Phi"),
    "lincir": ("searle", "Phi"),
    "pic2word": ("pic2word", ""),
}

BESIDE_SPRCS = {
    "hint": {
        "sim_enc.v_global_w.embedding_local.0.weight": (64, 64),
        "sim_enc.v_global_w.embedding_local.1.num_batches_tracked": (),
        "sim_enc.vl_transformer.0.with_pos_embed_v.src_pos_embed.weight": (33, 64),
        "sim_enc.vl_transformer.0.self_attn.in_proj_weight": (192, 64),
        "sim_enc.distill_loss.proj.weight": (64, 64),
    },
    "intent": {"text_proj_cau.weight": (64, 128), "text_proj_cau.bias": (64,), "loss_T": (1,)},
    "conesep": {"negative_tokens": (1, 32, 128)},
}
"""What authors' classes save beside SPRC's names: some of HINT's, all of the others'. HABIT's has nothing."""

OF_QFORMERS = ("sprc", "hint")
SAME_FORM = {"blip2-qformer": "sprc", "ptha": "sprc", "intent": "hint", "habit": "hint", "conesep": "hint"}
"""Recipes whose modules and pixels are those of another."""

EXPORTED = tuple(recipe for recipe in AUTHORS if recipe not in SAME_FORM)


def authors_file(folder: Path, recipe: str, *, edit=lambda state: None) -> Path:
    """A checkpoint with the names and shapes that the authors' code saves, and random values."""
    generator = torch.Generator().manual_seed(11)
    file, wrapper = AUTHORS[recipe]
    entries = json.loads((KEYS / f"{file}.json").read_text())
    states = {
        name: {
            key: 0.1 * torch.randn(shape, generator=generator)
            for key, shape in (keys | BESIDE_SPRCS.get(recipe, {})).items()
        }
        for name, keys in entries.items()
    }
    if len(states) == 1:
        (state,) = states.values()
        edit(state)
        content = {"epoch": 3, wrapper: state} if wrapper else state
    else:
        content = {"epoch": 3, **states}
    torch.save(content, folder / f"{recipe}.pt")
    return folder / f"{recipe}.pt"


def request(folder: Path, recipe: str, small_clip: Path, **changes) -> ExportRequest:
    needs_clip = recipe in ("searle", "lincir", "retrieval-dpo")
    values = {
        "recipe": recipe,
        "backbone": "from-checkpoint",
        "pretrained": str(small_clip) if needs_clip else None,
        "head": changes["head"] if "head" in changes else str(authors_file(folder, recipe)),
        "out": folder / "bundle",
        "options": {"quick_gelu": "true"} if needs_clip else {},
    }
    return ExportRequest(**(values | changes))


def check_answers(bundle: Bundle, photos: Path) -> None:
    """A bundle passed its gate, and answers queries and images as its recipe should."""
    report = json.loads((bundle.root / "report.json").read_text())
    assert min(stage["cosine_min"] for stage in report["stages"]) > 0.99999
    assert min(result["top10_agreement"] for result in report["retrieval"]) == 1.0
    encoder = LocalEncoder(bundle)
    images = sorted(photos.iterdir())[:3]
    queries = encoder.encode_queries([images[0]] * 3, ["make it blue", None, ""])
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(queries[1], queries[2], atol=1e-6)
    assert not np.allclose(queries[0], queries[1], atol=1e-4)
    assert encoder.encode_targets(images).shape == (3, *encoder.space.item_shape)
    if bundle.spec.recipe in RECIPES_OF_TEXTS:
        (text_alone,) = encoder.encode_queries([None], ["make it blue"])
        assert text_alone.shape == queries[0].shape
        assert not np.allclose(text_alone, queries[0], atol=1e-4)
    else:
        with pytest.raises(UnsupportedQuery, match=r"has no image.*export a recipe that answers a text alone: bge-vl"):
            encoder.encode_queries([None], ["make it blue"])


def write_modules(folder: Path, *modules: tuple[str, str]) -> None:
    """Write sentence-transformers' list of modules, each with its folder and class."""
    listed = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
