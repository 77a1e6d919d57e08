"Chapter 12: the bundled weights are whole, and the reproduction table is made, resumed and renewed."
import json
import subprocess

import numpy as np
import pytest

from film.cli import main
from film.core import TASKS, WEIGHTS_FOLDER, FilmError, checksum, read_image, write_image
from film.evaluation import PAPER, PAPER_METRICS, metrics
from film.fusion import load
from film.reproduction import ARTEFACTS, artefact_table, reproduce, reproduce_one, reproduction_table


def test_bundled_weights_are_whole():
    "Every file of weights is listed with its checksum, and as sha256sum reads the list; all tasks together are small."
    listed = {name: digest for digest, name in (line.split() for line in (WEIGHTS_FOLDER / "SHA256SUMS").read_text().splitlines())}
    there = {path.relative_to(WEIGHTS_FOLDER).as_posix() for path in WEIGHTS_FOLDER.rglob("*.safetensors")}
    assert set(listed) == there and all(checksum(WEIGHTS_FOLDER / name) == digest for name, digest in listed.items())
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=WEIGHTS_FOLDER, check=True)
    assert sum((WEIGHTS_FOLDER / name).stat().st_size for name in there if name.endswith("model.safetensors")) <= 20e6


@pytest.mark.parametrize("folder", sorted(TASKS))
def test_bundled_weights_have_card_log_and_curve(folder):
    assert all((WEIGHTS_FOLDER / folder / name).is_file() for name in ("README.md", "loss.png", "settings.json", "config.json"))
    log = [json.loads(line) for line in (WEIGHTS_FOLDER / folder / "training.jsonl").read_text().splitlines()]
    assert {"step", "total", "intensity", "gradient"} <= set(log[0]) and any("validation" in line for line in log)


def test_each_task_loads(): assert all(load(task, "cpu").text_encoder == "all-MiniLM-L6-v2" for task in TASKS)


@pytest.fixture
def root(tmp_path):
    "Two small pairs under the name of a test set of the paper."
    rng, folder = np.random.default_rng(0), tmp_path / "data" / "Image" / "MFF" / "Lytro"
    for name in ("one", "two"):
        for modality in ("NEAR", "FAR"): write_image(folder / modality / f"{name}.png", rng.integers(0, 256, (64, 80), np.uint8))
    (folder / "test.txt").write_text("one\ntwo\n")
    return tmp_path / "data"


def test_table_is_made_resumed_and_renewed(root, tmp_path, capsys):
    out = tmp_path / "out"
    report = reproduce(root, out)
    facts = report["datasets"]["Lytro"]
    assert facts["pairs"] == 2 and facts["paper"] == dict(zip(PAPER_METRICS, PAPER["Lytro"])) and {"film", "average", "focus"} <= set(facts["means"])
    by_hand = np.mean([[*metrics(out / "Lytro" / "film" / f"{name}.png", *(root / "Image" / "MFF" / "Lytro" / m / f"{name}.png" for m in ("NEAR", "FAR")), PAPER_METRICS + ARTEFACTS).values()] for name in ("one", "two")], axis=0)
    assert np.allclose([facts["means"]["film"][name] for name in PAPER_METRICS + ARTEFACTS], by_hand)
    assert [line.split(" | ")[1:3] for line in artefact_table(report).splitlines()[2:6]] == [[name, f"{value:.2f}"] for name, value in zip(ARTEFACTS, by_hand[6:])]
    assert json.loads((out / "reproduction.json").read_text()) == report and "Lytro (2)" in reproduction_table(report)
    scores = {row["method"]: row["scores"] for row in json.loads((out / "Lytro" / "report" / "table.json").read_text())["methods"]}
    assert facts["interval"] == {name: [value["low"], value["high"]] for name, value in scores["film"].items()} and set(facts["interval"]) == {*PAPER_METRICS, *ARTEFACTS}
    assert "| | ours, 95 % interval | {:.2f} to {:.2f} |".format(*facts["interval"]["EN"]) in reproduction_table(report)
    assert facts["close"] == {method: [name for name in sorted(row) if row[name]["close"]] for method, row in scores.items()}
    for name, cell in zip(PAPER_METRICS, next(line for line in reproduction_table(report).splitlines() if "best classical rule" in line).split(" | ")[2:-1]):
        rule = cell.split()[-1]
        ahead, behind = sorted(("film", rule), key=lambda method: scores[method][name]["rank"])
        assert cell.startswith("≈ ") == scores[behind][name]["close"] and not scores[ahead][name]["close"]
    fused = out / "Lytro" / "film" / "one.png"
    kept = fused.stat().st_mtime_ns
    assert main(["evaluate", "--paper", "--data", str(root), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| Lytro (2) | ours |" in printed and "| Lytro (2) | LOSS |" in printed
    assert fused.stat().st_mtime_ns == kept
    (fused.parent / "made_by.txt").write_text("other weights")
    reproduce(root, out)
    assert fused.stat().st_mtime_ns != kept
    write_image(root / "Image" / "MFF" / "Lytro" / "FAR" / "two.png", np.full((64, 80), 7, np.uint8))
    assert reproduce(root, out)["datasets"]["Lytro"]["means"]["film"]["Qabf"] != report["datasets"]["Lytro"]["means"]["film"]["Qabf"]
    (fused.parent / "made_by.txt").write_text("other weights")
    (fused.parent / "two.png").unlink()  # as after a crash while old results were removed
    assert reproduce(root, out)["datasets"]["Lytro"]["pairs"] == 2
    (fused.parent / "made_by.txt").unlink()
    with pytest.raises(FilmError, match="not made here"): reproduce(root, out)
    assert fused.is_file()


def test_one_test_set_made_again_leaves_the_others(root, tmp_path):
    (root / "Image" / "MFF" / "RealMFF").symlink_to(root / "Image" / "MFF" / "Lytro")
    both = reproduce(root, tmp_path / "out")
    assert set(both["datasets"]) == {"RealMFF", "Lytro"} == set(reproduce(root, tmp_path / "out", ["Lytro"])["datasets"])
    whole = json.dumps(both)
    both["datasets"]["RealMFF"]["weights"] = "others"
    older, oldest, unpaired, bare, empty = *(json.loads(whole) for _ in range(4)), dict(datasets=dict(RealMFF={}))
    del older["datasets"]["RealMFF"]["means"]["film"]["REV"]
    del oldest["datasets"]["RealMFF"]["interval"]
    del unpaired["datasets"]["RealMFF"]["close"]
    del bare["datasets"]["RealMFF"]["pairs"]
    for stale in (both, older, oldest, unpaired, bare, empty, dict(datasets=[])):
        (tmp_path / "out" / "reproduction.json").write_text(json.dumps(stale))
        assert set(reproduce(root, tmp_path / "out", ["Lytro"])["datasets"]) == {"Lytro"}


def test_nothing_to_reproduce(root, tmp_path, capsys):
    with pytest.raises(FilmError, match="no test list of RoadScene"): reproduce(root, tmp_path, ["RoadScene"])
    with pytest.raises(FilmError, match="Street: not a test set of the paper"): reproduce(root, tmp_path, ["Street"])
    assert main(["evaluate"]) == 2 and "name a folder of fused images, or --paper" in capsys.readouterr().err


def test_results_are_gray_and_made_again_for_other_weights_or_sources(root, tmp_path, monkeypatch):
    folder, far = tmp_path / "out" / "Lytro", root / "Image/MFF/Lytro/FAR/two.png"
    write_image(far, np.random.default_rng(1).integers(0, 256, (64, 80, 3), np.uint8))
    def made():
        reproduce_one("mff", "Lytro", root, tmp_path / "out")
        return [(folder / method / "two.png").stat().st_mtime_ns for method in ("film", "average")]
    film, average = made()
    assert read_image(folder / "film" / "two.png").ndim == 2
    monkeypatch.setattr("film.reproduction.checksum", lambda path: "0" * 64)
    again = made()
    assert again[0] != film and again[1] == average
    write_image(far, np.full((64, 80), 7, np.uint8))
    assert made()[1] != average
