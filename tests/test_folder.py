"Many pairs: the pipeline of threads and the worker processes give what one pair at a time gives, whatever happens on the way."
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from film import fusion
from film.cli import main
from film.core import FilmError, read_image, write_image
from film.data import pair_folders
from film.fusion import fuse, fuse_pairs
from film.network import Film

NAMES = [f"p{i}" for i in range(6)]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    "Six pairs in a/ and b/: p0 to p2 and p5 of one size, p3 of another, p4 damaged; B in colour."
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        shape = (40, 24) if i == 3 else (24, 32)
        write_image(tmp_path / "a" / f"{name}.png", rng.integers(0, 256, shape, np.uint8))
        write_image(tmp_path / "b" / f"{name}.png", rng.integers(0, 256, (*shape, 3), np.uint8))
    (tmp_path / "b" / "p4.png").write_text("not a picture")
    monkeypatch.chdir(tmp_path)
    return pair_folders("a", "b")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Film(text_width=384, grid=(32, 48), depth=1, text_encoder="all-MiniLM-L6-v2").eval()


def test_arrays_of_any_layout(model):
    rng = np.random.default_rng(0)
    a, b, text = rng.random((24, 32), np.float32), rng.random((24, 32), np.float32), rng.standard_normal((3, 384)).astype(np.float32)
    mirrored, there = fuse(a[::-1], b[:, ::-1], text=text[::-1], weights=model), fuse(a[::-1].copy(), b[:, ::-1].copy(), text=text[::-1].copy(), weights=model)
    assert np.array_equal(mirrored, there) and np.array_equal(fusion.fuse_luma(model, a[::-1], b, text[None]), fusion.fuse_luma(model, a[::-1].copy(), b, text[None]))


def text(pair):
    "Of another length for every pair."
    return np.random.default_rng(int(pair.name[1:])).standard_normal((1, 2 + int(pair.name[1:]), 384)).astype(np.float32)


def expect_all(summary, out, folders, weights, **options):
    "The summary names what there is, in order, and each picture is that of the pair alone."
    assert summary.done == ["p0", "p1", "p2", "p3", "p5"] and list(summary.failed) == ["p4"] and "not an image" in summary.failed["p4"]
    assert sorted(p.name for p in out.iterdir()) == [f"{name}.png" for name in summary.done]
    for pair in folders:
        if pair.name != "p4": assert np.array_equal(read_image(out / f"{pair.name}.png"), fuse(pair.a, pair.b, text=text(pair), weights=weights, **options)), pair.name


@pytest.mark.parametrize("batch", [None, 1, 2, 8])
def test_same_as_one_by_one(folders, tmp_path, model, batch):
    expect_all(fuse_pairs(folders, "out", weights=model, text=text, batch=batch), tmp_path / "out", folders, model)


def test_a_line_now_and_then_without_a_terminal(folders, model, monkeypatch, capsys):
    fuse_pairs(folders, "out", weights=model, text=text)
    assert "fusing" not in capsys.readouterr().err
    monkeypatch.setattr(fusion, "LINE_EVERY", 0)
    fuse_pairs(folders, "out", weights=model, text=text)
    assert capsys.readouterr().err.splitlines() == [f"fusing: {n} of 6" for n in range(1, 7)]


def test_rules_and_gray(folders, tmp_path):
    summary = fuse_pairs(folders, "out", method="average", colour=False, task="mff")
    assert len(summary.done) == 5
    for name in summary.done: assert np.array_equal(read_image(f"out/{name}.png"), fuse(f"a/{name}.png", f"b/{name}.png", method="average", colour=False, task="mff"))


def test_processes_share_the_threads(folders, tmp_path, model):
    expect_all(fuse_pairs(folders, "out", weights=model, text=text, workers=2), tmp_path / "out", folders, model)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        pool = fusion.ProcessPoolExecutor(1, fusion.multiprocessing.get_context("spawn"), fusion._start_worker, (torch.get_num_threads() // 2, {}))
        with pool: assert pool.submit(torch.get_num_threads).result() == 2
    finally: torch.set_num_threads(before)


def test_reading_and_writing_overlap_within_bounds(folders, model, monkeypatch):
    "The next pair is read while the network runs; never more than a few pairs are under way."
    under_way, most, begun, seen, lock = 0, 0, 0, set(), threading.Lock()
    prepare, forward, finish = fusion.prepare, fusion.fuse_lumas, fusion.finish
    reading_next = threading.Event()

    def count(change):
        nonlocal under_way, most, begun
        with lock: under_way += change; most = max(most, under_way); begun += change > 0
        if begun > 1: reading_next.set()
    def counted_prepare(*args, **kwargs):
        count(1)
        return prepare(*args, **kwargs)
    def slow_forward(*args):
        seen.add(threading.current_thread())
        assert reading_next.wait(60), "the next pair is not read before the network is done with the first"
        time.sleep(.05)
        return forward(*args)
    def counted_finish(*args):
        assert threading.current_thread() is not threading.main_thread()
        time.sleep(.02)
        count(-1)
        return finish(*args)
    for name, function in (("prepare", counted_prepare), ("fuse_lumas", slow_forward), ("finish", counted_finish)): monkeypatch.setattr(fusion, name, function)
    pairs = [replace(pair, name=f"{pair.name}{k}") for k in range(4) for pair in folders if pair.name != "p4"]
    assert len(fuse_pairs(pairs, "out", weights=model, text=text).done) == 20
    assert seen == {threading.main_thread()} and 2 <= most <= 2 * fusion.AHEAD + 2 and under_way == 0


def test_memory_limit_takes_pairs_in_turn(folders, model, monkeypatch):
    under_way, prepare, finish = [], fusion.prepare, fusion.finish
    def one(*args):
        assert not under_way
        under_way.append(1)
        return prepare(*args)
    monkeypatch.setattr(fusion, "prepare", one)
    monkeypatch.setattr(fusion, "finish", lambda *args: (under_way.pop(), finish(*args))[1])
    pairs = [pair for pair in folders if pair.name != "p4"]
    assert len(fuse_pairs(pairs, "out", weights=model, text=text, max_memory="300MB").done) == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_a_text_that_fails_is_the_pairs_own(folders, model, workers):
    "And pairs may come from an iterator."
    def failing(pair):
        if pair.name == "p1": raise FilmError("no text for p1")
        return text(pair)
    summary = fuse_pairs(iter(folders[:3]), "out", weights=model, text=failing, workers=workers, device="cpu")
    assert summary.done == ["p0", "p2"] and summary.failed == {"p1": "no text for p1"}


def test_an_error_of_the_network_or_the_disk_is_the_pairs_own(folders, tmp_path, model, monkeypatch):
    forward = fusion.fuse_lumas
    def failing(network, pairs, room):
        if pairs[0][0].shape == (40, 24): raise FilmError("not enough memory to fuse")
        return forward(network, pairs, room)
    monkeypatch.setattr(fusion, "fuse_lumas", failing)
    (tmp_path / "out" / "p1.png").mkdir(parents=True)  # cannot be replaced by a file
    summary = fuse_pairs(folders, "out", weights=model, text=text)
    assert summary.done == ["p0", "p2", "p5"] and list(summary.failed) == ["p1", "p3", "p4"] and "cannot be written" in summary.failed["p1"]


def test_out_of_memory_is_the_pairs_own(folders, model, monkeypatch):
    "A group that does not fit is tried pair by pair; what does not fit alone fails alone, in one line."
    forward, sizes = Film.forward, []
    def small(self, a, *args, **kwargs):
        sizes.append(len(a))
        if len(a) > 1 or a.shape[-2:] == (40, 24): raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(self, a, *args, **kwargs)
    monkeypatch.setattr(Film, "forward", small)
    summary = fuse_pairs(folders, "out", weights=model, text=text, batch=2, plain=True)
    assert summary.done == ["p0", "p1", "p2", "p5"] and list(summary.failed) == ["p3", "p4"] and summary.failed["p3"].startswith("24x40: not enough memory on cpu") and max(sizes) == 2
    monkeypatch.setattr(Film, "forward", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError): fuse_pairs(folders[:1], "other", weights=model, text=text, plain=True)  # a bug is no lack of memory


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_interrupted_run_leaves_whole_files_and_resumes(folders, tmp_path, model, monkeypatch, error):
    "Ctrl-C (or a bug) in the third pair: what is written is whole, threads are gone, and resume makes the rest."
    forward, calls = fusion.fuse_lumas, []
    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3: raise error
        return forward(*args)
    threads = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(fusion, "fuse_lumas", interrupted)
        with pytest.raises(error): fuse_pairs(folders, "out", weights=model, text=text)
    assert threading.active_count() == threads
    there = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert set(there) <= {"p0.png", "p1.png"}
    summary = fuse_pairs(folders, "out", weights=model, text=text, resume=True)
    assert summary.skipped == [name.removesuffix(".png") for name in there] and len(summary.skipped) + len(summary.done) == 5
    for name in ("p0", "p5"): assert np.array_equal(read_image(f"out/{name}.png"), fuse(f"a/{name}.png", f"b/{name}.png", text=text(folders[NAMES.index(name)]), weights=model))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_run_resumes(folders, tmp_path, model, capsys, workers):
    "SIGKILL in the middle: only whole pictures under their names; the same command with --resume makes the rest; no process stays."
    for i in range(6, 40):
        for side in "ab": os.link(f"{side}/p0.png", f"{side}/q{i:02d}.png")
    model.save_pretrained("weights")
    command = ["fuse", "a", "b", "-o", "out", "--weights", "weights", "--text", "one", "--workers", workers, "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "film", *command], env={**os.environ, "OMP_NUM_THREADS": "2"}, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 120
    while not list(tmp_path.glob("out/[pq]*.png")) and time.monotonic() < give_up and process.poll() is None: time.sleep(.01)
    children = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()] if workers != "1" else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = list(tmp_path.glob("out/[pq]*.png"))
    assert there and len(there) < 39
    for path in there: assert read_image(path).shape == read_image(f"b/{path.name}").shape
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < give_up: time.sleep(.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    there = list(tmp_path.glob("out/[pq]*.png"))
    assert main([*command[:-4], "--device", "cpu", "--resume"]) == 1  # p4 is damaged
    assert f"{39 - len(there)} fused, {len(there)} skipped (already there), 1 failed" in capsys.readouterr().out
    assert len(list(tmp_path.glob("out/[pq]*.png"))) == 39


@pytest.mark.parametrize("options, says", [
    (dict(method="magic"), "unknown method"), (dict(weights="nowhere"), "no such weights"), (dict(workers=0), "at least 1"), (dict(workers=2, weights="nowhere"), "no such weights"),
    (dict(method="average", max_memory="1GB"), "needs method film"), (dict(workers=2, max_memory="1GB"), "leave out the workers"), (dict(workers=2, batch=2), "leave out the workers"), (dict(batch=0), "at least 1"), (dict(batch=2, max_memory="1GB"), "leave out the batch"), (dict(backend="onnx", plain=True), "plain: for torch only"),
])
def test_what_is_wrong_for_all_is_said_once(folders, options, says):
    with pytest.raises(FilmError, match=says): fuse_pairs(folders, "out", **options)
    assert not Path("out").exists()


def test_a_pair_too_large_for_the_memory_is_that_pairs_line(tmp_path, monkeypatch):
    read = fusion.read_large
    def short(path, room, any_range):
        if Path(path).stem == "b": raise MemoryError
        return read(path, room, any_range)
    monkeypatch.setattr(fusion, "read_large", short)
    for side in "AB":
        for name in "abc": write_image(tmp_path / side / f"{name}.png", np.random.default_rng(0).integers(0, 256, (20, 24), np.uint8))
    summary = fuse_pairs(pair_folders(tmp_path / "A", tmp_path / "B"), tmp_path / "out", method="average")
    assert summary.done == ["a", "c"] and "b: not enough memory" in str(summary)


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("OpenCV: error: (-4:Insufficient memory) Failed to allocate 9 bytes"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_rule_without_memory_for_a_pair_goes_on_with_the_others(tmp_path, monkeypatch, error):
    for side in "AB":
        for name, level in zip("abc", (10, 200, 30)): write_image(tmp_path / side / f"{name}.png", np.full((20, 24), level, np.uint8))
    def short(a, b):
        if a.max() > 0.5: raise error
        return a
    monkeypatch.setitem(fusion.METHODS, "average", short)
    summary = fuse_pairs(pair_folders(tmp_path / "A", tmp_path / "B"), tmp_path / "out", method="average")
    assert summary.done == ["a", "c"] and "b: average: not enough memory; make the images smaller" in str(summary)
    fusion._job.update(method="average")
    assert fusion._work("b", tmp_path / "A" / "b.png", tmp_path / "B" / "b.png", None, tmp_path / "x.png") == ("b", "not enough memory; make the images smaller")
    fusion._job.clear()


def test_what_is_resumed_is_a_picture(folders, model):
    "An empty file, as a full disk leaves it elsewhere, and a folder of that name are none."
    write_image("out/p0.png", read_image("a/p0.png"))
    Path("out/p1.png").touch(), Path("out/p2.png").mkdir()
    summary = fuse_pairs(folders, "out", weights=model, text=text, resume=True)
    assert summary.skipped == ["p0"] and summary.done == ["p1", "p3", "p5"] and "p2.png: cannot be written" in summary.failed["p2"]


def test_pairs_of_one_name_are_refused(folders):
    with pytest.raises(FilmError, match="p0: the name of several pairs"): fuse_pairs([*folders, folders[0]], "out", method="average")
    assert not Path("out").exists()
