"""Export an InstructBLIP that writes edit texts: folder -> ONNX -> precision -> gate -> suggester, Triton model.

MTST has no public code, so what its paper leaves open is in a file `mtst.json` beside the checkpoint, or the defaults
of `EditWording`. The folder is transformers' own: `save_pretrained` of InstructBlipForConditionalGeneration, the
language model's `tokenizer.json`, and the Q-Former's under `qformer_tokenizer/`, as `InstructBlipProcessor` saves them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import tokenizers
from google.protobuf import text_format
from pydantic import ValidationError
from tqdm import tqdm
from tritonclient.grpc import model_config_pb2 as pb

from cirrus_client.bundle import DYNAMIC, DType, FidelityStatus, GraphSpec, Precision, TensorSpec
from cirrus_client.errors import CheckpointError, FidelityError
from cirrus_client.files import link_or_copy, sha256_of_file, write_model
from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_client.names import Flavour, ModelCode, Writer
from cirrus_client.outputs import check_replaceable, replaced_directory
from cirrus_client.records import Record
from cirrus_client.suggest import (
    CONTRACT,
    MODEL,
    NEXT_TOKENS,
    READ_IMAGE,
    TOKENIZER,
    LocalSuggester,
    SuggestSpec,
    pair_pixels,
)
from cirrus_client.suggest_canary import CANARY
from cirrus_client.triton.repository import REPOSITORIES, write_record
from cirrus_export.backbones.settings_beside import prepared_by_transformers
from cirrus_export.checkpoints.adapter import refuse_adapter
from cirrus_export.checkpoints.config_code import read_config, refuse_code
from cirrus_export.checkpoints.rotation import check_rotation
from cirrus_export.checkpoints.tokenizer_file import read_tokenizer
from cirrus_export.checkpoints.transformers_folder import load_model
from cirrus_export.compile.onnx_graph import write_onnx
from cirrus_export.compile.precision import check_precision, lower_precision
from cirrus_export.compile.stored_weights import store_in_16_bits
from cirrus_export.graph import Graph, pixels, token_ids, vector, vectors
from cirrus_export.heads.frozen import freeze
from cirrus_export.repository.models import bound_queue
from cirrus_export.suggester.canary import make_canary
from cirrus_export.suggester.edit_writer import EditPrompt, InstructBlipForConditionalGeneration, NextTokens, ReadImage
from cirrus_export.suggester.gate import measure_pair, report, write_report
from cirrus_export.suggester.original import MAX_TOKENS, Original, Written, calibration

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

log = logging.getLogger(__name__)
_QUEUE_SIZE = 64
_QUEUE_TIMEOUT_US = 120_000_000  # as long as a `TritonSuggester` waits


class EditWording(Record):
    """`mtst.json`: the instruction that the Q-Former reads, and the language model's prompt around the two images."""

    instruction: str = "Describe the differences from the first image to the second."
    before: str = "First image:"
    between: str = "Second image:"
    after: str = "Describe how to modify the first image to get the second:"


def export_suggester(
    checkpoint: Path,
    out: Path,
    pairs: Sequence[tuple[bytes, bytes]],
    *,
    precision: Precision = Precision.FP32,
    show_progress: bool = False,
) -> LocalSuggester:
    """Export a checkpoint folder and compare its texts with the original's greedy decoding on pairs of images.

    precision: of the arithmetic inside both graphs, which is calibrated on the pairs.

    Raises CheckpointError for a folder that is no InstructBLIP with a decoder-only language model, ExportError if `out`
    is something else, EngineError if no engine here runs the precision, and FidelityError if the suggester misses the
    gate: its folder is then there, with its report, marked as failed and without a model repository.
    """
    check_replaceable(out, Writer.EXPORT_SUGGESTER)
    check_precision(precision)
    model = _load(checkpoint)
    prompt, end_id = _prompt(checkpoint, model), _end_id(model)
    original = Original(ReadImage(model, prompt.instruction), NextTokens(model), prompt, end_id)
    side_px = int(model.config.vision_config.image_size)
    preprocess = prepared_by_transformers(checkpoint, side_px) or PreprocessSpec(size_px=side_px, pad=Pad.STRETCH)
    progress = partial(tqdm, unit="pair", disable=not show_progress)
    with replaced_directory(out, Writer.EXPORT_SUGGESTER) as root:
        graphs = {
            graph.name: write_onnx(graph, root / "graphs" / f"{graph.name}.onnx")
            for graph in _graphs(original.read, original.following, len(prompt.token_ids))
        }
        originals = [
            original.write(pair_pixels(reference, target, preprocess))
            for reference, target in progress(pairs, desc="fidelity: original texts")
        ]
        if precision is Precision.FP32:
            for graph in graphs.values():
                store_in_16_bits(root / graph.file)
        else:
            _lower(root, graphs, originals, original, precision)
        shutil.copyfile(checkpoint / TOKENIZER, root / TOKENIZER)
        names = [*(f"graphs/{path.name}" for path in sorted((root / "graphs").iterdir())), TOKENIZER]
        spec = SuggestSpec(
            format=2,
            name=out.name,
            preprocess=preprocess,
            graphs=graphs,
            prompt=prompt.token_ids,
            end_id=end_id,
            max_tokens=MAX_TOKENS,
            files={name: sha256_of_file(root / name) for name in names},
            fidelity=FidelityStatus(passed=True),
            precision=precision,
        )
        _write(root, spec)
        suggester = LocalSuggester(root)
        found = [measure_pair(suggester, written) for written in progress(originals, desc="fidelity: texts")]
        measured = report(suggester, found)
        write_report(measured, root)
        write_model(root / CANARY, make_canary(pairs, originals, found))
        spec = spec.model_copy(
            update={
                "files": {**spec.files, CANARY: sha256_of_file(root / CANARY)},
                "fidelity": FidelityStatus(passed=measured.passed, failures=measured.failures),
            }
        )
        _write(root, spec)
        if measured.passed:
            _write_repository(root, spec)
    if not measured.passed:
        raise FidelityError(
            f"{out} failed its fidelity gate and is marked so: {'; '.join(measured.failures)}; see {out / 'report.md'}"
        )
    log.info("%s: %.0f%% of %d texts are the original's", out, 100 * measured.text_agreement, len(pairs))
    return LocalSuggester(out)


def _lower(
    root: Path, graphs: Mapping[str, GraphSpec], originals: Sequence[Written], original: Original, precision: Precision
) -> None:
    cache = graphs[NEXT_TOKENS].inputs[-1].shape
    for name, inputs in calibration(originals, original.prompt.token_ids, original.end_id, cache).items():
        log.info("fp32 -> %s: %s", precision, name)
        lower_precision(root / graphs[name].file, precision, inputs)


def _load(checkpoint: Path) -> InstructBlipForConditionalGeneration:
    if not (checkpoint / "config.json").is_file() or not (checkpoint / TOKENIZER).is_file():
        raise CheckpointError(f"checkpoint {checkpoint}: expected a folder with config.json, weights and {TOKENIZER}")
    refuse_adapter(checkpoint)
    _check_config(checkpoint / "config.json")
    model = freeze(load_model(InstructBlipForConditionalGeneration, checkpoint, what="an InstructBLIP"))
    check_rotation(model.config.text_config, checkpoint)
    return model


def _check_config(path: Path) -> None:
    """Refuse a model by its configuration, before its weights are read."""
    content = read_config(path, "instructblip", what="an InstructBLIP")
    try:
        language = content["text_config"]["model_type"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: is no configuration of an InstructBLIP: {error}") from None
    if language not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise CheckpointError(
            f"checkpoint {path}: its language model is {language!r}, expected one without an encoder, like llama"
        )
    refuse_code(content, path)


def _prompt(checkpoint: Path, model: InstructBlipForConditionalGeneration) -> EditPrompt:
    path = checkpoint / "mtst.json"
    try:
        wording = EditWording.model_validate_json(path.read_bytes()) if path.is_file() else EditWording()
    except ValidationError as error:
        raise CheckpointError(f"checkpoint {path}: {error.errors()[0]['msg']}") from None
    instruction = _tokenizer(checkpoint / "qformer_tokenizer" / TOKENIZER).encode(wording.instruction).ids
    language = _tokenizer(checkpoint / TOKENIZER)
    start = [model.config.text_config.bos_token_id]
    before, between, after = (
        language.encode(text, add_special_tokens=False).ids for text in (wording.before, wording.between, wording.after)
    )
    count = model.config.num_query_tokens
    reference, target = range(-1, -1 - count, -1), range(-1 - count, -1 - 2 * count, -1)
    return EditPrompt((*start, *before, *reference, *between, *target, *after), tuple(instruction))


def _tokenizer(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: is missing; InstructBlipProcessor.save_pretrained writes it")
    return read_tokenizer(path)


def _end_id(model: InstructBlipForConditionalGeneration) -> int:
    end = model.config.text_config.eos_token_id
    return int(end[0] if isinstance(end, list) else end)


def _graphs(read: ReadImage, following: NextTokens, prompt_length: int) -> list[Graph]:
    """Return the two graphs of `SuggestSpec`. The last token of a text is not read, and needs no place in the cache."""
    config = read.model.config
    count, width = config.num_query_tokens, config.text_config.hidden_size
    lengths = (1, prompt_length)
    layers, heads, size = following.cached_per_token()
    places = prompt_length + MAX_TOKENS - 1
    return [
        Graph(
            READ_IMAGE,
            read,
            inputs=(pixels(config.vision_config.image_size),),
            outputs=(vectors("image_tokens", count, width),),
        ),
        Graph(
            NEXT_TOKENS,
            following,
            inputs=(
                vectors("reference_tokens", count, width),
                vectors("target_tokens", count, width),
                token_ids(lengths),
                TensorSpec(name="cached_tokens", dtype=DType.INT64, shape=(1,)),
                TensorSpec(name="cache", shape=(layers, 2, heads, places, size)),
            ),
            outputs=(
                vector("logits", config.text_config.vocab_size),
                TensorSpec(name="added", shape=(layers, 2, heads, DYNAMIC, size)),
            ),
            text_lengths=lengths,
        ),
    ]


def _write(root: Path, spec: SuggestSpec) -> None:
    write_model(root / CONTRACT, spec)


def _write_repository(root: Path, spec: SuggestSpec) -> None:
    """Write one Python model, which holds a whole suggester in its version's folder, as hard links where there are."""
    folder = root / REPOSITORIES / Flavour.PYTHON / MODEL / "1"
    folder.mkdir(parents=True)
    for name in (*spec.files, CONTRACT):
        (folder / name).parent.mkdir(exist_ok=True)
        link_or_copy(root / name, folder / name)
    config = pb.ModelConfig(name=MODEL, backend="python", max_batch_size=8)
    for side in ("reference", "target"):
        config.input.add(name=side, data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="text", data_type=pb.TYPE_STRING, dims=[1])
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    bound_queue(config, size=_QUEUE_SIZE, timeout_us=_QUEUE_TIMEOUT_US)
    (folder.parent / "config.pbtxt").write_text(text_format.MessageToString(config))
    write_record(folder.parents[1], Flavour.PYTHON, {MODEL: ModelCode.SUGGEST})
