"The command line on good and bad input: results, one clear line, exit code 2, nothing half-written."
import argparse
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import film
import film.fusion
from film.cli import add_settings, given_settings, info, main, parse
from film.core import FilmError, read_image, write_image

ROOT = Path(__file__).resolve().parents[1]


def run(capsys, *argv):
    "Exit code, standard output, standard error."
    try: code = main([str(a) for a in argv])
    except SystemExit as e: code = e.code
    return code, *capsys.readouterr()


def test_fuse_writes_colour(images, capsys):
    code, out, err = run(capsys, "fuse", "a.png", "b.png", "-o", "new/fused.png")
    assert code == 0 and out.strip() == "new/fused.png"
    fused = read_image("new/fused.png")
    assert fused.shape == (48, 64, 3) and np.array_equal(fused, film.fuse("a.png", "b.png"))


def test_text_matters_and_is_taken(images, capsys):
    results = []
    for i, options in enumerate([["--text", "one car"], ["--text", "one car", "--text", "a tree"], []]):
        assert run(capsys, "fuse", "a.png", "b.png", "-o", f"{i}.png", *options)[0] == 0
        results.append(read_image(f"{i}.png"))
    tokens = film.encoding.encode(["one car"])[0]
    assert np.array_equal(results[0], film.fuse("a.png", "b.png", text=tokens))
    np.save("tokens.npy", tokens.astype(np.float32)[None])
    (images / "tokens.json").write_text('{"encoder": "all-MiniLM-L6-v2", "width": 384}')
    assert run(capsys, "fuse", "a.png", "b.png", "-o", "n.png", "--text-features", "tokens.npy")[0] == 0
    assert np.array_equal(read_image("n.png"), results[0])


class Hostile:
    def __reduce__(self): return (open, ("owned", "w"))


def write_bad_inputs(folder):
    ramp = read_image("a.png")
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.png").write_bytes((folder / "b.png").read_bytes()[:200])
    (folder / "ones.png").write_bytes(cv2.imencode(".png", ramp[:1, :1])[1].tobytes())
    write_image("other.png", ramp[:, :32])
    torch.save({"model": Hostile()}, "hostile.pth")
    torch.save({"model": {"module.x": torch.zeros(1)}}, "other.pth")
    weights = film.load("ivf")
    for name, state in dict(half=dict(list(weights.state_dict().items())[::2]), renamed={f"module.{name}": value for name, value in weights.state_dict().items()}).items():
        weights.save_pretrained(name)
        save_file({name: value.contiguous() for name, value in state.items()}, f"{name}/model.safetensors")
    np.save("narrow.npy", np.zeros((1, 5, 7), np.float32))


@pytest.mark.parametrize("argv, says", [
    (["missing.png", "b.png"], "missing.png: no such file"),
    (["text.png", "b.png"], "text.png: not an image"),
    (["empty.png", "b.png"], "empty.png: not an image"),
    (["half.png", "b.png"], "half.png: not an image"),
    (["a.png", "other.png"], "differ in size: 64x48 and 32x48"),
    (["ones.png", "b.png"], "1x1 pixels is too small"),
    (["a.png", "b.png", "--text", ""], "empty"),
    (["a.png", "b.png", "--text", "  "], "empty"),
    (["a.png", "b.png", "--text", "x", "--text", "y", "--text", "z"], "got 3"),
    (["a.png", "b.png", "--text-features", "narrow.npy"], "narrow.npy"),
    (["a.png", "b.png", "--weights", "hostile.pth"], "only tensors and plain values"),
    (["a.png", "b.png", "--weights", "other.pth"], "no weights of this network"),
    (["a.png", "b.png", "--weights", "nowhere"], "no such weights"),
    (["a.png", "b.png", "--weights", "half/checkpont.pt"], "no such weights"),
    (["a.png", "b.png", "--weights", "half"], "Missing key"),
    (["a.png", "b.png", "--weights", "renamed"], "Missing key"),
    (["a.png", "b.png", "--dataset", "D"], "not both"),
    (["a.png", "b.png", "--method", "magic"], "choose one of film"),
    (["a.png", "b.png", "--device", "tpu"], "device"),
    (["a.png", "."], "give two images or two folders"),
    (["a.png", "nowhere"], "nowhere: no such file or folder"),
    (["half", "renamed"], "half and renamed: no images of a kind"),
    ([".", ".", "--text-features", "narrow.npy"], "narrow.npy: for many pairs, a folder"),
    (["a.png", "b.png", "--split", "test"], "add --dataset, or leave out --split"),
    (["a.png", "b.png", "--method", "average", "--text", "a car"], "--method average needs no network: leave out --text\n"),
    (["a.png", "b.png", "--method", "average", "--backend", "z", "--dtype", "z", "--compile", "--plain", "--device", "tpu"], "leave out --plain, --backend, --dtype, --compile, --device\n"),
    (["a.png", "b.png", "--workers", -5, "--resume"], "for one pair leave out --workers, --resume\n"),
])
def test_bad_input(images, capsys, argv, says):
    write_bad_inputs(images)
    before = sorted(p.name for p in images.iterdir())
    code, out, err = run(capsys, "fuse", *argv, "-o", "fused.png")
    assert code == 2 and says in err and err.count("\n") == 1 and not out
    assert sorted(p.name for p in images.iterdir()) == before  # no output, no rest of one, and nothing a pickle made


@pytest.mark.parametrize("out", ["fused.gif2", "fused", ".", "b.png/fused.png", "/proc/nowhere/fused.png"])
def test_bad_output_is_refused_first(images, capsys, monkeypatch, out):
    monkeypatch.setattr("film.fusion.fuse", lambda *_, **__: pytest.fail("fused before the output was looked at"))
    code, _, err = run(capsys, "fuse", "a.png", "b.png", "-o", out)
    assert code == 2 and err.count("\n") == 1
    if "/" not in out: return
    for folder in "AB": write_image(f"{folder}/p.png", read_image("a.png"))
    code, _, err = run(capsys, "fuse", "A", "B", "-o", out.removesuffix("/fused.png") + "/many")
    assert code == 2 and "cannot be written" in err and err.count("\n") == 1


def test_what_cannot_be_written_is_said_before_the_work(dataset, images, capsys, monkeypatch):
    for name in ("film.fusion.fuse", "film.evaluation.evaluate_folders", "film.annotation.describe_dataset", "film.annotation.encode_dataset"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("worked before the output was looked at"))
    (images / "some").mkdir()
    for argv, says in ((["fuse", "a.png", "b.png", "-o", "some"], "some: is a folder; name the image file to write, as in some/fused.png"),
                       (["fuse", "a.png", "b.png", "-o", "x.pgm"], "x.pgm: cannot hold a colour image: use .ppm or .png, or add --gray"), (["fuse", "a.png", "a.png", "-o", "x.ppm"], "cannot hold a gray image"),
                       (["evaluate", "A", "--data", dataset, "--dataset", "Tiny", "--split", "train", "-o", "/proc/x"], "/proc/x: cannot be written"),
                       (["describe", dataset, "--dataset", "Tiny", "--out", "/proc/x"], "/proc/x: cannot be written"), (["encode", dataset, "--dataset", "Tiny", "--out", "/proc/x"], "/proc/x: cannot be written"),
                       (["describe", dataset / "Image/IVF/Tiny/IR", "-t", "MIF"], "is a folder; give one image, or for many: film describe ROOT -t mif --dataset NAME, with the images in ROOT/Image/MIF/NAME/MRI and T")):
        code, _, err = run(capsys, *argv)
        assert code == 2 and says in err and err.count("\n") == 1, err


def test_failed_work_leaves_no_folder(images, capsys):
    for folder in "AB": (images / folder).mkdir(); (images / folder / "p.png").write_text("not a picture")
    assert run(capsys, "fuse", "missing.png", "b.png", "-o", "new/deep/f.png")[0] == 2
    assert run(capsys, "fuse", "A", "B", "-o", "new/many", "--method", "average")[0] == 1
    assert run(capsys, "evaluate", "A", "--a", "A", "--b", "B", "-o", "new/report")[0] == 2
    assert not (images / "new").exists()


@pytest.mark.parametrize("call, says", [
    (lambda: film.fuse("a.png", "b.png", text=5), "text is a int"), (lambda: film.fuse("a.png", "b.png", weights=5), "weights are a path or a hub id, not a int"),
    (lambda: film.load(np.zeros(3)), "unknown task 'ndarray'"), (lambda: film.fuse("a.png", "b.png", task=5), "unknown task 'int'")])
def test_arguments_of_a_wrong_kind_are_one_line(images, call, says):
    with pytest.raises(FilmError, match=says) as e: call()
    assert "\n" not in str(e.value)


def test_what_the_system_refuses_is_one_line(images, capsys):
    code, _, err = run(capsys, "fuse", "x" * 300, "b.png", "-o", "fused.png")
    assert code == 2 and "File name too long" in err and err.count("\n") == 1
    write_image(images / ("ü" * 120 + ".png"), read_image("b.png"))  # nearly as long as a name may be
    assert run(capsys, "fuse", "a.png", "ü" * 120 + ".png", "-o", "é" * 120 + ".png")[0] == 0


def test_weights_files_and_folders(images, capsys):
    film.load("mef").save_pretrained("w")
    film.load("mef").save_pretrained("run/weights")  # of a training run
    assert run(capsys, "fuse", "a.png", "b.png", "-o", "run.png", "--weights", "run", "-t", "MEF")[0] == 0
    (images / "young").mkdir(); (images / "young" / "checkpoint.pt").write_bytes(b"")
    code, _, err = run(capsys, "fuse", "a.png", "b.png", "-o", "no.png", "--weights", "young")
    assert code == 2 and "no weights yet; young/checkpoint.pt" in err
    assert run(capsys, "fuse", "a.png", "b.png", "-o", "folder.png", "--weights", "w")[0] == run(capsys, "fuse", "a.png", "b.png", "-o", "file.png", "--weights", "w/model.safetensors")[0] == 0
    assert np.array_equal(read_image("folder.png"), read_image("file.png"))
    (images / "w" / "config.json").unlink()
    for weights, says in (("w/model.safetensors", "name the folder that holds"), ("w/other", "no such weights")):
        code, _, err = run(capsys, "fuse", "a.png", "b.png", "-o", "no.png", "--weights", weights)
        assert code == 2 and says in err and err.count("\n") == 1


def test_checkpoints_that_are_larger_than_their_file(images):
    state = film.load("ivf").state_dict()
    huge = state | {"text_process.conv.weight": torch.zeros(1).expand(256, 10**9, 1)}
    for name, content, says in (("deep", state | {"restormerca300.x": torch.zeros(1)}, "missing, unknown or of another shape"), ("wide", huge, "larger than what is stored"), ("text", "x", "no weights"), ("list", [1], "no weights")):
        torch.save({"model": content}, f"{name}.pth")
        with pytest.raises(FilmError, match=says): film.Film.from_weights(f"{name}.pth")
    for grid in ((8., 32.), (True, 256), (8, 32, 1)):
        torch.save({"model": state, "grid": grid}, "grid.pth")
        with pytest.raises(FilmError, match="whole numbers"): film.Film.from_weights("grid.pth")


def test_sources_are_not_replaced(images, capsys):
    before = {p.name: p.read_bytes() for p in images.iterdir()}
    assert run(capsys, "fuse", "a.png", "b.png", "-o", images / "b.png", "--method", "average")[0] == 2
    for folder in "AB": (images / folder).mkdir(); (images / folder / "p.png").write_bytes(before[f"{folder.lower()}.png"])
    code, _, err = run(capsys, "fuse", "A", "B", "-o", "./A", "--method", "average")
    assert code == 2 and "holds the sources" in err
    assert before.items() <= {p.name: p.read_bytes() for p in images.iterdir() if p.is_file()}.items() and (images / "A" / "p.png").read_bytes() == before["a.png"]


def test_a_refused_training_does_not_occupy_its_folder(images, capsys):
    for modality in ("IR", "VI"): write_image(f"root/Image/IVF/D/{modality}/p.png", read_image("a.png"))
    (images / "root/Image/IVF/D/train.txt").write_text("p\n")
    command = ["train", "--data", "root", "--dataset", "D", "--out", "run", "--depth", 1, "--grid", 8, 32, "--crop", 32, 32, "--batch-size", 1, "--max-steps", 2, "--device", "cpu"]
    for wrong, says in ((["--start", "nope"], "nope"), (["--crop", 8, 8], "crop"), (["--log-every", 0], "log_every must be at least 1"), (["--seed", -1], "seed")):
        code, _, err = run(capsys, *command, *wrong)
        assert code == 2 and says in err and "Traceback" not in err
    assert run(capsys, *command)[0] == 0
    for name, content in (("settings.json", b"{"), ("checkpoint.pt", b"")):
        kept = (images / "run" / name).read_bytes()
        (images / "run" / name).write_bytes(content)
        code, _, err = run(capsys, *command, "--resume")
        assert code == 2 and "Traceback" not in err
        (images / "run" / name).write_bytes(kept)
    torch.save([1], images / "run" / "checkpoint.pt")
    code, _, err = run(capsys, *command, "--resume")
    assert code == 2 and "not the checkpoint of a training run" in err


def test_lists_that_are_none(images, capsys):
    for modality in ("IR", "VI"): write_image(f"root/Image/IVF/D/{modality}/p.png", read_image("a.png"))
    for content, says in ((b"\xe9t\xe9\n", "UTF-8"), (b"IR/p.png\n", "is a path")):
        (images / "root/Image/IVF/D/odd.txt").write_bytes(content)
        code, _, err = run(capsys, "fuse", "--data", "root", "--dataset", "D", "--split", "odd", "-o", "out")
        assert code == 2 and says in err and err.count("\n") == 1


def test_a_reader_that_goes_away_and_a_terminal_without_arrows(images):
    done = subprocess.run(f"{sys.executable} -m film info | true", shell=True, capture_output=True, text=True)
    assert not done.stderr
    for folder in "ABF": (images / folder).mkdir(); write_image(images / folder / "p.png", read_image("a.png"))
    done = subprocess.run([sys.executable, "-m", "film", "evaluate", "F", "--a", "A", "--b", "B", "--metrics", "EN"], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0 and b"EN ?" in done.stdout


def test_full_disk(images):
    "A write that fails half-way (here: a limit on file size) leaves the old result and nothing else."
    write_image("a.png", np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    write_image("b.png", np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8))
    write_image("fused.png", np.zeros((20, 20), np.uint8))
    before = {p.name: p.read_bytes() for p in images.iterdir()}
    done = subprocess.run([sys.executable, "-m", "film", "fuse", "a.png", "b.png", "-o", "fused.png"], capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)))
    assert done.returncode == 2 and "fused.png: cannot be written" in done.stderr and done.stderr.count("\n") == 1
    assert {p.name: p.read_bytes() for p in images.iterdir()} == before


def test_kinds_of_images(images):
    ramp = read_image("a.png")
    cv2.imwrite("deep.tiff", ramp.astype(np.uint16) * 257)
    cv2.imwrite("alpha.png", np.dstack([ramp, ramp, 255 - ramp, np.full_like(ramp, 99)]))
    cv2.imwrite("float.tiff", (ramp / 255).astype(np.float32))
    plain = film.fuse("a.png", ramp[:, ::-1], text="a ramp")
    assert np.array_equal(film.fuse("deep.tiff", ramp[:, ::-1], text="a ramp"), plain)
    assert np.abs(film.fuse("float.tiff", ramp[:, ::-1], text="a ramp").astype(int) - plain).max() <= 1
    assert film.fuse("a.png", "alpha.png", text="a ramp").shape == (48, 64, 3)
    with pytest.raises(FilmError, match="NaN"): film.fuse(np.full((20, 20), np.nan), np.zeros((20, 20)))
    for shape in ((16, 16), (17, 90), (300, 16)): assert film.fuse(np.zeros(shape, np.uint8), np.ones(shape), text="flat").shape == shape


def test_sixteen_bit_results(images, capsys):
    command = ["fuse", "a.png", "b.png", "--text", "a ramp", "--bits", 16, "-o"]
    wanted = film.fuse("a.png", "b.png", text="a ramp", bits=16)
    for name, more in (("f.png", ()), ("f.tif", ("--max-memory", "64MB"))):
        assert run(capsys, *command, name, *more)[0] == 0
        assert np.array_equal(read_image(name), wanted) and wanted.dtype == np.uint16
    for name in ("f.jpg", "f.webp"): assert (2, f"film: {name}: holds 8 bits a channel: use .png or .tif, or leave out --bits\n") == run(capsys, *command, name)[::2]
    for side in "ab": write_image(f"{side}/p.png", read_image(f"{side}.png"))
    for workers in (1, 2):
        assert run(capsys, "fuse", "a", "b", "--text", "a ramp", "--bits", 16, "--workers", workers, "-o", f"out{workers}")[0] == 0
        difference = read_image(f"out{workers}/p.png").astype(int) - wanted  # other numbers of threads round otherwise
        assert np.abs(difference).max() <= (0 if workers == 1 else 3) and read_image(f"out{workers}/p.png").dtype == np.uint16


@pytest.mark.parametrize("words, named", [("train --steps 1", "--steps"), ("fuse a b c -o x", "c"), ("describe a.png --api-key=sk-secret", "--api-key"), ("describe a.png --api-key sk-secret", "--api-key")])
def test_what_a_command_does_not_know_is_one_line(capsys, words, named):
    command = words.split()[0]
    assert run(capsys, *words.split()) == (2, "", f"film: {named}: not an option or argument of film {command}; film {command} --help lists them\n")


def test_folders_whose_names_say_the_modality(images, capsys):
    for name in ("one", "two", "three"):
        for side, image in (("ir", "a.png"), ("vis", "b.png")): write_image(f"{side}/{name}_{side}.png", read_image(image))
    code, out, err = run(capsys, "fuse", "ir", "vis", "--method", "maximum", "-o", "out")
    assert code == 0 and err == "film: no name is both in ir and in vis, so they are taken for *_ir and *_vis of one, three, two\n" and out.startswith("3 fused")
    assert sorted(os.listdir("out")) == ["one.png", "three.png", "two.png"]
    code, out, err = run(capsys, "evaluate", "out", "--a", "ir", "--b", "vis", "--metrics", "EN")
    assert code == 0 and "3 images" in out


def test_narrow_sixteen_bits_are_said_and_stretched(images, capsys):
    ramp = read_image("a.png")
    write_image("raw.png", 7048 + ramp.astype(np.uint16) * 8)
    plain = film.fuse("a.png", "b.png", text="a ramp")
    command = ["fuse", "raw.png", "b.png", "-o", "f.png", "--text", "a ramp"]
    code, _, err = run(capsys, *command)
    assert code == 0 and err == "film: raw.png: its 16-bit values, 7048 to 9064, span 3.1 % of the range and are fused as nearly one gray: stretch=True (--stretch) maps them to all of it\n"
    assert np.abs(read_image("f.png").astype(int) - plain).mean() > 10
    assert run(capsys, *command, "--stretch")[2] == ""
    assert np.abs(read_image("f.png").astype(int) - plain).mean() < 2
    with pytest.warns(UserWarning, match="^image A: its 16-bit values"): film.fuse(read_image("raw.png"), "b.png", method="average")
    for side in "ab": write_image(f"{side}/p.png", read_image("raw.png")); write_image(f"{side}/q.png", ramp)
    code, _, err = run(capsys, "fuse", "a", "b", "-o", "out", "--method", "maximum")
    assert code == 0 and sorted(line.split(":")[1].strip() for line in err.splitlines()) == ["a/p.png", "b/p.png"]  # each file once
    assert run(capsys, "fuse", "a", "b", "-o", "wide", "--text", "a ramp", "--stretch")[::2] == (0, "")
    assert run(capsys, "fuse", "a", "b", "-o", "two", "--method", "maximum", "--stretch", "--workers", 2)[::2] == (0, "")
    assert np.array_equal(read_image("wide/p.png"), film.fuse("a/p.png", "b/p.png", text="a ramp", stretch=True))
    assert np.array_equal(read_image("two/p.png"), film.fuse("a/p.png", "b/p.png", method="maximum", stretch=True))


@pytest.mark.parametrize("image, expected", [
    (np.arange(5000, 6000, dtype=np.uint16).reshape(20, 50), (0, 65535)),
    (np.where(np.arange(400) == 7, 900, 300).astype(np.uint16).reshape(20, 20), (0, 65535)),  # a span of one value but for a pixel
    (np.full((20, 20), 300, np.uint16), (300, 300)), (np.full((20, 20, 3), 9, np.uint8), (9, 9))])
def test_stretched(image, expected):
    room = film.large.Room(None)
    result = film.large.stretched(image, room)
    assert (result.min(), result.max()) == expected and result.dtype == image.dtype and result.shape == image.shape
    assert np.array_equal(film.large.stretched(np.stack([image] * 3, -1), room)[..., 1], result) if image.ndim == 2 else result is image


def test_folders_resume_and_summary(images, capsys):
    for side in "ab":
        for name in "pqr": write_image(f"{side}/{name}.png", read_image(f"{side}.png"))
    (images / "b" / "q.png").write_text("damaged")
    (images / "b" / "r.png").unlink()
    code, out, err = run(capsys, "fuse", "a", "b", "-o", "out", "--method", "average")
    assert code == 1 and "1 fused, 0 skipped (already there), 2 failed" in out and "q: b/q.png: not an image" in out and "r: no image of that name in b" in out
    assert [p.name for p in (images / "out").iterdir()] == ["p.png"]
    stamp = (images / "out" / "p.png").stat().st_mtime_ns
    write_image("b/q.png", read_image("b.png")); write_image("b/r.png", read_image("b.png"))
    code, out, err = run(capsys, "fuse", "a", "b", "-o", "out", "--method", "average", "--resume")
    assert code == 0 and "2 fused, 1 skipped" in out and (images / "out" / "p.png").stat().st_mtime_ns == stamp


def test_version_info_help(capsys):
    assert run(capsys, "--version")[1].strip() == f"film {film.__version__}"
    code, out, _ = run(capsys, "info")
    assert code == 0 and "weights ivf" in out and "device" in out
    assert set(info()["extras"]) == {"text", "train", "export", "notebooks", "docs"} and set(info()["extras"]["text"]) == {"openai", "segment-anything", "pillow"}
    for command in ("fuse", "train", "demo", "info"): assert run(capsys, command, "--help")[0] == 0


def documented():
    "The commands of the README, of the weights' cards and of their histories, as a shell would give them."
    for path in (ROOT / "README.md", *ROOT.glob("film/weights/*/*.md")):
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
            for line in re.sub(r"\$\w+", "0", block).splitlines():
                for part in re.split(r"&&|;|\|", line):
                    words = shlex.split(part, comments=True)
                    if "film" in words and (path.parent == ROOT or words[words.index("film") + 1] != "train"): yield words[words.index("film") + 1:]  # early stages had settings that are gone


def test_documented_commands_are_understood():
    commands = [parse(words) for words in documented()]
    assert {"fuse", "evaluate", "describe", "encode", "generate", "train"} <= {args.command for args in commands}


def test_options_are_called_the_same_everywhere():
    for command in ("train", "demo", "pipeline", "describe", "encode"): assert str(parse([command, "-o", "there", *["--dataset", "D"] * (command == "encode")]).out) == "there"
    assert parse(["train", "-t", "MEF"]).task == "mef" and parse(["pipeline", "-t", "ALL"]).task == "all" and parse(["pipeline"]).task is None


def test_interrupted_while_it_loads_it_says_nothing():
    process = subprocess.Popen([sys.executable, "-X", "importtime", "-m", "film", "info"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # also where the tests run in the background
    next(line for line in process.stderr if line.endswith(" argparse\n"))  # the first that film.cli imports
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.stderr.read() and process.wait() in (-signal.SIGINT, 130)


def test_demo(images, capsys):
    for task in film.TASKS.values():
        for modality, image in zip(task.modalities, "ab"): write_image(f"root/Image/{task.folder}/Sample/{modality}/p.png", read_image(f"{image}.png"))
    code, out, err = run(capsys, "demo", "--data", "root", "-o", "out")
    assert code == 0 and out.splitlines() == [*(f"out/{task.folder}/p.png" for task in film.TASKS.values()), "contact sheet: out/contact_sheet.png"]
    assert all(read_image(f"out/{task.folder}/p.png").shape == (48, 64, 3) for task in film.TASKS.values()) and read_image("out/contact_sheet.png").ndim == 3


def test_describe_encode_pack(dataset, tmp_path, capsys):
    "The text half on a data set, and its files read back for fusing."
    options = ["--data", dataset, "--dataset", "Tiny"]
    assert run(capsys, "describe", dataset / "Image" / "IVF" / "Tiny" / "IR" / "p1.png")[1].count("resolution is 64x48") == 1
    code, out, _ = run(capsys, "describe", *options, "--dry-run")
    assert code == 0 and "images     12" in out and not (dataset / "Text").exists()
    assert run(capsys, "describe", *options)[:2] == (0, "12 made, 0 kept\n") and run(capsys, "describe", *options)[1] == "0 made, 12 kept\n"
    assert run(capsys, "encode", *options)[:2] == (0, "6 made, 0 kept\n")
    assert np.load(dataset / "TextFeature" / "IVF" / "Tiny" / "p0.npy").shape[::2] == (1, 384)
    assert run(capsys, "pack", *options, "-o", tmp_path / "tiny.h5")[0] == 0 and (tmp_path / "tiny.h5").exists()
    for command, *more, says in (("describe", "0 made, 12 kept"), ("encode", "0 made, 6 kept"), ("pack", "-o", tmp_path / "again.h5", "again.h5")):  # the root in the first place
        assert says in run(capsys, command, dataset, "--dataset", "Tiny", *more)[1]
        code, _, err = run(capsys, command, dataset, *options, *more)
        assert code == 2 and "give one data root" in err and err.count("\n") == 1
    code, out, _ = run(capsys, "fuse", "--data", dataset, "--dataset", "Tiny", "--split", "train", "-o", tmp_path / "fused", "--gray")
    assert code == 0 and "6 fused" in out and read_image(tmp_path / "fused" / "p3.png").ndim == 2
    for i in range(6): np.save(dataset / "TextFeature" / "IVF" / "Tiny" / f"p{i}.npy", np.ones((1, 5, 768), np.float32)); (dataset / "TextFeature" / "IVF" / "Tiny" / f"p{i}.json").unlink()
    code, out, _ = run(capsys, "fuse", "--data", dataset, "--dataset", "Tiny", "--split", "train", "-o", tmp_path / "again", "--gray")  # released features beside weights that cannot use them
    assert code == 0 and "6 fused" in out and np.array_equal(read_image(tmp_path / "again" / "p3.png"), read_image(tmp_path / "fused" / "p3.png"))
    code, _, err = run(capsys, "fuse", dataset / "Image/IVF/Tiny/IR/p0.png", dataset / "Image/IVF/Tiny/VI/p0.png", "--text-features", dataset / "TextFeature/IVF/Tiny/p0.npy", "-o", tmp_path / "one.png")
    assert code == 2 and "made with blip2-qformer" in err  # what was asked for is not replaced in silence


def test_describe_and_encode_at_once(dataset, tmp_path, capsys):
    command = ["describe", "--data", dataset, "--dataset", "Tiny", "-o", tmp_path / "out", "--encoder"]
    code, out, err = run(capsys, *command, "magic")
    assert code == 2 and "unknown text encoder 'magic'" in err and not (tmp_path / "out").exists()
    assert run(capsys, *command, "minilm")[:2] == (0, "12 made, 0 kept\n6 made, 0 kept\n")
    assert np.load(tmp_path / "out/TextFeature/IVF/Tiny/p0.npy").shape[::2] == (1, 384) and not (dataset / "TextFeature").exists()
    (dataset / "Image/IVF/Tiny/IR/p5.png").write_text("damaged")
    code, out, err = run(capsys, *command, "minilm", "--force")
    assert code == 1 and out.startswith("11 made") and out.count("made") == 1  # not all texts: nothing is encoded


@pytest.mark.parametrize("argv, says", [
    (["describe", "a.png", "--out", "texts", "--split", "x", "--force", "--cache", "c", "--workers", -3, "--dry-run", "--data", "."], "add --dataset, or leave out --data, --split, --out, --workers, --dry-run, --cache, --force\n"),
    (["describe", "a.png", "--encoder", "blip2"], "add --dataset, or leave out --encoder\n"),
    (["describe", "--dataset", "D", "-m", "IR", "--json"], "with --dataset leave out --modality, --json\n"),
    (["evaluate", "F", "--a", "A", "--b", "B", "--data", "nowhere", "--split", "nolist"], "leave out --data, --split\n"),
    (["evaluate", "F", "--a", "A", "--b", "B", "--device", "tpu"], "leave out --device\n"),
])
def test_what_nothing_would_read_is_refused(images, capsys, argv, says):
    code, out, err = run(capsys, *argv)
    assert code == 2 and says in err and err.count("\n") == 1 and not out


def test_a_limit_can_be_switched_off():
    parser = argparse.ArgumentParser()
    add_settings(parser)
    assert given_settings(parser.parse_args(["--clip", "none", "--max-tokens", "None", "--max-steps", "3"])) == dict(clip=None, max_tokens=None, max_steps=3)


def test_the_format_of_many_results(images, capsys):
    for folder, image in (("A", "a.png"), ("B", "b.png")): write_image(f"{folder}/x.png", read_image(image))
    command = ["fuse", "A", "B", "-o", "out", "--method", "average"]
    for more, name in ((["--format", "tif", "--bits", 16], "x.tif"), (["--format", "JPG"], "x.jpg"), (["--format", "webp", "--workers", 2], "x.webp"), ([], "x.png")):
        assert run(capsys, *command, *more)[1].startswith("1 fused"), more
        assert read_image(f"out/{name}").dtype == (np.uint16 if name == "x.tif" else np.uint8)
    assert sorted(os.listdir("out")) == ["x.jpg", "x.png", "x.tif", "x.webp"] and run(capsys, *command, "--format", "tif", "--resume")[1].startswith("0 fused, 1 skipped")
    for more, says in ((["--format", "gif"], "cannot write .gif, use one of .png"), (["--format", "jpg", "--bits", 16], ".jpg: holds 8 bits a channel"), (["--format", "ppm", "--gray"], "x: out/x.ppm: cannot hold a gray image")):
        code, out, err = run(capsys, *command, *more)
        assert code and says in out + err
    code, _, err = run(capsys, "fuse", "a.png", "b.png", "-o", "y.png", "--method", "average", "--format", "tif")
    assert code == 2 and "leave out --format; the name of OUT says the format" in err


def test_raw_data_are_scored_as_they_were_fused(images, capsys):
    ramp = read_image("a.png")
    for folder, image in (("raw", 7000 + 8 * ramp.astype(np.uint16)), ("eight", ramp), ("vis", read_image("b.png"))): write_image(f"{folder}/x.png", image)
    assert run(capsys, "fuse", "raw", "vis", "-o", "out", "--stretch", "--text", "x")[0] == 0
    scores = {}
    for source, more in (("raw", []), ("raw", ["--stretch"]), ("eight", [])):
        code, out, err = run(capsys, "evaluate", "out", "--a", source, "--b", "vis", *more)
        assert code == 0 and ("scored as nearly one gray" in err) == ((source, more) == ("raw", []))
        scores[source, *more] = np.array([float(cell) for cell in out.splitlines()[2].split("|")[2:8]])
    assert np.abs(scores["raw", "--stretch"] - scores["eight",]).max() < 0.05 < np.abs(scores["raw",] - scores["eight",]).max()


def test_evaluate(dataset, tmp_path, capsys):
    where = ["--data", dataset, "--dataset", "Tiny", "--split", "train"]
    for method in ("average", "maximum"): assert run(capsys, "fuse", *where, "--method", method, "--gray", "-o", tmp_path / method)[0] == 0
    code, out, _ = run(capsys, "evaluate", tmp_path / "average", tmp_path / "maximum", *where, "-o", tmp_path / "report")
    assert code == 0 and "average" in out and "Qabf" in out and (tmp_path / "report" / "leaderboard.png").exists()
    (tmp_path / "average" / "p2.png").unlink()
    code, out, err = run(capsys, "evaluate", tmp_path / "average", *where)
    assert code == 1 and "p2: no fused image" in err
    assert run(capsys, "evaluate", tmp_path / "average")[0] == 2
    (tmp_path / "none").mkdir()
    assert run(capsys, "evaluate", tmp_path / "average", "--a", tmp_path / "none", "--b", tmp_path / "none", "-o", tmp_path / "tables")[0] == 2
    for folder in (tmp_path / "average", tmp_path / "maximum" / ".." / "average", dataset / "Image" / "IVF" / "Tiny" / "VI"):
        code, _, err = run(capsys, "evaluate", tmp_path / "average", *where, "-o", folder)
        assert code == 2 and "holds images that are scored" in err and not list(folder.glob("*.md"))
    for options, says in ((["--paper", "--metrics", "all", "--split", "val"], "leave out --split, --metrics"), ([tmp_path / "average", *where, "--a", dataset], "name the sources once")):
        code, out, err = run(capsys, "evaluate", *options)
        assert code == 2 and says in err and err.count("\n") == 1


def test_evaluate_calls_folders_as_one_likes(images, capsys):
    for folder in ("A", "B", "runs/1/fused", "runs/2/fused", "lr=0.1"): write_image(f"{folder}/a.png", read_image("a.png"))
    rows = lambda out: [line.split(" | ")[0].removeprefix("| ") for line in out.splitlines()[2:] if line.startswith("|")]
    code, out, err = run(capsys, "evaluate", "ours=runs/1/fused", "lr=0.1", "runs/2/fused", "--a", "A", "--b", "B", "--metrics", "EN", "-o", "report")
    assert code == 0 and sorted(rows(out)) == ["fused", "lr=0.1", "ours"], err
    assert {line.split(",")[0] for line in open("report/scores.csv").readlines()[1:]} == {"fused", "lr=0.1", "ours"}
    for words, says in ((["fused=runs/1/fused", "runs/2/fused"], "fused: the name of two folders"), (["x=runs/1/fused", "x=runs/2/fused"], "x: the name of two folders"),
                        (["=runs/1/fused"], "neither may be empty"), (["x="], "neither may be empty"), (["x=nowhere"], "nowhere: no such folder")):
        code, out, err = run(capsys, "evaluate", *words, "--a", "A", "--b", "B")
        assert code == 2 and says in err and err.count("\n") == 1
    code, _, err = run(capsys, "evaluate", "x=A", "--a", "A", "--b", "B", "-o", "A")
    assert code == 2 and "holds images that are scored" in err


def test_only_the_test_list_is_the_papers_test_set(tmp_path, capsys):
    "Two of three pairs, whatever the list is called, are not the whole of Lytro; a pair that is not in test.txt is none of it."
    folder = tmp_path / "Image" / "MFF" / "Lytro"
    for name in ("p0", "p1", "p2"):
        for side in ("NEAR", "FAR"): write_image(folder / side / f"{name}.png", np.random.default_rng(0).integers(0, 256, (32, 40), np.uint8))
    (folder / "test.txt").write_text("p0\np1\n"); (folder / "val.txt").write_text("p1\np2\n")
    where = ["--data", tmp_path, "--task", "mff", "--dataset", "Lytro", "--split", "val"]
    assert run(capsys, "fuse", *where, "--method", "average", "--gray", "-o", tmp_path / "average")[0] == 0
    code, out, err = run(capsys, "evaluate", tmp_path / "average", *where, "--paper")
    assert code == 0 and "p2" in out, (out, err)
