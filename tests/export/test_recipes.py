"""Every recipe, from a checkpoint in its authors' key names to a bundle that passed its gate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cirrus_client.encoders import LocalEncoder
from cirrus_client.encoders.protocol import RECIPES_OF_TEXTS
from cirrus_client.errors import CheckpointError, ExportError, UnsupportedQuery
from cirrus_client.names import EnsembleName
from cirrus_client.tokenizer import Tokenizer
from cirrus_export.backbones.registry import find_backbone
from cirrus_export.checkpoints.state import fingerprint
from cirrus_export.heads.transagg import TransAgg
from cirrus_export.pipeline import ExportRequest, build_recipe
from cirrus_export.recipes.recipe import Recipe
from cirrus_export.recipes.registry import recipe_named, recipes
from cirrus_export.recipes.two_tower import TwoTowerRecipe
from tests.export.author_files import EXPORTED, OF_QFORMERS, SAME_FORM, authors_file, check_answers, request

import open_clip  # isort: skip  (behind cirrus_export, which lets torchvision be imported)


def text_config(name: str) -> dict[str, object]:
    return open_clip.get_model_config(name)["text_cfg"]


@pytest.mark.parametrize("recipe", [recipe for recipe in EXPORTED if recipe not in OF_QFORMERS])
def test_an_authors_checkpoint_becomes_a_bundle_that_answers(recipe, author_bundle, photos) -> None:
    check_answers(author_bundle(recipe), photos)


@pytest.mark.parametrize(("recipe", "form"), SAME_FORM.items())
def test_a_file_of_another_method_of_one_form_is_read_as_the_same_modules(recipe, form, small_clip, tmp_path) -> None:
    own = build_recipe(request(tmp_path, recipe, small_clip))
    head = authors_file(tmp_path, form if form == "hint" else recipe)
    same = build_recipe(request(tmp_path, form, small_clip, head=str(head)))
    assert type(own).query is type(same).query
    for module in ("query_head", "qformer", "backbone"):
        assert fingerprint(getattr(own, module)) == fingerprint(getattr(same, module))
    pixels = same.preprocess(same.backbone.preprocess)
    assert own.preprocess(own.backbone.preprocess) == pixels
    assert pixels.convert_rgb == ("before_resize" if form == "hint" else "after_crop")


def test_the_recipes_that_the_message_names_are_those_that_answer_a_text_alone() -> None:
    answering = {name for name, recipe in recipes().items() if recipe.text_query is not Recipe.text_query}
    two_towers = {name for name in answering if issubclass(recipe_named(name), TwoTowerRecipe)}
    silent = {name for name in two_towers if recipe_named(name).text_query is TwoTowerRecipe.text_query}
    silent = {name for name in silent if not recipe_named(name).text_queries}
    assert answering - silent == set(RECIPES_OF_TEXTS)


@pytest.mark.parametrize("recipe", ["searle", "lincir", "pic2word"])
def test_a_text_alone_is_the_prompt_without_the_images_word(recipe, small_clip, tmp_path) -> None:
    built = build_recipe(request(tmp_path, recipe, small_clip))
    tokenizer = Tokenizer(built.backbone.write_tokenizer(tmp_path, built.prompt), tmp_path)
    token_ids = torch.from_numpy(tokenizer(["red dress", "$ 5 off", "&nbsp;"]))
    prompts = open_clip.tokenize(["a photo of red dress", "a photo of $ 5 off", "a photo of"])
    with torch.no_grad():
        expected = F.normalize(built.backbone.embed_text(prompts), dim=-1)
        torch.testing.assert_close(built.text_query(token_ids), expected, atol=1e-5, rtol=0)


def released_word(network: nn.Module, image: Tensor) -> Tensor:
    """phi of SEARLE's `src/phi.py`, or `IM2TEXT` of Pic2Word's `model/model.py`, written down from their facts."""
    weights = network.state_dict()
    is_phi = "layers.6.weight" in weights
    *inner, last = ("layers.0", "layers.3", "layers.6") if is_phi else ("layers.0.0", "layers.1.0", "fc_out")
    for name in inner:
        image = F.linear(image, weights[f"{name}.weight"], weights[f"{name}.bias"])
        image = F.gelu(image) if is_phi else F.relu(image)
    return F.linear(image, weights[f"{last}.weight"], weights[f"{last}.bias"])


@pytest.mark.parametrize(("recipe", "mark"), [("searle", "$"), ("lincir", "$"), ("pic2word", "*")])
def test_an_images_word_takes_the_first_place_of_its_mark_and_every_place_in_lincir(
    recipe, mark, small_clip, tmp_path
) -> None:
    built = build_recipe(request(tmp_path, recipe, small_clip))
    clip = built.backbone
    token_ids = torch.from_numpy(Tokenizer(clip.write_tokenizer(tmp_path, built.prompt), tmp_path)([f"{mark} red"]))
    places = (token_ids[0] == clip.word_id(mark)).nonzero()[:, 0]
    assert len(places) == 2, "the prompt's and the user's own"
    pixels = torch.randn(1, 3, clip.image_size_px, clip.image_size_px, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        words = clip.embed_words(token_ids)
        image = clip.embed_image(pixels)
        word = released_word(built.query_head.network, image)
        torch.testing.assert_close(built.query_head.network(image), word)
        words[:, places if recipe == "lincir" else places[:1]] = word
        expected = F.normalize(clip.encode_word_embeddings(words, token_ids)[0], dim=-1)
        torch.testing.assert_close(built.query(pixels, token_ids), expected, atol=1e-5, rtol=0)


def test_the_text_transformer_alone_is_replaced_and_images_are_refused(
    small_clip, dpo_head, dpo_bundle, probe, tmp_path
) -> None:
    replaced = torch.load(dpo_head, weights_only=True)
    recipe = build_recipe(request(tmp_path, "retrieval-dpo", small_clip, head=str(dpo_head)))
    for key, value in recipe.backbone.clip.transformer.state_dict().items():
        torch.testing.assert_close(value, replaced[key])
    encoder = LocalEncoder(dpo_bundle)
    assert encoder.encode_queries([None], ["a red dress"]).shape == (1, 128)
    with pytest.raises(
        UnsupportedQuery, match="query 0: it has an image, and this bundle's recipe answers texts alone"
    ):
        encoder.encode_queries([probe.gallery[0]], ["a red dress"])


@pytest.mark.parametrize(
    ("recipe", "removed", "renamed"),
    [
        ("transagg-union", "model.visual_encoder.blocks.1.norm1.weight", "sep_token"),
        ("transagg-union", "t5_layers.final_layer_norm.weight", "model.text_proj.weight"),
        ("union-sketch", "module.model.visual.ln_post.weight", "module.union_weighted_layer.3.bias"),
        ("sprc", "Qformer.bert.encoder.layer.2.crossattention.self.key.weight", "visual_encoder.blocks.1.mlp.fc2.bias"),
        ("sprc", "visual_encoder.blocks.1.attn.v_bias", "text_proj.bias"),
        ("sprc", "visual_encoder.blocks.0.attn.q_bias", "ln_vision.bias"),
        ("blip2-qformer", "visual_encoder.transformer.resblocks.0.ln_1.bias", "query_tokens"),
        ("searle", "layers.3.bias", "layers.6.bias"),
    ],
)
def test_a_removed_and_a_renamed_key_are_both_named(recipe, removed, renamed, small_clip, tmp_path) -> None:
    def damage(state) -> None:
        del state[removed]
        state[f"{renamed}_2"] = state.pop(renamed)

    head = authors_file(tmp_path, recipe, edit=damage)
    with pytest.raises(CheckpointError) as refused:
        build_recipe(request(tmp_path, recipe, small_clip, head=str(head)))
    assert f"'{removed}' is missing" in str(refused.value)
    assert f"'{renamed}' is missing" in str(refused.value)
    assert f"'{renamed}_2'" in str(refused.value)


@pytest.mark.parametrize("recipe", ["transagg-union", "transagg", "sprc", "searle"])
def test_a_trainers_module_may_hold_the_model_under_any_name(recipe, small_clip, tmp_path) -> None:
    def hold(state) -> None:
        held = {f"retriever.{key}": state.pop(key) for key in list(state)}
        state.update(held)

    plain = build_recipe(request(tmp_path, recipe, small_clip))
    held = build_recipe(request(tmp_path, recipe, small_clip, head=str(authors_file(tmp_path, recipe, edit=hold))))
    assert fingerprint(held.query_head) == fingerprint(plain.query_head)
    assert fingerprint(held.backbone.vision) == fingerprint(plain.backbone.vision)


def test_keys_that_no_recipe_has_are_told_by_their_beginnings(small_clip, tmp_path) -> None:
    torch.save({"net_a.weight": torch.ones(2), "net_b.weight": torch.ones(2)}, tmp_path / "head.pt")
    with pytest.raises(
        CheckpointError, match=r"has no fusion\., .*, which recipe transagg needs; its keys begin with net_a"
    ):
        build_recipe(request(tmp_path, "transagg", small_clip, head=str(tmp_path / "head.pt")))


@pytest.mark.parametrize("recipe", ["sprc", "blip2-qformer"])
def test_a_file_of_what_lavis_trained_takes_the_frozen_encoder_from_pretrained(recipe, small_clip, tmp_path) -> None:
    """Its last layer norm was trained too, and is not that of the frozen model."""
    whole = build_recipe(request(tmp_path, recipe, small_clip))
    pretrained = authors_file(tmp_path, recipe, edit=lambda state: state["ln_vision.weight"].add_(1))
    pretrained = pretrained.rename(tmp_path / "pretrained.pt")

    def without_what_is_frozen(state) -> None:
        for key in [key for key in state if key.startswith("visual_encoder.")]:
            del state[key]

    head = str(authors_file(tmp_path, recipe, edit=without_what_is_frozen))
    trained = build_recipe(request(tmp_path, recipe, small_clip, head=head, pretrained=str(pretrained)))
    assert fingerprint(trained.query_head) == fingerprint(whole.query_head)
    assert fingerprint(trained.backbone.vision) == fingerprint(whole.backbone.vision)
    with pytest.raises(ExportError, match="--pretrained must be a file or a folder"):
        build_recipe(request(tmp_path, recipe, small_clip, head=head))


READ_AS = [  # a file, the recipe that it is mistyped as, and those that use it whole
    ("transagg-union", "transagg", "transagg-union or union-sketch"),
    ("union-sketch", "transagg", "transagg-union or union-sketch"),
    ("transagg", "transagg-union", "transagg"),
    ("transagg", "union-sketch", "transagg"),
    ("sprc", "transagg-union", "blip2-qformer or habit or ptha or sprc"),
    ("hint", "sprc", "hint"),
    ("intent", "hint", "intent"),
    ("conesep", "ptha", "conesep"),
    ("sprc", "hint", "blip2-qformer or habit or ptha or sprc"),
    ("transagg-union", "sprc", "transagg-union or union-sketch"),
    ("searle", "sprc", "lincir or searle"),
    ("searle", "pic2word", "lincir or searle"),
    ("pic2word", "searle", "pic2word"),
    ("pic2word", "transagg-union", "pic2word"),
    ("searle", "retrieval-dpo", "lincir or searle"),
    ("transagg-union", "retrieval-dpo", "transagg-union or union-sketch"),
]


@pytest.mark.parametrize(("recipe", "mistyped", "meant"), READ_AS)
def test_a_mistyped_recipe_is_told_which_recipes_use_the_file(recipe, mistyped, meant, small_clip, tmp_path) -> None:
    head = authors_file(tmp_path, recipe)
    with pytest.raises(CheckpointError, match=f"--recipe {meant}(,|;|$)"):
        build_recipe(request(tmp_path, mistyped, small_clip, head=str(head), pretrained=str(small_clip)))


def test_trained_weights_that_a_recipe_leaves_out_are_named(small_clip, tmp_path) -> None:
    head = authors_file(tmp_path, "transagg-union")
    with pytest.raises(
        CheckpointError, match=r"t5_layers\., union_weighted_layer\. are trained weights, and recipe transa"
    ):
        build_recipe(request(tmp_path, "transagg", small_clip, head=str(head)))


@pytest.mark.parametrize("place", ["", "model.", "t5_layers.", "fusion.", "model.visual.", "model.text_encoder_n."])
@pytest.mark.parametrize("recipe", ["transagg-union", "union-sketch", "sprc", "searle"])
def test_a_weight_that_no_part_uses_is_refused_by_its_name(recipe, place, small_clip, tmp_path) -> None:
    prefix = "module." if recipe == "union-sketch" else ""
    stranger = f"{prefix}{place}stranger.weight"
    head = authors_file(tmp_path, recipe, edit=lambda state: state.update({stranger: torch.ones(2)}))
    with pytest.raises(CheckpointError, match=f"key '{stranger}' is not part of the model"):
        build_recipe(request(tmp_path, recipe, small_clip, head=str(head)))


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ("sprc", "query_tokens"),
        ("sprc", "Qformer.bert.embeddings.word_embeddings.weight"),
        ("sprc", "visual_encoder.pos_embed"),
        ("transagg", "weighted_layer.weight"),
        ("transagg", "pretrained_model.visual.conv1.weight"),
        ("union-sketch", "module.t5_layers.block.0.layer.0.SelfAttention.q.weight"),
        ("searle", "layers.0.weight"),
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 1, 1, 1, 2)])
def test_a_tensor_of_an_impossible_shape_is_a_checkpoints_error(recipe, key, shape, small_clip, tmp_path) -> None:
    head = authors_file(tmp_path, recipe, edit=lambda state: state.update({key: torch.zeros(shape)}))
    with pytest.raises(CheckpointError, match="checkpoint"):
        build_recipe(request(tmp_path, recipe, small_clip, head=str(head)))


def test_a_layers_number_far_beyond_the_others_is_no_layer(small_clip, tmp_path) -> None:
    def renumber(state) -> None:
        state["fusion.layers.99999.norm1.bias"] = state.pop("fusion.layers.1.norm1.bias")

    head = authors_file(tmp_path, "transagg", edit=renumber)
    with pytest.raises(CheckpointError, match=r"key 'fusion\.layers\.99999\.norm1\.bias' is not part of the model"):
        build_recipe(request(tmp_path, "transagg", small_clip, head=str(head)))


def test_what_is_unused_by_design_is_said_with_its_reason(small_clip, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    build_recipe(request(tmp_path, "transagg-union", small_clip))
    assert "model.visual_encoder_m.blocks" in caplog.text
    assert "(momentum twins, which training follows)" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_backbone_that_the_heads_file_makes_needless_is_said_aloud(small_clip, tmp_path, caplog) -> None:
    build_recipe(request(tmp_path, "transagg", small_clip, pretrained=str(small_clip)))
    assert f"it carries its own backbone, which is used; --pretrained {small_clip} is not" in caplog.text


def test_a_file_with_two_backbones_is_refused(small_clip, tmp_path) -> None:
    def add(state) -> None:
        state["model.visual.proj"] = state["pretrained_model.visual.proj"]

    head = authors_file(tmp_path, "transagg", edit=add)
    with pytest.raises(CheckpointError, match=r"holds two backbones, under model\. and pretrained_model\."):
        build_recipe(request(tmp_path, "transagg", small_clip, head=str(head)))


@pytest.mark.parametrize("recipe", ["transagg-union", "union-sketch"])
def test_a_share_of_union_is_added_to_a_query_only_where_it_is_asked_for(recipe, small_clip, tmp_path) -> None:
    plain = build_recipe(request(tmp_path, recipe, small_clip))
    with_share = build_recipe(request(tmp_path, recipe, small_clip, options={"union_weight": "0.1"}))
    assert isinstance(plain.query_head, TransAgg)
    assert (with_share.query_head.query_head.state_dict().keys()) == plain.query_head.state_dict().keys()
    assert with_share.query_head.weight == 0.1


REFUSED_EARLY = [
    ("searle", "ViT-L-14", "searle", "for embeddings of width 128, the backbone's width is 768"),
    ("transagg", "ViT-L-14", "transagg", "for embeddings of width 128, the backbone's width is 768"),
    ("sprc", "ViT-L-14", "sprc", "for image tokens of width 176, the backbone's width is 1024"),
    ("transagg", "ViT-B-32-SigLIP2-256", None, "needs every token of an image and a text"),
    ("searle", "blip-base-coco", None, "needs a text tower that takes word embeddings"),
    ("clip", "xlm-roberta-base-ViT-B-32", None, "its text tower is transformers' xlm-roberta-base"),
    ("sprc", "ViT-H-14-quickgelu", None, "resize_mode squash"),
]


@pytest.mark.parametrize(("recipe", "backbone", "file", "reason"), REFUSED_EARLY)
def test_what_can_not_go_together_is_refused_before_the_weights_are_opened(
    recipe, backbone, file, reason, tmp_path
) -> None:
    def without_backbone(state) -> None:
        for key in [key for key in state if key.startswith(("pretrained_model.", "visual_encoder.", "ln_vision."))]:
            del state[key]

    tag = "dfn5b" if "quickgelu" in backbone else None
    weights = tmp_path / "weights.pt"
    weights.write_text("opening this would say that it is no checkpoint")
    head = "random" if file is None else str(authors_file(tmp_path, file, edit=without_backbone))
    pretrained = str(weights) if tag is None else f"{tag}={weights}"
    with pytest.raises(ExportError, match=reason):
        build_recipe(ExportRequest(recipe, backbone, pretrained, None if recipe == "clip" else head, tmp_path / "out"))


@pytest.mark.parametrize("name", [name for name in open_clip.list_models() if "hf_model_name" in text_config(name)])
def test_a_text_tower_of_transformers_is_refused_by_the_models_name(name, tmp_path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_text("opening this would say that it is no checkpoint")
    for pretrained in ("random", str(weights), *open_clip.list_pretrained_tags_by_model(name)[:1]):
        with pytest.raises(ExportError, match=f"backbone {name}: its text tower is transformers'"):
            find_backbone(name, pretrained).load()


def test_a_recipe_on_the_wrong_kind_of_backbone_says_which_it_takes(small_clip, tmp_path) -> None:
    with pytest.raises(ExportError, match="recipe searle needs a text tower that takes word embeddings, and a BLIP"):
        build_recipe(
            ExportRequest("searle", "blip-base-coco", "random", "random", tmp_path / "out"),
        )


@pytest.mark.parametrize(
    ("recipe", "backbone", "held"),
    [
        ("sprc", "blip2-vit-l", "holds BLIP-2's ViT-g \\(blip2-vit-g\\)"),
        ("blip2-qformer", "blip2-vit-g", "holds BLIP-2's ViT-L \\(blip2-vit-l\\)"),
        ("transagg-union", "ViT-B-32", "holds a BLIP \\(blip-base-coco\\), and --backbone ViT-B-32 is a CLIP"),
    ],
)
def test_a_file_of_another_backbone_is_told_by_its_name(recipe, backbone, held, small_clip, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=held):
        build_recipe(request(tmp_path, recipe, small_clip, backbone=backbone))


def test_a_head_without_its_backbone_asks_for_one(tmp_path, small_clip) -> None:
    head = authors_file(tmp_path, "searle")
    with pytest.raises(ExportError, match="--pretrained must say where"):
        build_recipe(ExportRequest("searle", "ViT-B-32", None, str(head), tmp_path / "out"))


def test_ensembles_of_text_only_recipes_have_no_image_query(small_clip, tmp_path) -> None:
    recipe = build_recipe(request(tmp_path, "retrieval-dpo", small_clip, head="random"))
    assert set(recipe.ensembles()) == {EnsembleName.ENCODE_TEXT_QUERY, EnsembleName.ENCODE_TARGET}
