"""Query and gallery encoders: in this process, or through a Triton server. Same protocol, same numbers."""

from cirrus_client.encoders.local import LocalEncoder
from cirrus_client.encoders.protocol import Embeddings, Encoder, ImageInput

__all__ = ["Embeddings", "Encoder", "ImageInput", "LocalEncoder"]
