"""The torch-free tokenizer gives open_clip's and BertTokenizer's ids, and words a text as its recipe does."""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import Split

from cirrus_client.errors import InvalidText
from cirrus_client.tokenizer import MAX_TEXT_CHARACTERS, TextCleaning, Tokenizer, TokenizerSpec, decode_text
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.bert_tokenizer import bert_null_token_ids, write_bert_tokenizer
from cirrus_export.backbones.clip_tokenizer import SimpleTokenizer, write_clip_tokenizer

from open_clip.tokenizer import get_clean_fn  # isort: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    root = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer(write_clip_tokenizer(root, context_length=77, prompt=Prompt()), root)


@pytest.fixture(scope="module")
def reference() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=77)


PIECES = [
    *("'s", "'LL", "it's", "&amp;amp;", "&lt;b&gt;", "a photo of $", " ", "\t\n", "\x85"),
    *("Ã©", "ﬁ", "İ", "ß", "９", "½", "\U0001f469\u200d\U0001f467"),
]
ANY_TEXT = st.lists(st.one_of(st.text(max_size=40), st.sampled_from(PIECES)), max_size=6).map("".join)
IOTA, LONG_S = "\u0345", "'ſ"


@pytest.fixture(scope="module")
def known_to_one_engine() -> set[str]:
    """Lower-case code points on which Python's `regex`, which open_clip uses, and the client's Oniguruma differ.

    Each engine has the letters and digits of its own version of Unicode.
    """
    code_points = [chr(number) for number in range(sys.maxunicode + 1) if not 0xD800 <= number <= 0xDFFF]
    lower = [character for character in code_points if character.lower() == character]
    differing: set[str] = set()
    for group in (r"[\p{L}]", r"[\p{N}]", r"[^\s\p{L}\p{N}]"):
        theirs = set(regex.findall(group, "".join(lower), regex.IGNORECASE))
        split = Split(Regex(group), behavior="removed", invert=True)
        parts = ("".join(lower[start : start + 512]) for start in range(0, len(lower), 512))
        differing |= theirs ^ {word for part in parts for word, _ in split.pre_tokenize_str(part)}
    return differing


@pytest.mark.slow
def test_the_two_engines_differ_on_nothing_but_what_unicode_14_had_not_assigned(known_to_one_engine) -> None:
    """And on U+0345, which folds to a letter. New code points have no ids that a model was trained on."""
    if unicodedata.unidata_version > "15.0":  # Unicode 15 has what Oniguruma's 15 has
        pytest.skip(f"this Python knows Unicode {unicodedata.unidata_version}, newer than the engines' oldest")
    assigned = {character for character in known_to_one_engine if unicodedata.category(character) != "Cn"}
    assert assigned == {IOTA}


SPECIAL_TOKENS = ("<start_of_text>", "<end_of_text>")


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(ANY_TEXT, min_size=1, max_size=3))
@example([":Ö\x8b"])  # ftfy makes one code point of the last two, which only the newer engine knows
@example(["\x85", "...\x85", "\x1c\u2028"])
def test_ids_are_open_clips(
    tokenizer: Tokenizer, reference: SimpleTokenizer, known_to_one_engine: set[str], texts: list[str]
) -> None:
    """On every text of Unicode, but for code points that one engine does not know.

    Left out as well are the long s after an apostrophe, since open_clip's pattern ignores case, so "'ſ" is its "'s",
    and the spellings of its special tokens, which are text here, as another test holds.
    """
    same = [
        text
        for text in texts
        if known_to_one_engine.isdisjoint(cleaned := tokenizer.spec.prompt(text))
        and not any(part in cleaned.lower() for part in (LONG_S, *SPECIAL_TOKENS))
    ]
    if same:
        np.testing.assert_array_equal(tokenizer(same), reference(same).numpy())


@given(ANY_TEXT)
@settings(deadline=None)
@pytest.mark.parametrize(
    ("cleaning", "theirs"),
    [
        (TextCleaning.CLIP, "lower"),
        (TextCleaning.WHITESPACE, "whitespace"),
        (TextCleaning.CANONICALIZE, "canonicalize"),
    ],
)
@pytest.mark.slow
def test_a_text_is_cleaned_as_open_clip_cleans_it(cleaning: TextCleaning, theirs: str, text: str) -> None:
    spec = TokenizerSpec(start_id=None, end_id=1, cleaning=cleaning)
    assert spec.prompt(text) == get_clean_fn(theirs)(text)


@pytest.mark.parametrize(("start_id", "end_id"), [(None, None), (None, 7), (5, None), (5, 7)])
@pytest.mark.slow
def test_start_and_end_tokens_are_optional(tmp_path, start_id: int | None, end_id: int | None) -> None:
    write_clip_tokenizer(tmp_path, context_length=77, prompt=Prompt())
    spec = TokenizerSpec(start_id=start_id, end_id=end_id, pad_id=3, context_length=6)
    short, long = Tokenizer(spec, tmp_path)(["red", "stripes and dots and more of them"])
    around = [[token] if token is not None else [] for token in (start_id, end_id)]
    content = [token for token in short if token not in (5, 7, 3)]
    assert list(short) == (around[0] + content + around[1] + [3] * 6)[:6]
    assert len(content) == 1
    assert [long[0] == start_id, long[-1] == end_id] == [start_id is not None, end_id is not None]


def test_a_long_text_is_cut_and_closed_with_the_end_token(tokenizer: Tokenizer, reference: SimpleTokenizer) -> None:
    text = "stripes and dots " * 60
    token_ids = tokenizer([text])
    np.testing.assert_array_equal(token_ids, reference([text]).numpy())
    assert token_ids[0, -1] == tokenizer.spec.end_id


def test_a_long_text_is_cut_before_the_words_that_end_its_prompt(tmp_path) -> None:
    write_clip_tokenizer(tmp_path, context_length=77, prompt=Prompt())
    spec = TokenizerSpec(start_id=None, end_id=None, suffix_ids=(7,), context_length=8, template="{text} dress")
    dress = int(Tokenizer(spec, tmp_path)(["red"])[0, 1])
    short, long = Tokenizer(spec.model_copy(update={"cut_ids": (dress,)}), tmp_path)(["red", "red " * 9])
    assert list(short[1:4]) == [dress, 7, 0]
    assert list(long) == [short[0]] * 6 + [dress, 7]
    with pytest.raises(ValueError, match="suffix_ids and cut_ids have 6 of 8 tokens: no text fits"):
        TokenizerSpec(start_id=None, end_id=None, suffix_ids=(7,) * 5, cut_ids=(dress,), context_length=8)


def test_a_record_without_cut_ids_is_what_it_was_before_there_were_any() -> None:
    """The names of models that bundles share on a server are made of it."""
    assert "cut_ids" not in TokenizerSpec(start_id=0, end_id=1).model_dump_json()
    spec = TokenizerSpec(start_id=0, end_id=1, cut_ids=(5,))
    assert TokenizerSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_text_over_the_limit_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidText, match="4,097 characters"):
        tokenizer(["x" * (MAX_TEXT_CHARACTERS + 1)])


def test_bytes_that_are_not_utf8_and_lone_surrogates_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidText, match="not UTF-8"):
        decode_text(b"\xff\xfe")
    with pytest.raises(InvalidText, match="not valid Unicode"):
        tokenizer(["\ud800"])


def written(root: Path, model: object, special: list[str], **parts: object) -> Path:
    """Write a small `tokenizer.json` of a kind that models on the hub have."""
    built = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(built, name, part)
    built.add_special_tokens(special)
    built.save(str(root / "tokenizer.json"))
    return root


def sentence_pieces(root: Path) -> Path:
    """As SigLIP, mT5 and XLM-V have it: special tokens are pieces of the model as well."""
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz</>!"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<s>", 0.0), *letters, ("▁red", -1.0)]
    metaspace = pre_tokenizers.Metaspace()
    model = models.Unigram(pieces, unk_id=2)
    return written(root, model, ["</s>", "<s>", "<pad>"], pre_tokenizer=metaspace, normalizer=normalizers.NFKC())


def chat_pieces(root: Path) -> Path:
    """As language models have it: bytes, and special tokens beside the model."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model = models.BPE({letter: number for number, letter in enumerate(sorted(alphabet))}, [])
    return written(root, model, ["<|im_end|>", "<s>", "</s>"], pre_tokenizer=pre_tokenizers.ByteLevel())


@pytest.mark.parametrize(
    ("write", "spelled"),
    [
        (lambda root: write_clip_tokenizer(root, context_length=77, prompt=Prompt()) and root, "<start_of_text>"),
        (lambda root: write_clip_tokenizer(root, context_length=77, prompt=Prompt()) and root, "!<end_of_text>"),
        (lambda root: write_bert_tokenizer(root, context_length=35, prompt=Prompt()) and root, "[SEP]"),
        (lambda root: write_bert_tokenizer(root, context_length=35, prompt=Prompt()) and root, "[MASK][CLS]"),
        (sentence_pieces, "</s>"),
        (sentence_pieces, "</s></s><s>"),
        (sentence_pieces, "\uff1c/s\uff1e"),  # full-width brackets, which the tokenizer narrows
        (chat_pieces, "<|im_end|>"),
        (chat_pieces, "</s>"),
    ],
)
@pytest.mark.slow
def test_a_special_token_that_is_typed_is_text(tmp_path: Path, write: Callable[[Path], Path], spelled: str) -> None:
    root = write(tmp_path)
    read = tokenizers.Tokenizer.from_file(str(root / "tokenizer.json"))
    special = set(read.get_added_tokens_decoder())
    end_id = min(special)
    spec = TokenizerSpec(start_id=None, end_id=end_id, pad_id=end_id, context_length=60, cleaning=TextCleaning.NONE)
    plain, typed = Tokenizer(spec, root)(["red", f"red {spelled} red"]).tolist()
    content = typed[: typed.index(end_id)]
    assert special.isdisjoint(content)
    letters = plain[: plain.index(end_id)]
    assert content[: len(letters)] == letters
    assert content[-len(letters) :] == letters
    assert read.encode(f"red {spelled}", add_special_tokens=False).ids != content[: -len(letters)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Tokenizer:
    root = tmp_path_factory.mktemp("bert")
    return Tokenizer(write_bert_tokenizer(root, context_length=35, prompt=Prompt()), root)


@pytest.fixture(scope="module")
def bert_reference():
    from transformers import BertTokenizer

    vocabulary = files("cirrus_export.backbones") / "bert_base_uncased_vocab.txt"
    return BertTokenizer(str(vocabulary))


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=120))
@example("longer than [ SEP ]")
def test_ids_are_bert_tokenizers(bert: Tokenizer, bert_reference, text: str) -> None:
    """On assigned characters; the two libraries know different versions of Unicode.

    The reference takes a special token's spelling for the token; here it is text, which another test holds.
    """
    assume(not any(token in text for token in bert_reference.all_special_tokens))
    expected = bert_reference([text], padding="max_length", truncation=True, max_length=35)["input_ids"]
    np.testing.assert_array_equal(bert([text]), expected if text.strip() else bert_null_token_ids(35).numpy())


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
@pytest.mark.slow
def test_a_text_is_worded_as_its_recipe_does(tmp_path, prompt: Prompt, text: str, worded: str) -> None:
    assert write_clip_tokenizer(tmp_path, context_length=77, prompt=prompt).prompt(text) == worded


@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=6), lengths=st.sets(st.integers(1, 19), max_size=4))
def test_a_batch_is_cut_to_the_shortest_length_that_holds_every_text(counts: list[int], lengths: set[int]) -> None:
    spec = TokenizerSpec(context_length=20, start_id=1, end_id=2, cut_lengths=tuple(sorted(lengths)))
    token_ids = np.zeros((len(counts), 20), dtype=np.int64)
    for row, count in zip(token_ids, counts, strict=True):
        row[:count] = 7
    cut = spec.cut(token_ids)
    assert cut.shape[1] == min(length for length in {*lengths, 20} if length >= max(counts))
    np.testing.assert_array_equal(cut, token_ids[:, : cut.shape[1]])
    assert not token_ids[:, cut.shape[1] :].any()


@pytest.mark.parametrize("write", [write_clip_tokenizer, write_bert_tokenizer])
def test_a_tokenizer_that_cannot_be_written_is_an_error_of_the_machine(write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        write(tmp_path / "gone", context_length=32, prompt=Prompt())
