"""Find what a configuration of transformers names that is no data: modules to import, kernels to fetch."""

from __future__ import annotations

import re
from collections.abc import Mapping

_CODE = re.compile("auto_map|remote_code|implementation|kernel|quantization")
_OWN = (None, False, "eager", "sdpa")


def code_named_in(config: object) -> str | None:
    """Return the first key of a configuration, at any depth, for which transformers would import or fetch code."""
    if not isinstance(config, Mapping):
        return None
    for key, value in config.items():
        if _CODE.search(str(key)) and not (value is None or (isinstance(value, bool | str) and value in _OWN)):
            return str(key)
        if (inner := code_named_in(value)) is not None:
            return inner
    return None
