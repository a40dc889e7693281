"""CLIP models of open_clip, OpenAI's and other files of their form: vision transformers that show every token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from cirrus_client.errors import CheckpointError
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_client.tokenizer import TokenizerSpec
from cirrus_export.backbones.backbone import Activation, Prompt, TextToken, WordBackbone, at_end_of_text
from cirrus_export.backbones.clip_config import check_architecture, config_beside, folder_of
from cirrus_export.backbones.clip_shape import (
    CLIP_KIND,
    check_sizes,
    has_openai_keys,
    is_said_to_differ,
    shaped_as,
    shows_every_token,
)
from cirrus_export.backbones.clip_tokenizer import check_clip_vocabulary, clip_null_token_ids, write_clip_tokenizer
from cirrus_export.backbones.family import Family, Sizes, Weights, refuse_tokenizer
from cirrus_export.backbones.metaclip_2 import is_metaclip_2
from cirrus_export.backbones.open_clip_models import (
    LOGIT_BIAS,
    OPENAI,
    Config,
    activation_in_space,
    fetch,
    preprocess_beside,
    preprocess_of,
    tags_of,
    uses_quick_gelu,
    warn_if_a_file_could_be_several,
)
from cirrus_export.checkpoints.hugging_face_clip import KEYS, in_openai_names, is_hugging_face_clip
from cirrus_export.checkpoints.state import StateDict, Unused, load_strictly, pass_over

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
import open_clip
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import ResidualAttentionBlock

_OPENAI_ARCHIVE_KEYS = ("input_resolution", "context_length", "vocab_size")
_OPENAI_WIDEST_TEXT = 768  # of ViT-L-14
_NO_WEIGHTS = (
    Unused(f"({'|'.join(_OPENAI_ARCHIVE_KEYS)})$", "sizes, which the weights' shapes say"),
    LOGIT_BIAS,
)


class OpenClipBackbone(WordBackbone):
    """A CLIP whose encoders return the global embedding and all tokens, projected and unnormalised.

    TransAgg's modified CLIP (Code-kunkun/ZS-CIR `model/clip/model.py`) sends every patch through `ln_post` and
    the projection, and every text token through `ln_final` and the text projection; stock encoders do so for the
    pooled token alone.
    """

    label = "CLIP"
    offers = "a CLIP's vision transformer and text tower"
    text_token = TextToken.END_OF_TEXT
    reads_padding = False  # causal: a text's end comes before its padding

    def __init__(
        self, clip: open_clip.CLIP, preprocess: PreprocessSpec | None = None, activation: Activation | None = None
    ) -> None:
        """preprocess: None is OpenAI's, in the model's size."""
        super().__init__()
        self.activation = activation
        self.clip = clip.eval().requires_grad_(False)
        size = clip.visual.image_size
        self._preprocess = preprocess or PreprocessSpec(size_px=size[0] if isinstance(size, tuple) else size)

    @property
    def preprocess(self) -> PreprocessSpec:
        """How the weights' trainers turned an image into pixels."""
        return self._preprocess

    @property
    def pooling(self) -> str:
        """The CLS token through the projection."""
        return "cls, projected"

    @property
    def vision(self) -> nn.Module:
        """The vision tower."""
        visual: nn.Module = self.clip.visual
        return visual

    @property
    def text(self) -> nn.Module:
        """The whole CLIP, which holds the text tower's parts."""
        return self.clip

    @property
    def text_transformer(self) -> nn.Module:
        """The text tower's transformer."""
        transformer: nn.Module = self.clip.transformer
        return transformer

    @property
    def dim(self) -> int:
        """Width D of the shared embedding."""
        return int(self.clip.text_projection.shape[1])

    @property
    def word_width(self) -> int:
        """Width W of a word embedding."""
        return int(self.clip.token_embedding.embedding_dim)

    @property
    def context_length(self) -> int:
        """Number of text tokens T."""
        return int(self.clip.context_length)

    @property
    def null_token_ids(self) -> Tensor:
        """The empty text, int64 [1, T]: what the released code tokenizes for every gallery image."""
        return clip_null_token_ids(self.context_length)

    @property
    def num_image_tokens(self) -> int:
        """Number of image tokens N, the CLS token included."""
        return int(self.clip.visual.positional_embedding.shape[0])

    def word_id(self, word: str) -> int:
        """Return the first token id of a word."""
        return int(SimpleTokenizer().encode(word)[0])

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (image_embedding [B, D], image_tokens [B, N, D]) of pixels float32 [B, 3, H, W]."""
        visual = self.clip.visual
        tokens = visual.ln_post(visual.transformer(visual._embeds(pixels))) @ visual.proj
        return tokens[:, 0], tokens

    def embed_gallery_image(self, pixels: Tensor) -> Tensor:
        """Return `encode_image`'s embedding; the last block is computed for the CLS token alone."""
        visual = self.clip.visual
        *blocks, last = visual.transformer.resblocks
        if type(last) is not ResidualAttentionBlock:
            return self.embed_image(pixels)
        tokens = visual._embeds(pixels)
        for block in blocks:
            tokens = block(tokens)
        normalised = last.ln_1(tokens)
        cls = tokens[:, :1] + last.ls_1(last.attention(normalised[:, :1], normalised, normalised))
        cls = cls + last.ls_2(last.mlp(last.ln_2(cls)))
        embedding: Tensor = visual.ln_post(cls[:, 0]) @ visual.proj
        return embedding

    def encode_text(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (text_embedding [B, D], text_tokens [B, T, D]) of token ids int64 [B, T]."""
        return self.encode_word_embeddings(self.embed_words(token_ids), token_ids)

    def embed_words(self, token_ids: Tensor) -> Tensor:
        """Return the word embeddings [B, T, W] of token ids int64 [B, T]."""
        words: Tensor = self.clip.token_embedding(token_ids)
        return words

    def encode_word_embeddings(self, words: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Do what `encode_text` does with word embeddings [B, T, W]; token_ids say where the text ends."""
        tokens = self._contextual(words) @ self.clip.text_projection
        return at_end_of_text(tokens, token_ids), tokens

    def encode_text_unprojected(self, token_ids: Tensor) -> Tensor:
        """Return the end-of-text token before the projection, [B, W], of token ids int64 [B, T]."""
        return at_end_of_text(self._contextual(self.embed_words(token_ids)), token_ids)

    def write_tokenizer(self, root: Path, prompt: Prompt) -> TokenizerSpec:
        """See `Backbone.write_tokenizer`."""
        return write_clip_tokenizer(root, context_length=self.context_length, prompt=prompt)

    def _contextual(self, words: Tensor) -> Tensor:
        clip, length = self.clip, words.shape[1]
        mask = clip.attn_mask[:length, :length]
        hidden = clip.transformer(words + clip.positional_embedding[:length], attn_mask=mask)
        normalised: Tensor = clip.ln_final(hidden)
        return normalised


class OpenClipFamily(Family):
    """Every architecture of open_clip that reads an image off its CLS token and a text off its end."""

    backbone_type = OpenClipBackbone
    options = frozenset({"quick_gelu"})

    def names(self) -> Sequence[str]:
        """Return open_clip's names of such models."""
        return [name for name in open_clip.list_models() if shows_every_token(open_clip.get_model_config(name))]

    def config(self, name: str) -> Config:
        """Return the architecture of a name, as open_clip writes it."""
        config: Config = open_clip.get_model_config(name)
        return config

    def kind_named(self, name: str) -> str:
        """Return the one kind that there is."""
        return CLIP_KIND

    def kind_of(self, state: StateDict) -> str | None:
        """Recognise a vision transformer beside a text tower, in OpenAI's key names or in those of transformers."""
        if has_openai_keys(state):
            return None if is_said_to_differ(state) else CLIP_KIND
        return CLIP_KIND if is_hugging_face_clip(state) and not is_metaclip_2(state) else None

    def tags(self, name: str) -> Sequence[str]:
        """Return the tags of a model's published weights."""
        return tags_of(name)

    def sizes(self, name: str) -> Sizes:
        """Return the widths of the architecture."""
        config = self.config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        return Sizes(dim=int(config["embed_dim"]), word_width=int(text["width"]), image_width=int(vision["width"]))

    def preprocess(self, name: str, weights: Weights) -> PreprocessSpec:
        """Return the preprocessing of a tag or a file."""
        return preprocess_of(name, self.config(name), weights)

    def load(self, name: str | None, weights: Weights, tokenizer: Path | None) -> OpenClipBackbone:
        """See `Family.load`."""
        refuse_tokenizer(name, tokenizer)
        weights = weights.from_folder()
        state = weights.state
        config = OPENAI if name is None else self.config(name)
        from_openai = _is_from_openai(weights)
        beside = None if from_openai else config_beside(weights)
        if beside is not None and beside.end_id is not None:
            raise CheckpointError(
                f"checkpoint {beside.file}: describes a MetaCLIP 2, and --backbone {name} is a CLIP: name its "
                "architecture, like ViT-H-14-worldwide-quickgelu, or from-checkpoint"
            )
        quick_gelu = uses_quick_gelu(name, config, weights, from_openai=from_openai, beside=beside)
        activation = activation_in_space(quick_gelu, config, weights, from_openai=from_openai)
        named = None if state is None else _openai_state(state)
        if name is None:
            assert named is not None
            shaped = shaped_as(named, quick_gelu, beside)
            clip = OpenClipBackbone(shaped, preprocess_beside(weights, shaped.visual.image_size), activation)
        else:
            if not from_openai:
                warn_if_a_file_could_be_several(name, config, weights)
            preprocess = self.preprocess(name, weights)
            clip = OpenClipBackbone(open_clip.CLIP(**config | {"quick_gelu": quick_gelu}), preprocess, activation)
            check_architecture(beside, config)
            check_sizes(clip.clip, beside)
        if state is not None and named is not None:
            folder = folder_of(weights) if is_hugging_face_clip(state) else None
            check_clip_vocabulary(named["token_embedding.weight"].shape[0], state.source, folder)
            load_strictly(clip.clip, named, theirs=KEYS.theirs if is_hugging_face_clip(state) else str)
        elif weights.tag is not None:
            assert name is not None
            fetch(clip.clip, name, weights.tag)
        return clip


def _is_from_openai(weights: Weights) -> bool:
    """Return whether weights are in a file of OpenAI's clip package: its own archive, or a CLIP beside a head.

    A CLIP beside a head is no model of that package if the user says GELU, or its text tower is wider than all of them.
    """
    state = weights.state
    if state is None or is_hugging_face_clip(state):
        return False
    if all(key in state for key in _OPENAI_ARCHIVE_KEYS):
        return True
    words = state.get("token_embedding.weight")
    is_wider = words is not None and words.shape[-1] > _OPENAI_WIDEST_TEXT
    return weights.fine_tuned and weights.options.quick_gelu is not False and not is_wider


def _openai_state(state: StateDict) -> StateDict:
    """Return a CLIP's state dict in OpenAI's key names, without what is no weight."""
    if is_hugging_face_clip(state):
        return in_openai_names(state)
    return pass_over(state, _NO_WEIGHTS)
