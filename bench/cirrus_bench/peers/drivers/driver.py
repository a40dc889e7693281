"""What every driver does: load, say so, and embed the folder whenever a line comes in. Runs in a peer's environment."""

import json
import os
import re
import sys
import traceback
from importlib.metadata import version
from pathlib import Path


def paths():
    """Return the folder of photos, the folder of weights, and the file for the embeddings."""
    return tuple(Path(argument) for argument in sys.argv[1:4])


def serve(package, embed):
    """Answer every line on stdin with a run of `embed()`, which writes the embeddings."""
    _say(version=version(package))
    for _ in sys.stdin:
        try:
            embed()
        except Exception:
            traceback.print_exc()
            os._exit(1)  # threads of the tool may never end
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        _say(peak_bytes=int(peak[1]) * 1024)
    os._exit(0)  # the bench has ended; threads of the tool may not


def let_torchvision_import():
    """Define the operators that torchvision's CUDA wheel lacks beside a CPU build of torch."""
    import torch

    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


def _say(**answer):
    """On a line of its own: tools leave lines of progress unfinished."""
    print(f"\ncirrus:{json.dumps(answer)}", flush=True)
