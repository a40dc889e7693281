"""Query and gallery encoders: what an encoder is, and the one that runs in this process."""

from cirrus_client.encoders.local import LocalEncoder
from cirrus_client.encoders.protocol import Embeddings, Encoder, ImageInput

__all__ = ["Embeddings", "Encoder", "ImageInput", "LocalEncoder"]
