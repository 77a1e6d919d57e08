"""Makes a training run's weights the bundled ones of a task: float16, checked, with their log, curve and checksum.

    python tools/bundle.py mff outputs/train-mff --data DATA
    python tools/bundle.py ivf outputs/ivf-1 outputs/ivf-2 --data DATA     # stages, in order: the last one's weights, all logs

Float16 is refused if it changes a metric of the paper by more than 0.1 % on the run's held-out pairs. The model card, film/weights/<task>/README.md, is written by hand."""
import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

from film.core import TASKS, WEIGHTS_FOLDER, FilmError, atomic_write, checksum
from film.evaluation import PAPER_METRICS, metrics
from film.fast import keep_memory
from film.fusion import fuse, load_weights
from film.training import TrainSettings, held_out, save_weights, text_features, training_pairs


def change(run: Path, folder: Path, data: str) -> dict[str, float]:
    "Relative change of each metric's mean over the held-out pairs from float32 to float16."
    settings = TrainSettings(**json.loads((run / "settings.json").read_text()))
    pairs = training_pairs(data, settings)
    pairs = [pairs[i] for i in held_out(settings, len(pairs))]
    if not pairs: raise FilmError(f"{run}: held no pairs out, on which float16 could be compared")
    texts, _ = text_features(pairs, settings.task, settings.encoder, run / "texts")
    means = []
    for weights in (run / "weights", folder):
        model = load_weights(weights, "cpu")
        fused = [fuse(pair.a, pair.b, task=settings.task, weights=model, text=texts[pair.name], colour=False) for pair in pairs]
        means.append(np.mean([[*metrics(image, pair.a, pair.b).values()] for image, pair in zip(fused, pairs)], axis=0))
    print(f"{len(pairs)} held-out pairs, float32 and float16:")
    for line in zip(PAPER_METRICS, *means): print("{:5s}{:9.4f}{:9.4f}".format(*line))
    return dict(zip(PAPER_METRICS, np.abs(means[1] / means[0] - 1)))


def curve(lines: list[dict], path: Path):
    "Losses against steps, stages one after the other."
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.6), layout="constrained")
    for ax, name in zip(axes, ("intensity", "gradient")):
        points = np.array([(line["at"], line[name]) for line in lines if name in line])
        ax.plot(*points.T, lw=0.5, color="0.7")
        width = max(1, len(points) // 20)
        ax.plot(points[width - 1:, 0], np.convolve(points[:, 1], np.ones(width) / width, "valid"), lw=1.5)
        ax.set(title=f"{name} loss", xlabel="step", ylim=(0, np.percentile(points[:, 1], 98) * 1.2))
    fig.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished training runs, stages in order")
    parser.add_argument("--data", metavar="ROOT", required=True, help="data root of the training")
    args = parser.parse_args()
    keep_memory()
    run, folder = args.runs[-1], WEIGHTS_FOLDER / args.task
    staging = folder.with_name(f".{args.task}-new")
    save_weights(load_weights(run / "weights", "cpu"), staging, torch.float16)
    worst = max(change(run, staging, args.data).items(), key=lambda item: item[1])
    print(f"largest relative change: {worst[0]} {worst[1]:.2e}")
    if worst[1] > 1e-3: raise FilmError(f"float16 changes {worst[0]} by more than 0.1 %; {staging} is left to look at")
    folder.mkdir(exist_ok=True)
    for path in staging.iterdir(): path.replace(folder / path.name)
    staging.rmdir()
    lines, before = [], 0
    for stage in args.runs:
        stage_lines = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
        lines += [dict(run=stage.name, at=before + line["step"], **line) for line in stage_lines]
        before += stage_lines[-1]["step"]
        shutil.copy(stage / "settings.json", folder / f"settings{'' if stage == run else '-' + stage.name}.json")
    with atomic_write(folder / "training.jsonl") as temporary: temporary.write_text("".join(json.dumps({key: value for key, value in line.items() if key != "at"}) + "\n" for line in lines))
    curve(lines, folder / "loss.png")
    sums = sorted(path.relative_to(WEIGHTS_FOLDER).as_posix() for path in WEIGHTS_FOLDER.rglob("[!.]*.safetensors"))
    with atomic_write(WEIGHTS_FOLDER / "SHA256SUMS") as temporary: temporary.write_text("".join(f"{checksum(WEIGHTS_FOLDER / name)}  {name}\n" for name in sums))
    print(folder)


if __name__ == "__main__":
    try: main()
    except FilmError as error: sys.exit(f"bundle: {error}")
