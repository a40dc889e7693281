"""A choice may be given as a string: it is the member, and one that there is not is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import InvalidInput
from cirrus_client.gallery import embed_gallery
from cirrus_client.image.preprocess import Decoding, preprocess
from cirrus_client.index import BuildOptions, SearchKind, Storage, build_index
from cirrus_client.names import Transport
from cirrus_client.replay import TritonRunner
from cirrus_client.triton.encoder import AsyncTritonEncoder, TritonEncoder
from tests.client.test_preprocess import jpeg as ramp
from tests.conftest import jpeg


@pytest.mark.parametrize("decoding", [Decoding.EXACT, Decoding.FAST])
def test_a_decoding_in_a_string_gives_its_own_pixels(decoding: Decoding, tiny_bundle) -> None:
    content = ramp(500, 700)
    spec = tiny_bundle.spec.preprocess
    np.testing.assert_array_equal(preprocess(content, spec, decoding.value), preprocess(content, spec, decoding))
    others = [preprocess(content, spec, other) for other in (Decoding.EXACT, Decoding.FAST) if other is not decoding]
    assert all(not np.array_equal(preprocess(content, spec, decoding.value), other) for other in others)
    encoders = [LocalEncoder(tiny_bundle, decoding=given) for given in (decoding, decoding.value)]
    np.testing.assert_array_equal(*(encoder.encode_targets([content]) for encoder in encoders))


@pytest.mark.parametrize("client", [TritonEncoder, AsyncTritonEncoder])
def test_a_transport_in_a_string_is_that_transport(client: Callable[..., Any]) -> None:
    for transport in Transport:
        assert client("127.0.0.1:1", transport=str(transport))._transport is transport


def test_an_index_is_built_as_strings_say_and_of_a_gallerys_folder(pictures, tmp_path: Path, encoder, caplog) -> None:
    embed_gallery(pictures, tmp_path / "gallery", encoder)
    options = BuildOptions(kind="exact", storage="float32")  # type: ignore[arg-type]
    assert (options.kind, options.storage) == (SearchKind.EXACT, Storage.FLOAT32)
    caplog.clear()
    built = build_index(str(tmp_path / "gallery"), str(tmp_path / "index"), options=options)
    assert (built.kind, built.agreement) == (SearchKind.EXACT, None)
    assert not caplog.records


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda bundle: LocalEncoder(bundle, decoding="quick"), "decoding is 'quick': give 'exact', 'fast', 'nvjpeg'"),
        (lambda bundle: preprocess(jpeg(), bundle.spec.preprocess, "FAST"), "decoding is 'FAST'"),
        (lambda _: TritonEncoder("127.0.0.1:1", transport="https"), "transport is 'https': give 'grpc', 'http'"),
        (lambda _: AsyncTritonEncoder("127.0.0.1:1", transport="rest"), "transport is 'rest'"),
        (lambda _: TritonRunner("127.0.0.1:1", None, transport=""), "transport is ''"),
        (lambda _: BuildOptions(kind="flat"), "kind is 'flat': give 'exact', 'approximate', 'hnsw', 'rabitq'"),
        (lambda _: BuildOptions(storage="half"), "storage is 'half': give 'float32', 'float16'"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(
    given: Callable[[Any], Any], message: str, tiny_bundle
) -> None:
    with pytest.raises(InvalidInput, match=message):
        given(tiny_bundle)
