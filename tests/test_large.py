"Fusing within a memory limit: the same result, from arrays that lie in a mapped file, strip by strip."
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch

from film import cli, fast, large
from film.core import FilmError, check_image, read_image, write_image
from film.fusion import fuse
from film.large import Room, mapped, read_large, write_large
from film.network import Film

needs_kernels = pytest.mark.skipif(fast.library() is None, reason="the native kernels are not built (no C++ compiler at installation)")
LEAST = f"{large.WORKING}"  # every array is mapped


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Film(text_width=16, grid=(32, 48), depth=2).eval()


@pytest.fixture
def spilled(monkeypatch):
    "Sizes of all mapped files."
    sizes = []
    monkeypatch.setattr(large, "mapped", lambda size: sizes.append(size) or mapped(size))
    return sizes


@needs_kernels
def test_network_equal(model, spilled):
    a, b, text = torch.rand(2, 1, 70, 90), torch.rand(2, 1, 70, 90), torch.randn(2, 5, 16)
    with torch.inference_mode():
        free = fast.forward(model, a, b, text)
        assert not spilled
        assert (fast.forward(model, a, b, text, room=Room(LEAST)) - free).abs().max() <= 1e-5
    assert 4 * 70 * 90 * 64 in spilled and 4 * 70 * 90 * 32 in spilled


@needs_kernels
@pytest.mark.parametrize("task", ["ivf", "mef", "mff"])
@pytest.mark.parametrize("coloured", ["both", "b", "none"])
def test_fuse_equal(model, spilled, monkeypatch, tmp_path, task, coloured):
    "Whole against strips of a few rows, TIFF in and out; parts of the coloured images are gray."
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (90, 60, 3), np.uint8) for _ in "ab")
    for image in (a, b): image[20:50] = image[20:50, :, :1]
    if coloured != "both": a = a[..., 0]
    if coloured == "none": b = b[..., 0]
    options = dict(task=task, text=rng.standard_normal((3, 16), np.float32), weights=model)
    whole = fuse(a, b, **options)
    write_large(tmp_path / "a.tif", a); write_image(tmp_path / "b.png", b)
    monkeypatch.setattr(large, "STRIP", 60 * 7)
    limited = fuse(tmp_path / "a.tif", tmp_path / "b.png", max_memory=LEAST, **options)
    assert limited.shape == whole.shape and np.abs(limited.astype(int) - whole).max() <= (1 if coloured != "none" else 0)  # a rounding may tip
    assert np.mean(limited != whole) < 1e-3 and len(spilled) > 5
    write_large(tmp_path / "out.tif", limited)
    with tifffile.TiffFile(tmp_path / "out.tif") as file: assert len(file.pages[0].dataoffsets) > 5
    assert np.array_equal(read_image(tmp_path / "out.tif"), limited)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [dict(), dict(tile=(32, 16)), dict(rowsperstrip=7, compression="zlib", predictor=True)])
def test_read(tmp_path, dtype, channels, kind):
    image = np.random.default_rng(0).random((40, 50, channels)[:2 + (channels > 1)], np.float32)
    if not np.issubdtype(dtype, np.floating): image = (image * np.iinfo(dtype).max).astype(dtype)
    else:
        image = image.astype(dtype)
        if "predictor" in kind: kind = kind | dict(predictor=False)  # of floats needs imagecodecs
    tifffile.imwrite(tmp_path / "x.tif", image, photometric="minisblack" if channels < 3 else "rgb", planarconfig="contig" if channels > 1 else None, extrasamples=["unassalpha"] if channels in (2, 4) else None, **kind)
    without_alpha = image[..., 0] if channels == 2 else image[..., :3] if channels > 2 else image
    for found in (read_large(tmp_path / "x.tif", Room(LEAST)), read_image(tmp_path / "x.tif")):
        assert np.array_equal(found, without_alpha) and found.dtype == (np.float32 if dtype == np.float16 else dtype)


def test_other_kinds_go_to_opencv(tmp_path):
    "Palettes, planes and turned pictures look as `read_image` shows them."
    image = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    tifffile.imwrite(tmp_path / "palette.tif", image, photometric="palette", colormap=np.random.default_rng(1).integers(0, 65536, (3, 256), np.uint16))
    tifffile.imwrite(tmp_path / "turned.tif", image, extratags=[(274, 3, 1, 3, True)])
    tifffile.imwrite(tmp_path / "planes.tif", np.stack([image, image.T.reshape(40, 50), 255 - image]), photometric="rgb", planarconfig="separate")
    for name in ("palette.tif", "turned.tif", "planes.tif"): assert np.array_equal(read_large(tmp_path / name, Room(LEAST)), read_image(tmp_path / name))


def test_bad_values(tmp_path):
    for value, says in ((np.nan, "NaN"), (7, "must lie in")):
        image = np.full((40, 50), .5, np.float32)
        image[30, 3] = value
        tifffile.imwrite(tmp_path / "x.tif", image)
        with pytest.raises(FilmError, match=says): read_large(tmp_path / "x.tif", Room(LEAST))
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((40, 50), np.float32), photometric="miniswhite")
    with pytest.raises(FilmError, match="inverted gray in float"): read_image(tmp_path / "x.tif")
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((40, 50), np.uint8))
    with tifffile.TiffFile(tmp_path / "x.tif", mode="r+") as file:
        for side in ("ImageWidth", "ImageLength"): file.pages[0].tags[side].overwrite(33000)
    for read in (read_image, lambda path: read_large(path, Room(LEAST))):
        with pytest.raises(FilmError, match="33000x33000 pixels are more than can be read"): read(tmp_path / "x.tif")
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((4, 50), np.uint8))
    with pytest.raises(FilmError, match="too small"): read_large(tmp_path / "x.tif", Room(LEAST))


def test_checking_floats_takes_no_memory():
    import tracemalloc
    image = np.random.default_rng(0).random((500, 600), np.float32)
    tracemalloc.start()
    try:
        assert check_image(image) is image and tracemalloc.get_traced_memory()[1] < 20_000
    finally: tracemalloc.stop()


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_floats_are_not_written(tmp_path, name):
    for write in (write_image, write_large):
        for image in (np.random.rand(20, 30), np.zeros((20, 30), bool)):
            with pytest.raises(FilmError, match=f"{name}: {image.dtype} cannot be written: make uint8"): write(tmp_path / name, image)
    assert not list(tmp_path.iterdir())


def test_disk(monkeypatch, tmp_path):
    "Too small a disk is one line, and nothing is left in the folder that was asked for."
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    room = Room(LEAST)
    array = room.empty((100, 100))
    array[:] = 1
    assert array.sum() == 10_000 and not list(tmp_path.iterdir())
    with pytest.raises(FilmError, match="are free: set TMPDIR"): room.empty((1 << 30, 1 << 20))
    monkeypatch.setattr(large.shutil, "disk_usage", lambda folder: type("Usage", (), dict(free=1 << 62)))
    with pytest.raises(FilmError, match="set TMPDIR"): room.empty((1 << 30, 1 << 20))
    assert not list(tmp_path.iterdir())


def test_torch_form_says_what_it_needs(model, monkeypatch):
    monkeypatch.setattr(fast, "library", lambda: None)
    a, text = torch.rand(1, 1, 300, 300), torch.randn(1, 5, 16)
    with torch.inference_mode(), pytest.raises(FilmError, match="native kernels"): fast.forward(model, a, a, text, room=Room(LEAST))


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_limit_holds(tmp_path):
    "The most anonymous memory during a fusion, above what the process held before: with a limit of 100 MB and without one, where the arrays alone take 220."
    for name in "ab": write_large(tmp_path / f"{name}.tif", np.random.default_rng(0).integers(0, 256, (600, 900), np.uint8))
    code = """if True:
        import sys, threading, numpy as np
        from film.fusion import fuse
        from film.large import read_large
        from film.network import Film
        def held(): return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
        model, text, most, done = Film(text_width=16, grid=(32, 48), depth=1).eval(), np.zeros((3, 16), np.float32), [0], threading.Event()
        fuse(np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8), text=text, weights=model)
        def watch():
            while not done.wait(.005): most.append(held())
        before, watcher = held(), threading.Thread(target=watch)
        watcher.start()
        try: fuse("a.tif", "b.tif", text=text, weights=model, max_memory=sys.argv[1] if len(sys.argv) > 1 else None)
        finally: done.set(); watcher.join()
        print(max(most) - before)"""
    limited, free = (int(subprocess.run([sys.executable, "-c", code, *limit], cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=True).stdout.split()[-1]) for limit in (["100MB"], []))
    assert limited < 100e6 and free > 200e6


@needs_kernels
def test_command(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in "ab": write_large(tmp_path / f"{name}.tif", rng.integers(0, 256, (40, 50, 3), np.uint8))
    command = ["fuse", str(tmp_path / "a.tif"), str(tmp_path / "b.tif"), "--text", "noise", "-o"]
    assert cli.main([*command, str(tmp_path / "free.tif")]) == 0 and cli.main([*command, str(tmp_path / "limited.tif"), "--max-memory", "64MB"]) == 0
    assert np.abs(read_image(tmp_path / "free.tif").astype(int) - read_image(tmp_path / "limited.tif")).max() <= 1
    for size, says in (("1MB", "at least 64 MB"), ("much", "not a size")):
        assert cli.main([*command, str(tmp_path / "no.tif"), "--max-memory", size]) == 2 and says in capsys.readouterr().err
    assert cli.main([*command[:3], "-o", str(tmp_path / "no.tif"), "--max-memory", "1GB", "--method", "average"]) == 2 and "needs method film" in capsys.readouterr().err
    assert not (tmp_path / "no.tif").exists()
