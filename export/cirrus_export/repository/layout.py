"""The folders of a Triton model repository: `<model>/config.pbtxt`, `<model>/1/<file>`, `<model>/warmup/<file>`.

The repository of one bundle has its graphs under their own names. A repository of several bundles has every model once,
under a name that ends in its content's hash. Two bundles on one backbone then share its encoder, and embed galleries
through encoder and head as two models instead of the fused graph. Their ensembles are named `<bundle>.<ensemble>`.
"""

from __future__ import annotations

import io
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc import model_config_pb2 as pb

from cirrus_client.bundle import Bundle, BundleSpec
from cirrus_client.ensemble import IMAGE_PREPROCESS, TOKENIZE, EnsembleSpec, StepSpec, image_step
from cirrus_client.errors import ExportError
from cirrus_client.files import link_or_copy
from cirrus_client.names import EnsembleName, Flavour, GraphName, ModelCode, TensorName, Writer
from cirrus_client.outputs import replaced_directory
from cirrus_client.plans import PLANS, Library, has_plans, plan_file, read_plans
from cirrus_client.suggest import MODEL as SUGGEST_MODEL
from cirrus_client.suggest import read_suggester
from cirrus_client.triton.repository import REPOSITORIES, read_repository, write_record
from cirrus_client.triton.served_names import ServedNames
from cirrus_export.repository.models import (
    ensemble_config,
    graph_config,
    image_preprocess_config,
    tokenize_config,
)

_WARMUP_IMAGE, _WARMUP_TEXT = "image", "text"
_KEEP = "keep"
"""A file in the version folder of an ensemble, which has no other."""


def write_repository(bundle_root: Path, spec: BundleSpec, flavour: Flavour, destination: Path) -> None:
    """Write the model repository of one bundle. It is self-contained, so that it can be mounted alone.

    Graph files are hard links where the file system has them. Raises ExportError if the TENSORRT flavour lacks a plan.
    """
    bundle = Bundle(bundle_root, spec)
    with replaced_directory(destination, Writer.REPOSITORY) as root:
        write_record(root, flavour, _write_bundle(bundle, spec.ensembles, flavour, root, shared=False))


def write_shared_repository(
    bundles: Sequence[Bundle], flavour: Flavour, destination: Path, *, suggester: Path | None = None
) -> None:
    """Write one model repository of several bundles, in which equal models are there once.

    suggester: a suggester's folder, whose model is served beside the ensembles. Raises ExportError if two bundles have
    the same name, or the TENSORRT flavour lacks a plan, and BundleError if the suggester is not whole.
    """
    source = None if suggester is None else suggester / REPOSITORIES / Flavour.PYTHON
    if suggester is not None and source is not None:
        read_suggester(suggester)
        read_repository(source)
    names = [bundle.spec.name for bundle in bundles]
    if len(set(names)) != len(names):
        raise ExportError(f"two bundles have the same name: {', '.join(names)}; export one of them under another")
    with replaced_directory(destination, Writer.REPOSITORY) as root:
        code: dict[str, ModelCode] = {}
        for bundle in bundles:
            code |= _write_bundle(bundle, _unfused(bundle.spec), flavour, root, shared=True)
        if source is not None:
            shutil.copytree(source / SUGGEST_MODEL, root / SUGGEST_MODEL, copy_function=_link_or_copy)
            code[SUGGEST_MODEL] = ModelCode.SUGGEST
        write_record(root, flavour, code)


def _write_bundle(
    bundle: Bundle, ensembles: Mapping[EnsembleName, EnsembleSpec], flavour: Flavour, root: Path, *, shared: bool
) -> dict[str, ModelCode]:
    """Write the models of a bundle that are not there yet, and return the code of those that run in Python."""
    names = ServedNames(bundle.spec, shared)
    steps = sorted({step.model for ensemble in ensembles.values() for step in ensemble.steps})
    served = {step: names.model(step) for step in steps}
    for step, name in served.items():
        if not (root / name).exists():
            _write_step(bundle, step, name, flavour, root)
    for kind, ensemble in ensembles.items():
        folder = _write_model(root, ensemble_config(names.ensemble(kind), ensemble, served, bundle.spec, flavour))
        (folder / "1" / _KEEP).write_text("Triton needs this folder, and object stores have no empty ones.\n")
    return {name: code for step, name in served.items() if (code := _code_of(step, flavour)) is not None}


def _code_of(step: str, flavour: Flavour) -> ModelCode | None:
    if step in (IMAGE_PREPROCESS, TOKENIZE):
        return ModelCode(step)
    return ModelCode.GRAPH_RUNNER if flavour is Flavour.PYTHON else None


def _unfused(spec: BundleSpec) -> dict[EnsembleName, EnsembleSpec]:
    """Return the ensembles with encoder and target head as two steps, where one graph is both, to share the encoder."""
    if GraphName.GALLERY not in {step.model for step in spec.ensembles[EnsembleName.ENCODE_TARGET].steps}:
        return dict(spec.ensembles)
    encoder, head = spec.graphs[GraphName.VISION_ENCODER], spec.graphs[GraphName.TARGET_HEAD]
    taken = {tensor.name for tensor in head.inputs}
    target = EnsembleSpec(
        inputs=(TensorName.IMAGE,),
        steps=(
            image_step(),
            StepSpec(
                model=GraphName.VISION_ENCODER,
                inputs={TensorName.PIXELS: TensorName.PIXELS},
                outputs={tensor.name: tensor.name for tensor in encoder.outputs if tensor.name in taken},
            ),
            StepSpec(
                model=GraphName.TARGET_HEAD,
                inputs={name: name for name in sorted(taken)},
                outputs={head.outputs[0].name: TensorName.EMBEDDING},
            ),
        ),
    )
    return spec.ensembles | {EnsembleName.ENCODE_TARGET: target}


def _write_step(bundle: Bundle, step: str, name: str, flavour: Flavour, root: Path) -> None:
    if step == IMAGE_PREPROCESS:
        _write_image_preprocess(bundle.spec, name, root)
    elif step == TOKENIZE:
        _write_tokenize(bundle, name, root)
    else:
        _write_graph(bundle, step, name, flavour, root)


def _write_image_preprocess(spec: BundleSpec, name: str, root: Path) -> None:
    folder = _write_model(root, image_preprocess_config(name, spec, _WARMUP_IMAGE))
    picture = io.BytesIO()
    Image.new("RGB", (spec.preprocess.size_px,) * 2).save(picture, "JPEG")
    _write_warmup(folder, _WARMUP_IMAGE, picture.getvalue())


def _write_tokenize(bundle: Bundle, name: str, root: Path) -> None:
    folder = _write_model(root, tokenize_config(name, bundle.spec, _WARMUP_TEXT))
    file = bundle.spec.tokenizer.file
    link_or_copy(bundle.root / file, folder / "1" / file)
    _write_warmup(folder, _WARMUP_TEXT, b"warm up")


def _write_graph(bundle: Bundle, graph: str, name: str, flavour: Flavour, root: Path) -> None:
    source = bundle.graph_file(graph)
    sources = [source, *source.parent.glob(f"{source.name}.data")]
    if flavour is Flavour.TENSORRT:
        sources = [_plan(bundle.root, graph)]
    folder = _write_model(root, graph_config(name, bundle.spec, graph, flavour, sources[0].name))
    for path in sources:
        link_or_copy(path, folder / "1" / path.name)
    if flavour is Flavour.PYTHON and has_plans(bundle.root, Library.RTX):
        _link_plan(bundle, graph, folder / "1")


def _link_plan(bundle: Bundle, graph: str, version: Path) -> None:
    """Link a graph's plan of TensorRT for RTX and the record of plans, as `open_served_graph` looks for them."""
    record = read_plans(bundle.root, Library.RTX)
    if graph in record.plans:
        (version / Library.RTX.folder).mkdir()
        plan = plan_file(bundle, record, graph)
        for path in (plan, plan.with_name(PLANS)):
            link_or_copy(path, version / Library.RTX.folder / path.name)


def _write_model(root: Path, config: pb.ModelConfig) -> Path:
    """Write a model's folder with its configuration, and return it."""
    folder = root / config.name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    return folder


def _write_warmup(folder: Path, file: str, item: bytes) -> None:
    """Write one element of a BYTES tensor in Triton's form: its length, then its bytes."""
    (folder / "warmup").mkdir()
    (folder / "warmup" / file).write_bytes(struct.pack("<I", len(item)) + item)


def _link_or_copy(source: str, destination: str) -> None:
    link_or_copy(Path(source), Path(destination))


def _plan(bundle_root: Path, graph: str) -> Path:
    plan = bundle_root / Library.TENSORRT.folder / f"{graph}.plan"
    if not plan.is_file():
        raise ExportError(
            f"the tensorrt flavour needs {plan}, which is not there; on the machine that serves the bundle: "
            f"cirrus compile {bundle_root}"
        )
    return plan
