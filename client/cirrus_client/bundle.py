"""The bundle: the directory that an export writes, and its contract `bundle.json`.

bundle.json          this contract: recipe, space, preprocessing, graphs, ensembles, checksums
graphs/*.onnx        the exported graphs, float32 at their inputs and outputs
engines/*.plan       the graphs compiled by TensorRT, if `cirrus compile` was run; `plans.json` says where and how
engines-rtx/*.plan   the graphs compiled by TensorRT for RTX, if `cirrus compile --for` was run
tokenizer.json       the text tokenizer
probe_queries.npy    embeddings of the queries that the export was verified with
canary.json, .npz    golden inputs, and what the original made of them, to hold servers to
triton/<flavour>/    the bundle as a Triton model repository
report.json, .md     the fidelity report; `bundle.json` says whether its gate was passed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cirrus_client.ensemble import IMAGE_PREPROCESS, TOKENIZE, EnsembleSpec
from cirrus_client.errors import BundleError
from cirrus_client.external_data import external_files
from cirrus_client.files import check_files, write_model
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_client.names import EnsembleName, FolderRecord
from cirrus_client.outputs import of_one_version
from cirrus_client.records import Name, Record, RelativePath, read_record
from cirrus_client.tokenizer import TokenizerSpec

CONTRACT = FolderRecord.BUNDLE
PROBE_QUERIES = "probe_queries.npy"
_WAY_OUT = "export it again or copy it whole"


class DType(StrEnum):
    """Element types of graph inputs and outputs."""

    FLOAT32 = "float32"
    INT64 = "int64"


class Precision(StrEnum):
    """Arithmetic inside the graphs. Inputs and outputs are always float32."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"


class Similarity(StrEnum):
    """How a query embedding is compared with a gallery image.

    COSINE: with its one embedding. MAX_COSINE: with each of its V embeddings; the largest cosine is the score.
    """

    COSINE = "cosine"
    MAX_COSINE = "max_cosine"


class CaptionJoin(StrEnum):
    """How a recipe's published evaluation words a query: FashionIQ's two captions c0 and c1, CIRR's and CIRCO's one.

    CAPITALISED: "C0 and c1", both without full stops, question marks, commas and spaces at their ends (TransAgg, SPRC).
    JOINED: "c0 and c1" as they are; on CIRR "find a photo that <caption>", on CIRCO "<concept> but <caption>" (UNION).
    BOTH_ORDERS: "c0 and c1" and "c1 and c0", stripped as above, their embeddings averaged (SEARLE, LinCIR).
    SECOND_FIRST: "c1 and c0" as they are (Pic2Word). EACH: every caption is a query, as it is (Retrieval-DPO).
    Where nothing else is said, the one caption of CIRR or CIRCO is the text, as it is.
    """

    CAPITALISED = "capitalised"
    JOINED = "joined"
    BOTH_ORDERS = "both_orders"
    SECOND_FIRST = "second_first"
    EACH = "each"


DYNAMIC = -1
"""Size of a dimension, other than the batch, that may differ between calls: that of text tokens."""


class TensorSpec(Record):
    """A named input or output. shape: without the batch dimension, which always comes first; -1 is DYNAMIC."""

    name: str
    dtype: DType = DType.FLOAT32
    shape: tuple[int, ...]

    def sized(self, length: int) -> tuple[int, ...]:
        """Return the shape with a length in place of every dynamic dimension."""
        return tuple(length if size == DYNAMIC else size for size in self.shape)


class GraphSpec(Record):
    """An exported graph: its ONNX file, relative to the bundle, and its inputs and outputs.

    text_lengths: what dynamic dimensions may be, the shortest first. Empty if there are none.
    """

    file: RelativePath
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    text_lengths: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _says_how_long_texts_are(self) -> Self:
        if any(DYNAMIC in tensor.shape for tensor in (*self.inputs, *self.outputs)) and not self.text_lengths:
            raise ValueError(f"{self.file} has dynamic dimensions and no text_lengths")
        return self

    def input_shapes(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """Return the shapes that inputs may have together, by name: one for each length of text, the shortest first."""
        lengths = self.text_lengths or (0,)
        return tuple({tensor.name: tensor.sized(length) for tensor in self.inputs} for length in lengths)


class SpaceSpec(Record):
    """The vector space that a query and a gallery must share.

    A query embedding is one vector, float32 [dim]. A gallery image has `vectors` of them: its embedding is [dim], or
    [vectors, dim] if there are several.

    components: hashes or descriptions of the target-side weights, preprocessing, tokenizer and pooling. fingerprint:
    the sha256 of components, dim, vectors and similarity. Precision and engine are not part of it; the fidelity report
    bounds their effect.
    """

    fingerprint: str
    dim: int = Field(gt=0)
    vectors: int = Field(default=1, gt=0)
    similarity: Similarity = Similarity.COSINE
    components: dict[str, str]

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of the embedding of one gallery image."""
        return (self.dim,) if self.vectors == 1 else (self.vectors, self.dim)

    def differences(self, other: SpaceSpec) -> tuple[str, ...]:
        """Return the names of the components in which two spaces differ, sorted."""
        names = {*self.components, *other.components}
        return tuple(sorted(name for name in names if self.components.get(name) != other.components.get(name)))

    def differences_in_words(self, other: SpaceSpec) -> str:
        """Return what two spaces differ in, for a message."""
        return ", ".join(self.differences(other)) or "width or similarity"

    @staticmethod
    def of(components: Mapping[str, str], *, dim: int, vectors: int, similarity: Similarity) -> SpaceSpec:
        """Return a space of these components with its fingerprint."""
        named = dict(components) | {"dim": str(dim), "similarity": similarity.value}
        if vectors > 1:
            named["vectors"] = str(vectors)
        fingerprint = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
        return SpaceSpec(
            fingerprint=fingerprint, dim=dim, vectors=vectors, similarity=similarity, components=dict(components)
        )


class FidelityStatus(Record):
    """The verdict of the fidelity gate."""

    passed: bool
    failures: tuple[str, ...] = ()


class BundleSpec(Record):
    """The contents of `bundle.json`."""

    format: Literal[1] = 1
    name: Name
    recipe: str
    backbone: str
    pretrained: str | None = Field(description="where the backbone's weights were: a tag, 'random', or a path")
    head: str | None = Field(description="sha256 of the head's checkpoint, or 'random'; null where there is none")
    options: dict[str, str | float | bool]
    precision: Precision
    space: SpaceSpec
    preprocess: PreprocessSpec
    tokenizer: TokenizerSpec
    graphs: dict[Name, GraphSpec]
    ensembles: dict[EnsembleName, EnsembleSpec]
    max_batch: int = Field(gt=0)
    caption_join: CaptionJoin = CaptionJoin.CAPITALISED
    circo_without_reference: bool = Field(
        default=False, description="the published evaluation takes the reference image out of CIRCO's answers"
    )
    instructions: dict[EnsembleName, str] | None = Field(
        default=None, description="the instruction that each ensemble reads its input with; null in older bundles"
    )
    fidelity: FidelityStatus
    versions: dict[str, str]
    files: dict[RelativePath, str] = Field(description="sha256 of every file that graphs and tokenizer consist of")

    @model_validator(mode="after")
    def _lists_what_it_names(self) -> Self:
        check_listed(self.graphs, self.tokenizer.file, self.files)
        known = {*self.graphs, IMAGE_PREPROCESS, TOKENIZE}
        unknown = {step.model for ensemble in self.ensembles.values() for step in ensemble.steps} - known
        if unknown:
            raise ValueError(f"ensembles run {', '.join(sorted(unknown))}, which is no graph of this bundle")
        return self

    def is_for_bulk(self, graph: str) -> bool:
        """Return whether only gallery ensembles use a graph, so it may be tuned for throughput instead of latency."""
        queries = (ensemble for name, ensemble in self.ensembles.items() if name is not EnsembleName.ENCODE_TARGET)
        return all(step.model != graph for ensemble in queries for step in ensemble.steps)


class Bundle:
    """A bundle on disk, opened for reading.

    trusts_plans: whether code in its TensorRT plans may run in this process.
    """

    def __init__(self, root: Path, spec: BundleSpec, *, trust_plans: bool = False) -> None:
        self.root = root
        self.spec = spec
        self.trusts_plans = trust_plans

    @staticmethod
    def open(root: Path | str, *, allow_failed: bool = False, trust_plans: bool = False) -> Bundle:
        """Open a bundle and check that it is whole.

        trust_plans: let version-compatible TensorRT plans, which contain code, run in this process. Raises BundleError
        if `bundle.json` is missing or invalid, a file is missing, is not a plain file or has another sha256, a graph
        loads a file that is not listed, or the bundle failed its fidelity gate (unless `allow_failed`).
        """
        root = Path(root)
        bundle = of_one_version(root, lambda: _read_whole(root, trust_plans=trust_plans))
        fidelity = bundle.spec.fidelity
        if not fidelity.passed and not allow_failed:
            raise BundleError(
                f"bundle {root} failed its fidelity gate and must not be served: {'; '.join(fidelity.failures)}; "
                f"see {root / 'report.md'}",
                path=root,
            )
        return bundle

    def probe_queries(self) -> NDArray[np.float32] | None:
        """Return the embeddings of the queries that the export was verified with, float32 [Q, D].

        Return None if the bundle does not contain them. Raises BundleError if the file holds anything else.
        """
        if PROBE_QUERIES not in self.spec.files:
            return None
        path = self.root / PROBE_QUERIES
        try:
            queries: NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BundleError(f"{path} can't be read ({error}); {_WAY_OUT}", path=path) from None
        if queries.ndim != 2 or queries.shape[1] != self.spec.space.dim or queries.dtype != np.float32:
            raise BundleError(
                f"{path} has {queries.dtype} {list(queries.shape)}, expected float32 [Q, {self.spec.space.dim}]; "
                f"{_WAY_OUT}",
                path=path,
            )
        return queries

    def graph_file(self, graph: str) -> Path:
        """Return the path of a graph's ONNX file.

        Raises BundleError if the bundle was replaced since it was opened: the graphs of two exports do not mix.
        """
        if (self.root / CONTRACT).exists() and _read_contract(self.root).files != self.spec.files:
            raise BundleError(f"bundle {self.root} was replaced since it was opened; open it again", path=self.root)
        return self.root / self.spec.graphs[graph].file


def write_contract(root: Path, spec: BundleSpec) -> None:
    """Write `bundle.json` atomically."""
    write_model(root / CONTRACT, spec)


def check_listed(graphs: Mapping[str, GraphSpec], tokenizer: str, files: Mapping[str, str]) -> None:
    """Raise ValueError unless a contract lists the files of its graphs and of its tokenizer with their sha256."""
    unlisted = sorted({*(graph.file for graph in graphs.values()), tokenizer} - set(files))
    if unlisted:
        raise ValueError(f"{', '.join(unlisted)} is used and not listed in 'files'")


def check_model_files(root: Path, graphs: Mapping[str, GraphSpec], files: Mapping[str, str], *, what: str) -> None:
    """Check that the files of a bundle or a suggester are whole, and that its graphs load no others.

    what: "bundle" or "suggester". Raises BundleError.
    """
    check_files(root, files, what=what, raises=BundleError, way_out=_WAY_OUT)
    for graph in graphs.values():
        path = root / graph.file
        try:
            loaded = external_files(path)
        except ValueError as error:
            raise BundleError(f"{what} {root}: {graph.file}: {error}; {_WAY_OUT}", path=path) from None
        for name in sorted(loaded):
            if str(PurePosixPath(graph.file).parent / name) not in files:
                raise BundleError(
                    f"{what} {root}: {graph.file} loads its weights from {name}, which is not listed in 'files'; "
                    f"{_WAY_OUT}",
                    path=path,
                )


def _read_whole(root: Path, *, trust_plans: bool) -> Bundle:
    bundle = Bundle(root, _read_contract(root), trust_plans=trust_plans)
    check_model_files(root, bundle.spec.graphs, bundle.spec.files, what="bundle")
    return bundle


def _read_contract(root: Path) -> BundleSpec:
    return read_record(
        root / CONTRACT,
        BundleSpec,
        raises=BundleError,
        way_out=_WAY_OUT,
    )
