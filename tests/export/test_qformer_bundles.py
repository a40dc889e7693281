"""The recipes on BLIP-2's Q-Former, from a checkpoint in its authors' key names to a bundle that passed its gate."""

from __future__ import annotations

import numpy as np
import pytest

from cirrus_client.bundle import Similarity
from cirrus_client.encoders import LocalEncoder
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index
from cirrus_client.retriever import open_retriever
from tests.export.author_files import OF_QFORMERS, check_answers


@pytest.mark.parametrize("recipe", OF_QFORMERS)
def test_an_authors_checkpoint_becomes_a_bundle_that_answers(recipe, author_bundle, photos) -> None:
    check_answers(author_bundle(recipe), photos)


def test_an_item_of_many_vectors_is_embedded_indexed_and_found(author_bundle, photos, tmp_path) -> None:
    bundle = author_bundle("sprc")
    assert (bundle.spec.space.vectors, bundle.spec.space.similarity) == (32, Similarity.MAX_COSINE)
    encoder = LocalEncoder(bundle)
    embed_gallery(photos, tmp_path / "gallery", encoder, shard_size=25)
    gallery = read_gallery(tmp_path / "gallery")
    assert gallery.embeddings.shape == (60, 32, bundle.spec.space.dim)
    build_index(gallery, tmp_path / "index")
    image = sorted(photos.iterdir())[7]
    matches = open_retriever(encoder, tmp_path / "index").search(image=image, text="in red", k=5)
    query = encoder.encode_queries([image], ["in red"])[0]
    scores = (gallery.embeddings @ query).max(axis=1)
    assert [match.id for match in matches] == [gallery.paths[row] for row in np.argsort(-scores, kind="stable")[:5]]
