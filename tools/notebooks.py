"""Runs every chapter in a fresh kernel, stores its outputs, exports the package and builds README.md from index.ipynb.

    python tools/notebooks.py              all of it, and the README's picture
    python tools/notebooks.py 04 07        only the chapters whose names start so
    python tools/notebooks.py --readme     only README.md
"""
import os
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import Preprocessor

ROOT = Path(__file__).resolve().parents[1]


def chapters(prefixes=()):
    "The notebooks in reading order, index last since it sums up the others."
    names = sorted((ROOT / "nbs").glob("[0-9]*.ipynb")) + [ROOT / "nbs" / "index.ipynb"]
    return [path for path in names if not prefixes or path.name.startswith(tuple(prefixes))]


class Visible(Preprocessor):
    "Drops hidden cells, hidden input and directive lines; restores the language that cleaning strips, or code fences lose it."
    def preprocess(self, nb, resources):
        nb.metadata["language_info"] = {"name": "python"}
        nb.cells = [cell for cell in nb.cells if not re.search(r"^#\|\s*(hide|default_exp)", cell.source, re.M)]
        for cell in nb.cells:
            if "remove-input" in cell.metadata.get("tags", ()): cell.metadata["transient"] = {"remove_source": True}  # as nbconvert's templates ask
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
        return nb, resources


def whole_streams(outputs):
    "What a cell printed as one output: it arrives in pieces that differ from run to run."
    whole = []
    for output in outputs:
        last = whole[-1] if whole else {}
        if output.output_type == "stream" and last.get("output_type") == "stream" and last["name"] == output.name: last["text"] += output.text
        else: whole.append(output)
    return whole


def readme(notebook=ROOT / "nbs" / "index.ipynb"):
    "README.md as text. Pictures are referred to by files in the repository, so outputs must be text."
    exporter = MarkdownExporter(preprocessors=[Visible])
    text, _ = exporter.from_filename(str(notebook))
    text = re.sub(r"```\w+\n%%sh\n", "```sh\n", text)
    text = text.replace("](../", "](").replace('src="../', 'src="')  # paths from nbs/ -> from the repository's root
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def picture():
    "outputs/demo.jpg, the README's picture: one pair of the bundled sample for each task, fused."
    import numpy as np
    import film
    from film.core import TASKS, contact_sheet, read_image, write_image
    from film.data import find_pairs
    images, titles = [], []
    for task, name in (("ivf", "street"), ("mif", "pet"), ("mef", "coffee"), ("mff", "fence")):
        pair = next(pair for pair in find_pairs("data", task, "Sample") if pair.name == name)
        images.append([read_image(pair.a), read_image(pair.b), film.fuse(pair.a, pair.b, task=task)])
        titles.append([*TASKS[task].words, f"fused: {TASKS[task].title}"])
    def sheet(i, height): return contact_sheet([images[i] + images[i + 1]], [titles[i] + titles[i + 1]], height=height)
    upper, lower = sheet(0, 170), sheet(2, 170)
    upper = sheet(0, round(170 * lower.shape[1] / upper.shape[1]))  # rows of one width, or nearly
    width = min(upper.shape[1], lower.shape[1])
    write_image("outputs/demo.jpg", np.vstack([upper[:, :width], lower[:, :width]]))


def main(arguments):
    from nbdev.clean import clean_nb
    from nbdev.export import nb_export
    from papermill import execute_notebook
    os.chdir(ROOT)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the command film, without an activated environment
    if arguments != ["--readme"]:
        for path in chapters(arguments):
            print(path.name, flush=True)
            nb_export(path, lib_path=ROOT / "film")  # first, so that the chapter runs on the code it holds
            execute_notebook(path, path, cwd=path.parent, kernel_name="python3", progress_bar=False)
            nb = nbformat.read(path, as_version=4)
            for cell in nb.cells:  # live widgets (progress bars) have random ids and show nothing when stored
                if cell.cell_type == "code": cell.outputs = whole_streams(o for o in cell.outputs if "application/vnd.jupyter.widget-view+json" not in o.get("data", {}))
            nb.metadata.pop("widgets", None)  # their state, pictures included
            clean_nb(nb, allowed_cell_metadata_keys=["tags"])
            nbformat.write(nb, path)
            if path.stem == "index": picture()
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")


if __name__ == "__main__": main(sys.argv[1:])
