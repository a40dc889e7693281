"""Names that several modules compare: ensembles, graphs and tensors, transports, repositories, folders, and writers."""

from __future__ import annotations

from enum import StrEnum


class EnsembleName(StrEnum):
    """Ensembles of a bundle. Every bundle has ENCODE_TARGET; which query ensembles it has depends on the recipe.

    ENCODE_CONDITION and SCORE_CANDIDATE are the two halves of a reranker: the query, once, and each candidate for it.
    """

    ENCODE_QUERY = "encode_query"
    ENCODE_TEXT_QUERY = "encode_text_query"
    ENCODE_TARGET = "encode_target"
    ENCODE_CONDITION = "encode_condition"
    SCORE_CANDIDATE = "score_candidate"


class GraphName(StrEnum):
    """Graphs with the same meaning in every recipe. A recipe may add graphs of its own."""

    VISION_ENCODER = "vision_encoder"
    TEXT_ENCODER = "text_encoder"
    QUERY_HEAD = "query_head"
    TEXT_QUERY_HEAD = "text_query_head"
    TARGET_HEAD = "target_head"
    GALLERY = "gallery"
    MATCHING_HEAD = "matching_head"


class TensorName(StrEnum):
    """Tensors that host code makes or reads. A recipe names the tensors between its graphs itself."""

    IMAGE = "image"
    TEXT = "text"
    PIXELS = "pixels"
    TOKEN_IDS = "token_ids"
    EMBEDDING = "embedding"
    CONDITION = "condition"
    SCORE = "score"


class Transport(StrEnum):
    """How to talk to a Triton server."""

    GRPC = "grpc"
    HTTP = "http"


class Flavour(StrEnum):
    """What runs the graphs of a Triton model repository: an engine in the Python backend, or one of NGC's backends."""

    PYTHON = "python"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


class ModelCode(StrEnum):
    """The Python code of Cirrus's own Triton models: a folder of `triton_models`."""

    IMAGE_PREPROCESS = "image_preprocess"
    TOKENIZE = "tokenize"
    GRAPH_RUNNER = "graph_runner"
    SUGGEST = "suggest"


class FolderRecord(StrEnum):
    """The files that tell what a folder is: each kind has one at its top."""

    BUNDLE = "bundle.json"
    SUGGESTER = "suggest.json"
    REPOSITORY = "repository.json"
    GALLERY = "gallery.json"
    INDEX = "index.json"


class Writer(StrEnum):
    """Commands that replace a whole folder. The folder's mark names its writer."""

    EXPORT = "export"
    EXPORT_SUGGESTER = "export-suggester"
    COMPILE = "compile"
    REPOSITORY = "repository"
    INDEX = "index"
