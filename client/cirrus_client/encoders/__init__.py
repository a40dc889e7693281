"""Query and gallery encoders: in this process, or through a Triton server. Same protocol, same numbers."""

from cirrus_client.encoders.local import LocalEncoder
from cirrus_client.encoders.protocol import Embeddings, Encoder, ImageInput
from cirrus_client.encoders.triton import AsyncTritonEncoder, TritonEncoder
from cirrus_client.encoders.triton_requests import Protocol, RetryPolicy

__all__ = [
    "AsyncTritonEncoder",
    "Embeddings",
    "Encoder",
    "ImageInput",
    "LocalEncoder",
    "Protocol",
    "RetryPolicy",
    "TritonEncoder",
]
