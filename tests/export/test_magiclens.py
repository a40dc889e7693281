"""MagicLens from its public release's form, against its formulas in numpy, from file and text to a ranking."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from PIL import Image

from cirrus_client.bundle import Bundle, Precision
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import CheckpointError, UnsupportedQuery
from cirrus_export.gate.probe import default_probe
from cirrus_export.pipeline import ExportRequest, build_recipe, export
from tests.export.compiled import check_all_compile, needs_rtx
from tests.export.test_bge_vl import TEXTS, image_file

import open_clip  # isort: skip  (behind cirrus_export, which lets torchvision be imported)

pytestmark = pytest.mark.export

NAME, SIDE, DIM, WIDTH, HEADS, LAYERS, POOLED = "tiny-magiclens-quickgelu", 32, 64, 128, 4, 2, 96
Arrays = dict[str, np.ndarray]


def head_shapes() -> dict[str, tuple[int, ...]]:
    def attention(root: str, width: int) -> dict[str, tuple[int, ...]]:
        heads = {f"{root}/{part}/w": (DIM, HEADS, width // HEADS) for part in ("query", "key", "value", "post")}
        return (
            heads
            | {f"{root}/{p}/b": (HEADS, width // HEADS) for p in ("query", "key", "value")}
            | {f"{root}/post/b": (DIM,)}
        )

    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(LAYERS):
        layer = f"multimodal_encoder/x_layers_{number}"
        shapes |= attention(f"{layer}/self_attention", DIM)
        for norm in (f"{layer}/layer_norm", f"{layer}/ff_layer/layer_norm"):
            shapes |= {f"{norm}/scale": (DIM,), f"{norm}/bias": (DIM,)}
        shapes |= {f"{layer}/ff_layer/ffn_layer1/linear/w": (DIM, 80), f"{layer}/ff_layer/ffn_layer1/bias/b": (80,)}
        shapes |= {f"{layer}/ff_layer/ffn_layer2/linear/w": (80, DIM), f"{layer}/ff_layer/ffn_layer2/bias/b": (DIM,)}
    pooler = "contrastive_multimodal_pooler"
    shapes |= attention(f"{pooler}/pool_attn", POOLED)
    return shapes | {
        f"{pooler}/pool_attn/per_dim_scale/per_dim_scale": (POOLED // HEADS,),
        f"{pooler}/pooling_attn_query": (1, DIM),
        f"{pooler}/pool_attn_ln/scale": (DIM,),
        f"{pooler}/pool_attn_ln/bias": (DIM,),
    }


def clip_of_scenic(clip: torch.nn.Module) -> Arrays:
    """The weights of an open_clip model as scenic's CLIP names and lays them out."""
    state = {key: value.numpy() for key, value in clip.state_dict().items() if key != "attn_mask"}
    out: Arrays = {"logit_scale": state["logit_scale"]}
    for tower, prefix, width, heads in (("text", "", DIM, 1), ("visual", "visual.", WIDTH, 2)):
        block = f"{prefix}transformer.resblocks."
        for number in range(2):
            ours, theirs = f"{block}{number}.", f"{tower}/transformer/resblocks_{number}/"
            three = zip(
                ("query", "key", "value"),
                np.split(state[f"{ours}attn.in_proj_weight"], 3),
                np.split(state[f"{ours}attn.in_proj_bias"], 3),
                strict=True,
            )
            for part, weight, bias in three:
                out[f"{theirs}attn/{part}/kernel"] = weight.T.reshape(width, heads, -1)
                out[f"{theirs}attn/{part}/bias"] = bias.reshape(heads, -1)
            out[f"{theirs}attn/out/kernel"] = state[f"{ours}attn.out_proj.weight"].T.reshape(heads, -1, width)
            out[f"{theirs}attn/out/bias"] = state[f"{ours}attn.out_proj.bias"]
            for part in ("c_fc", "c_proj"):
                out[f"{theirs}mlp/{part}/kernel"] = state[f"{ours}mlp.{part}.weight"].T
                out[f"{theirs}mlp/{part}/bias"] = state[f"{ours}mlp.{part}.bias"]
            for norm in ("ln_1", "ln_2"):
                out[f"{theirs}{norm}/scale"] = state[f"{ours}{norm}.weight"]
                out[f"{theirs}{norm}/bias"] = state[f"{ours}{norm}.bias"]
    for norm in ("text/ln_final", "visual/ln_pre", "visual/ln_post"):
        ours = norm.removeprefix("text/").replace("/", ".")
        out[f"{norm}/scale"], out[f"{norm}/bias"] = state[f"{ours}.weight"], state[f"{ours}.bias"]
    return out | {
        "text/token_embedding/embedding": state["token_embedding.weight"],
        "text/positional_embedding": state["positional_embedding"],
        "text/text_projection/kernel": state["text_projection"],
        "visual/conv1/kernel": state["visual.conv1.weight"].transpose(2, 3, 1, 0),
        "visual/class_embedding": state["visual.class_embedding"],
        "visual/positional_embedding": state["visual.positional_embedding"],
        "visual/proj/kernel": state["visual.proj"],
    }


def released_file(arrays: Arrays, path: Path) -> Path:
    """The pickle of flax's msgpack: an array is extension 1, of shape, dtype and bytes."""
    tree: dict = {}
    for name, array in arrays.items():
        *folders, leaf = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        data = msgpack.packb((array.shape, array.dtype.name, np.ascontiguousarray(array).tobytes()))
        place[leaf] = msgpack.ExtType(1, data)
    path.write_bytes(pickle.dumps(msgpack.packb({"params": tree})))
    return path


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Arrays, Path]:
    folder = tmp_path_factory.mktemp("magiclens")
    vision = {"image_size": SIDE, "layers": 2, "width": WIDTH, "patch_size": 8, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": DIM, "heads": 1, "layers": 2}
    config = {"embed_dim": DIM, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (folder / f"{NAME}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(6)
    clip = open_clip.create_model(NAME).eval().requires_grad_(False)
    for parameter in clip.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    rng = np.random.default_rng(8)
    head = {name: 0.2 * rng.standard_normal(shape).astype(np.float32) for name, shape in head_shapes().items()}
    arrays = head | {f"clip/{name}": array for name, array in clip_of_scenic(clip).items()}
    return clip, arrays, released_file(arrays, folder / "magic_lens_clip_tiny.pkl")


def request(head: Path, out: Path) -> ExportRequest:
    return ExportRequest("magiclens", "from-checkpoint", None, str(head), out)


@pytest.fixture(scope="module")
def exported(released, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("exported") / "magiclens"
    return export(request(released[2], out), default_probe(queries=4, gallery=16))


def layer_norm(x: np.ndarray, weights: Arrays, name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return normed * (1 + weights[f"{name}/scale"]) + weights[f"{name}/bias"]


def attention(asking: np.ndarray, x: np.ndarray, weights: Arrays, name: str) -> np.ndarray:
    def heads(tokens: np.ndarray, part: str) -> np.ndarray:
        return np.einsum("btd,dnh->btnh", tokens, weights[f"{name}/{part}/w"]) + weights[f"{name}/{part}/b"]

    query, scale = heads(asking, "query"), weights.get(f"{name}/per_dim_scale/per_dim_scale")
    factor = 1.0 if scale is None else 1.442695041 * np.log1p(np.exp(scale))
    query = query * factor / np.sqrt(query.shape[-1])
    logits = 50 * np.tanh(np.einsum("btnh,bsnh->bnts", query, heads(x, "key")) / 50)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    read = np.einsum("bnts,bsnh->btnh", shares, heads(x, "value"))
    return np.einsum("btnh,dnh->btd", read, weights[f"{name}/post/w"]) + weights[f"{name}/post/b"]


def magiclens(image: np.ndarray, text: np.ndarray, weights: Arrays) -> np.ndarray:
    x = np.stack([image, text], axis=1).astype(np.float64)
    for number in range(LAYERS):
        layer = f"multimodal_encoder/x_layers_{number}"
        normed = layer_norm(x, weights, f"{layer}/layer_norm")
        x = x + attention(normed, normed, weights, f"{layer}/self_attention")
        inner, feed = layer_norm(x, weights, f"{layer}/ff_layer/layer_norm"), f"{layer}/ff_layer/ffn_layer"
        inner = np.maximum(inner @ weights[f"{feed}1/linear/w"] + weights[f"{feed}1/bias/b"], 0)
        x = x + inner @ weights[f"{feed}2/linear/w"] + weights[f"{feed}2/bias/b"]
    pooler = "contrastive_multimodal_pooler"
    asking = np.repeat(weights[f"{pooler}/pooling_attn_query"][None], len(x), axis=0)
    pooled = layer_norm(attention(asking, x, weights, f"{pooler}/pool_attn"), weights, f"{pooler}/pool_attn_ln")[:, 0]
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def square(file: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(file)).convert("RGB")
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    levels = np.asarray(image, dtype=np.float32) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return torch.from_numpy((levels - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)


@torch.no_grad()
def test_queries_targets_and_rankings_are_those_of_the_published_formulas(released, exported) -> None:
    clip, weights, _ = released
    gallery = [image_file(number) for number in range(60)]
    images = clip.encode_image(torch.stack([square(file) for file in gallery])).numpy()
    texts = [*TEXTS, ""]
    words = clip.encode_text(open_clip.tokenize(texts)).numpy()
    wanted = magiclens(images, np.repeat(words[-1:], len(images), axis=0), weights)
    query = magiclens(images[: len(texts)], words, weights)
    encoder = LocalEncoder(exported)
    targets, found = encoder.encode_targets(gallery), encoder.encode_queries(gallery[: len(texts)], texts)
    assert (targets * wanted).sum(axis=1).min() >= 0.99999
    assert (found * query).sum(axis=1).min() >= 0.99999
    ours, best = (np.argsort(-scores)[:, :50] for scores in (found @ targets.T, query @ wanted.T))
    assert all(set(row) == set(other) for row, other in zip(ours, best, strict=True))
    np.testing.assert_allclose(found[-1], targets[len(texts) - 1], atol=1e-5)
    with pytest.raises(UnsupportedQuery, match="export a recipe that answers a text alone"):
        encoder.encode_queries([None], ["red"])


def test_the_release_and_its_tensors_in_a_file_of_torch_are_one_model(released, tmp_path) -> None:
    _, arrays, path = released
    torch.save({name.replace("/", "."): torch.tensor(array) for name, array in arrays.items()}, tmp_path / "port.pt")
    one, other = (build_recipe(request(file, tmp_path / "x")) for file in (path, tmp_path / "port.pt"))
    for part in ("query_head", "backbone"):
        expected = getattr(other, part).state_dict()
        for key, value in getattr(one, part).state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("removed", "name"),
    [
        ("contrastive_multimodal_pooler/pooling_attn_query", "contrastive_multimodal_pooler.pooling_attn_query"),
        ("clip/text/transformer/resblocks_1/attn/key/bias", "clip.text.transformer.resblocks_1.attn.key.bias"),
    ],
)
def test_a_missing_key_has_the_files_own_name(released, removed, name, tmp_path) -> None:
    _, arrays, _ = released
    file = released_file({key: value for key, value in arrays.items() if key != removed}, tmp_path / "cut.pkl")
    with pytest.raises(CheckpointError, match=f"key '{name}' is missing"):
        build_recipe(request(file, tmp_path / "x"))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        build_recipe(request(tmp_path / "evil.pkl", tmp_path / "x"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        *map(
            pickle.dumps, [b"", b"\xc1", b"\x81\xa6params\xc7\x05\x01abc", msgpack.packb([1]), msgpack.packb({"a": 1})]
        ),
        pickle.dumps(msgpack.packb({"params": {}})),
        b"\x80\x04\x8e" + b"\xff" * 8,
    ],
)
def test_a_release_that_is_cut_or_something_else_is_refused(content, tmp_path) -> None:
    (tmp_path / "cut.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cut\.pkl"):
        build_recipe(request(tmp_path / "cut.pkl", tmp_path / "x"))


@needs_rtx
def test_every_graph_compiles(exported: Bundle, tmp_path: Path) -> None:
    check_all_compile(exported, Precision.FP32, tmp_path)
