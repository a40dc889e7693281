"""Names that more than one room compares: of ensembles, graphs and tensors of a bundle, and of transports."""

from __future__ import annotations

from enum import StrEnum


class EnsembleName(StrEnum):
    """The ensembles a bundle can have. Every bundle has ENCODE_TARGET; queries depend on the recipe."""

    ENCODE_QUERY = "encode_query"
    ENCODE_TEXT_QUERY = "encode_text_query"
    ENCODE_TARGET = "encode_target"


class GraphName(StrEnum):
    """The graphs that a recipe may have. A recipe may add its own; what is named here has one meaning everywhere."""

    VISION_ENCODER = "vision_encoder"
    TEXT_ENCODER = "text_encoder"
    QUERY_HEAD = "query_head"
    TEXT_QUERY_HEAD = "text_query_head"
    TARGET_HEAD = "target_head"
    GALLERY = "gallery"


class TensorName(StrEnum):
    """Tensors that the host makes or reads; tensors between two graphs are a recipe's own."""

    IMAGE = "image"
    TEXT = "text"
    PIXELS = "pixels"
    TOKEN_IDS = "token_ids"
    EMBEDDING = "embedding"


class Transport(StrEnum):
    """How to talk to a Triton server."""

    GRPC = "grpc"
    HTTP = "http"
