"""A wording as token ids: what a graph gives to the language model, and what is left to the text's tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import tokenizers

from cirrus_client.errors import ExportError
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.heads.prompts import Ending, padded
from cirrus_export.recipes.wording import IMAGE, TEXT, Wording, shared_length, text_part

_SPECIAL = re.compile(r"<\|[^|<>\s]+\|>|</?s>")
_STARTS = ("a", "7", "(a", " a")
"""What texts begin with, for which tokenizers cut before them in different ways."""
_ENDS = ("a", "7", ".", "a.", "a ", "a\n", "'", "é", "連", "👗")
"""What texts end with, for which tokenizers cut behind them in different ways."""


@dataclass(frozen=True)
class Message:
    """Token ids before and behind the place of an image, up to where the text begins."""

    before: tuple[int, ...]
    behind: tuple[int, ...]


@dataclass(frozen=True)
class Worded:
    """Every task's message, and how a text is tokenized behind it.

    text: the ids before a text alone, None if the wording has no message for it. text_ending: what a text alone has
    behind it in place of the end of `prompt`, None if that is the same.
    """

    query: Message
    text: tuple[int, ...] | None
    text_ending: Ending | None
    target: Message
    prompt: Prompt


def worded(wording: Wording, tokenizer: tokenizers.Tokenizer, image_word: str) -> Worded:
    """Return a wording as ids of a tokenizer, with the tokens that it puts around every message, like Llama's `<s>`.

    image_word: the special token in an image's place. A message is tokenized as a whole up to the last space before its
    text. The text is tokenized with what is between that space and it, and with what is behind it up to the next
    special token. Raises ExportError for a special token that the tokenizer has not, if it would not cut there, and if
    it would join a text to what differs behind a text alone.
    """
    tasks = [task for task in ("query", "text", "target") if getattr(wording, task)]
    messages = {task: wording.message(task) for task in tasks}
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    _check_specials("".join(messages.values()), known, image_word)
    first, last = _around_every_message(tokenizer)

    def ids(words: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(words.replace(IMAGE, image_word), add_special_tokens=False).ids)

    def around_image(words: str) -> Message:
        whole, image_id = ids(words), tokenizer.token_to_id(image_word)
        if image_id not in whole:
            raise ExportError(f"the checkpoint's tokenizer.json does not find {image_word} between the wording's words")
        place = whole.index(image_id)
        return Message((*first, *whole[:place]), whole[place + 1 :])

    def behind(template: str) -> tuple[str, tuple[int, ...]]:
        _, ending = text_part(template)
        joined = ending[: min((ending.index(special) for special in known if special in ending), default=len(ending))]
        return joined, (*ids(ending.removeprefix(joined)), *last)

    opening, _ = text_part(wording.query)
    joined, suffix_ids = behind(wording.query)
    before = {task: words.partition(TEXT)[0].removesuffix(opening) for task, words in messages.items()}
    own = next(
        (
            own
            for own in (opening, opening.removeprefix(" "))  # Llama's first tokenizer begins every text with a space
            if all(
                ids(before[task] + opening + start) == ids(before[task]) + ids(own + start)
                for task in tasks
                if task != "target"
                for start in _STARTS
            )
        ),
        None,
    )
    if own is None:
        raise ExportError(
            f"the checkpoint's tokenizer would join {TEXT} to the words before it: put a space or a special token "
            "between them in the wording"
        )

    def ended(template: str) -> Callable[[str], tuple[int, ...]]:
        joined, suffix_ids = behind(template)
        return lambda text: (*ids(f"{own}{text}{joined}"), *suffix_ids)

    target = around_image(messages["target"])
    return Worded(
        query=around_image(before["query"]),
        text=(*first, *ids(before["text"])) if "text" in tasks else None,
        text_ending=_ending_alone(ended(wording.query), ended(wording.text)) if wording.text else None,
        target=Message(target.before, (*target.behind, *last)),
        prompt=Prompt(
            template=f"{own}{TEXT}{joined}",
            null_text=f"{own}{joined}",
            suffix_ids=suffix_ids,
            cut_ids=ids(f"{own}a{joined}")[len(ids(f"{own}a")) :],
        ),
    )


def _ending_alone(in_query: Callable[[str], tuple[int, ...]], alone: Callable[[str], tuple[int, ...]]) -> Ending | None:
    """Return what replaces the end of a query's text where the text is alone, None if both end alike.

    in_query, alone: the ids of a text with what is behind it. Raises ExportError.
    """
    queried, said = in_query(_ENDS[0]), alone(_ENDS[0])
    if queried == said:
        return None
    shared = shared_length(queried, said)
    ending = Ending(queried[shared:], said[shared:])
    for text in _ENDS:
        whole = in_query(text)
        kept = len(whole) - len(ending.replaced)
        if whole[kept:] != ending.replaced or (*whole[:kept], *ending.ids) != alone(text):
            raise ExportError(
                f"the checkpoint's tokenizer would join {TEXT} to the words behind it in which 'query' and 'text' of "
                "the wording differ: let both have the same words first"
            )
    if len(ending.ids) > len(ending.replaced):
        raise ExportError(
            f"the wording's 'text' has {len(ending.ids) - len(ending.replaced)} more tokens behind {TEXT} than its "
            "'query': shorten it"
        )
    return ending


def _check_specials(words: str, known: set[str], image_word: str) -> None:
    if image_word in words:
        raise ExportError(f"{IMAGE} stands for the image's tokens: leave {image_word} out of the wording")
    for special in _SPECIAL.findall(words):
        if special not in known:
            raise ExportError(
                f"the wording has {special}, which is no special token of the checkpoint's tokenizer.json: the model "
                "was trained with another one, name it with --option wording=NAME or FILE.json"
            )


def _around_every_message(tokenizer: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that a tokenizer puts before and behind whatever it reads."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    added = encoding.special_tokens_mask
    start, end = added.index(0), len(added) - added[::-1].index(0)
    return tuple(encoding.ids[:start]), tuple(encoding.ids[end:])


@dataclass(frozen=True)
class Prompts:
    """The messages as constants of graphs, padded to one length: `before` ids, the place of an image, the other ids.

    text: the message of a text alone. target_text: the last ids of a gallery image's message, given as its text.
    """

    before: int
    query: tuple[int, ...]
    text: tuple[int, ...]
    target: tuple[int, ...]
    target_text: tuple[int, ...]


def prompts(messages: Worded, text_length: int) -> Prompts:
    """Return messages with as little padding as they allow.

    A text alone has no image, so its message may be cut where the image would be. text_length: of a gallery image's
    text.
    """
    before = max(len(messages.query.before), len(messages.target.before))
    whole, text = messages.target.behind, messages.text or ()
    target = whole[: max(0, len(whole) - text_length)]
    behind = max(1, len(messages.query.behind), len(target), len(text) - before)  # no tensor may be empty

    def around(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
        return *padded(first, before), *padded(second, behind)

    return Prompts(
        before=before,
        query=around(messages.query.before, messages.query.behind),
        text=around(text[:before], text[before:]),
        target=around(messages.target.before, target),
        target_text=padded(whole[len(target) :], text_length),
    )
