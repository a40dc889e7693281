"""Find a backbone by name, with weights from a tag, a file, a head's checkpoint, or a seed."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cirrus_client.errors import CheckpointError, ExportError, PluginError
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_client.plugins import find_subclass, known_plugins
from cirrus_export.backbones.backbone import Backbone
from cirrus_export.backbones.family import FROM_CHECKPOINT, BackboneOptions, Family, Sizes, Weights
from cirrus_export.checkpoints.folder import weights_file
from cirrus_export.checkpoints.state import StateDict, read_state_dict, without_trainer

FAMILIES = {
    "blip": "cirrus_export.backbones.blip:BlipFamily",
    "blip2": "cirrus_export.backbones.blip2:Blip2Family",
    "llava": "cirrus_export.backbones.llava:LlavaFamily",
    "llava_next": "cirrus_export.backbones.llava:LlavaNextFamily",
    "lvlm": "cirrus_export.backbones.lvlm:LvlmFamily",
    "open_clip": "cirrus_export.backbones.open_clip:OpenClipFamily",
    "open_clip_pooled": "cirrus_export.backbones.open_clip_pooled:PooledOpenClipFamily",
    "qwen2_5_vl": "cirrus_export.backbones.qwen2_5_vl:Qwen25VlFamily",
    "qwen2_vl": "cirrus_export.backbones.qwen2_vl:Qwen2VlFamily",
    "qwen3_vl": "cirrus_export.backbones.qwen3_vl:Qwen3VlFamily",
}
ENTRY_POINTS = "cirrus.backbones"
RANDOM = "random"
_OF_OPEN_CLIP = ("hf-hub:", "local-dir:")
"""What open_clip puts before a repository of the hub, and before a folder."""
_RANDOM_SEED = 20240607
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackboneSource:
    """A backbone that was found and not loaded yet, so that a recipe can refuse it before anything is read or fetched.

    name: None takes the sizes from the weights' state.
    """

    family: Family
    name: str | None
    weights: Weights
    tokenizer: Path | None

    def preprocess(self) -> PreprocessSpec | None:
        """Return the backbone's own preprocessing, if it is known already."""
        return None if self.name is None else self.family.preprocess(self.name, self.weights)

    def check(self) -> None:
        """Raise ExportError for a model that can't be exported, before anything is read or fetched."""
        if self.name is not None:
            self.family.check(self.name)

    def sizes(self) -> Sizes:
        """Return the widths that are known before the backbone is loaded."""
        return Sizes() if self.name is None else self.family.sizes(self.name)

    def load(self) -> Backbone:
        """Read the weights and build the backbone, frozen.

        Raises CheckpointError for a file of another kind, and ExportError or CheckpointError as `Family.load` does.
        """
        self.check()
        weights = self.weights.read()
        if weights.state is not None:
            weights = replace(weights, state=_known(weights.state))
        if self.name is not None and weights.state is not None:
            _check_kind(self.name, self.name, self.family, weights.state)
        torch.manual_seed(_RANDOM_SEED)
        try:
            return self.family.load(self.name, weights, self.tokenizer)
        except KeyError as error:
            source = None if weights.state is None else weights.state.source
            raise CheckpointError(f"checkpoint {source}: {error} is missing, so its sizes are unknown") from None


def find_backbone(
    name: str,
    pretrained: str | None,
    fine_tuned: StateDict | None = None,
    *,
    tokenizer: Path | None = None,
    options: BackboneOptions | None = None,
) -> BackboneSource:
    """Find a backbone and where its weights are.

    name: one of a family's names, `module:Class` of a family, or "from-checkpoint": the family and sizes of the file.
    pretrained: a tag ("openai"), a checkpoint file or folder, `TAG=FILE` for a tag's file that was fetched elsewhere,
    or "random" (seeded). fine_tuned: the backbone that a head's checkpoint carries, in its authors' key names; it wins
    over `pretrained`, whose weights are then not fetched. options: what the user says of the weights.

    Raises ExportError for an unknown name, tag or option; CheckpointError for a fine-tuned backbone of another kind and
    for a file that no family recognises; PluginError for a name that two families claim.
    """
    if name.startswith(_OF_OPEN_CLIP):
        raise ExportError(f"backbone '{name}' is not read by that name: {_read_instead(name.partition(':')[2])}")
    if name == FROM_CHECKPOINT:
        source = _from_checkpoint(pretrained, fine_tuned, tokenizer)
    else:
        if ":" in name:
            family = _family(name)
            own_name = _only_name(name, family)
        else:
            family, own_name = _owner(name), name
        weights = _weights(own_name, family, pretrained, fine_tuned)
        if weights.state is not None:
            _check_kind(name, own_name, family, weights.state)
        source = BackboneSource(family, own_name, weights, tokenizer)
    return source if options is None else _with_options(source, options)


def load_backbone(
    name: str, pretrained: str | None, fine_tuned: StateDict | None = None, *, options: BackboneOptions | None = None
) -> Backbone:
    """Find and build a frozen backbone; see `find_backbone` and `Family.load`."""
    return find_backbone(name, pretrained, fine_tuned, options=options).load()


def split_pretrained(pretrained: str) -> tuple[str | None, Path | None]:
    """Return tag and path of what `--pretrained` says: a path that exists, a tag, or TAG=FILE."""
    if Path(pretrained).exists():
        return None, Path(pretrained)
    tag, equals, file = pretrained.partition("=")
    return tag, Path(file) if equals else None


def families() -> list[Family]:
    """Return every family, those of installed packages included. Raises PluginError if a name is taken twice."""
    known = known_plugins(what="backbone family", table=FAMILIES, group=ENTRY_POINTS)
    return [_family(name) for name in known]


def _family(name: str) -> Family:
    return find_subclass(Family, name, what="backbone family", table=FAMILIES, group=ENTRY_POINTS)()


def _owner(name: str) -> Family:
    """Return the one family that has a backbone of this name."""
    every = families()
    owners = [family for family in every if name in family.names()]
    if len(owners) > 1:
        both = " and ".join(type(family).__qualname__ for family in owners)
        raise PluginError(f"backbone '{name}' is defined twice: by {both}; rename it in one of them", name=name)
    if not owners:
        known = sorted({known for family in every for known in family.names()} | {FROM_CHECKPOINT})
        near = difflib.get_close_matches(name, known, n=8, cutoff=0.5)
        if not near and "/" in name:
            raise ExportError(f"there is no backbone '{name}'; {_read_instead(name)}")
        alike = near or [family.names()[0] for family in every]
        raise ExportError(
            f"there is no backbone '{name}'; there are {', '.join(alike)} and others; or give module:Class or "
            "FILE.py:Class"
        )
    return owners[0]


def _only_name(reference: str, family: Family) -> str:
    names = family.names()
    if len(names) != 1:
        raise PluginError(
            f"'{reference}' has {len(names)} backbones ({', '.join(names)}); register it as an entry point "
            f"{ENTRY_POINTS} and name one of them",
            name=reference,
        )
    return names[0]


def _from_checkpoint(pretrained: str | None, fine_tuned: StateDict | None, tokenizer: Path | None) -> BackboneSource:
    if fine_tuned is not None:
        _report_unused(pretrained, fine_tuned)
        state = fine_tuned
    elif pretrained is not None and Path(pretrained).exists():
        path = Path(pretrained)
        state = _known(read_state_dict(weights_file(path) if path.is_dir() else path))
    else:
        raise ExportError(
            f"--backbone {FROM_CHECKPOINT} takes its sizes from weights: --pretrained must be a file or a folder"
            + ("" if pretrained is None else f", and there is no {pretrained}{_or_a_repository(pretrained)}")
        )
    for family in families():
        if family.kind_of(state) is not None:
            weights = Weights(state=state, fine_tuned=fine_tuned is not None)
            return BackboneSource(family, None, weights, tokenizer)
    raise CheckpointError(
        f"checkpoint {state.source}: no backbone family recognises its keys (the first is '{next(iter(state), None)}')"
    )


def _weights(name: str, family: Family, pretrained: str | None, fine_tuned: StateDict | None) -> Weights:
    if fine_tuned is not None:
        _report_unused(pretrained, fine_tuned)
        return Weights(state=fine_tuned, fine_tuned=True)
    if pretrained is None:
        raise ExportError(
            f"backbone {name}: the checkpoint carries no backbone, so --pretrained must say where its weights are"
        )
    if pretrained == RANDOM:
        return Weights()
    tag, path = split_pretrained(pretrained)
    if tag is None:
        assert path is not None
        return Weights(folder=path) if path.is_dir() else Weights(file=path)
    tags = family.tags(name)
    if tag in tags:
        return Weights(tag=tag, file=path)
    if not tags:
        raise ExportError(
            f"--pretrained {pretrained}: there is no such file, and {name} has no tags to fetch"
            + _or_a_repository(pretrained)
        )
    raise ExportError(
        f"--pretrained {pretrained}: neither a file nor a tag of {name}; its tags: {', '.join(tags)}; "
        f"'random' draws weights{_or_a_repository(pretrained)}"
    )


def _read_instead(where: str) -> str:
    """Return how to read a folder, or a repository of the Hugging Face hub, that was named as a backbone."""
    if Path(where).exists():
        return f"--backbone {FROM_CHECKPOINT} --pretrained {where}"
    return f"{_fetched(where)}, and --backbone {FROM_CHECKPOINT} --pretrained FOLDER"


def _or_a_repository(pretrained: str) -> str:
    repository = pretrained.removeprefix(_OF_OPEN_CLIP[0])
    if repository.count("/") != 1 or repository.startswith((".", "/")):
        return ""
    return f"; a repository of the Hugging Face hub: {_fetched(repository)}, and --pretrained FOLDER"


def _fetched(repository: str) -> str:
    return f"hf download {repository} --local-dir FOLDER"


def _with_options(source: BackboneSource, options: BackboneOptions) -> BackboneSource:
    unknown = options.model_dump(exclude_none=True).keys() - source.family.options
    if unknown:
        raise ExportError(
            f"--option {', '.join(unknown)}: a {source.family.backbone_type.label} backbone has no such option"
        )
    return replace(source, weights=replace(source.weights, options=options))


def _report_unused(pretrained: str | None, fine_tuned: StateDict) -> None:
    if pretrained is not None:
        log.warning(
            "checkpoint %s: it carries its own backbone, which is used; --pretrained %s is not",
            *(fine_tuned.source, pretrained),
        )


def _known(state: StateDict) -> StateDict:
    """Return a backbone out of the one attribute that holds it, if a family recognises it so."""
    return without_trainer(state, lambda held: any(family.kind_of(held) is not None for family in families()))


def _check_kind(asked_as: str, name: str, family: Family, state: StateDict) -> None:
    """Say at once which backbone a file holds, where a list of every key that it lacks would not."""
    asked = family.kind_named(name)
    kinds = [kind for other in families() if (kind := other.kind_of(state)) is not None]
    if kinds and asked not in kinds:
        raise CheckpointError(f"checkpoint {state.source}: holds {kinds[0]}, and --backbone {asked_as} is {asked}")
