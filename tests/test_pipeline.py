"The pipeline: what it refuses, what it skips, what it does after a kill, and the bundled sample of all four tasks."
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml

from film import pipeline
from film.annotation import describe_dataset
from film.cli import main
from film.core import TASKS, read_image, write_image
from film.training import TrainSettings

ROOT = Path(__file__).resolve().parents[1]
ALL = [stage.name for stage in (*pipeline.STAGES, pipeline.REPORT)]


def run(capsys, *argv):
    "Exit code, standard output, standard error."
    try: code = main(["pipeline", *map(str, argv)])
    except SystemExit as e: code = e.code
    return code, *capsys.readouterr()


def kill(process):
    "Ends it with no chance to clean up, and waits for its kernels, which notice by themselves."
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.kill(); process.wait()
    deadline = time.time() + 120
    while not all(map(ended, kernels)): assert time.time() < deadline, "a kernel outlives its pipeline"; time.sleep(.1)


def ended(process):
    "Also if nobody has asked for its exit status yet."
    try: return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return True


def write_notebook(path, *cells, tags=("parameters",)):
    "Cells of code; the first has the tags."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells], metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")))
    nb.cells[0].metadata["tags"] = list(tags)
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nb, path)


@pytest.fixture
def small(tmp_path, dataset, monkeypatch):
    "Stage notebooks that only copy: each writes what it reads, with a number of its own. Returns options of `film pipeline`."
    (dataset / "Image" / "IVF" / "Tiny" / "test.txt").write_text("p0\np1\n")
    monkeypatch.chdir(tmp_path)
    for stage in (*pipeline.STAGES, pipeline.REPORT):
        write_notebook(tmp_path / "stages" / f"{stage.name}.ipynb", "run = '.'  # folder\nnumber = 0  # decides what is written\nother = 0  # decides nothing", f"""
from pathlib import Path
def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not ({stage.keeps} and path.exists()): path.write_text(text)
seen = " ".join(str(len(path.read_bytes())) + (path.read_text() if path.suffix == ".txt" else "") for need in {stage.needs} for path in sorted((Path(run) / need).rglob("*.txt")))
for path in {stage.makes}: write(Path(run) / path / "made.txt" if "." not in path else Path(run) / path, f"{{number}} {{seen}}")
""" if stage.name != "train" else """
import time
from pathlib import Path
folder = Path(run) / "training" / "weights"
folder.mkdir(parents=True, exist_ok=True)
with open(folder.parent / "beginnings.txt", "a") as file: file.write("x")
if number == 7:
    while not Path("go").exists(): time.sleep(0.05)
if number == 8: raise ValueError("the eighth")
if number == 9:
    from film.core import FilmError
    raise FilmError("the ninth")
(folder / "made.txt").write_text(f"{number}")
(Path(run) / "figures").mkdir(exist_ok=True)
(Path(run) / "figures" / "loss.svg").write_text("loss")
""")
    return ["--task", "ivf", "--data", dataset, "--dataset", "Tiny", "--device", "cpu", "--notebooks", "stages", "--out", "out"]


def ran(out):
    "The stages that a run's output says were running."
    return [name for name in ALL if re.search(rf"\] (ivf )?{name}: running", out)]


@pytest.mark.parametrize("options, says", [
    (["--set", "train.learning_rate=1"], "unknown parameter train.learning_rate"),
    (["--set", "train.max_step=1"], "did you mean max_steps?"),
    (["--set", "trian.lr=1"], "unknown parameter trian: did you mean train?"),
    (["--set", "train.lr"], "write STAGE.NAME=VALUE"),
    (["--set", "train.seed=3"], "for the whole run"),
    (["--set", "train.crop=64"], "train.crop must be a list"),
    (["--set", "train.lr=fast"], "train.lr must be a number"),
    (["--set", "train.lr=0"], "lr must be positive"),
    (["--set", "train.padding=none"], "padding must be one of zeros, replicate"),
    (["--set", "train.mode=whole"], "mode must be one of"),
    (["--steps", "0"], "max_steps must be at least 1"),
    (["--set", "describe.dense=grid:x.json"], "describe.dense must be one of measured, objects, florence2, grit, found 'grid:x.json'"),
    (["--set", "describe.captioner=null"], "describe.captioner must be one of measured, blip2"),
    (["--set", "encode.encoder=bert"], "encode.encoder must be one of minilm, blip2"),
    (["--set", "pack.mode=crop"], "pack.mode must be one of whole, paper, found 'crop'"),
    (["--set", "fuse.rules=5"], "fuse.rules must be a list like [average, laplacian]"),
    (["--set", "fuse.rules=average"], "found 'average'"),
    (["--set", "fuse.rules=[average, [maximum]]"], "found ['average', ['maximum']]"),
    (["--set", "fuse.rules=[bogus]"], "each one of average, maximum, laplacian"),
    (["--set", "evaluate.metrics=SSIM,bogus"], "evaluate.metrics: unknown metric 'bogus'"),
    (["--set", "evaluate.metrics=null"], "evaluate.metrics: unknown metric"),
    (["--task", "pan"], "choose one of ivf"),
    (["--pairs", "0"], "pairs must be at least 1"),
    (["--config", "missing.yaml"], "missing.yaml: cannot be read"),
    (["--config", "broken.yaml"], "broken.yaml: not YAML"),
    (["--config", "list.yaml"], "must hold lines"),
    (["--config", "unknown.yaml"], "unknown parameter sed"),
    (["--data", "nowhere"], "nowhere: no such data folder"),
    (["--dataset", "Nothing"], "no such dataset"),
    (["--set", "test_list=val"], "no such split list"),
    (["--device", "cpu", "--set", "train.mixed_precision=fp16"], "fp16 needs a GPU"),
    (["--device", "tpu"], "device 'tpu' is not available"),
    (["--notebooks", "nowhere"], "describe.ipynb: no such notebook"),
    (["--out", "broken.yaml"], "broken.yaml: cannot be written"),
    (["--set", "train_list=2024-13-01"], "the value is not YAML"),
])
def test_refused_in_one_line(tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text("task: [")
    Path("list.yaml").write_text("- task")
    Path("unknown.yaml").write_text("sed: 3")
    code, out, err = run(capsys, "--task", "ivf", "--data", ROOT / "data", "--out", "out", *options)
    assert code == 2 and says in err and err.count("\n") == 1 and out == ""
    assert not Path("out/ivf/stamps").exists()


def test_a_notebook_without_parameters_cell_is_refused(small, capsys):
    "papermill would run it and ignore every parameter."
    write_notebook(Path("stages/train.ipynb"), "number = 0", tags=())
    code, out, err = run(capsys, *small)
    assert code == 2 and "train.ipynb: has no cell tagged 'parameters'" in err and err.count("\n") == 1 and not Path("out").exists()
    write_notebook(Path("stages/train.ipynb"), "number = len('abc')")
    assert "every line of its parameters cell" in run(capsys, *small)[2]


def test_broken_images_are_listed_before_anything_runs(small, dataset, capsys):
    (dataset / "Image" / "IVF" / "Tiny" / "IR" / "p1.png").write_text("not a picture")
    code, out, err = run(capsys, *small)
    assert code == 2 and "1 of 6 pairs cannot be used" in err and "p1.png" in err and ran(out) == []


def tree(folder): return {str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


@pytest.mark.parametrize("way", ["the folder itself", "data linked", "a modality linked"])
def test_a_run_whose_data_are_the_data_root_is_refused(small, dataset, capsys, way):
    "It would remove the images and link to itself."
    options, own = list(small), Path("out/ivf/data")
    image = dataset / "Image" / "IVF" / "Tiny"
    if way == "the folder itself": own.parent.mkdir(parents=True); shutil.move(dataset, own); options[options.index(dataset)] = "out/./ivf/data"
    elif way == "data linked": own.parent.mkdir(parents=True); own.symlink_to(dataset)
    else: (own / "Image/IVF/Tiny").mkdir(parents=True); (own / "Image/IVF/Tiny/IR").symlink_to(image / "IR")
    before = tree(".")
    for more in ([], ["--dry-run"]):
        code, out, err = run(capsys, *options, *more)
        assert code == 2 and err == "film: out/ivf/data: is the data root, which is only read; choose another folder (out)\n" and out == "" and tree(".") == before


@pytest.mark.parametrize("name", ["ivf/training/mine.txt", "ivf/fused/mine.png", "ivf/train.h5", "ivf/figures/loss.svg", "ivf/data/TextFeature/mine.npy", "ivf/data/Image/IVF/Tiny/IR/mine.png", "ivf/notebooks/train.ipynb",
                                  "report.html", "metrics.csv", "pipeline.yaml", "environment.txt"])
def test_what_was_not_made_by_a_run_is_not_replaced(small, capsys, name):
    path = Path("out") / name
    path.parent.mkdir(parents=True); path.write_text("mine: 1")
    before = tree(".")
    code, out, err = run(capsys, *small)
    assert code == 2 and re.fullmatch(r"film: out: holds files that were not made here \(([^)]+)\); choose another folder \(out\)\n", err) and name.startswith(err.split("(")[1].split(")")[0]) and tree(".") == before


def test_nor_in_a_run_that_has_not_come_there_yet(small, capsys):
    assert run(capsys, *small, "--set", "train.number=9")[0] == 2
    mine = Path("out/ivf/fused/mine.png")
    mine.parent.mkdir(); mine.write_text("mine")
    assert "not made here (ivf/fused)" in run(capsys, *small)[2] and mine.read_text() == "mine"
    shutil.rmtree(mine.parent)
    assert ran(run(capsys, *small)[1]) == ["train", "fuse", "evaluate", "report"]


def test_a_selection_that_failed_is_gone_on_with(small, dataset, capsys, monkeypatch):
    "Its links are no person's files."
    with monkeypatch.context() as patched, pytest.raises(SystemExit): patched.setattr(pipeline, "environment", lambda: sys.exit(1)); pipeline.run_pipeline(dict(task="ivf", data=str(dataset), dataset="Tiny", device="cpu", out="out"), notebooks="stages")
    assert Path("out/ivf/data/Image/IVF/Tiny/IR/p0.png").is_symlink() and not Path("out/ivf/stamps").exists()
    assert ran(run(capsys, *small)[1]) == ALL


def test_the_configuration_that_a_run_is_given_keeps_its_comments(small, capsys):
    own = "# why\ntask: ivf\ndevice: cpu  # slow\nout: .\nevaluate: {number: 3}\n"
    given = small[2:6]                                                                            # --data and --dataset
    own += f"data: {given[1]}\ndataset: Tiny\n"
    Path("pipeline.yaml").write_text(own)
    again = ["--config", "pipeline.yaml", "--notebooks", "stages"]
    code, _, err = run(capsys, *again, "--seed", "3")
    assert code == 2 and "not made here (pipeline.yaml)" in err and Path("pipeline.yaml").read_text() == own
    assert ran(run(capsys, *again)[1]) == ALL and Path("pipeline.yaml").read_text() == own and ran(run(capsys, *again)[1]) == []


def test_only_what_changed_runs_again(small, dataset, capsys):
    def pipe(*options): code, out, err = run(capsys, *small, *options); assert code == 0, err; return ran(out)
    untouched = pipeline.digest(dataset)
    assert pipe() == ALL and pipeline.digest(dataset) == untouched
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.suffix in (".ipynb", ".json", ".html")}
    assert pipe() == [] and pipe("--out", "./out/") == []
    assert before == {path: path.stat().st_mtime_ns for path in before}                          # no notebook was executed, no stamp written
    code, out, _ = run(capsys, *small, "--set", "train.number=1", "--dry-run")
    assert code == 0 and "train: would run, parameter changed: number 0 -> 1" in out and ran(out) == []
    there = {path: path.lstat().st_mtime_ns for path in Path("out").rglob("*")}
    code, out, _ = run(capsys, *small, "--pairs", "1", "--dry-run")
    assert code == 0 and "fuse: would run, input changed: data/Image" in out and there == {path: path.lstat().st_mtime_ns for path in Path("out").rglob("*")}
    assert run(capsys, *small, "--out", "new", "--dry-run")[0] == 0 and not Path("new").exists()
    assert pipe("--set", "train.number=1") == ["train", "fuse", "evaluate", "report"]            # a middle stage: it and what depends on it
    assert pipe("--set", "train.number=1", "--set", "encode.other=1") == ["encode", "report"]    # the same result: what follows stays
    same = "--set", "train.number=1", "--set", "encode.other=1"
    Path("out/ivf/data/Text/made.txt").write_text("a person's words")                            # an edited result
    assert pipe(*same)[:2] == ["describe", "encode"]
    Path("out/ivf/fused/made.txt").unlink()                                                      # a lost result
    assert pipe(*same) == ["fuse"]                                                               # made again as it was
    image = dataset / "Image" / "IVF" / "Tiny" / "IR" / "p0.png"
    write_image(image, 255 - read_image(image))                                                  # another input
    assert {"describe", "pack", "fuse", "evaluate"} <= set(pipe(*same))
    nb = nbformat.read("stages/evaluate.ipynb", 4); nb.cells[1].source += "\nwrite(Path(run) / 'evaluation' / 'more.txt', 'more')"; nbformat.write(nb, "stages/evaluate.ipynb")
    assert pipe(*same) == ["evaluate", "report"]                                                 # other code
    assert pipe(*same, "--pairs", "1") and (Path("out/ivf/data/Image/IVF/Tiny/test.txt").read_text(), len(list(Path("out/ivf/data/Image/IVF/Tiny/IR").iterdir()))) == ("p0\n", 1)
    assert pipe(*same, "--pairs", "1", "--force") == ALL
    Path("again.yaml").write_text(Path("out/pipeline.yaml").read_text())
    assert run(capsys, "--config", "again.yaml", "--notebooks", "stages")[0] == 0 and pipe("--config", "again.yaml", "--pairs", "1") == []


def test_a_stage_whose_stamp_knows_nothing_of_what_it_makes_runs_again(small, capsys):
    stamp = Path("out/ivf/stamps/fuse.json")
    assert run(capsys, *small)[0] == 0
    whole = json.loads(stamp.read_text())
    for made, says in (({"fused": whole["made"]["fused"]}, "fuse: running, it now makes colour too"), ([], "fuse: running, it has not run yet")):
        stamp.write_text(json.dumps(whole | dict(made=made)))
        code, out, err = run(capsys, *small)
        assert code == 0 and ran(out) == ["fuse"] and says in out and json.loads(stamp.read_text())["made"] == whole["made"]


def test_killed_and_failed_runs_go_on(small, capsys):
    command = [sys.executable, "-m", "film", "pipeline", *map(str, small), "--set", "train.number=7"]
    beginnings = Path("out/ivf/training/beginnings.txt")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.time() + 300
    while not beginnings.exists(): assert time.time() < deadline and process.poll() is None; time.sleep(0.05)
    code, _, err = run(capsys, *small)
    assert code == 2 and "another pipeline is running there" in err
    kill(process)
    Path("go").touch()
    code, out, _ = run(capsys, *small, "--set", "train.number=7")
    assert code == 0 and ran(out) == ["train", "fuse", "evaluate", "report"] and "train: running, it was interrupted" in out
    assert beginnings.read_text() == "xx"                                                        # it found what the first had left
    code, out, err = run(capsys, *small, "--set", "train.number=9")
    assert code == 2 and err == "film: ivf train: the ninth\n" and beginnings.read_text() == "x" # another parameter: a fresh start
    code, out, err = run(capsys, *small, "--set", "train.number=8")
    assert code == 2 and "ivf train: ValueError: the eighth; the traceback is in out/ivf/notebooks/train.ipynb" in err and err.count("\n") == 1
    assert "the eighth" in Path("out/ivf/notebooks/train.ipynb").read_text()
    assert ran(run(capsys, *small, "--set", "train.number=7")[1]) == ["train"]                   # what it makes is what the others had


def test_texts_are_made_again_but_for_a_persons(dataset, tmp_path):
    "What the describe stage does to its own folder when a component or its code has changed."
    def describe(): return describe_dataset(dataset, "ivf", "Tiny", out=tmp_path, dense="objects", segmenter="none")
    assert describe().done == 12 and describe().kept == 12
    (tmp_path / "Text" / "IVF" / "Tiny" / "IR" / "p3.txt").write_text("A person's words.")
    cached = set((tmp_path / "Text" / ".cache").rglob("*.json"))
    pipeline.forget_texts(tmp_path / "Text", computed=False)
    assert len(list((tmp_path / "Text" / "IVF").rglob("*.txt"))) == 1 and set((tmp_path / "Text" / ".cache").rglob("*.json")) == cached
    summary = describe()
    assert (summary.done, summary.edited) == (11, 1)
    (tmp_path / "Text" / "IVF" / "Tiny" / "IR" / "p4.txt").write_bytes(b"caf\xe9")  # a person's, in another encoding
    written = next(iter(cached)).parent / "reply.json"; written.write_text('{"role": "writer", "value": "paid for"}')
    pipeline.forget_texts(tmp_path / "Text", computed=True)
    assert set((tmp_path / "Text" / ".cache").rglob("*.json")) == {written}


def test_what_stages_take_passes_the_check(dataset):
    "Models after ':', roles that may be left out, metrics in any case."
    for stage, choices in dict(describe=dict(dense="grit:grit.json", segmenter="none", captioner="blip2:folder", writer=None), encode=dict(encoder="blip2:folder@0123abcd"), pack=dict(mode="paper"),
                               fuse=dict(rules=[]), evaluate=dict(metrics="ssim, EN")).items():
        assert pipeline.check_config(pipeline.configure({"task": "ivf", "data": str(dataset), "dataset": "Tiny", stage: choices}))[stage].items() >= choices.items()


def test_weights_to_start_from_count_by_what_is_in_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights0" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_text("one")
    train = next(stage for stage in pipeline.STAGES if stage.name == "train")
    def inputs(start): return pipeline.dependencies(train, tmp_path, pipeline.NOTEBOOKS / "train.ipynb", dict(start=start))["inputs"]
    before = inputs("weights0")
    weights.write_text("two")
    assert before["weights0"] != inputs("weights0")["weights0"] and "default" not in inputs("default")


def test_what_is_shared_names_no_machine():
    config = pipeline.configure(dict(data="/home/me/data", train=dict(start="/home/me/weights"), describe=dict(dense="grit:/home/me/grit.json", writer="openai:small", options=dict(base_url="https://me:word@host/v1"))))
    command = pipeline.repeat_command(config)
    assert "--data DATA" in command and "train.start=PATH" in command and "describe.dense=grit:PATH" in command and "base_url: URL" in command and "describe.writer=openai:small" in command
    assert "/home" not in command and "host" not in command
    assert pipeline.repeat_command(pipeline.configure(dict(pairs=2, test_list="val", out="here"))) == "film pipeline --set test_list=val --pairs 2"


@pytest.mark.parametrize("changes", [
    dict(pairs=None), dict(train=dict(max_steps=None)), dict(train=dict(max_steps=7, clip=None, lr=1e-7, crop=[48, 64])), dict(train_list="1", test_list="null"), dict(dataset="1", test_list="-"), dict(dataset="-1", task="ivf,mef"),
    *(dict(report=dict(title=title)) for title in ("Night: a report", "", " ", "'quoted'", '"both\'s"', "two\nlines", "# no comment", "2024-13-01", "true", "é=1", "long " * 60, "- a", "[")),
    dict(describe=dict(options=dict(words=[f"word {i}" for i in range(60)], title="a: b\nc", number="1")))])
def test_the_command_to_repeat_says_the_same(capsys, changes):
    config = pipeline.configure(changes)
    command = shlex.split(pipeline.repeat_command(config))
    assert command[:2] == ["film", "pipeline"] and "\n" not in pipeline.repeat_command(pipeline.configure(dict(report=dict(title="two\nlines"))))
    assert main([*command[1:], "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert pipeline.configure(yaml.safe_load(shown)) == config


def test_stage_notebooks_of_the_package():
    "Clean, tagged, with an explanation for every parameter; every setting of training can be set."
    assert sorted(path.stem for path in pipeline.NOTEBOOKS.glob("*.ipynb")) == sorted(ALL)
    for name in ALL:
        path = pipeline.NOTEBOOKS / f"{name}.ipynb"
        cells = json.loads(path.read_text())["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells) and all(set(cell["metadata"]) <= {"tags"} for cell in cells), path
        assert all(words for _, words in pipeline.notebook_parameters(path).values()), path
    settable = set(pipeline.notebook_parameters(pipeline.NOTEBOOKS / "train.ipynb"))
    assert set(TrainSettings.__dataclass_fields__) - settable == {"split", "encoder"}             # the packed file decides these


class Page(HTMLParser):
    "What a browser would stumble over: tags that do not match, ids that are not there, anything outside the file."
    EMPTY = {"meta", "img", "br", "hr", "link", "input"}
    def __init__(self): super().__init__(); self.open, self.ids, self.links, self.images, self.outside = [], [], [], [], []
    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in self.EMPTY: self.open.append(tag)
        if "id" in attributes: self.ids.append(attributes["id"])
        if tag == "a": self.links.append(attributes["href"])
        if tag == "img": self.images.append(attributes)
        self.outside += [value for name, value in attributes.items() if name in ("src", "href") and not value.startswith(("data:", "#"))]
    def handle_endtag(self, tag): assert self.open.pop() == tag, f"</{tag}>"


OPTIONS = ["--steps", "3", "--seed", "5", "--device", "cpu", "--set", "train.crop=[48,48]", "--set", "train.checkpoint_every=1"]

@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    "The bundled sample, all four tasks, as `film pipeline` runs it."
    out = tmp_path_factory.mktemp("pipeline") / "out"
    untouched = pipeline.digest(ROOT / "data")
    assert main(["pipeline", "--data", str(ROOT / "data"), "--out", str(out), *OPTIONS]) == 0
    assert pipeline.digest(ROOT / "data") == untouched
    return out


def test_sample_of_all_tasks(sample, capsys):
    metrics = json.loads((sample / "metrics.json").read_text())
    assert list(metrics["tasks"]) == list(TASKS) and metrics["seed"] == 5
    for task, facts in metrics["tasks"].items():
        assert len(facts["pairs"]) == 3 and {"trained", "bundled", "average", "laplacian"} <= set(facts["methods"])
        assert all(0 < value < 300 for scores in facts["methods"].values() for value in scores.values())
        assert facts["methods"]["trained"] != facts["methods"]["bundled"]
        notebooks = {path.stem: nbformat.read(path, 4) for path in (sample / task / "notebooks").glob("*.ipynb")}
        assert sorted([*notebooks, "report"]) == sorted(ALL)
        assert all(any(cell.cell_type == "code" and cell.outputs for cell in nb.cells) for nb in notebooks.values())
        assert [json.loads(line)["step"] for line in (sample / task / "training" / "log.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert len((sample / "metrics.csv").read_text().splitlines()) == 1 + sum(3 * len(facts["methods"]) for facts in metrics["tasks"].values())
    environment = (sample / "environment.txt").read_text()
    assert re.search(r"^torch==", environment, re.M) and "/" not in environment
    code, out, _ = run(capsys, "--data", ROOT / "data", "--out", sample, *OPTIONS)
    assert code == 0 and ran(out) == [] and out.count("unchanged, skipped") == 25


def test_changed_notebooks_reach_the_report(sample, tmp_path):
    "A stage's new parameter, and the report's page."
    stages, out = shutil.copytree(pipeline.NOTEBOOKS, tmp_path / "stages"), shutil.copytree(sample, tmp_path / "out", symlinks=True)
    nb = nbformat.read(stages / "evaluate.ipynb", 4)
    next(cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", ())).source += "\nmine = 1  # nothing"
    nbformat.write(nb, stages / "evaluate.ipynb")
    (stages / "report.html").write_text((stages / "report.html").read_text().replace("</body>", "<p>our page</p></body>"))
    assert main(["pipeline", "--task", "ivf", "--data", str(ROOT / "data"), "--out", str(out), "--notebooks", str(stages), "--set", "evaluate.mine=3", *OPTIONS]) == 0
    page = (out / "report.html").read_text()
    assert "<p>our page</p>" in page and "--notebooks NOTEBOOKS" in page and "evaluate.mine=3" in page and str(tmp_path) not in page


def test_report_is_one_valid_page(sample):
    text = (sample / "report.html").read_text()
    page = Page(); page.feed(text); page.close()
    assert page.open == [] and page.outside == [] and text.startswith("<!DOCTYPE html>") and 'name="viewport"' in text
    assert len(set(page.ids)) == len(page.ids) and {link.removeprefix("#") for link in page.links} <= set(page.ids) and set(TASKS) <= set(page.ids)
    assert len(page.images) == 4 * (3 * 5 + 1) and all(image["alt"] and image["width"] and image["height"] for image in page.images)
    assert str(sample) not in text and str(ROOT) not in text and os.path.expanduser("~") + "/" not in text
    for task in TASKS.values():
        for path in (sample / task.name / "data" / "Text" / task.folder / "Sample").rglob("*.txt"):
            assert path.read_text().strip()[:60].replace("'", "&#39;") in text
    assert "film pipeline --data DATA --seed 5 --device cpu --steps 3 --set" in text
    assert len(text) < 8_000_000


def test_same_seed_same_metrics_even_after_a_kill(sample, tmp_path, capsys):
    "One task again in another folder, killed while it trains: the numbers are those of the run that was never stopped."
    argv = ["--task", "mff", "--data", ROOT / "data", "--out", tmp_path / "out", *OPTIONS]
    process = subprocess.Popen([sys.executable, "-m", "film", "pipeline", *map(str, argv)], stdout=subprocess.DEVNULL)
    log, deadline = tmp_path / "out" / "mff" / "training" / "log.jsonl", time.time() + 900
    while not (log.exists() and log.read_text()): assert time.time() < deadline and process.poll() is None; time.sleep(0.02)
    kill(process)
    code, out, err = run(capsys, *argv)
    assert code == 0 and ran(out.replace("mff ", "")) == ["train", "fuse", "evaluate", "report"], err
    one, other = (json.loads((folder / "metrics.json").read_text())["tasks"]["mff"] for folder in (sample, tmp_path / "out"))
    assert one == other


def test_a_writer_that_ends_with_a_line_break_is_forgotten(tmp_path):
    (tmp_path / "p.txt").write_text("Words.\n\n"); (tmp_path / "p.json").write_text('{"paragraph": "Words.\\n"}')
    pipeline.forget_texts(tmp_path, computed=False)
    assert not list(tmp_path.iterdir())
