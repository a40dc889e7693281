"""What open_clip knows of a model and of a tag's weights: architecture, activation, preprocessing, files.

Preprocessing and activation of published weights come from open_clip's own table of tags, or from the files beside
them, and from nowhere else: the same architecture was trained on images of other means, other resizes and with another
GELU.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError
from torch import nn

from cirrus_client.errors import CheckpointError, ExportError
from cirrus_client.image.preprocess import Interpolation, Pad, PreprocessSpec
from cirrus_client.invalid_fields import first_problem
from cirrus_export.backbones.backbone import Activation
from cirrus_export.backbones.clip_config import ClipConfig
from cirrus_export.backbones.family import Weights
from cirrus_export.backbones.hub import check_hub_answers
from cirrus_export.backbones.settings_beside import settings_beside
from cirrus_export.checkpoints.state import Unused
from cirrus_export.checkpoints.values import check_finite

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
import open_clip
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

Config = dict[str, Any]
Side = int | Sequence[int]
"""A side of a square in pixels, or both."""
_SIDE_PX = 224
_QUICK_GELU = "quick_gelu"
LOGIT_BIAS = Unused("logit_bias$", "of SigLIP's loss, which adds it to every score")
OPENAI: Config = {_QUICK_GELU: True}
"""What is known of a CLIP whose sizes come from its file: OpenAI's form."""
_WORD = {True: "QuickGELU", False: "GELU"}
_PADS = {"shortest": Pad.NONE, "squash": Pad.STRETCH}
_RANDOM = "random"
"""A filter drawn for each image in training; open_clip's evaluation takes the bicubic one then."""
log = logging.getLogger(__name__)


def tags_of(name: str) -> Sequence[str]:
    """Return the tags of a model's published weights."""
    tags: Sequence[str] = open_clip.list_pretrained_tags_by_model(name)
    return tags


def uses_quick_gelu(
    name: str | None, config: Config, weights: Weights, *, from_openai: bool, beside: ClipConfig | None = None
) -> bool:
    """Return whether weights were trained with QuickGELU (open_clip#771, #915), and log who says so.

    A tag says it, and wins over the architecture, which a dozen tags contradict. A file does not say it. The
    configuration beside it does, and its architecture, if it is called "-quickgelu" or was never published with
    QuickGELU; otherwise the user must. name: None where the sizes come from a file. from_openai: the file is OpenAI's
    own or was fine-tuned from it, always with QuickGELU. beside: the configuration beside the file. Raises ExportError
    if nobody says it, two contradict each other, or a tag does not say QuickGELU and its architecture does: its
    trainers may have meant either.
    """
    said = dict(_sayings(name, config, weights, from_openai=from_openai))
    if beside is not None:
        said[str(beside.file)] = beside.quick_gelu
    if not said:
        raise ExportError(_question(name, weights))
    if len(set(said.values())) > 1:
        both = ", but ".join(f"{who} says {_WORD[value]}" for who, value in said.items())
        raise ExportError(f"the activation function is not clear: {both}; leave one of them away")
    answer = next(iter(said.values()))
    log.info("%s is built with %s, as %s says", name or "the CLIP", _WORD[answer], " and ".join(said))
    return answer


def activation_in_space(quick_gelu: bool, config: Config, weights: Weights, *, from_openai: bool) -> Activation | None:
    """Return the activation function if the user's word is all that says it, else None.

    Spaces of tags, of OpenAI's files and of an architecture's own activation do not name it, and of a CLIP beside a
    head, which is taken for OpenAI's, GELU alone is named.
    """
    usual = weights.fine_tuned or config.get(_QUICK_GELU, False)
    if weights.tag is not None or from_openai or quick_gelu == usual:
        return None
    return Activation.QUICK_GELU if quick_gelu else Activation.GELU


def _sayings(name: str | None, config: Config, weights: Weights, *, from_openai: bool) -> Iterator[tuple[str, bool]]:
    """Yield who says whether weights were trained with QuickGELU, and what they say."""
    of_architecture = bool(config.get(_QUICK_GELU, False))
    option = weights.options.quick_gelu
    if from_openai:
        yield "a file of OpenAI's clip package", True
    if name is not None and weights.tag is not None:
        of_tag = bool(_tag(name, weights.tag).get(_QUICK_GELU, False))
        if of_architecture and not of_tag:
            raise ExportError(
                f"--pretrained {weights.tag}: open_clip's configuration of {name} says QuickGELU and this tag does "
                "not, so its activation function is unknown: name another tag"
            )
        yield f"--pretrained {weights.tag}", of_tag
    elif name is not None and not from_openai:
        open_to_both = _published_with_both(name) and not of_architecture
        if not open_to_both or (weights.state is None and option is None):
            yield f"--backbone {name}", of_architecture
    if option is not None:
        yield f"--option quick_gelu={str(option).lower()}", option


def _published_with_both(name: str) -> bool:
    """Return whether a model of this shape was published with QuickGELU, though its name does not say so."""
    return f"{name}-quickgelu" in open_clip.list_models() or any(
        _tag(name, tag).get(_QUICK_GELU, False) for tag in tags_of(name)
    )


def _question(name: str | None, weights: Weights) -> str:
    file = weights.state.source if weights.state is not None else weights.folder
    could_be_a_tag = name is not None and not weights.fine_tuned
    or_tag = f", or name the tag whose file it is: --pretrained TAG={file}" if could_be_a_tag else ""
    return (
        f"checkpoint {file}: a CLIP's file does not say whether it was trained with QuickGELU or with GELU, and with "
        "the wrong one every embedding is wrong: say --option quick_gelu=true (OpenAI's, MetaCLIP's and DFN's models, "
        f"and what was fine-tuned from them) or quick_gelu=false (LAION's, DataComp's){or_tag}"
    )


def preprocess_of(name: str, config: Config, weights: Weights) -> PreprocessSpec:
    """Return how the trainers of some weights turned an image into pixels.

    The settings beside a file without a tag say it. If there are none, it is taken to be prepared as all of the
    architecture's tags are, or as OpenAI's if they differ. Raises ExportError for a form that Cirrus does not have, and
    CheckpointError for settings that can't be read.
    """
    if weights.tag is not None:
        return _preprocess_of_tag(name, config, weights.tag)
    said = preprocess_beside(weights, config["vision_cfg"].get("image_size", _SIDE_PX))
    if said is not None:
        return said
    known = {_preprocess_of_tag(name, config, tag) for tag in tags_of(name)}
    return known.pop() if len(known) == 1 and not weights.fine_tuned else _spec(name, config, {})


def preprocess_beside(weights: Weights, image_size_px: Side) -> PreprocessSpec | None:
    """Return the preprocessing that the settings beside a file say, for a model that reads images of one size.

    None if there are no settings. Raises ExportError if they are for another size, or in a form that Cirrus does not
    have, and CheckpointError if they can't be read.
    """
    beside = settings_beside(weights)
    if beside is None:
        return None
    size_px = beside.of_images.get("size")
    if size_px is not None and _sides(size_px) != _sides(image_size_px):
        raise ExportError(
            f"checkpoint {beside.file}: prepares images of {max(_sides(size_px))} px, and the model reads "
            f"{max(_sides(image_size_px))}: the file is another model's, or --backbone is"
        )
    log.info("images are prepared as %s says", beside.file)
    try:
        said = _spec(str(beside.file), {"vision_cfg": {"image_size": image_size_px}}, dict(beside.of_images))
    except (TypeError, ValueError) as error:
        reason = first_problem(error)[1] if isinstance(error, ValidationError) else error
        raise CheckpointError(f"checkpoint {beside.file}: its settings of images can't be read: {reason}") from None
    return said.model_copy(update={"crop": beside.crop})


def warn_if_a_file_could_be_several(name: str, config: Config, weights: Weights) -> None:
    """Log a warning if a model's tags differ in their preprocessing, which a file does not show."""
    named = weights.tag is not None or weights.fine_tuned
    if weights.state is None or named or settings_beside(weights) is not None:
        return
    if len({_preprocess_of_tag(name, config, tag) for tag in tags_of(name)}) > 1:
        file = weights.state.source
        log.warning(
            "%s: the published weights of %s differ in their preprocessing, and a file does not show which it is; "
            "%s is assumed. If it is a tag's file, say so: --pretrained TAG=%s",
            *(file, name, preprocess_of(name, config, weights), file),
        )


def create(name: str, *, quick_gelu: bool) -> nn.Module:
    """Build a model with random weights, in evaluation mode. Nothing is fetched.

    name: open_clip's, or `local-dir:FOLDER` for what the folder's `open_clip_config.json` describes.
    """
    with _no_word_of_random_weights():
        model: nn.Module = open_clip.create_model(name, load_weights=False, force_quick_gelu=quick_gelu)
    return model.eval().requires_grad_(False)


def fetch(model: nn.Module, name: str, tag: str) -> None:
    """Fill a model with a tag's weights, from open_clip's cache or the network. Raises ExportError."""
    published = _tag(name, tag)
    repository, file = os.path.split(published.get("hf_hub") or "")
    try:
        if repository:
            check_hub_answers(repository, (file or HF_WEIGHTS_NAME, HF_SAFE_WEIGHTS_NAME))
        path = open_clip.download_pretrained(published)
        open_clip.load_checkpoint(model, path, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ExportError(
            f"the weights '{tag}' of {name} can't be fetched ({error}); download them elsewhere and give the file: "
            f"--pretrained {tag}=FILE"
        ) from error
    check_finite(model.state_dict(), f"--pretrained {tag}")


def _tag(name: str, tag: str) -> Config:
    entry: Config = open_clip.get_pretrained_cfg(name, tag)
    return entry


def _preprocess_of_tag(name: str, config: Config, tag: str) -> PreprocessSpec:
    return _spec(f"{name}, tag {tag}", config, _tag(name, tag))


def _spec(where: str, config: Config, overlay: Config) -> PreprocessSpec:
    settings = merge_preprocess_dict(PreprocessCfg(), overlay)
    size = config["vision_cfg"].get("image_size", _SIDE_PX)
    sides = _sides(size)
    mode, interpolation = settings["resize_mode"], settings["interpolation"]
    if len(sides) != 1 or mode not in _PADS:
        raise ExportError(
            f"{where}: images of {size} px, resized by '{mode}'; Cirrus has square images, resized by "
            f"{' or '.join(_PADS)}"
        )
    return PreprocessSpec(
        size_px=sides.pop(),
        pad=_PADS[mode],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=Interpolation.BICUBIC if interpolation == _RANDOM else Interpolation(interpolation),
    )


def _sides(size: Side) -> set[int]:
    return set(size) if isinstance(size, Sequence) else {size}


@contextlib.contextmanager
def _no_word_of_random_weights() -> Iterator[None]:
    """Keep open_clip from warning that a model is random, where its weights are loaded next."""

    def other(record: logging.LogRecord) -> bool:
        return "initialized randomly" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)
