"""Triton model: one exported graph on the fastest engine here, for servers without a backend of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cirrus_client.bundle import Precision
from cirrus_client.engines import open_served_graph
from cirrus_client.errors import EngineError


class TritonPythonModel:
    """The requests of a batch are run as one; where that fails, each is run alone, so that only the bad one fails."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"]) / args["model_version"]
        path = (folder / parameters["graph_file"]["string_value"]).resolve()  # where its external data is
        precision = Precision(parameters["precision"]["string_value"])
        self._engine = open_served_graph(path, precision, bulk=json.loads(parameters["bulk"]["string_value"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        names = [spec.name for spec in self._engine.inputs]
        inputs = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names}
            for request in requests
        ]
        try:
            outputs = self._engine({name: np.concatenate([one[name] for one in inputs]) for name in names})
        except EngineError as error:
            if len(requests) > 1:
                return [self.execute([request])[0] for request in requests]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))]
        sizes = [len(one[names[0]]) for one in inputs]
        ends = np.cumsum(sizes)[:-1]
        parts = {name: np.split(values, ends) for name, values in outputs.items()}
        parts["done"] = [np.zeros((size, 1), dtype=np.uint8) for size in sizes]
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, np.ascontiguousarray(parts[name][row])) for name in parts]
            )
            for row in range(len(requests))
        ]
