"""Keep the packages that run graphs from collecting data about their use."""

from __future__ import annotations

import os
import sys


def switch_off() -> None:
    """Switch off the telemetry of ONNX Runtime and of OpenVINO in this process and those that it starts.

    Both would keep an id of the machine in the user's home folder. It must be called before they are imported. Whoever
    wants telemetry sets ORT_DISABLE_TELEMETRY to 0, or imports openvino_telemetry first.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # how Python refuses an import
