"""What was encoded once is not encoded again, and the answers are the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.encoders.memory import RecentArrays
from cirrus_client.encoders.remembering import Kept, RememberingEncoder

TEXTS = ("in blue", "in blue with stripes", "", None)


@pytest.fixture(scope="module")
def images(pictures: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(pictures.iterdir())[:4]]


def encoded(remembering: RememberingEncoder, pairs) -> np.ndarray:
    return remembering.encode_prepared_queries([remembering.prepare_query(*pair) for pair in pairs])


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6), min_size=1, max_size=4
    ),
    max_bytes=st.sampled_from([0, 3000, 2**20]),
    texts_first=st.booleans(),
)
def test_answers_are_those_of_an_encoder_that_remembers_nothing(
    tiny_bundle, images, batches, max_bytes, texts_first
) -> None:
    plain = LocalEncoder(tiny_bundle)
    remembering = RememberingEncoder(plain, max_bytes=max_bytes)
    for batch in batches:
        pairs = [(images[image], TEXTS[text]) for image, text in batch]
        expected = plain.encode_queries(*zip(*pairs, strict=True))
        prepared = [remembering.prepare_query(*pair) for pair in pairs]
        if texts_first:
            prepared = remembering.encode_texts(prepared[:2]) + prepared[2:]
        found = remembering.encode_prepared_queries(prepared)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert remembering.nbytes <= max_bytes
        kept = [array for arrays, _ in remembering._recent._kept.values() for array in arrays.values()]
        assert all(array.base is None for array in kept), "a view keeps the whole of its batch"


def test_each_graph_runs_for_what_is_new_alone(tiny_bundle: Bundle, images) -> None:
    ran: list[str] = []
    remembering = RememberingEncoder(
        LocalEncoder(tiny_bundle, observe=lambda graph, _: ran.append(graph)), max_bytes=2**20
    )
    steps = (
        ((images[0], "in blue"), ["vision_encoder", "text_encoder", "query_head"]),
        ((images[0], "in blue"), []),
        ((images[0], "with stripes"), ["text_encoder", "query_head"]),
        ((images[1], "in blue"), ["vision_encoder", "query_head"]),
        ((images[1], "with stripes"), ["query_head"]),
    )
    for pair, expected in steps:
        ran.clear()
        encoded(remembering, [pair])
        assert ran == expected, pair


def test_a_known_image_is_not_decoded_and_it_is_counted(tiny_bundle: Bundle, images) -> None:
    seen: list[tuple[Kept, bool]] = []
    remembering = RememberingEncoder(
        LocalEncoder(tiny_bundle), max_bytes=2**20, observe=lambda kept, known: seen.append((kept, known))
    )
    encoded(remembering, [(images[0], "in blue")])
    assert set(seen) == {(kept, False) for kept in Kept}
    seen.clear()
    again = remembering.prepare_query(images[0], "with stripes")
    assert again.pixels is None
    assert again.image_features is not None
    assert seen == [(Kept.QUERY, False), (Kept.IMAGE, True)]


def test_an_image_that_is_twice_is_encoded_once_in_batches_that_the_graphs_take(tiny_bundle, images) -> None:
    sizes: list[int] = []
    plain = LocalEncoder(Bundle(tiny_bundle.root, tiny_bundle.spec.model_copy(update={"max_batch": 3})))
    engine = plain.graph("vision_encoder")
    run = engine.run
    engine.run = lambda inputs: sizes.append(len(inputs["pixels"])) or run(inputs)  # type: ignore[method-assign]
    pairs = [(images[0], "in blue"), (images[0], "with stripes"), *((image, "in blue") for image in images[1:])]
    encoded(RememberingEncoder(plain, max_bytes=0), pairs)
    assert sizes == [2, 2]


def test_texts_alone_are_remembered_as_queries(tiny_zero_shot_bundle: Bundle) -> None:
    plain = LocalEncoder(tiny_zero_shot_bundle)
    remembering = RememberingEncoder(plain, max_bytes=2**20)
    expected = plain.encode_queries([None, None], ["in blue", "with stripes"])
    for _ in range(2):
        found = encoded(remembering, [(None, "in blue"), (None, "with stripes")])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_threads_that_share_it_get_their_own_answers(tiny_bundle: Bundle, images) -> None:
    plain = LocalEncoder(tiny_bundle)
    remembering = RememberingEncoder(plain, max_bytes=20_000)
    pairs = [(image, text) for image in images for text in TEXTS] * 4
    expected = plain.encode_queries(*zip(*pairs, strict=True))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda pair: encoded(remembering, [pair])[0], pairs))
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-5)


def test_what_was_not_used_for_longest_goes_first() -> None:
    recent = RecentArrays(2 * 512 + 2 * 40)
    for key in "abac":
        if recent.get(key) is None:
            recent.put(key, {"tensor": np.zeros(10, dtype=np.float32)})
    assert [recent.get(key) is not None for key in "abc"] == [True, False, True]
    recent.put("c", {"tensor": np.zeros(5, dtype=np.float32)})
    assert (len(recent), recent.nbytes) == (2, 2 * 512 + 60)
    recent.put("large", {"tensor": np.zeros(10_000, dtype=np.float32)})
    assert (len(recent), recent.nbytes) == (0, 0)


def test_images_are_learnt_ahead_while_there_is_room(tiny_bundle: Bundle, images) -> None:
    ran: list[str] = []
    plain = LocalEncoder(tiny_bundle, observe=lambda graph, _: ran.append(graph))
    remembering = RememberingEncoder(plain, max_bytes=2 * (512 + 4 * 64))
    assert [remembering.learn(image) for image in images] == [True, True, False, False]
    assert ran == ["vision_encoder"] * 2
    assert remembering.prepare_query(images[0], "in blue").image_features is not None
    assert remembering.prepare_query(images[3], "in blue").image_features is None
