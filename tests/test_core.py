"Images from wherever they come, and what threads, processes and short memory may not break."
import io
import os
import subprocess
import sys
import threading
import warnings

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

import film
from film.core import FilmError, as_image, check_image, for_all_threads, lock_folder, memory_for, narrow, read_image, reduced, write_image
from film.large import stretched

COLOUR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"])
def test_pillows_image_is_what_it_shows(mode):
    if mode in ("I", "I;16"): image, shown = Image.fromarray(COLOUR[..., 0].astype(np.uint16) * 257), COLOUR[..., 0].astype(np.uint16) * 257
    elif mode == "F": image, shown = Image.fromarray(COLOUR[..., 0] / np.float32(255)), COLOUR[..., 0] / np.float32(255)
    else:
        image = Image.fromarray(COLOUR).convert(mode)
        shown = np.asarray(image.convert("L" if mode in ("1", "L", "LA") else "RGB"))
    if mode == "I": image = Image.fromarray(np.asarray(image).astype(np.int32))
    assert image.mode == mode and np.array_equal(as_image(image), shown)


def test_pillows_image_is_turned_upright_as_the_file_is(tmp_path):
    image = Image.fromarray(COLOUR)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    opened = Image.open(tmp_path / "turned.png")
    assert np.array_equal(as_image(opened), read_image(tmp_path / "turned.png")) and as_image(opened).shape == (30, 20, 3)
    for name in ("turned.png", "turned.tif"):
        image.save(tmp_path / name, exif=exif)
        raw = (tmp_path / name).read_bytes()
        for source in (raw, bytearray(raw), memoryview(raw), io.BytesIO(raw), open(tmp_path / name, "rb")): assert np.array_equal(as_image(source), read_image(tmp_path / name))


@pytest.mark.parametrize("source, says", [
    (None, "image: a NoneType is no image: give a path"), ({}, "a dict is no image"), (object(), "a object is no image"), (3, "a int is no image"), (b"", "image: not an image that can be decoded"),
    (b"GIF89a broken", "not an image that can be decoded"), ("a\0b", "cannot be read .embedded null byte"), (bytes(128) + b"DICM" + bytes(300), "image: DICOM is not read here: save it as PNG or TIFF"),
    (bytes(344) + b"n+1\0", "NIfTI is not read here"), (b"v/1\x01" + bytes(40), "OpenEXR is not read here"), (b"\x1f\x8b" + bytes(40), "gzip .NIfTI.. is not read here"),
])
def test_what_is_no_image_is_said_in_a_line(source, says):
    with pytest.raises(FilmError, match=says) as caught: as_image(source)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=30)
@given(st.integers(17, 300), st.integers(17, 300), st.floats(0, 1, width=32))
def test_a_smaller_copy_stays_in_range(height, width, level):
    image = np.full((height, width), level, np.float32)
    image[::3] = 1
    small = reduced(image, 16)
    assert small.max() <= 1 and small.min() >= level
    check_image(np.pad(small, 16))


def test_white_floats_of_any_size_are_fused(tmp_path):
    "A mean of ones is rounded to a little more than 1."
    image = np.ones((4610 // 8, 4610), np.float32)
    assert reduced(image, 2048).max() == 1 and cv2.resize(image, (2048, 256), interpolation=cv2.INTER_AREA).max() > 1
    assert film.text.automatic_text(image, film.TASKS["ivf"], "VI")


def test_an_extension_alone_names_no_format(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FilmError, match="^.png: cannot write a file without extension"): write_image(".png", COLOUR)


def test_a_link_is_kept_and_what_it_names_is_written(tmp_path):
    write_image(tmp_path / "real" / "a.png", COLOUR)
    (tmp_path / "link.png").symlink_to(tmp_path / "real" / "a.png")
    write_image(tmp_path / "link.png", 255 - COLOUR)
    assert (tmp_path / "link.png").is_symlink() and np.array_equal(read_image(tmp_path / "real" / "a.png"), 255 - COLOUR) and len(list(tmp_path.rglob("*"))) == 3


def test_narrow_images_are_said_wherever_a_file_is_read(tmp_path):
    "And scored as the 8-bit images they come from, once stretched."
    eight = np.random.default_rng(1).integers(0, 256, (64, 80), np.uint8)
    eight[:4, :40], eight[:4, 40:] = 0, 255  # its ends are no rare pixels
    raw = 7000 + 8 * eight.astype(np.uint16)
    for name, image in (("raw", raw), ("eight", eight)): write_image(tmp_path / f"{name}.png", image)
    assert narrow(raw) == "its 16-bit values, 7000 to 9040, span 3.1 % of the range" and not narrow(eight) and not narrow(np.zeros((20, 20), np.uint16)) and not narrow(eight.astype(np.uint16) * 257)
    for call, says in ((lambda: film.metrics(eight, tmp_path / "raw.png", eight), "raw.png: its 16-bit values, 7000 to 9040, .* scored as nearly one gray"), (lambda: film.describe(tmp_path / "raw.png"), "described as nearly one gray"),
                       (lambda: film.data._read_gray(tmp_path / "raw.png"), "look nearly one gray")):
        with pytest.warns(UserWarning, match=says): call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert film.metrics(eight, tmp_path / "raw.png", eight, stretch=True) == pytest.approx(film.metrics(eight, tmp_path / "eight.png", eight), rel=1e-3)


@pytest.mark.parametrize("scale", [lambda x: 290 + x / 10, lambda x: x - 1000.0, lambda x: (x.astype(np.int16) - 128), lambda x: x.astype(np.int32) * 1000])
def test_temperatures_and_other_numbers_are_stretched(tmp_path, scale):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    numbers = scale(ramp)
    with pytest.raises(FilmError, match=r"film.fuse scales other.* with stretch=True \(--stretch\)"): film.fuse(numbers, ramp, method="average")
    assert np.abs(film.fuse(numbers, ramp, method="average", stretch=True).astype(int) - ramp).max() <= 1
    assert stretched(np.full((20, 20), 300.0, np.float32)).max() == 0
    numbers = numbers.astype(np.float32)
    numbers[0, 0] = np.nan
    with pytest.raises(FilmError, match="NaN"): film.fuse(numbers, ramp, method="average", stretch=True)


def test_memory_that_is_short_is_a_line():
    import torch
    for short in (lambda: cv2.resize(np.zeros((4, 4), np.uint8), (1 << 30, 1 << 30)), lambda: np.empty(1 << 55), lambda: torch.empty(1 << 55)):
        with pytest.raises(FilmError, match="p1: not enough memory; make the images smaller"), memory_for("p1"): short()
    for other in (cv2.error("assertion"), RuntimeError("sizes"), ZeroDivisionError()):
        with pytest.raises(type(other)), memory_for("p1"): raise other


def test_a_change_for_all_threads_lasts_until_the_last_is_out():
    log, gate = [], threading.Barrier(4)

    @for_all_threads
    def change():
        class Manager:
            def __enter__(self): log.append("in")
            def __exit__(self, *_): log.append("out")
        return Manager()

    def work():
        for _ in range(20):
            with change(): gate.wait(10); assert log[-1] == "in"; gate.wait(10)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert log[0] == "in" and log[-1] == "out" and all(one != other for one, other in zip(log, log[1:]))


def test_a_lock_holds_in_one_process_too(tmp_path):
    lock = lock_folder(tmp_path / "run", "training")
    with pytest.raises(FilmError, match="another training is running there"): lock_folder(tmp_path / "run", "training")
    lock.close()
    lock_folder(tmp_path / "run", "training").close()


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    "Such as those of some clusters."
    import errno, fcntl
    def flock(*_): raise OSError(errno.ENOSYS, "Function not implemented")
    monkeypatch.setattr(fcntl, "flock", flock)
    lock_folder(tmp_path / "run", "training").close()


FIRST_CALLS = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import film
image = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
with ThreadPoolExecutor(4) as pool: results = list(pool.map(lambda _: film.fuse(image, image), range(4)))
assert all(np.array_equal(result, film.fuse(image, image)) for result in results) and sys.stdout is sys.__stdout__
with ThreadPoolExecutor(4) as pool: list(pool.map(film.load, ["ivf", "mif", "mef", "mff"] * 2))
import film.encoding, film.fusion
assert len(film.encoding._loaded) == 1 and film.fusion._read_once.cache_info().misses == 4, film.fusion._read_once.cache_info()
print("heard")
"""

FORKED = """
import multiprocessing
import numpy as np, torch
import film
image = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
def work(_): return film.fuse(image, image)
torch.set_num_threads(2)
here = work(0)
with multiprocessing.get_context("fork").Pool(2) as pool: assert all(np.array_equal(here, there) for there in pool.map_async(work, range(2)).get(100))
assert torch.get_num_threads() == 2
print("heard")
"""


@pytest.mark.parametrize("script", [FIRST_CALLS, pytest.param(FORKED, marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"))], ids=["threads", "fork"])
def test_as_servers_call_it(script):
    "The first calls in several threads; processes forked after a call."
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout == "heard\n" and done.returncode == 0, done.stderr[-2000:]


def test_type_checkers_see_what_is_loaded_late():
    import ast, inspect
    block = next(node for node in ast.walk(ast.parse(inspect.getsource(film))) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    names = {alias.name: node.module and f"film.{node.module}" for node in block.body for alias in node.names}
    assert names | {"widgets": "film.widgets"} == film._PUBLIC
