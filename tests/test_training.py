"Training runs that are killed, interrupted, poisoned, or started twice."
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from film.cli import main
from film.core import FilmError
from film.network import Film
from film.training import make_settings, train

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
    assert logs[0][-1]["total"] < logs[0][0]["total"]
    assert (killed / "pictures" / "step_000030.png").exists() and any((killed / "tensorboard").iterdir())
    assert Film.from_pretrained(killed / "weights").text_encoder == "all-MiniLM-L6-v2"


def test_ctrl_c_leaves_a_checkpoint(dataset, tmp_path):
    run = tmp_path / "run"
    process = start(dataset, run, steps=5000)
    wait_for_step(run, process, 6)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "continue with --resume" in out and "Traceback" not in err
    step = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    assert step == json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"]  # nothing that was done is lost


def test_loss_that_is_not_finite_names_the_sample(dataset, tmp_path):
    with pytest.raises(FilmError, match=r"the loss became \S+ at step \d+ .* on p\d, p\d"):
        train(make_settings("quick", **TINY | dict(lr=1e30, warmup=1, clip=None)), dataset, tmp_path / "run", device="cpu")


def test_a_run_is_not_overwritten_or_changed(dataset, tmp_path, capsys):
    run, settings = tmp_path / "run", make_settings("quick", **TINY | dict(max_steps=2))
    assert train(settings, dataset, run, device="cpu") == run / "weights"
    with pytest.raises(FilmError, match="--resume"): train(settings, dataset, run, device="cpu")
    with pytest.raises(FilmError, match=r"lr 0.001 -> 0.002"): train(make_settings("quick", **TINY | dict(max_steps=2, lr=2e-3)), dataset, run, resume=True, device="cpu")
    (run / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(FilmError, match="cannot be loaded safely"): train(settings, dataset, run, resume=True, device="cpu")
    assert main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "x"), "--dataset", "Nowhere"]) == 2
    assert "Nowhere" in capsys.readouterr().err


def test_plain_and_fast_train_alike(dataset, tmp_path):
    weights = []
    for plain in (True, False):
        folder = train(make_settings("quick", **TINY | dict(max_steps=3, plain=plain)), dataset, tmp_path / str(plain), device="cpu")
        weights.append(load_file(folder / "model.safetensors"))
    assert max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]) < 2e-4


def test_validation_pairs_are_held_out(dataset, tmp_path):
    train(make_settings("quick", **TINY | dict(max_steps=4, validation=2)), dataset, tmp_path / "run", device="cpu", validate_every=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [2, 4]  # 4 of 6 pairs: 2 steps an epoch
    assert all(np.isfinite(line["validation"]) for line in lines if "validation" in line)


def test_two_processes_do_what_one_does(dataset, tmp_path):
    "Two processes with batches of one see, step by step, the pairs of one process with batches of two."
    runs = [tmp_path / "one", tmp_path / "two"]
    one = command(dataset, runs[0], steps=4)
    two = command(dataset, runs[1], "--batch-size", "1", steps=4)
    two[:1] = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for argv in (one, two): subprocess.run(argv, check=True, capture_output=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    a, b = (load_file(run / "weights" / "model.safetensors") for run in runs)
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-5
