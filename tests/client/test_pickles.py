"""An encoder travels to another process by reopening; an index says that it does not."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest

from cirrus_client import LocalEncoder, errors, open_async_retriever, open_index, open_retriever
from cirrus_client.errors import SearchIndexError
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index

_ERRORS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.CirrusError)]


def test_an_encoder_pickles_by_reopening_also_after_use(tiny_bundle, pictures) -> None:
    images = sorted(pictures.iterdir())[:2]
    used = LocalEncoder(tiny_bundle, engine="onnxruntime", threads=1)
    expected = used.encode_targets(images)
    copy = pickle.loads(pickle.dumps(used))
    assert (copy._engine, copy._threads, copy._graphs) == ("onnxruntime", 1, {})
    np.testing.assert_allclose(copy.encode_targets(images), expected, atol=1e-6)


@pytest.mark.parametrize("kind", _ERRORS)
def test_every_error_comes_back_from_another_process_as_it_is(kind: type[Exception]) -> None:
    parameters = inspect.signature(kind.__init__).parameters.values()
    named = {one.name: f"the {one.name}" for one in parameters if one.kind is one.KEYWORD_ONLY}
    error = kind("what is wrong", **named)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, vars(copy)) == (kind, error.args, vars(error))


def test_an_index_and_a_retriever_say_how_to_open_them_instead(tiny_bundle, pictures, tmp_path) -> None:
    encoder = LocalEncoder(tiny_bundle)
    embed_gallery(pictures, tmp_path / "gallery", encoder)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    opened = (open_index(tmp_path / "index"), open_retriever(encoder, tmp_path / "index"))
    for one in (*opened, open_async_retriever(encoder, tmp_path / "index")):
        with pytest.raises(SearchIndexError, match=r"does not pickle; .*open_index"):
            pickle.dumps(one)
