"""From a torch module to what a server runs: ONNX, a lower precision, a TensorRT plan."""
