"""The interfaces of encoders and rerankers, and the encoder that runs in this process."""

from cirrus_client.encoders.local import LocalEncoder
from cirrus_client.encoders.protocol import Embeddings, Encoder
from cirrus_client.encoders.reranker import Reranker, Scores
from cirrus_client.image.inputs import ImageInput

__all__ = ["Embeddings", "Encoder", "ImageInput", "LocalEncoder", "Reranker", "Scores"]
