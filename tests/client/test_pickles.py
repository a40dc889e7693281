"""An encoder travels to another process by reopening; an index says that it does not."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from cirrus_client import LocalEncoder, open_async_retriever, open_index, open_retriever
from cirrus_client.errors import SearchIndexError
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index


def test_an_encoder_pickles_by_reopening_also_after_use(tiny_bundle, pictures) -> None:
    images = sorted(pictures.iterdir())[:2]
    used = LocalEncoder(tiny_bundle, engine="onnxruntime", threads=1)
    expected = used.encode_targets(images)
    copy = pickle.loads(pickle.dumps(used))
    assert (copy._engine, copy._threads, copy._graphs) == ("onnxruntime", 1, {})
    np.testing.assert_allclose(copy.encode_targets(images), expected, atol=1e-6)


def test_an_index_and_a_retriever_say_how_to_open_them_instead(tiny_bundle, pictures, tmp_path) -> None:
    encoder = LocalEncoder(tiny_bundle)
    embed_gallery(pictures, tmp_path / "gallery", encoder)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    opened = (open_index(tmp_path / "index"), open_retriever(encoder, tmp_path / "index"))
    for one in (*opened, open_async_retriever(encoder, tmp_path / "index")):
        with pytest.raises(SearchIndexError, match=r"does not pickle; .*open_index"):
            pickle.dumps(one)
