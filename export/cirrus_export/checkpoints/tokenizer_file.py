"""Read a checkpoint's `tokenizer.json`, and write a bundle's."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from cirrus_client.errors import CheckpointError

TOKENIZER = "tokenizer.json"


def read_tokenizer(file: Path) -> tokenizers.Tokenizer:
    """Return a tokenizer that neither cuts nor pads. Raises CheckpointError if the file can't be read as one."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # `tokenizers` raises bare Exceptions
        raise CheckpointError(f"checkpoint {file}: can't be read as a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def write_tokenizer(tokenizer: tokenizers.Tokenizer, file: Path) -> None:
    """Write a tokenizer. Raises OSError, where the tokenizer's own `save` raises a bare Exception."""
    file.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
