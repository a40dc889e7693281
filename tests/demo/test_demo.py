"""The demo model: held-out descriptions stay held out, and the committed weights show what is claimed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cirrus_client.image.preprocess import preprocess
from cirrus_client.tokenizer import Tokenizer
from cirrus_demo.attributes import Kind, Split, all_garments, split_of
from cirrus_demo.catalogue import CatalogueSize, photographed, plan_catalogue, write_catalogue, write_photos
from cirrus_demo.drawing import render
from cirrus_demo.evaluate import evaluate
from cirrus_demo.probe import write_probe
from cirrus_demo.products import write_products
from cirrus_demo.weights import WEIGHTS
from cirrus_export.gate.probe import GALLERY, QUERIES, default_probe, read_probe
from cirrus_export.pipeline import ExportRequest, build_recipe
from cirrus_export.recipes.recipe import Recipe


def test_no_test_description_occurs_in_training() -> None:
    catalogue = plan_catalogue(Split.TEST, seed=3, size=CatalogueSize(families=3, queries=30))
    for gallery in catalogue.gallery.values():
        assert len(set(gallery.values())) == len(gallery)
        assert {split_of(garment) for garment in gallery.values()} == {Split.TEST}


def test_a_seed_is_a_picture_and_two_seeds_are_two_pictures() -> None:
    garment = next(all_garments())
    first, again, other = (np.asarray(render(garment, seed, 128)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or (first != other).mean() > 0.2


@pytest.mark.slow
def test_the_catalogue_is_in_fashioniqs_layout(tmp_path) -> None:
    write_catalogue(tmp_path, split=Split.TEST, seed=3, size=CatalogueSize(families=1, queries=5), show_progress=False)
    for kind in Kind:
        names = json.loads((tmp_path / "image_splits" / f"split.{kind}.test.json").read_text())
        entries = json.loads((tmp_path / "captions" / f"cap.{kind}.test.json").read_text())
        assert len(entries) == 5
        for entry in entries:
            assert {entry["target"], entry["candidate"]} <= set(names)
            assert len(entry["captions"]) == 2
        assert all((tmp_path / "images" / f"{name}.jpg").is_file() for name in names)


@pytest.mark.slow
def test_products_say_what_is_on_the_photos(tmp_path) -> None:
    paths = write_photos(tmp_path / "photos", count=4, size_px=64, seed=1)
    write_products(tmp_path / "products.parquet", count=4, seed=1)
    products = pq.read_table(tmp_path / "products.parquet").to_pylist()
    garments = photographed(4, 1)
    assert [product["image_path"] for product in products] == [path.name for path in paths] == list(garments)
    assert [product["colour"] for product in products] == [garment.colour for garment in garments.values()]
    assert len({path.read_bytes() for path in paths}) == 4


@pytest.mark.slow
def test_the_default_probe_is_what_the_demo_renders(tmp_path) -> None:
    """The same queries; the pictures may differ by what another version of the renderer rounds."""
    write_probe(tmp_path, queries=QUERIES, gallery=GALLERY)
    committed, rendered = default_probe(), read_probe(tmp_path, queries=QUERIES, gallery=GALLERY)
    assert (len(committed.queries), len(committed.gallery)) == (QUERIES, GALLERY)
    assert [(q.text, q.target) for q in committed.queries] == [(q.text, q.target) for q in rendered.queries]
    for ours, theirs in zip(committed.gallery[:8], rendered.gallery, strict=False):
        levels = [np.asarray(Image.open(io.BytesIO(image)), dtype=float) for image in (ours, theirs)]
        assert np.abs(levels[0] - levels[1]).mean() < 2


def test_the_committed_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 12_000_000


def test_the_committed_weights_compose(weights, tmp_path) -> None:
    metrics = evaluate(weights, tmp_path, size=CatalogueSize(families=3, queries=60))
    baselines = (metrics.image_only, metrics.text_only, metrics.untrained_sum)
    assert metrics.composed.at_10 > 0.85
    assert metrics.composed.at_10 > max(baseline.at_10 for baseline in baselines) + 0.05
    assert metrics.composed.at_1 > max(baseline.at_1 for baseline in baselines) + 0.15
    assert metrics.sketch.at_10 > 10 * metrics.sketch_chance_at_10


@pytest.mark.parametrize(("recipe", "head"), [("searle", "phi"), ("clip4cir", "combiner"), ("magiclens", "magiclens")])
def test_the_other_heads_compose_as_well(recipe, head, weights, tmp_path) -> None:
    """They find far more than the sum of both embeddings. In torch: the gate holds an export of each recipe to it."""
    found, plain = (
        recall_at_1(build_recipe(ExportRequest(name, "cirrus-demo", str(weights.clip), file, tmp_path)), tmp_path)
        for name, file in ((recipe, str(getattr(weights, head))), ("clip", None))
    )
    assert found > plain + 0.4


def test_the_committed_matching_head_tells_targets_from_look_alikes(weights, tmp_path) -> None:
    """In torch: it finds most targets among the ten best by the embeddings, of which chance would find a tenth."""
    files = (str(weights.clip), str(weights.sprc), tmp_path)
    recipe = build_recipe(ExportRequest("sprc", "cirrus-demo", *files, options={"reranker": True}))
    probe = Tensors(recipe, tmp_path)
    best = probe.scores(recipe).topk(10).indices
    kept = (best == probe.targets[:, None]).any(dim=1)
    assert kept.float().mean() > 0.85
    with torch.no_grad():
        conditions = recipe.condition(probe.images, probe.token_ids)
        places = []
        for query in kept.nonzero()[:16, 0]:
            rows = best[query]
            of_query = (tensor[query].expand(len(rows), *tensor.shape[1:]) for tensor in (conditions, probe.token_ids))
            scores = recipe.score(probe.gallery[rows], *of_query)[:, 0]
            places.append(int((scores > scores[rows == probe.targets[query]]).sum()))
    assert np.mean(np.array(places) == 0) > 0.7


class Tensors:
    """The default probe as a recipe reads it."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        probe, spec = default_probe(), recipe.preprocess(recipe.backbone.preprocess)
        tokenizer = Tokenizer(recipe.backbone.write_tokenizer(folder, recipe.prompt), folder)
        self.gallery, self.images = (
            torch.from_numpy(np.stack([preprocess(content, spec) for content in contents]))
            for contents in (probe.gallery, [query.image for query in probe.queries])
        )
        self.token_ids = torch.from_numpy(tokenizer([query.text for query in probe.queries]))
        self.targets = torch.tensor([query.target for query in probe.queries])

    @torch.no_grad()
    def scores(self, recipe: Recipe) -> torch.Tensor:
        """Return the cosine of every query to every image of the gallery, by the torch original."""
        targets = recipe.target(self.gallery)
        vectors = targets.reshape(len(targets), -1, targets.shape[-1])
        return (
            (recipe.query(self.images, self.token_ids) @ vectors.flatten(0, 1).T)
            .unflatten(1, (len(targets), -1))
            .amax(2)
        )


def recall_at_1(recipe: Recipe, folder: Path) -> float:
    """Return the share of the default probe's queries whose target is found first."""
    probe = Tensors(recipe, folder)
    return float((probe.scores(recipe).argmax(dim=1) == probe.targets).float().mean())
