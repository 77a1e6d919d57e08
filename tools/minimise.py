"""Minimises the training loss over pictures themselves, without a network: what a form of the loss (chapter 05) wants, in seconds a picture, before an hour of training with it.

    python tools/minimise.py outputs/wanted --task ivf --dataset RoadScene --data DATA --grad 10 --signed 1 --smooth 2 --gain 1.5
    film evaluate outputs/wanted --task ivf --dataset RoadScene --split train --data DATA

Adam changes a stack of images from full size to a 32nd of it, whose sum is the picture, so that broad brightness moves as easily as edges. It starts at the brighter source of each pixel. No seed: nothing in it is random."""
import argparse
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from film.cli import add_settings, given_settings
from film.core import FilmError, read_image, to_gray, write_image
from film.losses import LossSettings, fusion_loss
from film.training import make_settings, training_pairs


def minimise(
    a: torch.Tensor, # (1, 1, H, W) in [0, 1]
    b: torch.Tensor, # like `a`
    settings: LossSettings,
    steps: int = 200,
) -> torch.Tensor:   # like `a`
    "The image with the least loss that Adam finds."
    start = torch.maximum(a, b)
    height, width = start.shape[-2:]
    levels = [torch.zeros(1, 1, max(2, -(-height // 2**n)), max(2, -(-width // 2**n)), requires_grad=True) for n in range(6)]
    def image(): return start + sum(F.interpolate(level, (height, width), mode="bilinear", align_corners=False) for level in levels)
    adam = torch.optim.Adam([dict(params=[level], factor=0.7 if n else 1.0) for n, level in enumerate(levels)])
    for step in range(steps):
        for group in adam.param_groups: group["lr"] = group["factor"] * (0.015 * (1 - step / steps) + 0.0003)
        fused = image()
        outside = (fused - fused.clamp(0, 1)).abs().mean()
        adam.zero_grad()
        (fusion_loss(fused, a, b, settings)["total"] + 10 * outside).backward()
        adam.step()
    return image().detach().clamp(0, 1)


def minimise_all(options: argparse.Namespace):
    "One picture for each pair."
    settings = make_settings("paper", **given_settings(options))
    pairs = {pair.name: pair for pair in training_pairs(options.data, settings)}
    names = options.only or [*pairs]
    unknown = set(names) - set(pairs)
    if unknown: raise FilmError(f"{', '.join(sorted(unknown))}: no such pair in {settings.dataset}'s {settings.split} list")
    for name in tqdm(names, desc="minimising"):
        a, b = (torch.from_numpy(to_gray(read_image(path)).astype(np.float32))[None, None] for path in (pairs[name].a, pairs[name].b))
        write_image(options.out / f"{name}.png", np.rint(255 * minimise(a, b, settings, options.steps)[0, 0].numpy()).astype(np.uint8))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--data", metavar="ROOT", help="data root (default: FILM_DATA, else ./data)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these pairs only")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="of Adam (default: 200)")
    group = parser.add_argument_group("settings", "as film train has them; in brackets what they are by default")
    add_settings(group, ["task", "dataset", "split", *(term.name for term in fields(LossSettings))])
    try: minimise_all(parser.parse_args())
    except FilmError as error: sys.exit(f"minimise: {error}")
