#!/usr/bin/env python
"""The paper's six metrics (and SSIM, MI): film.evaluation against a plain form, on the same images in the same run.

    python benchmarks/metrics.py

The plain form is what one writes first from the formulas: scipy.signal.convolve2d with full 2-D windows, one source at a time, numpy.histogram2d.
Both forms must agree before they are timed. Times are the best of several runs, taken in turns."""
import os, sys, time
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.ndimage import uniform_filter
from scipy.signal import convolve2d

from film.baselines import METHODS
from film.evaluation import METRICS, PAPER_METRICS, batch_metrics, gray_levels

SAMPLE = Path(__file__).resolve().parents[1] / "data/Image/IVF/Sample"
SIZES = (480, 640), (768, 1024)


def plain_entropy(f, a, b):
    counts, _ = np.histogram(np.rint(f), bins=256, range=(0, 256))
    p = counts[counts > 0] / f.size
    return -np.sum(p * np.log2(p))


def plain_sd(f, a, b): return np.sqrt(np.mean((f - np.mean(f)) ** 2))


def plain_sf(f, a, b): return np.sqrt(np.mean((f[:, 1:] - f[:, :-1]) ** 2) + np.mean((f[1:] - f[:-1]) ** 2))


def plain_ag(f, a, b):
    gy, gx = np.gradient(f)
    return np.mean(np.sqrt((gx**2 + gy**2) / 2))


def plain_mi(f, a, b):
    def information(x):
        joint, _, _ = np.histogram2d(x.ravel(), f.ravel(), bins=256, range=((0, 256), (0, 256)))
        joint /= joint.sum()
        independent = joint.sum(1, keepdims=True) @ joint.sum(0, keepdims=True)
        seen = joint > 0
        return np.sum(joint[seen] * np.log(joint[seen] / independent[seen]))
    return information(a) + information(b)


def plain_ssim(f, a, b):
    def one(x):
        mean = lambda z: uniform_filter(z, 7)
        mx, mf, n = mean(x), mean(f), 49 / 48
        vx, vf, cov = n * (mean(x * x) - mx**2), n * (mean(f * f) - mf**2), n * (mean(x * f) - mx * mf)
        return ((2 * mx * mf + 2.55**2) * (2 * cov + 7.65**2) / ((mx**2 + mf**2 + 2.55**2) * (vx + vf + 7.65**2)))[3:-3, 3:-3].mean()
    return one(a) + one(b)


def plain_vif(f, a, b):
    def one(x, f):
        kept = there = 0
        for scale, n in enumerate((17, 9, 5, 3)):
            r = np.arange(n) - n // 2
            window = np.exp(-(r[:, None] ** 2 + r**2) / (2 * (n / 5) ** 2))
            window /= window.sum()
            mean = lambda z: convolve2d(z, window, "valid")
            if scale: x, f = mean(x)[::2, ::2], mean(f)[::2, ::2]
            mx, mf = mean(x), mean(f)
            vx, vf, cov = np.maximum(mean(x * x) - mx**2, 0), np.maximum(mean(f * f) - mf**2, 0), mean(x * f) - mx * mf
            gain = cov / (vx + 1e-10)
            gain[(vx < 1e-10) | (vf < 1e-10) | (gain < 0)] = 0
            noise = np.maximum(vf - gain * cov, 1e-10)
            vx[vx < 1e-10] = 0
            kept += np.log10(1 + gain**2 * vx / (noise + 2)).sum()
            there += np.log10(1 + vx / 2).sum()
        return kept / there
    return one(a, f) + one(b, f)


def plain_qabf(f, a, b):
    sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    def edges(x):
        gx, gy = convolve2d(x, sobel, "same"), -convolve2d(x, sobel.T, "same")
        return np.hypot(gx, gy), np.where(gx == 0, np.pi / 2, np.arctan(gy / np.where(gx == 0, 1, gx)))
    def kept(x):
        (gx, tx), (gf, tf) = edges(x), edges(f)
        high = np.maximum(gx, gf)
        ratio = np.where(gx == gf, gx, np.minimum(gx, gf) / np.where(high == 0, 1, high))
        alignment = 1 - np.abs(tx - tf) / (np.pi / 2)
        return (0.9994 / (1 + np.exp(-15 * (ratio - 0.5))) * 0.9879 / (1 + np.exp(-22 * (alignment - 0.8))) * gx).sum(), gx.sum()
    (qa, wa), (qb, wb) = kept(a), kept(b)
    return (qa + qb) / (wa + wb)


PLAIN = {"EN": plain_entropy, "SD": plain_sd, "SF": plain_sf, "AG": plain_ag, "VIF": plain_vif, "Qabf": plain_qabf, "SSIM": plain_ssim, "MI": plain_mi}


def best(function, runs):
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        value = function()
        times.append(time.perf_counter() - start)
    return value, 1000 * min(times)


def main():
    print(f"{os.cpu_count()} cores, numpy {np.__version__}, OpenCV {cv2.__version__}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    missed = []
    for height, width in SIZES:
        a, b = (np.rint(cv2.resize(gray_levels(next((SAMPLE / side).glob("street.*"))), (width, height), interpolation=cv2.INTER_AREA)) for side in ("IR", "VI"))
        f = np.rint(255 * METHODS["laplacian"](*((x / 255).astype(np.float32) for x in (a, b))).astype(np.float64))
        batch = [torch.from_numpy(x / 255)[None, None] for x in (f, a, b)]
        print(f"\n{height}x{width}  {'plain, ms':>12} {'film, ms':>10} {'times':>7} {'torch, ms':>11}   difference")
        plain, fast = {}, {}
        for name, function in PLAIN.items():
            metric = METRICS[name]
            expected, first = best(lambda: function(f, a, b), 1)
            value, fast[name] = best(lambda: metric.function(*((f, a, b) if metric.needs_sources else (f,))), 10)
            _, plain[name] = best(lambda: function(f, a, b), 3)
            plain[name] = min(plain[name], first)
            tensor, on_torch = best(lambda: batch_metrics(*batch, names=name)[name].item(), 3)
            difference = max(abs(value - expected), abs(tensor - expected)) / abs(expected)
            if difference > 1e-6: sys.exit(f"{name}: {value} is not {expected}")
            print(f"{name:>8} {plain[name]:12.1f} {fast[name]:10.2f} {plain[name] / fast[name]:7.1f} {on_torch:11.1f}   {difference:.0e}")
        ratio = sum(plain[name] for name in PAPER_METRICS) / sum(fast[name] for name in PAPER_METRICS)
        print(f"the paper's six: plain {sum(plain[n] for n in PAPER_METRICS):.0f} ms, film {sum(fast[n] for n in PAPER_METRICS):.1f} ms: {ratio:.1f} times faster")
        if ratio < 15: missed.append(f"{height}x{width}: {ratio:.1f}")
    if missed: sys.exit(f"less than 15 times faster: {', '.join(missed)}")


if __name__ == "__main__": main()
