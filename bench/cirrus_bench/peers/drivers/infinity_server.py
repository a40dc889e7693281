"""Run infinity's own server on loopback with its defaults for a CPU.

The arguments are a port and the folder of weights.
"""

import os
import sys
from pathlib import Path

import driver

kept = driver.let_torchvision_import()
os.environ["DO_NOT_TRACK"] = "1"

from infinity_emb.cli import cli  # noqa: E402

port, weights = sys.argv[1:3]
model = str(Path(weights) / "transformers")
sys.argv[1:] = [
    "v2",
    "--model-id",
    model,
    "--engine",
    "torch",
    "--device",
    "cpu",
    "--host",
    "127.0.0.1",
    "--port",
    port,
]
cli()
