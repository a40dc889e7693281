"""How a vision-language embedder's wording is read, refused, and turned into ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cirrus_client.errors import ExportError
from cirrus_client.tokenizer import TextCleaning, Tokenizer
from cirrus_export.recipes.worded import prompts, worded
from cirrus_export.recipes.wording import Wording, find_wording
from tests.export.test_llava import llama2_tokenizer
from tests.export.test_vlm_embedder import write_tokenizer

OWN = ("gme", "lamra", "ops-mm-embedding", "qwen3-vl-embedding", "unite", "vlm2vec")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def tokenizer(folder) -> tokenizers.Tokenizer:
    return write_tokenizer(folder)


@pytest.fixture
def refused(tmp_path) -> Callable[..., str]:
    """Return the message with which VLM2Vec's wording with other fields is refused."""

    def refusal(**fields: object) -> str:
        file = tmp_path / "mine.json"
        file.write_text(json.dumps(find_wording("vlm2vec").model_dump() | fields))
        with pytest.raises(ExportError) as caught:
            find_wording(str(file))
        assert str(file) in str(caught.value)
        return str(caught.value)

    return refusal


@pytest.mark.parametrize("name", OWN)
def test_an_own_wording_is_found_and_fits_the_tokenizer(name: str, tokenizer) -> None:
    messages = worded(find_wording(name).instructed(), tokenizer, "<|image_pad|>")
    constants = prompts(messages, 16)
    assert len(constants.query) == len(constants.text) == len(constants.target)
    assert find_wording(name).grid_positions == (name not in ("gme", "unite", "vlm2vec"))


@given(
    text=st.text(st.sampled_from(" \n\t\r.:!'saé7\u0301連👗-"), max_size=12),
    instruction=st.sampled_from(["Find:", "é", "7", "It's"]),
)
@settings(deadline=None)
def test_an_instruction_and_a_text_are_tokenized_as_if_together(tokenizer, folder, text, instruction) -> None:
    assume(text.strip())
    messages = worded(find_wording("vlm2vec").instructed(query=instruction), tokenizer, "<|image_pad|>")
    spec = messages.prompt.spec(context_length=128, start_id=None, end_id=None, pad_id=-1, cleaning=TextCleaning.NONE)
    token_ids = Tokenizer(spec, folder)([text])[0]
    whole = tokenizer.encode(f"\n{instruction} {text}\n", add_special_tokens=False).ids
    assert [*messages.query.behind, *token_ids[token_ids >= 0]] == whole


@pytest.mark.parametrize(
    ("name", "behind"),
    [("lamra", "\nSummarize above sentence in one word: "), ("unite", "\nSummary above sentence in one word:")],
)
@given(text=st.text(st.sampled_from(" \n\t\r.:!'saé7\u0301連👗-"), max_size=12))
@settings(deadline=None)
@pytest.mark.slow
def test_a_text_alone_ends_as_if_it_was_tokenized_with_its_own_words(tokenizer, folder, name, behind, text) -> None:
    assume(text.strip())
    wording = find_wording(name).instructed()
    messages = worded(wording, tokenizer, "<|image_pad|>")
    spec = messages.prompt.spec(context_length=96, start_id=None, end_id=None, pad_id=-1, cleaning=TextCleaning.NONE)
    alone = messages.text_ending.put(torch.from_numpy(Tokenizer(spec, folder)([text])))[0]
    said = f"\n{wording.text_instruction} {text}" if wording.text_instruction else f"\n{text}"
    whole = tokenizer.encode(said + behind + wording.text.partition(behind)[2], add_special_tokens=False).ids
    assume(said[1:] == said[1:].lstrip("\r\n"))  # what Qwen's own tokenizer joins to the line break before a text
    opening = tokenizer.encode(said[: -len(text)].rstrip(" "), add_special_tokens=False).ids
    assert [*opening, *alone[alone >= 0].tolist()] == whole


def test_words_behind_a_text_alone_are_no_more_than_behind_an_edit(tokenizer) -> None:
    wording = Wording(query="{image} {text}, as seen", text=" {text}, as sought in a thousand words", target="{image}")
    with pytest.raises(ExportError, match=r"more tokens behind \{text\} than its 'query': shorten it"):
        worded(wording, tokenizer, "<|image_pad|>")


def test_words_that_a_tokenizer_joins_to_a_text_are_the_same_where_it_is_alone(tokenizer) -> None:
    """A tokenizer that cuts nowhere, and reads the letters before as well."""
    own = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -3.0), ("a as e", -1.0)], 0, False))
    own.add_special_tokens(["<|image_pad|>"])
    wording = Wording(query="{image} {text} as ea", text=" {text} as es", target="{image}")
    with pytest.raises(ExportError, match=r"would join \{text\} to the words behind it in which 'query' and 'text'"):
        worded(wording, own, "<|image_pad|>")


def test_an_unknown_name_or_file_is_refused(tmp_path) -> None:
    with pytest.raises(
        ExportError, match="wording=unime: there is no such wording; known: e5-v, gme, lamra, ops-mm-embedding, q"
    ):
        find_wording("unime")
    with pytest.raises(ExportError, match=r"none\.json: No such file"):
        find_wording(str(tmp_path / "none.json"))
    (tmp_path / "list.json").write_text("[")
    with pytest.raises(ExportError, match=r"list\.json: it is not JSON"):
        find_wording(str(tmp_path / "list.json"))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"query": "{instruction} {text}\n"}, "field 'query': Value error, it must have {image} and then {text}"),
        ({"query": "{image}\n"}, "field 'query'"),
        ({"query": "{text} {image}\n"}, "field 'query'"),
        ({"query": "{image}{image} {text}\n"}, "field 'query'"),
        ({"query": "{image} {text} {instruction}\n"}, "one {instruction} before {text}"),
        ({"query": "{image} {instruction} {instruction} {text}\n"}, "field 'query'"),
        ({"query": "{image} {caption} {text}\n"}, "field 'query'"),
        ({"query": "<|image_pad|>{image} {text}\n"}, "leave <|image_pad|> and <|video_pad|> out"),
        ({"text": "{image} {text}\n"}, "field 'text': Value error, it must have {text}, once"),
        ({"target": "an image"}, "field 'target': Value error, it must have {image}, once"),
        ({"target": None}, "field 'target': Input should be a valid string"),
        ({"text": "{text}\n"}, "'query' and 'text' must have the same spaces before {text}"),
        ({"text": "{instruction} {text}"}, "and the same end behind it"),
        ({"query": "{image} {text}!?", "text": " {text}!"}, "begin with the same word and a space"),
        ({"query": "{image} {text}, seen.", "text": " {text}, said."}, "begin with the same word and a space"),
        ({"target": "<|vision_start|>{image}\n"}, "must both have <|vision_start|> right before {image}, or neither"),
        ({"pooling": "mean"}, "field 'pooling'"),
    ],
)
def test_a_file_that_is_no_wording_is_refused_with_file_and_field(refused, fields: dict, reason: str) -> None:
    assert reason in refused(**fields)


def test_a_special_token_must_be_one_of_the_tokenizer(tokenizer) -> None:
    wording = find_wording("vlm2vec").model_copy(update={"target": "{image}<|vision_stop|>{instruction}"})
    with pytest.raises(ExportError, match=r"<\|vision_stop\|>, which is no special token"):
        worded(wording.instructed(), tokenizer, "<|image_pad|>")


def test_an_images_own_token_is_no_part_of_a_wording(tokenizer) -> None:
    with pytest.raises(ExportError, match="leave <image> out of the wording"):
        worded(Wording(query="<image>{image} {text}", target="{image}"), tokenizer, "<image>")


def test_the_first_tokens_of_llamas_are_special_tokens_too(tokenizer) -> None:
    with pytest.raises(ExportError, match="<s>, which is no special token"):
        worded(Wording(query="<s>{image} {text}", target="{image}"), tokenizer, "<|image_pad|>")


def test_a_text_that_would_be_read_otherwise_behind_its_words_is_refused(tokenizer) -> None:
    """A tokenizer that begins every text with a space."""
    own = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    own.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ExportError, match=r"would join \{text\} to the words before it"):
        worded(Wording(query="{image}Find:{text}", target="{image}"), own, "<|image_pad|>")


@pytest.mark.parametrize("text", ["red", "'s", "(red)", "7", "", " red"])
def test_a_text_in_quotes_is_tokenized_with_them(tokenizer, folder, text) -> None:
    messages = worded(Wording(query='{image}Find "{text}", now', target="{image}"), tokenizer, "<|image_pad|>")
    spec = messages.prompt.spec(context_length=64, start_id=None, end_id=None, pad_id=-1, cleaning=TextCleaning.NONE)
    token_ids = Tokenizer(spec, folder)([text])[0]
    whole = tokenizer.encode(f'Find "{text}", now', add_special_tokens=False).ids
    assert [*messages.query.behind, *token_ids[token_ids >= 0]] == whole
    assert messages.text is None


def test_tokens_around_every_message_stay_at_its_ends(tokenizer) -> None:
    own = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    first, last = (own.token_to_id(special) for special in ("<|im_start|>", "<|endoftext|>"))
    own.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A <|endoftext|>", special_tokens=[("<|im_start|>", first), ("<|endoftext|>", last)]
    )
    messages = worded(find_wording("vlm2vec").instructed(), own, "<|image_pad|>")
    assert messages.query.before == messages.target.before == (first,)
    assert messages.text is not None
    assert messages.text[0] == first
    assert messages.prompt.suffix_ids == messages.target.behind[-1:] == (last,)


def test_a_text_that_is_cut_ends_as_it_would_behind_a_word() -> None:
    """A tokenizer that begins every text with a space, which no word behind a text has."""
    own = llama2_tokenizer()
    own.add_special_tokens(["<image>"])
    messages = worded(Wording(query="{image}\nFind {text}\n", target="{image}"), own, "<image>")
    assert [own.id_to_token(token_id) for token_id in messages.prompt.cut_ids] == ["\n"]


def test_an_instruction_needs_a_place() -> None:
    wording = Wording(query="{image} {text}", text=" {text}", target="{image}.")
    with pytest.raises(ExportError, match=r"query_instruction 'Find': the wording's 'query' has no {instruction}"):
        wording.instructed(query="Find")
    with pytest.raises(ExportError, match="belong into the wording"):
        find_wording("gme").instructed(target="Represent {image}")


def test_a_text_alone_has_the_querys_instruction_unless_it_has_its_own() -> None:
    assert find_wording("gme").instructed(query="Find").text_instruction == "Find"
    assert find_wording("gme").instructed(query="Find", text="Seek").text_instruction == "Seek"
    own = find_wording("vlm2vec")
    assert own.instructed(query="Find").text_instruction == own.text_instruction
    assert find_wording("qwen3-vl-embedding").instructed(query=" Find ").query_instruction == "Find."


def test_a_message_is_cut_around_the_image_with_the_least_padding(tokenizer) -> None:
    messages = worded(find_wording("vlm2vec").instructed(), tokenizer, "<|image_pad|>")
    constants = prompts(messages, 16)
    assert constants.before == 0
    assert len(constants.query) == len(messages.query.behind)
    assert constants.target_text[-1:] == tuple(tokenizer.encode(".\n").ids)
    chat = prompts(worded(find_wording("gme").instructed(), tokenizer, "<|image_pad|>"), 16)
    assert chat.query[chat.before :] == (tokenizer.token_to_id("<|vision_end|>"),)
