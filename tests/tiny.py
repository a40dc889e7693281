"""Tiny bundles, written in milliseconds without torch, for tests of the client.

The graphs are ONNX text with random weights from a fixed seed. Nothing was trained, but an image's embedding depends on
its pixels, a text's on its letters, and a query's on both, so rankings mean something.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from PIL import Image
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from cirrus_client.bundle import (
    Bundle,
    BundleSpec,
    DType,
    FidelityStatus,
    GraphSpec,
    Precision,
    Similarity,
    SpaceSpec,
    TensorSpec,
    write_contract,
)
from cirrus_client.canary import ARRAYS, CANARY, Canary, CanarySpec, write_canary
from cirrus_client.ensemble import EnsembleSpec, StepSpec, image_step, text_step
from cirrus_client.files import sha256_of_file
from cirrus_client.image.preprocess import Pad, PreprocessSpec, preprocess
from cirrus_client.names import EnsembleName, Flavour, GraphName
from cirrus_client.tokenizer import Tokenizer, TokenizerSpec

DIM = 64
SIZE_PX = 96
CONTEXT_LENGTH = 77
_VOCABULARY = 512
_HEADER = '<ir_version: 10, opset_import: ["": 20]>\n'

_VISION = """
    patches = AveragePool<kernel_shape = [12, 12], strides = [12, 12]>(pixels)
    flat = Flatten(patches)
    projected = MatMul(flat, vision_weight)
    image_embedding = LpNormalization(projected)
"""
_TARGET = """
    moved = MatMul(image_embedding, target_weight)
    target_embedding = LpNormalization(moved)
"""
_GRAPHS = {
    GraphName.VISION_ENCODER: f"(float[B, 3, 96, 96] pixels) => (float[B, 64] image_embedding) {{{_VISION}}}",
    GraphName.TEXT_ENCODER: """(int64[B, 77] token_ids) => (float[B, 64] text_embedding) {
        tokens = Gather(vocabulary, token_ids)
        axis = Constant<value_ints = [1]>()
        mean = ReduceMean<keepdims = 0>(tokens, axis)
        text_embedding = LpNormalization(mean)
    }""",
    GraphName.QUERY_HEAD: """(float[B, 64] image_embedding, float[B, 64] text_embedding)
        => (float[B, 64] query_embedding) {
        both = Concat<axis = -1>(image_embedding, text_embedding)
        composed = MatMul(both, query_weight)
        query_embedding = LpNormalization(composed)
    }""",
    GraphName.TEXT_QUERY_HEAD: """(float[B, 64] text_embedding) => (float[B, 64] query_embedding) {
        query_embedding = LpNormalization(text_embedding)
    }""",
    GraphName.TARGET_HEAD: f"(float[B, 64] image_embedding) => (float[B, 64] target_embedding) {{{_TARGET}}}",
    GraphName.GALLERY: f"(float[B, 3, 96, 96] pixels) => (float[B, 64] target_embedding) {{{_VISION}{_TARGET}}}",
}


_RERANKER_GRAPHS = {
    GraphName.QUERY_HEAD: """(float[B, 64] image_embedding, float[B, 64] text_embedding)
        => (float[B, 64] query_embedding, float[B, 64] condition) {
        both = Concat<axis = -1>(image_embedding, text_embedding)
        composed = MatMul(both, query_weight)
        query_embedding = LpNormalization(composed)
        condition = Neg(composed)
    }""",
    GraphName.MATCHING_HEAD: """(float[B, 64] image_embedding, float[B, 64] condition, int64[B, 77] token_ids)
        => (float[B, 1] score) {
        tokens = Gather(vocabulary, token_ids)
        axis = Constant<value_ints = [1]>()
        words = ReduceMean<keepdims = 0>(tokens, axis)
        asked = Add(words, condition)
        moved = MatMul(image_embedding, matching_weight)
        matched = Mul(moved, asked)
        score = ReduceSum(matched, axis)
    }""",
}


def write_tiny_bundle(root: Path, *, pad: Pad = Pad.TARGET) -> Bundle:
    """Write a bundle that composes image and text, with a target head of its own, and open it."""
    return _write(root, pad=pad, target_head=True, text_queries=False)


def write_tiny_reranking_bundle(root: Path) -> Bundle:
    """Write the same bundle with a reranker, which orders images in another way than the embeddings do."""
    return _write(root, pad=Pad.TARGET, target_head=True, text_queries=False, reranker=True)


def write_tiny_zero_shot_bundle(root: Path, *, pad: Pad = Pad.NONE) -> Bundle:
    """Write a bundle on the same backbone whose targets are the plain image, and that answers texts alone as well."""
    return _write(root, pad=pad, target_head=False, text_queries=True)


def write_pictures(folder: Path, count: int) -> Path:
    """Write JPEG files of different sizes, colours and patterns, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(5)
    for number in range(count):
        blocks = generator.integers(0, 256, (4, 3, 3), dtype=np.uint8)
        size = (160 + number, 220 - number)
        Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:06d}.jpg")
    return folder


def _write(root: Path, *, pad: Pad, target_head: bool, text_queries: bool, reranker: bool = False) -> Bundle:
    (root / "graphs").mkdir(parents=True)
    sources = _GRAPHS | (_RERANKER_GRAPHS if reranker else {})
    names = [name for name in sources if text_queries or name is not GraphName.TEXT_QUERY_HEAD]
    weights = _weights(target_head=target_head)
    graphs = {name.value: _write_graph(root, name, sources[name], weights) for name in names}
    tokenizer = _write_tokenizer(root)
    preprocess = PreprocessSpec(size_px=SIZE_PX, pad=pad)
    components = {"backbone": "tiny", "preprocess": preprocess.model_dump_json()}
    if target_head:
        components["target_head"] = "tiny head"
    files = (*(graph.file for graph in graphs.values()), tokenizer.file)
    spec = BundleSpec(
        name=root.name,
        recipe="tiny",
        backbone="tiny",
        pretrained="random",
        head="random" if target_head else None,
        options={},
        precision=Precision.FP32,
        space=SpaceSpec.of(components, dim=DIM, vectors=1, similarity=Similarity.COSINE),
        preprocess=preprocess,
        tokenizer=tokenizer,
        graphs=graphs,
        ensembles=_ensembles(graphs, text_queries=text_queries, reranker=reranker),
        max_batch=64,
        fidelity=FidelityStatus(passed=True),
        versions={},
        files={file: sha256_of_file(root / file) for file in files},
    )
    made = Bundle(root, spec)
    write_canary(root, _canary(made))
    listed = {name: sha256_of_file(root / name) for name in (CANARY, ARRAYS)}
    write_contract(root, spec.model_copy(update={"files": spec.files | listed}))
    return Bundle.open(root)


def _canary(bundle: Bundle) -> Canary:
    """Golden inputs, and what the reference evaluator of ONNX makes of them."""
    generator, texts = np.random.default_rng(7), ("in blue", "with stripes")
    images = []
    for _ in texts:
        file = io.BytesIO()
        blocks = Image.fromarray(generator.integers(0, 256, (4, 3, 3), dtype=np.uint8))
        blocks.resize((120, 160), Image.Resampling.BICUBIC).save(file, "JPEG")
        images.append(file.getvalue())
    spec = bundle.spec
    tensors: dict[str, NDArray[Any]] = {
        "pixels": np.stack([preprocess(image, spec.preprocess) for image in images]),
        "token_ids": Tokenizer(spec.tokenizer, bundle.root)(list(texts)),
    }
    outputs: dict[str, dict[str, NDArray[Any]]] = {}
    for name, graph in spec.graphs.items():
        evaluator = ReferenceEvaluator(str(bundle.root / graph.file))
        found = evaluator.run(None, {tensor.name: tensors[tensor.name] for tensor in graph.inputs})
        outputs[name] = {tensor.name: value for tensor, value in zip(graph.outputs, found, strict=True)}
        tensors |= outputs[name]
    whole = {
        name: outputs[last.model][next(port for port, tensor in last.outputs.items() if tensor == ensemble.output)]
        for name, ensemble in spec.ensembles.items()
        for last in ensemble.steps[-1:]
    }
    return Canary(CanarySpec(texts=texts, cosine_min=0.99999), tuple(images), tensors, outputs, whole)


def _weights(*, target_head: bool) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal(shape, dtype=np.float32)

    identity = np.eye(DIM, dtype=np.float32)
    return {
        "vision_weight": normal(3 * 8 * 8, DIM),
        "vocabulary": normal(_VOCABULARY, DIM),
        "query_weight": np.concatenate([identity, 0.1 * normal(DIM, DIM)]),
        "target_weight": identity + 0.05 * normal(DIM, DIM) if target_head else identity,
        "matching_weight": normal(DIM, DIM),
    }


def _write_graph(root: Path, name: GraphName, source: str, weights: dict[str, NDArray[np.float32]]) -> GraphSpec:
    file = f"graphs/{name}.onnx"
    model = onnx.parser.parse_model(f"{_HEADER}{name} {source}")
    used = {value for node in model.graph.node for value in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(weight, weight_name)
        for weight_name, weight in weights.items()
        if weight_name in used
    )
    onnx.checker.check_model(model)
    onnx.save(model, root / file)
    return GraphSpec(
        file=file,
        inputs=tuple(_tensor(value) for value in model.graph.input),
        outputs=tuple(_tensor(value) for value in model.graph.output),
    )


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = DType(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name)
    return TensorSpec(name=value.name, dtype=dtype, shape=tuple(size.dim_value for size in kind.shape.dim[1:]))


def _write_tokenizer(root: Path) -> TokenizerSpec:
    """Write a tokenizer of one token per byte."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = FastTokenizer(BPE(vocab={letter: number for number, letter in enumerate(alphabet, start=1)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    spec = TokenizerSpec(context_length=CONTEXT_LENGTH, start_id=_VOCABULARY - 2, end_id=_VOCABULARY - 1)
    tokenizer.save(str(root / spec.file))
    return spec


def _ensembles(graphs: dict[str, GraphSpec], *, text_queries: bool, reranker: bool) -> dict[EnsembleName, EnsembleSpec]:
    def step(name: GraphName, **renamed: str) -> StepSpec:
        graph = graphs[name]
        return StepSpec(
            model=name,
            inputs={tensor.name: tensor.name for tensor in graph.inputs},
            outputs=renamed or {tensor.name: tensor.name for tensor in graph.outputs},
        )

    vision, text = step(GraphName.VISION_ENCODER), step(GraphName.TEXT_ENCODER)
    ensembles = {
        EnsembleName.ENCODE_QUERY: EnsembleSpec(
            inputs=("image", "text"),
            optional=("text",),
            steps=(image_step(), text_step(), vision, text, step(GraphName.QUERY_HEAD, query_embedding="embedding")),
        ),
        EnsembleName.ENCODE_TARGET: EnsembleSpec(
            inputs=("image",), steps=(image_step(), step(GraphName.GALLERY, target_embedding="embedding"))
        ),
    }
    if reranker:
        ensembles[EnsembleName.ENCODE_CONDITION] = EnsembleSpec(
            inputs=("image", "text"),
            optional=("text",),
            steps=(image_step(), text_step(), vision, text, step(GraphName.QUERY_HEAD, condition="condition")),
            output="condition",
        )
        ensembles[EnsembleName.SCORE_CANDIDATE] = EnsembleSpec(
            inputs=("image", "text", "condition"),
            optional=("text",),
            steps=(image_step(), text_step(), vision, step(GraphName.MATCHING_HEAD)),
            output="score",
        )
    if text_queries:
        ensembles[EnsembleName.ENCODE_TEXT_QUERY] = EnsembleSpec(
            inputs=("text",), steps=(text_step(), text, step(GraphName.TEXT_QUERY_HEAD, query_embedding="embedding"))
        )
    return ensembles


def with_repository(bundle: Bundle) -> Bundle:
    """Write the model repository of a hand-made bundle, so that Triton serves it without an export."""
    from cirrus_export.repository import write_repository

    write_repository(bundle.root, bundle.spec, Flavour.PYTHON, bundle.root / "triton" / Flavour.PYTHON)
    return bundle
