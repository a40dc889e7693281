"""Make torchvision's CUDA wheel importable beside a CPU build of torch.

torchvision registers meta kernels for two operators that its compiled library defines; where that
library can't be loaded (a CPU torch), their schemas are missing and `import torchvision` fails. Importing
this module first defines the two schemas. Where the compiled library loads, nothing is defined.
"""

from __future__ import annotations

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _define_missing_operators() -> torch.library.Library | None:
    if torch.version.cuda is not None:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


# The definitions live as long as this object.
_LIBRARY = _define_missing_operators()
