"""The Hugging Face hub, from which open_clip's weights and tokenizers are fetched."""

from __future__ import annotations

from collections.abc import Sequence


def check_hub_answers(repository: str, files: Sequence[str]) -> None:
    """Raise ConnectionError if the hub can't be reached and none of a repository's files is in its cache.

    The hub's own client says so as well, after half a minute for each file.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, files[0]))
    except HfHubHTTPError:
        return  # it answers; what it answers is the download's to tell
    except Exception as error:  # of whatever the hub's client is built on
        raise ConnectionError(f"{constants.ENDPOINT} can't be reached: {error}") from None
