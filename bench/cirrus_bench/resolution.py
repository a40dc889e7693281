"""What it costs a Qwen-VL or a LLaVA-NeXT to see every image as a square: the published sizes compared with squares.

The published processors keep an image's proportions: a Qwen-VL's gives a larger image more tokens, a LLaVA-NeXT's sees
tiles of the resolution that fits best (transformers, `image_processing_qwen2_vl.py`, `image_processing_llava_next.py`).
A bundle's graphs have one size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cirrus_bench.measure import this_machine
from cirrus_bench.report import Report
from cirrus_client.agreement import agreement, top
from cirrus_client.errors import ExportError
from cirrus_client.image.decode import decode
from cirrus_client.image.preprocess import normalise, preprocess
from cirrus_client.records import Record
from cirrus_client.tokenizer import Tokenizer
from cirrus_export.backbones.llava import LlavaNextBackbone
from cirrus_export.backbones.qwen_vl import QwenVlBackbone, check_size
from cirrus_export.checkpoints.adapter import base_folder
from cirrus_export.gate.probe import Probe
from cirrus_export.pipeline import ExportRequest, build_recipe
from cirrus_export.recipes.vlm_embedder import VlmEmbedder

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

_TOP = 10
Pixels = Callable[[bytes], NDArray[np.float32]]
"""Returns what the model sees of an image, float32 [3, H, W]."""


class ResolutionRow(Record):
    """One way to see an image.

    size_px: side of the square; None is the published way. tokens: per gallery image, on average. cosine_min,
    cosine_mean: of gallery embeddings with the published way's. top10_agreement: of the queries' rankings with it, each
    over its own gallery. recall_at_10: on the probe's labels.
    """

    size_px: int | None
    tokens: float
    cosine_min: float
    cosine_mean: float
    top10_agreement: float
    recall_at_10: float

    @property
    def title(self) -> str:
        """The name of the row in tables."""
        return _title(self.size_px)


class ResolutionReport(Report):
    """The published way and every square, by the torch original, on one probe."""

    file_name: ClassVar[str] = "resolution"

    model: str
    probe: str
    queries: int
    gallery: int
    rows: tuple[ResolutionRow, ...]

    def markdown(self) -> str:
        """Render the report as Markdown."""
        lines = [
            f"# Squares, and the published sizes of images: {self.model}",
            "",
            f"The torch original on {self.queries} composed queries over {self.gallery} images of {self.probe}. Every "
            "row embeds queries and gallery alike, and is compared with the first.",
            "",
            "| images | tokens per image | cosine (min) | cosine (mean) | top-10 agreement | Recall@10 |",
            "|---|--:|--:|--:|--:|--:|",
            *(
                f"| {row.title} | {row.tokens:,.0f} | {row.cosine_min:.4f} | {row.cosine_mean:.4f} "
                f"| {row.top10_agreement:.1%} | {row.recall_at_10:.1%} |"
                for row in self.rows
            ),
            "",
            str(self.machine),
        ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Seen:
    """A probe, embedded. tokens: of an image, on average. gallery: float32 [N, D]. best: int64 [Q, 10]."""

    tokens: float
    gallery: NDArray[np.float32]
    best: NDArray[np.int64]


def original(backbone: str, folder: Path, options: Mapping[str, str]) -> VlmEmbedder:
    """Return the torch original of a folder; see `build_recipe`."""
    recipe = build_recipe(ExportRequest("vlm-embedder", backbone, str(folder), None, Path(), options=options))
    assert isinstance(recipe, VlmEmbedder)
    return recipe


def measure_resolution(
    recipe: VlmEmbedder, folder: Path, probe: Probe, sizes: Sequence[int], *, show_progress: bool = False
) -> ResolutionReport:
    """Embed a probe as published and as squares, with the torch original.

    folder: the checkpoint's, in which the published processor says how many pixels an image may have. sizes: sides of
    squares in pixels. Raises ExportError if the processor is missing, and for a size that is no multiple of a token's.
    """
    backbone = _compared(recipe)
    if isinstance(backbone, QwenVlBackbone):
        for size_px in sizes:
            check_size(f"--size {size_px}", size_px, backbone.token_side_px)
    square = backbone.preprocess
    ways: dict[int | None, Pixels] = {None: published_pixels(backbone, folder)}
    ways |= {side: partial(preprocess, spec=square.model_copy(update={"size_px": side})) for side in sizes}
    texts = _token_ids(recipe, probe)
    seen = {side: _see(recipe, probe, texts, way, _title(side), show_progress) for side, way in ways.items()}
    published = seen[None]
    return ResolutionReport(
        model=folder.name,
        probe=probe.name,
        queries=len(probe.queries),
        gallery=len(probe.gallery),
        rows=tuple(_row(side, found, published, probe) for side, found in seen.items()),
        machine=this_machine(),
    )


def published_pixels(backbone: QwenVlBackbone | LlavaNextBackbone, folder: Path) -> Pixels:
    """Return how the published processor shows an image. Raises ExportError if a Qwen-VL's folder has none.

    A LLaVA-NeXT's own resolutions are in its configuration, and the torch original picks one.
    """
    if isinstance(backbone, LlavaNextBackbone):
        return lambda image: normalise(decode(image).convert("RGB"), backbone.preprocess)
    folder = base_folder(folder)
    try:
        size = dict(Qwen2VLImageProcessor.from_pretrained(folder).size)
    except (OSError, ValueError) as error:
        raise ExportError(
            f"checkpoint {folder}: its image processor can't be read, and says how large images may be: {error}"
        ) from None

    def see(image: bytes) -> NDArray[np.float32]:
        picture = decode(image).convert("RGB")
        height, width = smart_resize(
            *(picture.height, picture.width, backbone.token_side_px),
            min_pixels=size["shortest_edge"],
            max_pixels=size["longest_edge"],
        )
        return normalise(picture.resize((width, height), Image.Resampling.BICUBIC), backbone.preprocess)

    return see


def _compared(recipe: VlmEmbedder) -> QwenVlBackbone | LlavaNextBackbone:
    if not isinstance(recipe.backbone, QwenVlBackbone | LlavaNextBackbone):
        raise ExportError(f"a {recipe.backbone.label} sees every image in its published size: there is none to compare")
    return recipe.backbone


def _token_ids(recipe: VlmEmbedder, probe: Probe) -> Tensor:
    with tempfile.TemporaryDirectory() as root:
        tokenizer = Tokenizer(recipe.backbone.write_tokenizer(Path(root), recipe.prompt), Path(root))
        return torch.from_numpy(tokenizer([query.text for query in probe.queries]))


@torch.no_grad()
def _see(recipe: VlmEmbedder, probe: Probe, texts: Tensor, way: Pixels, title: str, show_progress: bool) -> _Seen:
    def pixels(image: bytes) -> Tensor:
        return torch.from_numpy(way(image))[None]

    shown = partial(tqdm, unit="image", disable=not show_progress)
    backbone = _compared(recipe)
    tokens, gallery = [], []
    for image in shown(probe.gallery, desc=f"gallery, {title}"):
        values = pixels(image)
        tokens.append(backbone.count_tokens((values.shape[2], values.shape[3])))
        gallery.append(recipe.target(values)[0].numpy())
    queries = [
        recipe.query(pixels(query.image), text[None])[0].numpy()
        for query, text in zip(shown(probe.queries, desc=f"queries, {title}"), texts, strict=True)
    ]
    return _Seen(float(np.mean(tokens)), np.stack(gallery), top(np.stack(queries), np.stack(gallery), _TOP))


def _row(size_px: int | None, seen: _Seen, published: _Seen, probe: Probe) -> ResolutionRow:
    cosines = (seen.gallery * published.gallery).sum(axis=1)
    found = [query.target in best for query, best in zip(probe.queries, seen.best, strict=True)]
    return ResolutionRow(
        size_px=size_px,
        tokens=seen.tokens,
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        top10_agreement=agreement(published.best, seen.best),
        recall_at_10=float(np.mean(found)),
    )


def _title(size_px: int | None) -> str:
    return "published: proportions kept" if size_px is None else f"square of {size_px} px"
