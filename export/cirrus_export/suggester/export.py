"""Export an InstructBLIP that writes edit texts: checkpoint folder -> ONNX -> gate -> suggester with Triton model.

MTST has no public code, so what its paper leaves open is in a file `mtst.json` beside the checkpoint, or the defaults
of `EditWording`. The folder is transformers' own: `save_pretrained` of InstructBlipForConditionalGeneration, the
language model's `tokenizer.json`, and the Q-Former's under `qformer_tokenizer/`, as `InstructBlipProcessor` saves them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
import torch
from google.protobuf import text_format
from pydantic import ValidationError
from tqdm import tqdm
from tritonclient.grpc import model_config_pb2 as pb

from cirrus_client.bundle import DYNAMIC, DType, FidelityStatus, TensorSpec
from cirrus_client.errors import CheckpointError, FidelityError
from cirrus_client.files import link_or_copy, sha256_of_file, write_model
from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_client.names import Flavour, ModelCode, Writer
from cirrus_client.outputs import check_replaceable, replaced_directory
from cirrus_client.records import Record
from cirrus_client.suggest import CONTRACT, MODEL, NEXT_TOKENS, READ_IMAGE, TOKENIZER, LocalSuggester, SuggestSpec
from cirrus_client.triton.repository import REPOSITORIES, write_record
from cirrus_export.checkpoints.adapter import refuse_adapter
from cirrus_export.checkpoints.config_code import read_config, refuse_code
from cirrus_export.checkpoints.tokenizer_file import read_tokenizer
from cirrus_export.checkpoints.transformers_folder import load_model
from cirrus_export.compile.onnx_graph import write_onnx
from cirrus_export.graph import Graph, pixels, token_ids, vector, vectors
from cirrus_export.heads.frozen import freeze
from cirrus_export.suggester.edit_writer import EditPrompt, InstructBlipForConditionalGeneration, NextTokens, ReadImage

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MAX_TOKENS = 32
_AGREEMENT = 0.99
log = logging.getLogger(__name__)


class EditWording(Record):
    """`mtst.json`: the instruction that the Q-Former reads, and the language model's prompt around the two images."""

    instruction: str = "Describe the differences from the first image to the second."
    before: str = "First image:"
    between: str = "Second image:"
    after: str = "Describe how to modify the first image to get the second:"


def export_suggester(
    checkpoint: Path, out: Path, pairs: Sequence[tuple[bytes, bytes]], *, show_progress: bool = False
) -> LocalSuggester:
    """Export a checkpoint folder and compare its texts with the original's greedy decoding on pairs of images.

    Raises CheckpointError for a folder that is no InstructBLIP with a decoder-only language model, ExportError if `out`
    is something else, and FidelityError if under 99% of the texts agree token by token.
    """
    check_replaceable(out, Writer.EXPORT_SUGGESTER)
    model = _load(checkpoint)
    prompt = _prompt(checkpoint, model)
    read, following = ReadImage(model, prompt.instruction), NextTokens(model)
    size = PreprocessSpec(size_px=model.config.vision_config.image_size, pad=Pad.STRETCH)
    end_id = _end_id(model)
    with replaced_directory(out, Writer.EXPORT_SUGGESTER) as root:
        graphs = {
            graph.name: write_onnx(graph, root / "graphs" / f"{graph.name}.onnx")
            for graph in _graphs(read, following, len(prompt.token_ids))
        }
        shutil.copyfile(checkpoint / TOKENIZER, root / TOKENIZER)
        names = [*(f"graphs/{path.name}" for path in sorted((root / "graphs").iterdir())), TOKENIZER]
        spec = SuggestSpec(
            format=2,
            name=out.name,
            preprocess=size,
            graphs=graphs,
            prompt=prompt.token_ids,
            end_id=end_id,
            max_tokens=MAX_TOKENS,
            files={name: sha256_of_file(root / name) for name in names},
            fidelity=FidelityStatus(passed=True),
        )
        _write(root, spec)
        shown = tqdm(pairs, desc="fidelity: texts", unit="pair", disable=not show_progress)
        agreement = _agreed_texts(LocalSuggester(root), read, following, shown) / len(pairs)
        passed = agreement >= _AGREEMENT
        failures = () if passed else (f"{agreement:.1%} of the texts agree with the original's, {_AGREEMENT:.0%} must",)
        spec = spec.model_copy(update={"fidelity": FidelityStatus(passed=passed, failures=failures)})
        _write(root, spec)
        if passed:
            _write_repository(root, spec)
    if failures:
        raise FidelityError(f"{out} failed its fidelity gate: {failures[0]}")
    log.info("%s: %d texts agree with the original's", out, len(pairs))
    return LocalSuggester(out)


def greedy(following: NextTokens, tokens: torch.Tensor, prompt: Sequence[int], end_id: int) -> list[int]:
    """Return the original's greedy decoding with transformers' own `generate`, of both images' tokens [2, Q, D]."""
    prefix = following.embedded(tokens[:1], tokens[1:], torch.tensor([prompt]))
    with torch.no_grad():
        generated = following.language_model.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.int64),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            num_beams=1,
            eos_token_id=end_id,
            pad_token_id=end_id,
        )[0].tolist()
    return generated[: generated.index(end_id)] if end_id in generated else generated


def _agreed_texts(
    suggester: LocalSuggester, read: ReadImage, following: NextTokens, pairs: Iterable[tuple[bytes, bytes]]
) -> int:
    """Return how many texts are the original's, token by token."""
    spec, agreed = suggester.spec, 0
    for pair in pairs:
        both = suggester.pixels(*pair)
        with torch.no_grad():
            tokens = read(torch.from_numpy(both))
        agreed += suggester.token_ids(both[None]) == [greedy(following, tokens, spec.prompt, spec.end_id)]
    return agreed


def _load(checkpoint: Path) -> InstructBlipForConditionalGeneration:
    if not (checkpoint / "config.json").is_file() or not (checkpoint / TOKENIZER).is_file():
        raise CheckpointError(f"checkpoint {checkpoint}: expected a folder with config.json, weights and {TOKENIZER}")
    refuse_adapter(checkpoint)
    _check_config(checkpoint / "config.json")
    return freeze(load_model(InstructBlipForConditionalGeneration, checkpoint, what="an InstructBLIP"))


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
    (folder.parent / "config.pbtxt").write_text(text_format.MessageToString(config))
    write_record(folder.parents[1], Flavour.PYTHON, {MODEL: ModelCode.SUGGEST})
