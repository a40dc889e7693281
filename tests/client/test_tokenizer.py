"""The torch-free tokenizer gives open_clip's and BertTokenizer's ids, and words a text as its recipe does."""

from __future__ import annotations

import hashlib
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirrus_client.errors import InvalidText
from cirrus_client.tokenizer import MAX_TEXT_CHARACTERS, TextCleaning, Tokenizer, decode_text
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.bert_tokenizer import bert_null_token_ids, write_bert_tokenizer
from cirrus_export.backbones.clip_tokenizer import SimpleTokenizer, write_clip_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    root = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer(write_clip_tokenizer(root, context_length=77, prompt=Prompt()), root)


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


@pytest.fixture(scope="module")
def bert_reference():
    from transformers import BertTokenizer

    vocabulary = files("cirrus_export.backbones") / "bert_base_uncased_vocab.txt"
    return BertTokenizer(str(vocabulary))


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=120))
def test_ids_are_bert_tokenizers(tmp_path_factory, bert_reference, text: str) -> None:
    root = tmp_path_factory.getbasetemp()
    tokenizer = Tokenizer(write_bert_tokenizer(root, context_length=35, prompt=Prompt()), root)
    expected = bert_reference([text], padding="max_length", truncation=True, max_length=35)["input_ids"]
    np.testing.assert_array_equal(tokenizer([text]), expected if text.strip() else bert_null_token_ids(35).numpy())


def test_the_vocabulary_is_the_published_one() -> None:
    content = (files("cirrus_export.backbones") / "bert_base_uncased_vocab.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


@pytest.mark.parametrize(
    ("prompt", "text", "worded"),
    [
        (Prompt(template="a photo of $ that {text}", null_text="a photo of $"), "Is  Red", "a photo of $ that is red"),
        (Prompt(template="a photo of $ that {text}", null_text="a photo of $"), " \n", "a photo of $"),
        (Prompt(null_text="a real image of sketch"), "", "a real image of sketch"),
        (
            Prompt(cleaning=TextCleaning.BLIP_CAPTION),
            'Red (and "BLUE")... with #dots!',
            "red and blue with dots",
        ),
        (Prompt(cleaning=TextCleaning.BLIP_CAPTION), "w " * 60, " ".join(["w"] * 50)),
    ],
)
def test_a_text_is_worded_as_its_recipe_does(tmp_path, prompt: Prompt, text: str, worded: str) -> None:
    assert write_clip_tokenizer(tmp_path, context_length=77, prompt=prompt).prompt(text) == worded
