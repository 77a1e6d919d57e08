"Training runs that are killed, interrupted, poisoned, or started twice."
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from film.cli import main
from film.core import TASKS, WEIGHTS_FOLDER, FilmError, lock_folder, read_image, to_gray, write_image
from film.data import find_pairs, pack
from film.encoding import write_features
from film.fusion import load, load_weights
from film.losses import LossSettings, fusion_loss
from film.network import Film
from film.text import automatic_text, describe
from film.training import PRESETS, Run, learning_rate, make_settings, text_features, train, training_pairs

TINY = dict(dataset="Tiny", depth=1, grid=(8, 32), crop=(32, 32), max_steps=30, epochs=99, lr=1e-3, batch_size=2)


def command(root, out, *more, steps=30):
    options = ["--preset", "quick", "--dataset", "Tiny", "--depth", "1", "--grid", "8", "32", "--crop", "32", "32", "--max-steps", str(steps), "--epochs", "99", "--batch-size", "2"]
    return [sys.executable, "-m", "film", "train", "--data", str(root), "--out", str(out), "--device", "cpu", "--log-every", "1", "--checkpoint-every", "4", *options, *more]


def wait_for_step(run, process, step):
    "Until the run's log shows the step."
    for _ in range(6000):  # starting can take a while on a busy machine
        if process.poll() is not None: raise AssertionError(f"ended early: {process.stderr.read()}")
        if (run / "log.jsonl").exists() and len((run / "log.jsonl").read_text().splitlines()) >= step: return
        time.sleep(0.05)
    raise AssertionError("the run did not get that far")


def start(root, out, *more, steps=30): return subprocess.Popen(command(root, out, *more, steps=steps), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_killed_run_resumes_bit_for_bit(dataset, tmp_path):
    "SIGKILL in mid-epoch (3 batches an epoch, a checkpoint every 4 steps), twice; the end is that of a run never stopped."
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(dataset, whole), check=True, capture_output=True)
    for step in (6, 17):
        process = start(dataset, killed, "--resume")
        wait_for_step(killed, process, step)
        process.kill(); process.communicate()
    assert not (killed / "weights").exists()
    subprocess.run(command(dataset, killed, "--resume"), check=True, capture_output=True)
    one, other = (load_file(run / "weights" / "model.safetensors") for run in (whole, killed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (whole, killed)]
    assert logs[0] == logs[1] and [line["step"] for line in logs[0]] == list(range(1, 31))
    notes = [json.loads((run / "made_with.json").read_text()) for run in (whole, killed)]
    assert notes[0] == notes[1] and [(line["step"], line["torch"], line["processes"]) for line in notes[0]] == [(0, torch.__version__, 1)]
    assert logs[0][-1]["total"] < logs[0][0]["total"]
    assert (killed / "pictures" / "step_000030.png").exists() and any((killed / "tensorboard").iterdir())
    assert Film.from_pretrained(killed / "weights").text_encoder == "all-MiniLM-L6-v2"


def test_a_run_notes_what_it_went_on_with(tmp_path, monkeypatch):
    run, cpu = Run(tmp_path, make_settings(), False), torch.device("cpu")
    def noted(step):
        run.note(step, cpu, 1)
        return [line["step"] for line in json.loads((tmp_path / "made_with.json").read_text())]
    assert noted(0) == [0] == noted(30)
    monkeypatch.setattr("film.fast.backend", lambda: "another machine")
    assert noted(30) == [0, 30] == noted(50)
    assert noted(20) == [0, 20]  # its checkpoint was older than the last step it noted
    (tmp_path / "made_with.json").write_text("{")
    assert noted(60) == [60]


def test_trains_from_a_packed_file(dataset, tmp_path):
    "The same weights and validation loss as from the files that were packed."
    settings = make_settings("quick", **TINY | dict(max_steps=4, validation=2))
    files = train(settings, dataset, tmp_path / "files", device="cpu", log_every=1)
    texts, encoder = text_features(training_pairs(dataset, settings), "ivf", "minilm", tmp_path / "files" / "texts")
    pack(tmp_path / "tiny.h5", find_pairs(dataset, "ivf", "Tiny", "train"), "ivf", "whole", texts, encoder)
    packed = train(settings, tmp_path / "tiny.h5", tmp_path / "packed", device="cpu", log_every=1)
    one, other = (load_file(folder / "model.safetensors") for folder in (files, packed))
    assert all(torch.equal(one[name], other[name]) for name in one) and Film.from_pretrained(packed).text_encoder == "all-MiniLM-L6-v2"
    logs = [[json.loads(line) for line in (run.parent / "log.jsonl").read_text().splitlines()] for run in (files, packed)]
    assert [line.get("total") for line in logs[0]] == [line.get("total") for line in logs[1]] and abs(logs[0][-1]["validation"] - logs[1][-1]["validation"]) < 1e-4
    with pytest.raises(FilmError, match="brings its text"): train(make_settings("quick", **TINY | dict(encoder="constant")), tmp_path / "tiny.h5", tmp_path / "silent", device="cpu")


def test_ctrl_c_leaves_a_checkpoint(dataset, tmp_path):
    run = tmp_path / "run"
    process = start(dataset, run, steps=5000)
    wait_for_step(run, process, 6)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "continue with --resume" in out and "Traceback" not in err
    step = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    assert step == json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"]  # nothing that was done is lost
    film = load_weights(run / "checkpoint.pt")
    assert (film.depth, film.grid, film.text_encoder) == (1, (8, 32), "all-MiniLM-L6-v2")


def test_a_checkpoint_with_a_wrong_grid_is_refused(tmp_path):
    state = Film(depth=1, grid=(8, 32), text_width=16).state_dict()
    for grid in ("wide", (7, 3), (-8, 32), (8,), None):
        torch.save(dict(model=state, grid=grid), tmp_path / "checkpoint.pt")
        with pytest.raises(FilmError): load_weights(tmp_path / "checkpoint.pt")
    torch.save(dict(model=state, grid=(8, 32)), tmp_path / "checkpoint.pt")
    assert load_weights(tmp_path / "checkpoint.pt").grid == (8, 32)


def test_loss_that_is_not_finite_names_the_sample(dataset, tmp_path):
    with pytest.raises(FilmError, match=r"the loss became \S+ at step \d+ .* on p\d, p\d"):
        train(make_settings("quick", **TINY | dict(lr=1e30, warmup=1, clip=None)), dataset, tmp_path / "run", device="cpu")


def test_what_ends_a_run_leaves_nothing_open(dataset, tmp_path):
    "While the error is still looked at, as a notebook does with the last one, the folder is free and no thread goes on."
    settings = make_settings("quick", **TINY | dict(lr=1e30, warmup=1, clip=None))
    before = {*threading.enumerate()}
    with pytest.raises(FilmError, match="the loss became") as caught: train(settings, dataset, tmp_path / "run", device="cpu")
    assert not [thread for thread in {*threading.enumerate()} - before if type(thread).__name__ != "TMonitor"]  # tqdm's own, one a process
    lock_folder(tmp_path / "run", "training").close()
    with pytest.raises(FilmError, match="holds a training run already") as again: Run(tmp_path / "run", settings, False)
    lock_folder(tmp_path / "run", "training").close()
    assert caught.value.__traceback__ and again.value.__traceback__


def test_a_run_is_not_overwritten_or_changed(dataset, tmp_path, capsys):
    run, settings = tmp_path / "run", make_settings("quick", **TINY | dict(max_steps=2))
    assert train(settings, dataset, run, device="cpu") == run / "weights"
    with pytest.raises(FilmError, match="--resume"): train(settings, dataset, run, device="cpu")
    with pytest.raises(FilmError, match=r"lr 0.001 -> 0.002"): train(make_settings("quick", **TINY | dict(max_steps=2, lr=2e-3)), dataset, run, resume=True, device="cpu")
    older = json.loads((run / "settings.json").read_text()) | dict(task="IVF"); del older["plain"]
    (run / "settings.json").write_text(json.dumps(older))
    assert train(settings, dataset, run, resume=True, device="cpu") == run / "weights"  # begun before there was that setting, and when a task kept its capitals
    (run / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(FilmError, match="cannot be loaded safely"): train(settings, dataset, run, resume=True, device="cpu")
    (run / "settings.json").unlink()
    for resume in (False, True):  # whose they are, nobody knows
        with pytest.raises(FilmError, match="holds checkpoint.pt, log.jsonl, but no settings"): train(settings, dataset, run, resume=resume, device="cpu")
    assert main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "x"), "--dataset", "Nowhere"]) == 2
    assert "Nowhere" in capsys.readouterr().err


def test_a_run_is_not_resumed_on_other_images(dataset, tmp_path):
    settings = make_settings("quick", **TINY | dict(max_steps=4))
    assert train(settings, dataset, tmp_path / "run", device="cpu", stop_at=2) is None
    path = find_pairs(dataset, "ivf", "Tiny", "train")[0].a
    write_image(path, 255 - read_image(path))
    texts = {path: path.read_bytes() for path in (tmp_path / "run" / "texts").iterdir()}
    with pytest.raises(FilmError, match="other images or texts"): train(settings, dataset, tmp_path / "run", resume=True, device="cpu")
    assert len(texts) == 12 and all(path.read_bytes() == was for path, was in texts.items())  # nor are its texts those of other images now


def test_texts_of_replaced_images_are_made_again(dataset, tmp_path, monkeypatch):
    "Killed before the first step there is no checkpoint to say which images the texts in the folder are of."
    settings, run = make_settings("quick", **TINY | dict(max_steps=1)), tmp_path / "run"
    described = []
    def watched(image, task, modality): described.append(image); return automatic_text(image, task, modality)
    monkeypatch.setattr("film.training.automatic_text", watched)
    def killed(*_, **__): raise KeyboardInterrupt
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("film.training.FusionDataset", killed)
        train(settings, dataset, run, device="cpu")
    pair = find_pairs(dataset, "ivf", "Tiny", "train")[0]
    write_image(pair.a, 255 - read_image(pair.a))
    old = json.loads((run / "texts" / "p0.json").read_text()); old.pop("images", None)
    described.clear()
    assert train(settings, dataset, run, resume=True, device="cpu")
    assert len(described) == 2 and all(np.array_equal(image, read_image(path)) for image, path in zip(described, (pair.a, pair.b)))  # the others' texts are those that were there
    assert json.loads((run / "texts" / "p0.json").read_text())["texts"][0] == describe(pair.a, task="ivf", modality="IR").paragraph != old["texts"][0]
    (run / "texts" / "p0.json").write_text(json.dumps(old))
    described.clear()
    text_features(training_pairs(dataset, settings), "ivf", "minilm", run / "texts")
    assert not described  # the folder of an older run, whose sidecars say nothing of images, is taken as it is


def test_runs_of_one_process_do_not_know_each_other(dataset, tmp_path):
    for precision in ("no", "bf16"): assert train(make_settings("quick", **TINY | dict(max_steps=2, mixed_precision=precision)), dataset, tmp_path / precision, device="cpu")
    with pytest.raises(FilmError, match="CUDA_VISIBLE_DEVICES"): train(make_settings("quick", **TINY), dataset, tmp_path / "one", device="cuda:1")


def test_mixed_precision_is_the_networks_alone(dataset, tmp_path, monkeypatch):
    "The loss of a run in bf16 is that of float32 on the picture the network made, with every term and filter."
    seen = []
    def watched(fused, a, b, settings): seen.append((fused.detach(), a, b, settings)); return fusion_loss(fused, a, b, settings)
    monkeypatch.setattr("film.training.fusion_loss", watched)
    form = dict(mixed_precision="bf16", ssim=1.0, signed=2.0, smooth=2.0, noise=0.05, detail=0.5, burnt=3.0)
    train(make_settings("quick", **TINY | form | dict(max_steps=2)), dataset, tmp_path / "run", device="cpu", log_every=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for line, given in zip(lines, seen, strict=True):
        for name, value in fusion_loss(*given).items(): assert line[name] == value.item(), name


def test_fp16_on_a_cpu_is_refused(dataset, tmp_path):
    for device in ("cpu", None):
        with pytest.raises(FilmError, match="fp16 needs a GPU"): train(make_settings("quick", **TINY | dict(mixed_precision="fp16")), dataset, tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()


def test_one_run_at_a_time_in_a_folder_and_no_step_beyond_the_last(dataset, tmp_path, capsys):
    process = start(dataset, tmp_path / "run", steps=100000)
    wait_for_step(tmp_path / "run", process, 6)
    try: assert main(command(dataset, tmp_path / "run", "--resume")[3:]) == 2 and "another training is running there" in capsys.readouterr().err
    finally: process.kill(); process.communicate()
    settings, out = make_settings("quick", **TINY), tmp_path / "short"
    assert train(settings, dataset, out, device="cpu", stop_at=3) is None
    assert train(settings, dataset, out, resume=True, device="cpu", stop_at=2) is None and torch.load(out / "checkpoint.pt")["step"] == 3


def test_the_log_after_a_pause_is_that_of_a_run_never_stopped(dataset, tmp_path):
    settings = make_settings("quick", **TINY | dict(max_steps=10))
    train(settings, dataset, tmp_path / "whole", device="cpu", log_every=5)
    train(settings, dataset, tmp_path / "paused", device="cpu", log_every=5, stop_at=3)
    train(settings, dataset, tmp_path / "paused", resume=True, device="cpu", log_every=5)
    assert (tmp_path / "whole" / "log.jsonl").read_text() == (tmp_path / "paused" / "log.jsonl").read_text()


def test_tensorboard_shows_the_points_of_the_log(dataset, tmp_path, monkeypatch):
    "Paused at a step that has one, then killed after a checkpoint that has one and before the next: none missing, none twice."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    settings, logged = make_settings("quick", **TINY | dict(max_steps=10, encoder="constant", validation=2)), Run.log
    def go(**options): return train(settings, dataset, tmp_path / "run", device="cpu", log_every=2, checkpoint_every=3, validate_every=1, **options)
    def log(self, **values):
        logged(self, **values)
        if values["step"] == 8: raise SystemExit  # 6 is the last checkpoint
    assert go(stop_at=4) is None
    with monkeypatch.context() as patched, pytest.raises(SystemExit): patched.setattr(Run, "log", log); go(resume=True)
    assert go(resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for name in ("total", "validation"):
        assert [event.step for event in events.Scalars(f"loss/{name}")] == [line["step"] for line in lines if name in line] == [2, 4, 6, 8, 10]


def test_a_full_disk_is_one_line(dataset, tmp_path, monkeypatch):
    def full(*_): raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3451392 vs 3451280")
    monkeypatch.setattr("film.training.torch.save", full)
    with pytest.raises(FilmError, match="checkpoint.pt: cannot be written") as caught: train(make_settings("quick", **TINY | dict(max_steps=1)), dataset, tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)


def test_what_a_worker_process_says_is_one_line(dataset, tmp_path):
    settings = make_settings("quick", **TINY)
    texts, encoder = text_features(training_pairs(dataset, settings), "ivf", "minilm", tmp_path / "texts")
    pack(tmp_path / "tiny.h5", find_pairs(dataset, "ivf", "Tiny", "train"), "ivf", "whole", texts, encoder)
    import h5py
    with h5py.File(tmp_path / "tiny.h5", "r+") as file:
        for name in file["imageA"]: file["imageA"][name][...] = 7 if name != "p0" else 0
    for workers in (0, 2):
        with pytest.raises(FilmError, match=r"image values outside \[0, 1\]$") as caught: train(settings, tmp_path / "tiny.h5", tmp_path / f"run{workers}", device="cpu", workers=workers)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [dict(lr_gamma=-1.0), dict(lr_gamma=float("nan")), dict(lr=1e300), dict(seed=10**20)])
def test_settings_that_no_optimizer_takes(wrong):
    with pytest.raises(FilmError, match=next(iter(wrong))): make_settings(**wrong)


@pytest.mark.parametrize("wrong", [dict(smooth=1e9, signed=1.0), dict(smooth=100.5, signed=1.0), dict(crop=(70000, 70000)), dict(crop=(16, 8193)), dict(grid=(70000, 70000))])
def test_settings_that_no_memory_holds(wrong):
    with pytest.raises(FilmError, match=f"^{next(iter(wrong))} must be at most"): make_settings(**wrong)
    make_settings(smooth=100, signed=1.0, crop=(8192, 8192))


@pytest.mark.parametrize("wrong", [dict(crop=(32,)), dict(crop=(32, 32, 32)), dict(crop=(8, 32)), dict(grid=(8,)), dict(power=1.0), dict(root=0.5), dict(plain=True, checkpointing=True)])
def test_settings_that_are_no_size_or_without_effect(wrong):
    with pytest.raises(FilmError, match=f"^{next(iter(wrong))} (must be|needs|and)"): make_settings(**wrong)


def test_a_task_in_capitals_is_that_task():
    for preset in PRESETS: assert make_settings(preset, task="MEF") == make_settings(preset, task="mef")


@pytest.mark.parametrize("wrong, says", [(dict(start="nowhere"), "neither 'default'"), (dict(grid=(7, 3)), "whole tokens"), (dict(depth=0), "depth"), (dict(batch_size=7), "do not fill one batch"), (dict(validation=5), "do not fill one batch"), (dict(start="bundled"), "do not fit")])
def test_what_cannot_be_trained_is_said_before_texts_are_made(dataset, tmp_path, monkeypatch, wrong, says):
    texts, encoder = {f"p{i}": np.ones((2, 8), np.float32) for i in range(6)}, "toy"
    pack(tmp_path / "tiny.h5", find_pairs(dataset, "ivf", "Tiny", "train"), "ivf", "whole", texts, encoder)
    monkeypatch.setattr("film.training.text_features", lambda *_: pytest.fail("texts were made"))
    for root in (dataset, tmp_path / "tiny.h5"):
        with pytest.raises(FilmError, match=says): train(make_settings("quick", **TINY | wrong), root, tmp_path / "run", device="cpu")
        assert not (tmp_path / "run").exists()


def test_noise_too_little_to_divide_by_is_refused():
    "Where both sources are flat the loss divides by its square."
    for noise in (1e-30, 9e-7):
        with pytest.raises(FilmError, match=f"noise must be 0 or at least 1e-6, found {noise}"): make_settings(signed=1.0, noise=noise)
    flat = torch.full((1, 1, 16, 16), 0.5)
    for noise in (0.0, 1e-6): assert torch.isfinite(fusion_loss(flat, flat, flat, LossSettings(signed=1.0, noise=noise, padding="replicate"))["total"])


def test_every_form_of_the_network_trains_alike(dataset, tmp_path):
    weights = []
    for form in ("fast", "plain", "checkpointing"):
        folder = train(make_settings("quick", **TINY | dict(max_steps=3) | ({} if form == "fast" else {form: True})), dataset, tmp_path / form, device="cpu")
        weights.append(load_file(folder / "model.safetensors"))
    for other in weights[1:]: assert max((weights[0][name] - other[name]).abs().max().item() for name in weights[0]) < 2e-4


def test_validation_pairs_are_held_out(dataset, tmp_path):
    train(make_settings("quick", **TINY | dict(max_steps=4, validation=2)), dataset, tmp_path / "run", device="cpu", validate_every=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [2, 4]  # 4 of 6 pairs: 2 steps an epoch
    assert all(np.isfinite(line["validation"]) for line in lines if "validation" in line)


@pytest.mark.parametrize("how, step", [("stopped", 7), ("stopped", 4), ("stopped", 2), ("killed", 4), ("killed", 2)])  # an epoch has two steps
def test_the_best_weights_by_validation_are_kept(dataset, tmp_path, monkeypatch, how, step):
    "Even where the run is stopped after its best step, or at it, and resumed. The learning rate is far too high, so that the last step is not the best."
    settings = make_settings("quick", **TINY | dict(max_steps=8, validation=2, schedule="step", lr=0.05, encoder="constant"))
    def run(name, **options): return train(settings, dataset, tmp_path / name, device="cpu", validate_every=1, **options)
    if how == "killed":  # after the step's validation, before the checkpoint that is due then
        def log(self, **values):
            logged(self, **values)
            if "validation" in values and values["step"] == step: raise SystemExit
        logged = Run.log
        monkeypatch.setattr(Run, "log", log)
        with pytest.raises(SystemExit): run("run", checkpoint_every=2)
        monkeypatch.undo()
    else: run("run", stop_at=step)
    kept = load_file(run("run", resume=True) / "model.safetensors")
    losses = {line["step"]: line["validation"] for line in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines()) if "validation" in line}
    best = min(losses, key=losses.get)
    assert best < 6 and [*losses] == [2, 4, 6, 8]
    run("again", stop_at=best)
    there = torch.load(tmp_path / "again" / "checkpoint.pt", weights_only=True)["model"]
    assert kept.keys() == there.keys() and all(torch.equal(kept[name], there[name]) for name in kept)


def test_two_processes_do_what_one_does(dataset, tmp_path):
    "Two processes with batches of one see, step by step, the pairs of one process with batches of two."
    runs = [tmp_path / "one", tmp_path / "two"]
    one = command(dataset, runs[0], steps=4)
    two = command(dataset, runs[1], "--batch-size", "1", steps=4)
    two[:1] = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for argv in (one, two): subprocess.run(argv, check=True, capture_output=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    a, b = (load_file(run / "weights" / "model.safetensors") for run in runs)
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-5


def test_several_data_sets_without_text_from_weights_with_text(dataset, tmp_path):
    shutil.copytree(dataset / "Image" / "IVF" / "Tiny", dataset / "Image" / "IVF" / "Other")
    with_text = train(make_settings("quick", **TINY | dict(max_steps=2)), dataset, tmp_path / "text", device="cpu")
    without = train(make_settings("quick", **TINY | dict(max_steps=2, dataset="Tiny+Other", encoder="constant", start=str(with_text), validation=2)), dataset, tmp_path / "none", device="cpu")
    film = Film.from_pretrained(without)
    assert (film.text_encoder, film.text_width) == ("constant", 1)
    assert not (tmp_path / "none" / "texts").exists()
    (tmp_path / "mine" / "texts").mkdir(parents=True)
    train(make_settings("quick", **TINY | dict(max_steps=2, encoder="constant")), dataset, tmp_path / "mine", device="cpu")
    assert (tmp_path / "mine" / "texts").exists()  # not this run's, so it stays
    with pytest.raises(FilmError, match="no such dataset|Missing"): train(make_settings("quick", **TINY | dict(dataset="Tiny+Missing")), dataset, tmp_path / "bad", device="cpu")
    (with_text / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FilmError, match=f"{with_text}: weights cannot be loaded"): train(make_settings("quick", **TINY | dict(start=str(with_text))), dataset, tmp_path / "bad", device="cpu")


def test_resuming_needs_no_start_weights(dataset, tmp_path):
    first = train(make_settings("quick", **TINY | dict(max_steps=1, encoder="constant")), dataset, tmp_path / "first", device="cpu")
    settings = make_settings("quick", **TINY | dict(max_steps=4, encoder="constant", start=str(first)))
    whole = train(settings, dataset, tmp_path / "whole", device="cpu")
    assert train(settings, dataset, tmp_path / "paused", device="cpu", stop_at=2) is None
    shutil.rmtree(first)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, train(settings, dataset, tmp_path / "paused", resume=True, device="cpu")))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(FilmError, match="neither 'default', 'pass-through' nor 'bundled'"): train(settings, dataset, tmp_path / "new", resume=True, device="cpu")  # where there is no checkpoint yet, they are


def test_the_bundled_weights_are_gone_on_from(dataset, tmp_path):
    for task in TASKS:
        settings, last = make_settings("bundled", task=task, dataset="Own"), json.loads((WEIGHTS_FOLDER / task / "settings.json").read_text())
        assert (settings.task, settings.dataset, settings.start, settings.validation) == (task, "Own", "bundled", 0)
        assert all(getattr(settings, term.name) == last.get(term.name, term.default) for term in fields(LossSettings))
    made = load_file(train(make_settings("bundled", dataset="Tiny", max_steps=1, crop=(32, 32)), dataset, tmp_path / "own", device="cpu") / "model.safetensors")
    bundled = load("ivf", "cpu").state_dict()
    assert made.keys() == bundled.keys() and 0 < max((made[name] - bundled[name]).abs().max() for name in made) < 1e-3  # one step at the start of the warm-up


def test_a_data_set_named_twice_is_refused(dataset, tmp_path):
    "Else a pair held out for validation is trained on under its other name."
    folder = dataset / "Image" / "IVF"
    shutil.copytree(folder / "Tiny", folder / "Other")
    (folder / "Link").symlink_to("Tiny")
    for names in ("Tiny+Tiny", "Tiny+Other+Tiny", "Tiny+Tiny/", "Tiny+Link"):
        with pytest.raises(FilmError, match="names a folder twice"): train(make_settings("quick", **TINY | dict(dataset=names, validation=1)), dataset, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    assert len(training_pairs(dataset, make_settings("quick", **TINY | dict(dataset="Tiny+Other")))) == 12


def test_the_loss_is_minimised_without_a_network(dataset, tmp_path):
    "tools/minimise.py: one picture for each pair asked for, with less loss than where it starts."
    tool = Path(__file__).resolve().parents[1] / "tools" / "minimise.py"
    form = dict(grad=10.0, padding="replicate", signed=1.0, smooth=2.0, noise=0.05)
    options = [text for name, value in form.items() for text in (f"--{name}", str(value))]
    subprocess.run([sys.executable, tool, tmp_path / "out", "--data", dataset, "--dataset", "Tiny", "--only", "p1", "p4", "--steps", "60", *options], check=True, capture_output=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p1.png", "p4.png"]
    pair = find_pairs(dataset, "ivf", "Tiny", "train")[1]
    image, a, b = (torch.from_numpy(to_gray(read_image(path)).astype(np.float32))[None, None] for path in (tmp_path / "out" / "p1.png", pair.a, pair.b))
    wanted, start = (fusion_loss(fused, a, b, LossSettings(**form))["total"] for fused in (image, torch.maximum(a, b)))
    assert wanted < 0.7 * start


@pytest.mark.parametrize("change", [dict(darken=4.0), dict(max_tokens=2), dict(text_lr=0.5), dict(clip=1e-4)])
def test_every_setting_reaches_the_training(dataset, tmp_path, change):
    for i in range(6): write_features(dataset / "TextFeature/IVF/Tiny" / f"p{i}.npy", np.random.default_rng(i).standard_normal((1, 6, 8)), "toy")
    one, other = (load_file(train(make_settings("quick", **TINY | dict(max_steps=3) | more), dataset, tmp_path / name, device="cpu") / "model.safetensors") for name, more in (("plain", {}), ("changed", change)))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_warm_up_begins_above_zero():
    settings = make_settings("quick", lr=1.0, warmup=4)
    assert [learning_rate(settings, step, 10, 100) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize("theirs", [{"settings.json": '{"editor.fontSize": 12}'}, {"settings.json": "[1]"}, {"settings.json": "no JSON"}, {"settings.json": "{}"}, {"settings.json": '{"task": "ivf", "other": 1}'},
                                    {"log.jsonl": '{"event": 1}\n'}, {"checkpoint.pt": "theirs"}])
def test_files_that_are_no_runs_are_left_alone(tmp_path, theirs):
    theirs = theirs | {"texts/notes.txt": "mine", "texts/p0.npy": "mine"}
    (tmp_path / "texts").mkdir()
    for name, text in theirs.items(): (tmp_path / name).write_text(text)
    for resume in (False, True):
        with pytest.raises(FilmError, match="choose another folder$"): Run(tmp_path, make_settings(), resume)
        assert {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == theirs


def test_texts_of_a_run_without_a_step_go_alone(tmp_path):
    Run(tmp_path, make_settings(), False)
    older = json.loads((tmp_path / "settings.json").read_text()); del older["plain"]
    (tmp_path / "settings.json").write_text(json.dumps(older))
    write_features(tmp_path / "texts" / "p0.npy", np.ones((1, 2, 8)), "toy")
    (tmp_path / "texts" / "notes.json").write_text("mine")
    Run(tmp_path, make_settings(), True)
    assert len(list((tmp_path / "texts").iterdir())) == 3
    Run(tmp_path, make_settings(lr=1e-3), False)
    assert [path.name for path in (tmp_path / "texts").iterdir()] == ["notes.json"]


@pytest.mark.parametrize("wrong", [dict(validation=0.25), dict(epochs=1.5), dict(seed=True), dict(max_steps=2.0), dict(batch_size="2"), dict(depth=None), dict(crop=(32.5, 32)), dict(grid=(8, "32"))])
def test_numbers_that_are_not_whole_are_refused(wrong):
    with pytest.raises(FilmError, match=f"^{next(iter(wrong))} must be (a whole number|two whole numbers)"): make_settings(**wrong)


def test_pairs_that_would_share_a_name_are_refused(dataset):
    "Texts are kept by name: one pair would be trained on with the other's."
    folder = dataset / "Image" / "IVF"
    shutil.copytree(folder / "Tiny", folder / "Tiny-night")
    for modality in ("IR", "VI"): shutil.copyfile(folder / "Tiny" / modality / "p1.png", folder / "Tiny" / modality / "night-p0.png")
    with (folder / "Tiny" / "train.txt").open("a") as file: file.write("\nnight-p0\n")
    with pytest.raises(FilmError, match="both would be called Tiny-night-p0") as caught: training_pairs(dataset, make_settings(dataset="Tiny+Tiny-night"))
    assert "\n" not in str(caught.value) and len(training_pairs(dataset, make_settings(dataset="Tiny"))) == 7
