#!/usr/bin/env python
"""The bundled weights and every rule of chapter 06b on the test sets that are there, beside the paper's rows.

    python benchmarks/leaderboard.py --data ROOT                  # Image/<TASK>/<DATASET>/test.txt below ROOT
    python benchmarks/leaderboard.py --data ROOT --rules-only     # without the network: minutes instead of an hour

Gray, as the paper's numbers are. Fused images and reports are kept below outputs/leaderboard; --resume leaves fused images that are there."""
import argparse
import sys
from pathlib import Path

from tqdm.auto import tqdm

from film.baselines import methods_for
from film.core import TASKS, FilmError, write_image
from film.data import check_pairs, data_root, find_pairs
from film.evaluation import PAPER, evaluate_folders, paper_table, write_report
from film.fusion import fuse


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="ROOT", help="data root (default: FILM_DATA, else ./data)")
    parser.add_argument("--out", type=Path, default=Path("outputs/leaderboard"))
    parser.add_argument("--dataset", action="append", choices=PAPER, help="only this test set (may be repeated)")
    parser.add_argument("--metrics", default="paper", help="see film evaluate --help")
    parser.add_argument("--rules-only", action="store_true", help="leave the network out")
    parser.add_argument("--resume", action="store_true", help="leave fused images that are there")
    args = parser.parse_args()
    root, found = data_root(args.data), 0
    for task in TASKS.values():
        for dataset in args.dataset or PAPER:
            if not (root / "Image" / task.folder / dataset / "test.txt").is_file(): continue
            found += 1
            pairs = check_pairs(find_pairs(root, task, dataset, "test"))
            methods = [*([] if args.rules_only else ["film"]), *methods_for(task)]
            for method in methods:
                for pair in tqdm(pairs, desc=f"{dataset} {method}", disable=None):
                    target = args.out / dataset / method / f"{pair.name}.png"
                    if not (args.resume and target.exists()): write_image(target, fuse(pair.a, pair.b, task=task, method=method, colour=False))
            result = evaluate_folders({method: args.out / dataset / method for method in methods}, pairs, args.metrics)
            listed = [pair.name for pair in pairs]
            write_report(args.out / dataset / "report", result, dataset, paper=True, listed=listed)
            print(f"\n{dataset}\n{paper_table(result, dataset, listed)}\n", flush=True)
    if not found: raise FilmError(f"{root}: no test list of {', '.join(args.dataset or PAPER)} below Image/")


if __name__ == "__main__":
    try: main()
    except FilmError as error: sys.exit(f"leaderboard: {error}")
