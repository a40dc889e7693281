"""What all drivers share. A driver runs in a peer's environment; see `cirrus_bench.peers.process`."""

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
    """Report readiness, then run `embed()`, which writes the embeddings, for every line on stdin."""
    _say(version=version(package))
    for _ in sys.stdin:
        try:
            embed()
        except Exception:
            traceback.print_exc()
            os._exit(1)  # a plain exit would wait for threads of the tool
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        _say(peak_bytes=int(peak[1]) * 1024)
    os._exit(0)  # as above


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
    """Print an answer on a new line, since tools leave lines of progress unfinished."""
    print(f"\ncirrus:{json.dumps(answer)}", flush=True)
