"Brightness and colour of what `fuse` returns, and what it takes."
from pathlib import Path

import numpy as np
import pytest
import torch

from film.core import LUMA, TASKS, FilmError, get_task, is_colour, read_image, rgb_to_chroma, to_float, write_image
from film.data import Pair
from film.encoding import write_features
from film.fusion import fuse, fuse_pairs, get_network, load, merge_chroma, normalise, text_tokens, to_output
from film.network import Film


def test_luma_is_truncated_as_released():
    assert to_output(np.float32([[0.999, 0.5, 1]]), None).tolist() == [[254, 127, 255]]


@pytest.fixture(scope="module")
def small():
    "A network that is quick; what is tested is done outside of it."
    torch.manual_seed(0)
    return Film(text_width=384, grid=(8, 8), depth=1, text_encoder="all-MiniLM-L6-v2").eval()


@pytest.mark.parametrize("method", ["film", "laplacian"])
def test_sixteen_bits_are_the_same_picture_in_finer_steps(method, small):
    gray, colour = np.random.default_rng(0).integers(0, 256, (40, 48), np.uint8), np.random.default_rng(1).integers(0, 256, (40, 48, 3), np.uint8)
    words = dict(text="noise", weights=small) if method == "film" else {}
    for task, b in (("ivf", gray.T[:, :40].repeat(2, 0)[:40].repeat(2, 1)[:, :48]), ("ivf", colour), ("mef", colour)):
        plain, fine = (fuse(gray, b, task=task, method=method, device="cpu", bits=bits, **words) for bits in (8, 16))
        assert fine.dtype == np.uint16 and fine.shape == plain.shape and len(np.unique(fine)) > 600
        assert np.abs(fine / 257 - plain).max() <= (1 if fine.ndim == 2 else 2.5)  # luma is truncated, and channels follow it
    with pytest.raises(FilmError, match="8 or 16"): fuse(gray, colour, bits=10)


def test_a_constant_result_stays():
    fused, ramp = np.full((20, 20), 0.25, np.float32), np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    normalise(fused, ramp, ramp)
    assert (fused == 0.25).all()


def test_a_lamp_does_not_darken_the_frame_where_the_range_is_kept():
    "As frames of a video need it."
    x = np.linspace(0, 6, 96)
    a, b = (np.uint8(60 + 50 * np.sin(x + shift)[None] * np.cos(x + shift)[:, None]) for shift in (0, 1))
    lamp_a, lamp_b = a.copy(), b.copy()
    lamp_a[:4, :4] = lamp_b[:4, :4] = 255
    far = slice(40, None)
    change = [np.abs(fuse(lamp_a, lamp_b, text="x", keep_range=keep)[far].astype(float) - fuse(a, b, text="x", keep_range=keep)[far]).mean() for keep in (False, True)]
    assert change[0] > 30 and change[1] < 4  # channel attention still sees the whole frame
    kept = fuse(a, b, text="x", keep_range=True)
    assert np.abs(kept.astype(float) - np.maximum(a, b)).mean() < 10 and np.ptp(kept) < 200 and np.ptp(fuse(a, b, text="x")) == 255


def test_even_frames_stay_even(small):
    "Two black frames are no picture of the network's border; frames of a few levels are stretched, as released."
    black, white, rising = np.zeros((40, 48), np.uint8), np.full((40, 48), 255, np.uint8), np.tile(np.arange(48, dtype=np.uint8), (40, 1)) // 12 + 100
    for task in TASKS:
        for a, b in ((black, black), (white, white), (black, white)): assert (fuse(a, b, text="nothing", task=task, weights=small) == np.maximum(a, b)).all(), task
    assert np.ptp(fuse(rising, rising, text="nothing", weights=small)) == 255


@pytest.mark.parametrize("dtype, step, levels", [(np.uint8, 1, 256), (np.uint16, 257, 65536)])
def test_two_levels_are_even_at_any_brightness(dtype, step, levels):
    for base in range(0, levels - 3 * step, step):
        for steps in (2, 3):
            source, fused = to_float(np.array([[base, base + steps * step]], dtype)), np.float32([[0.25, 0.5]])
            normalise(fused, source, source)
            assert np.array_equal(fused, source if steps == 2 else [[0, 1]]), base


def test_colour_is_that_of_b():
    a, b = np.random.default_rng(0).random((2, 20, 20, 3), np.float32)
    for task in ("ivf", "mif"): assert np.array_equal(merge_chroma(a, b, a[..., 0], get_task(task)), rgb_to_chroma(b))


def test_where_both_are_clipped_the_darker_decides():
    over, under = np.full((40, 40, 3), np.float32([1, 1, 0.98])), np.full((40, 40, 3), np.float32([0.99, 0.7, 0.5]))
    found = merge_chroma(over, under, under @ LUMA, get_task("mef"))
    assert np.abs(found - rgb_to_chroma(under)).max() < 0.02, np.abs(found - rgb_to_chroma(under)).max()


def test_flat_images_have_the_mean_colour():
    a, b = (np.full((40, 40, 3), np.float32(rgb)) for rgb in ([0.9, 0.3, 0.3], [0.3, 0.3, 0.9]))
    assert np.allclose(merge_chroma(a, b, a[..., 0], get_task("mff")), (rgb_to_chroma(a) + rgb_to_chroma(b)) / 2, atol=1e-5)


def test_any_channel_may_differ():
    for channel in range(3):
        image = np.zeros((16, 16, 3), np.uint8); image[3, 4, channel] = 1
        assert is_colour(image)


@pytest.mark.parametrize("name, most", [("a.webp", 16383), ("a.jpg", 65500)])
def test_sides_that_a_format_does_not_hold(tmp_path, name, most):
    write_image(tmp_path / name, np.zeros((16, most), np.uint8))
    assert read_image(tmp_path / name).shape[1] == most
    with pytest.raises(FilmError, match=f"{most + 1}x16 pixels are too many for"): write_image(tmp_path / name, np.zeros((16, most + 1), np.uint8))


def test_bundled_weights_are_loaded_once():
    assert get_network("mef").model is get_network("MEF", device="cpu").model


def test_what_is_done_to_a_loaded_model_is_done_to_a_copy(images):
    before = fuse("a.png", "b.png", text="a street", device="cpu")
    own = load("ivf", "cpu").double()
    with torch.no_grad(): [parameter.zero_() for parameter in own.parameters()]
    assert np.array_equal(fuse("a.png", "b.png", text="a street", device="cpu"), before)


def test_a_model_runs_itself_and_stays_where_it_is(monkeypatch):
    own = Film(text_width=3, grid=(8, 8), depth=1)
    assert get_network("ivf", own).model is get_network("ivf", own, "cpu").model is own
    monkeypatch.setattr("film.fusion.choose_device", lambda device: torch.device(device))
    assert get_network("ivf", own, "meta").device.type == "meta" and next(own.parameters()).device.type == "cpu"


def test_the_name_of_a_feature_file_is_no_prose(images):
    for text in ("tokens.npy", ["a car", "folder/b.NPY "]):
        with pytest.raises(FilmError, match="Path.*--text-features"): fuse("a.png", "b.png", text=text, device="cpu")


def test_prose_in_an_array_is_said(images):
    with pytest.raises(FilmError, match="are numbers, not <U5"): fuse("a.png", "b.png", text=np.array(["a car"]), device="cpu")


def test_weights_without_text_take_none(images):
    silent = Film(text_width=1, grid=(8, 8), depth=1, text_encoder="constant").eval()
    with pytest.raises(FilmError, match="^text: .*without text"): fuse("a.png", "b.png", text="a car", weights=silent)
    assert fuse("a.png", "b.png", weights=silent).shape == (48, 64, 3)


def test_a_pairs_features_count_wherever_their_encoder_lay(tmp_path, images):
    "By the hash of its weights; what another one made is not taken, the images are described."
    features, image = np.full((1, 4, 384), 0.5, np.float32), np.zeros((20, 20), np.uint8)
    def taken(made_by, needed):
        write_features(tmp_path / "x.npy", features, made_by)
        network = Film(text_width=384, grid=(8, 8), depth=1, text_encoder=needed)
        return np.array_equal(text_tokens(Pair("x", Path("a"), Path("b"), tmp_path / "x.npy"), (image, image), get_task("ivf"), network), features)
    assert taken("minilm:/new/encoder@0123abcd", "minilm:/old/encoder@0123abcd")
    assert not taken("minilm:/new/encoder@0123abcd", "all-MiniLM-L6-v2")


@pytest.mark.parametrize("given", [dict(text="a car"), dict(weights="nowhere"), dict(plain=True), dict(backend="onnx"), dict(dtype="float16"), dict(compile=True), dict(keep_range=True)])
def test_a_rule_takes_nothing_of_the_network(images, given):
    name, pair = next(iter(given)), Pair("a", Path("a.png"), Path("b.png"))
    with pytest.raises(FilmError, match=f"^{name}: for method film only"): fuse("a.png", "b.png", method="maximum", **given)
    given = {key: (lambda pair: value) if key == "text" else value for key, value in given.items()}
    for workers in (1, 2):
        with pytest.raises(FilmError, match=f"^{name}: for method film only"): fuse_pairs([pair], "out", method="maximum", workers=workers, **given)
    assert not Path("out").exists()


def test_a_rule_in_worker_processes(images):
    assert fuse_pairs([Pair("a", Path("a.png"), Path("b.png"))], "out", method="maximum", workers=2, device="cpu", plain=False).done == ["a"]
    assert np.array_equal(read_image("out/a.png"), fuse("a.png", "b.png", method="maximum"))
