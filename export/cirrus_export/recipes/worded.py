"""A wording as token ids: what a graph gives to the language model, and what is left to the text's tokenizer."""

from __future__ import annotations

import re
from dataclasses import dataclass

import tokenizers

from cirrus_client.errors import ExportError
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.heads.prompts import padded
from cirrus_export.recipes.wording import IMAGE, TEXT, Wording, text_part

_SPECIAL = re.compile(r"<\|[^|<>\s]+\|>")


@dataclass(frozen=True)
class Message:
    """Token ids before and behind the place of an image, up to where the text begins."""

    before: tuple[int, ...]
    behind: tuple[int, ...]


@dataclass(frozen=True)
class Worded:
    """Every task's message, and how a text is tokenized behind it. text: the ids before a text alone."""

    query: Message
    text: tuple[int, ...]
    target: Message
    prompt: Prompt


def worded(wording: Wording, tokenizer: tokenizers.Tokenizer) -> Worded:
    """Return a wording as ids of a tokenizer.

    An instruction and a text are tokenized apart, where Qwen's tokenizer always cuts: before a space. What is behind a
    text up to the next special token is tokenized with it. Raises ExportError for a special token that the tokenizer
    has not.
    """
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    for special in _SPECIAL.findall(wording.query + wording.text + wording.target):
        if special not in known:
            raise ExportError(
                f"the wording has {special}, which is no special token of the checkpoint's tokenizer.json: the model "
                "was trained with another one, name it with --option wording=NAME or FILE.json"
            )

    def ids(words: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(words, add_special_tokens=False).ids)

    def before_text(words: str) -> tuple[int, ...]:
        return ids(words.partition(TEXT)[0].removesuffix(spaces))

    def to_the_end(words: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(words, add_special_tokens=True).ids)

    spaces, ending = text_part(wording.query)
    joined = ending[: min((ending.index(special) for special in known if special in ending), default=len(ending))]
    query, target = (wording.message(task).partition(IMAGE) for task in ("query", "target"))
    return Worded(
        query=Message(ids(query[0]), before_text(query[2])),
        text=before_text(wording.message("text")),
        target=Message(ids(target[0]), to_the_end(target[2])),
        prompt=Prompt(
            template=f"{spaces}{TEXT}{joined}",
            null_text=f"{spaces}{joined}",
            suffix_ids=to_the_end(ending.removeprefix(joined)),
            cut_ids=ids(joined),
        ),
    )


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
    whole, text = messages.target.behind, messages.text
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
