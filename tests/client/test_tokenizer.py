"""The torch-free tokenizer gives open_clip's ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirrus_client.errors import InvalidText
from cirrus_client.tokenizer import MAX_TEXT_CHARACTERS, Tokenizer, decode_text
from cirrus_export.backbones.clip_tokenizer import SimpleTokenizer, write_clip_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    root = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer(write_clip_tokenizer(root, context_length=77), root)


@pytest.fixture(scope="module")
def reference() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=77)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=120), min_size=1, max_size=3))
def test_ids_are_open_clips(tokenizer: Tokenizer, reference: SimpleTokenizer, texts: list[str]) -> None:
    """On every assigned character; the two regular expression engines know different versions of Unicode."""
    np.testing.assert_array_equal(tokenizer(texts), reference(texts).numpy())


def test_a_long_text_is_cut_and_closed_with_the_end_token(tokenizer: Tokenizer, reference: SimpleTokenizer) -> None:
    text = "stripes and dots " * 60
    token_ids = tokenizer([text])
    np.testing.assert_array_equal(token_ids, reference([text]).numpy())
    assert token_ids[0, -1] == tokenizer.spec.end_id


def test_a_text_over_the_limit_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidText, match="4,097 characters"):
        tokenizer(["x" * (MAX_TEXT_CHARACTERS + 1)])


def test_bytes_that_are_not_utf8_and_lone_surrogates_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidText, match="not UTF-8"):
        decode_text(b"\xff\xfe")
    with pytest.raises(InvalidText, match="not valid Unicode"):
        tokenizer(["\ud800"])
