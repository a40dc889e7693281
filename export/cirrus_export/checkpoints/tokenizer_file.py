"""Read a checkpoint's `tokenizer.json`."""

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
