"""Write open_clip's byte-pair tokenizer as a `tokenizer.json` that the torch-free client reads.

The ids are open_clip's, but for three things that no model was trained on:

- code points that only one of the two regular expression engines knows, each having its own version of Unicode;
  open_clip's own answer depends on the version of `regex` that is installed,
- U+0345, and the long s behind an apostrophe, since open_clip's pattern ignores the case,
- a special token's spelling, like "<end_of_text>", which is text here and the token itself there.

They are left as they are: the file is part of every space's fingerprint, and changing it would invalidate every index.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from torch import Tensor

from cirrus_client.errors import CheckpointError
from cirrus_client.tokenizer import TextCleaning, TokenizerSpec
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.checkpoints.image_settings import read_settings
from cirrus_export.checkpoints.tokenizer_file import TOKENIZER, write_tokenizer

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from open_clip.tokenizer import SimpleTokenizer

_VOCABULARY = "vocab.json"
_ENDS = ("<|startoftext|>", "<|endoftext|>")
"""How transformers spells the tokens around a text."""


def clip_null_token_ids(context_length: int) -> Tensor:
    """Return the token ids of the empty text, int64 [1, T]."""
    token_ids: Tensor = SimpleTokenizer(context_length=context_length)([""])
    return token_ids


def write_clip_tokenizer(root: Path, *, context_length: int, prompt: Prompt) -> TokenizerSpec:
    """Write `tokenizer.json` into root and return how to use it."""
    reference = SimpleTokenizer(context_length=context_length)
    ranked = sorted(reference.bpe_ranks, key=reference.bpe_ranks.__getitem__)
    tokenizer = Tokenizer(BPE(vocab=dict(reference.encoder), merges=ranked, end_of_word_suffix="</w>"))
    words = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    tokenizer.pre_tokenizer = Sequence(
        [Split(words, behavior="removed", invert=True), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.add_special_tokens(["<start_of_text>", "<end_of_text>"])
    spec = prompt.spec(
        context_length=context_length,
        start_id=reference.sot_token_id,
        end_id=reference.eot_token_id,
        cleaning=TextCleaning.CLIP,
    )
    write_tokenizer(tokenizer, root / spec.file)
    return spec


def check_clip_vocabulary(words: int, source: str, folder: Path | None) -> None:
    """Raise CheckpointError if a CLIP of `words` word embeddings was trained with another vocabulary than OpenAI's.

    source: the weights' file. folder: where transformers' tokenizer of these weights lies, if it was saved.
    """
    own = SimpleTokenizer()
    plain = {word: number for word, number in own.encoder.items() if number < own.sot_token_id}
    problem = None
    if words < own.vocab_size:
        problem = f"{source}: has embeddings of {words:,} words, and CLIP's vocabulary has {own.vocab_size:,}"
    elif folder is not None:
        file, found, added = _words_in(folder)
        found = {word: number for word, number in found.items() if number < own.sot_token_id}
        if added:
            problem = f"{file}: {added[0]!r} was added to CLIP's vocabulary"
        elif found and found != plain:
            word, _ = min(found.items() ^ plain.items())
            problem = f"{file}: {word!r} has the id {found.get(word)}, and in CLIP's vocabulary {plain.get(word)}"
    if problem is not None:
        raise CheckpointError(f"checkpoint {problem}: Cirrus tokenizes a CLIP's texts with OpenAI's vocabulary alone")


def _words_in(folder: Path) -> tuple[Path, dict[str, int], list[str]]:
    """Return the file of transformers' tokenizer in a folder, the ids of its words, and the words that were added."""
    file = folder / TOKENIZER
    content = read_settings(file)
    if not content:
        return folder / _VOCABULARY, read_settings(folder / _VOCABULARY), []
    try:
        added = [token["content"] for token in content["added_tokens"] if not token["special"]]
        return file, dict(content["model"]["vocab"]), [token for token in added if token not in _ENDS]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"checkpoint {file}: is no tokenizer of a CLIP") from None
