"The chapters: exported, stored with outputs, and running from a clean kernel; README.md made from the index."
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "nbs").glob("*.ipynb"))
LIMIT = 240  # seconds of processor time that a chapter may take: two minutes on two cores
sys.path.insert(0, str(ROOT / "tools"))


def test_export_is_up_to_date(tmp_path):
    "Exporting the notebooks into an empty package gives the committed modules."
    for name in ("settings.ini", "nbs"): (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / "film").mkdir()
    shutil.copy(ROOT / "film" / "__init__.py", tmp_path / "film")
    subprocess.run([Path(sys.executable).parent / "nbdev_export"], cwd=tmp_path, check=True, capture_output=True)
    changed = [exported.name for exported in sorted((tmp_path / "film").glob("*.py")) if exported.read_text() != (ROOT / "film" / exported.name).read_text()]
    assert not changed, f"not what the notebooks export: film/{', film/'.join(changed)}; run make notebooks"
    made = {path.name for path in (tmp_path / "film").glob("*.py")} | {"__main__.py"}
    assert {path.name for path in (ROOT / "film").glob("*.py")} == made


def test_stored_numbers_are_of_what_is_there():
    "The first page's cost is that of the figure's measurements, chapter 04c was run with the bundled weights."
    from film.export import facts
    from film.network import Film
    cost = json.loads((ROOT / "outputs" / "cost.json").read_text())
    faster = {form: [f"{cost[size]['plain']['seconds'] / cost[size][form]['seconds']:.1f}" for size in ("288x384", "480x640")] for form in ("native", "torch")}
    text = (ROOT / "README.md").read_text()
    assert "native kernels are {} and {} times faster".format(*faster["native"]) in text and "torch alone is {} and {} times faster".format(*faster["torch"]) in text
    assert facts(Film.from_weights(ROOT / "film" / "weights" / "ivf"))["weights"] in (ROOT / "nbs" / "04c_export.ipynb").read_text(), "run tools/notebooks.py 04c_"


def test_readme_is_up_to_date():
    from notebooks import readme
    assert (ROOT / "README.md").read_text() == readme(), "README.md is not made from nbs/index.ipynb: run python tools/notebooks.py --readme"


def test_the_map_names_every_chapter_in_order():
    "In the index: link and module of each chapter."
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text())["cells"]
    rows = re.findall(r"^\| \[(\w+) [^\]]*\]\(\.\./nbs/(\w+)\.ipynb\) \| (?:`film\.(\w+)`)?", "".join("".join(cell["source"]) + "\n" for cell in cells), re.M)
    exports = {path.stem: re.search(r"#\| default_exp (\w+)", path.read_text()) for path in CHAPTERS if path.stem != "index"}
    assert rows == [(stem.split("_")[0], stem, found[1] if found else "") for stem, found in exports.items()], "the chapter map in nbs/index.ipynb and the notebooks differ"


def test_the_repository_is_below_40_mb():
    if not (ROOT / ".git").exists() or not shutil.which("git"): pytest.skip("needs a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]
    sizes = {name: (ROOT / name).lstat().st_size for name in listed if os.path.lexists(ROOT / name)}
    assert 0 < sum(sizes.values()) < 40e6, f"tracked files are {sum(sizes.values()) / 1e6:.1f} MB together, the largest {sorted(sizes, key=sizes.get)[-5:]}"


@pytest.mark.parametrize("path", [path for path in CHAPTERS if path.stem != "index"], ids=lambda path: path.stem)
def test_opens_with_what_the_reader_will_know_and_closes_with_what_we_get(path):
    prose = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"]
    assert re.match(r"# \d\d[a-z]? · .+\n\n> .+\n\nAt the end of this chapter you will ", prose[0])
    assert re.search(r"\*\*we get\*\*", prose[-1], re.I), "no closing line: what the paper says, what we get"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_stored_clean_and_with_outputs(path):
    nb = json.loads(path.read_text())
    code = [cell for cell in nb["cells"] if cell["cell_type"] == "code"]
    assert any(cell["outputs"] for cell in code), "stored without outputs: run make notebooks"
    assert all(set(cell["metadata"]) <= {"tags"} and cell["execution_count"] is None for cell in code), "not cleaned: run nbdev_clean"
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert path.stat().st_size < 1_500_000, "figures are too large"
    assert not re.search(r'(?<![\w.])/(?:home|root|tmp|work|usr)/', path.read_text()), "names a path of a machine"


def used():
    "Seconds of processor time of the processes that this one has started and that have ended, a kernel's own among them."
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_runs_from_a_clean_kernel(path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # the command film, without an activated environment
    nb = nbformat.read(path, as_version=4)
    stored, before = [bool(cell.get("outputs")) for cell in nb.cells], used()
    ExecutePreprocessor(timeout=600, kernel_name="python3").preprocess(nb, {"metadata": {"path": str(path.parent)}})
    assert 0 < used() - before < LIMIT, f"{path.name} takes {used() - before:.0f} s of processor time, more than {LIMIT}: show it on less"
    def shows(output): return output.get("name") != "stderr" and "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
    for cell, had_output in zip(nb.cells, stored):
        assert had_output or not any(map(shows, cell.get("outputs", ()))), f"stored without the output of this cell, run make notebooks:\n{cell.source}"
