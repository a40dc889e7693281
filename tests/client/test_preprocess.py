"""The one preprocessing, against torchvision, which the papers' code uses."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageFilter
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Lambda, Normalize, Resize, ToTensor
from torchvision.transforms import functional as TF

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import EngineError, InvalidImage
from cirrus_client.image.decode import decode
from cirrus_client.image.fast_resize import resize_fast
from cirrus_client.image.nvjpeg import NvJpegDecoder
from cirrus_client.image.preprocess import Decoding, Interpolation, Pad, PreprocessSpec, preprocess
from tests.conftest import BAD_IMAGES


def reference(image: Image.Image, spec: PreprocessSpec) -> np.ndarray:
    """The released `targetpad_transform`, CLIP's or MagicLens's own, or a stretch to the square, with torchvision."""

    def pad(picture: Image.Image) -> Image.Image:
        width, height = picture.size
        if spec.pad is Pad.SQUARE:
            side = min(width, height)
            return TF.crop(picture, (height - side) // 2, (width - side) // 2, side, side)
        if spec.pad is not Pad.TARGET or max(width, height) / min(width, height) < spec.target_ratio:
            return picture
        longest = max(width, height) / spec.target_ratio
        horizontal, vertical = (max(int((longest - side) / 2), 0) for side in (width, height))
        return TF.pad(picture, [horizontal, vertical, horizontal, vertical], 0, "constant")

    transform = Compose(
        [
            Lambda(pad),
            Resize(
                (spec.size_px,) * (2 if spec.pad is Pad.STRETCH else 1),
                interpolation=InterpolationMode(spec.interpolation.value),
            ),
            CenterCrop(spec.size_px),
            Lambda(lambda picture: picture.convert("RGB")),
            ToTensor(),
            Normalize(spec.mean, spec.std),
        ]
    )
    return transform(image).numpy()


def encoded(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


@settings(deadline=None)
@given(
    width=st.integers(9, 300),
    height=st.integers(9, 300),
    size_px=st.sampled_from([32, 96, 224]),
    pad=st.sampled_from(list(Pad)),
    interpolation=st.sampled_from(list(Interpolation)),
    mode=st.sampled_from(["RGB", "L", "RGBA", "P"]),
    seed=st.integers(0, 1000),
)
@pytest.mark.slow
def test_pixels_are_torchvisions(
    width: int, height: int, size_px: int, pad: Pad, interpolation: Interpolation, mode: str, seed: int
) -> None:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(levels).convert(mode)
    spec = PreprocessSpec(size_px=size_px, pad=pad, interpolation=interpolation, convert_rgb="after_crop")
    stored = Image.open(io.BytesIO(encoded(image)))
    np.testing.assert_allclose(preprocess(encoded(image), spec), reference(stored, spec), atol=1e-6)


@pytest.mark.parametrize("interpolation", list(Interpolation))
@pytest.mark.parametrize(("resize_mode", "pad"), [("shortest", Pad.NONE), ("squash", Pad.STRETCH)])
@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0, 0, 0), (1, 1, 1)), ((0.485, 0.456, 0.406), (0.2, 0.3, 0.4))],
)
def test_pixels_are_open_clips_own_transforms(interpolation, resize_mode, pad, mean, std) -> None:
    theirs = PreprocessCfg(size=64, mean=mean, std=std, interpolation=interpolation.value, resize_mode=resize_mode)
    ours = PreprocessSpec(
        size_px=64, pad=pad, mean=mean, std=std, interpolation=interpolation, convert_rgb="after_crop"
    )
    for shape in ((120, 90), (33, 200), (64, 64)):
        levels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        image = Image.fromarray(levels)
        expected = image_transform_v2(theirs, is_train=False)(image).numpy()
        np.testing.assert_allclose(preprocess(encoded(image), ours), expected, atol=1e-6)


def test_a_field_that_was_added_later_is_written_only_where_it_differs() -> None:
    """The JSON is part of every space's fingerprint, and older clients refuse keys that they do not know."""
    assert PreprocessSpec(size_px=96).model_dump_json() == (
        '{"size_px":96,"pad":"none","target_ratio":1.25,"convert_rgb":"before_resize",'
        '"mean":[0.48145466,0.4578275,0.40821073],"std":[0.26862954,0.26130258,0.27577711]}'
    )
    bilinear = PreprocessSpec(size_px=96, interpolation=Interpolation.BILINEAR)
    assert PreprocessSpec.model_validate_json(bilinear.model_dump_json()) == bilinear
    assert '"interpolation":"bilinear"' in bilinear.model_dump_json()


def test_a_sideways_photo_with_an_orientation_tag_is_turned_upright() -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    upright.rotate(90, expand=True).save(content, "PNG", exif=exif)
    spec = PreprocessSpec(size_px=32)
    np.testing.assert_array_equal(preprocess(content.getvalue(), spec), preprocess(encoded(upright), spec))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64 * 64, dtype=np.uint16).reshape(64, 64)
    pixels = preprocess(encoded(Image.fromarray(ramp)), PreprocessSpec(size_px=64))
    eight = preprocess(encoded(Image.fromarray((ramp >> 8).astype(np.uint8))), PreprocessSpec(size_px=64))
    np.testing.assert_array_equal(pixels, eight)


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_refused_with_its_reason(name: str) -> None:
    image, reason = BAD_IMAGES[name]
    with pytest.raises(InvalidImage, match=reason):
        preprocess(image, PreprocessSpec(size_px=32))


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_damaged_files_end_in_pixels_or_in_an_invalid_image(noise: bytes, place: int, value: int) -> None:
    image = bytearray(encoded(Image.new("RGB", (20, 20), "red")))
    image[place % len(image)] = value
    for damaged in (bytes(image), bytes(image)[: place % len(image)], noise):
        try:
            assert preprocess(damaged, PreprocessSpec(size_px=16)).shape == (3, 16, 16)
        except InvalidImage as error:
            assert str(error)  # noqa: PT017


def jpeg(width: int, height: int) -> bytes:
    content = io.BytesIO()
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    Image.fromarray(ramp).save(content, "JPEG", quality=95)
    return content.getvalue()


@pytest.mark.parametrize(
    ("size", "decoded"), [((1000, 800), (250, 200)), ((410, 900), (205, 450)), ((390, 900), (390, 900))]
)
def test_scaled_decoding_keeps_twice_the_models_size(size, decoded) -> None:
    assert decode(jpeg(*size), shorter_px=200).size == decoded
    assert decode(jpeg(*size)).size == size


@pytest.mark.parametrize("shape", [(1000, 700), (500, 400), (90, 300)])
def test_fast_decoding_moves_pixels_little(shape) -> None:
    spec = PreprocessSpec(size_px=96, pad=Pad.TARGET)
    exact, fast = (preprocess(jpeg(*shape), spec, decoding) for decoding in (Decoding.EXACT, Decoding.FAST))
    moved = np.abs(exact - fast).mean()
    assert moved < 0.05
    assert (moved > 0) == (min(shape) >= 4 * spec.size_px)  # decoded at a half or less


def test_fast_decoding_is_for_the_gallery_alone(tiny_bundle) -> None:
    fast, exact = (LocalEncoder(tiny_bundle, decoding=decoding) for decoding in (Decoding.FAST, Decoding.EXACT))
    photo = jpeg(1000, 800)
    np.testing.assert_array_equal(fast.prepare_image(photo), exact.prepare_image(photo))
    assert not np.array_equal(fast.prepare(photo), exact.prepare(photo))


@pytest.mark.parametrize("resampling", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_fast_resize_is_pillows_but_for_a_level(mode, resampling) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode).filter(ImageFilter.GaussianBlur(2))
    for size in ((100, 80), (224, 168), (96, 200)):
        exact = np.asarray(image.resize(size, resampling)).astype(int)
        fast = np.asarray(resize_fast(image, size, resampling)).astype(int)
        assert np.abs(exact - fast).max() <= 1
        assert (exact != fast).mean() < 0.01


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "LA"])
def test_other_kinds_of_images_are_resized_by_pillow_itself(mode) -> None:
    image = Image.open(io.BytesIO(jpeg(300, 200))).convert("RGB").convert(mode)
    expected = image.resize((64, 48), Image.Resampling.BICUBIC)
    assert resize_fast(image, (64, 48), Image.Resampling.BICUBIC).tobytes() == expected.tobytes()


@pytest.fixture
def nvimagecodec(monkeypatch) -> list[int]:
    """nvImageCodec's own decoder for CPUs in place of the GPU's; the sizes of what it was given."""
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec has no wheel for this machine")
    decoder, given = NvJpegDecoder(gpu=False), []

    def decode_here(image: bytes) -> np.ndarray | None:
        given.append(len(image))
        return decoder(image)

    monkeypatch.setattr("cirrus_client.image.preprocess.decode_on_gpu", decode_here)
    return given


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_nvimagecodec_gives_the_same_upright_pixels(orientation: int, mode: str, nvimagecodec) -> None:
    picture = Image.open(io.BytesIO(jpeg(300, 200))).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=95, exif=exif)
    spec = PreprocessSpec(size_px=96, pad=Pad.TARGET)
    exact, other = (preprocess(content.getvalue(), spec, how) for how in (Decoding.EXACT, Decoding.NVJPEG))
    assert len(nvimagecodec) == 1
    np.testing.assert_allclose(other, exact, atol=0.05)


def test_what_nvimagecodec_does_not_take_is_left_to_pillow(nvimagecodec) -> None:
    spec = PreprocessSpec(size_px=96)
    picture = Image.open(io.BytesIO(jpeg(300, 200)))
    for kind, mode in (("PNG", "RGB"), ("JPEG", "CMYK")):
        content = io.BytesIO()
        picture.convert(mode).save(content, kind)
        fast, other = (preprocess(content.getvalue(), spec, how) for how in (Decoding.FAST, Decoding.NVJPEG))
        np.testing.assert_array_equal(fast, other)
    assert nvimagecodec == []
    with pytest.raises(InvalidImage, match="the JPEG image of 300 x 200 pixels is broken"):
        preprocess(jpeg(300, 200)[:-1000], spec, Decoding.NVJPEG)


def test_nvjpeg_that_is_not_installed_says_so(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(EngineError, match=r"nvImageCodec can't be loaded .* pip install nvidia-nvimgcodec"):
        NvJpegDecoder()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA GPU")
def test_nvjpeg_without_a_gpu_says_so() -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec has no wheel for this machine")
    with pytest.raises(EngineError, match="nvImageCodec finds no GPU"):
        preprocess(jpeg(300, 200), PreprocessSpec(size_px=96), Decoding.NVJPEG)
