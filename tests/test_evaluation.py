"Metrics against the golden numbers, on hostile input, and folder evaluation."
import json, math, os, re, shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from scipy.signal import convolve2d

from film.core import TASKS, FilmError, to_gray, write_image
from film.data import pair_folders
from film.evaluation import (METRICS, PAPER, RELEASED, Evaluation, batch_metrics, best_and_worst, evaluate_folders, get_metrics, gray_levels, image_set, leaderboard, leaderboard_picture, mean_interval, metrics, paper_table,
                             ranks, to_json, to_latex, to_markdown, write_report)

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = SHARED / "golden/metrics.json"


def golden_cases():
    if not GOLDEN.exists(): return [pytest.param("", {}, marks=pytest.mark.skip(reason=f"{GOLDEN} is not there"))]
    return [pytest.param(key, values, id=key) for key, values in json.loads(GOLDEN.read_text()).items()]


@pytest.mark.parametrize("key, values", golden_cases())
def test_golden(key, values):
    pair, rule = key.split(":")
    task, dataset, name = pair.split("/")
    paths = [next((SHARED / "data/Image" / task / dataset / modality).glob(f"{name}.*")) for modality in TASKS[task.lower()].modalities]
    a, b = map(gray_levels, paths)
    fused = (np.round((a + b) / 2) if rule == "mean" else np.maximum(a, b)).astype(np.uint8)
    wanted = {"VIF" if name == "VIFF" else name: value for name, value in values.items() if name != "VIFF_joint_fn"}
    assert len(wanted) == 12
    ours = metrics(fused, *paths, names=list(wanted))
    for name, value in wanted.items():
        if math.isnan(value):  # F equals A there, and the correlation of F - A = 0 with B counts 0: corr(A, F - B) is left
            assert name == "SCD" and np.array_equal(fused, a)
            assert ours[name] == pytest.approx(np.corrcoef(a.ravel(), (fused - b).ravel())[0, 1], rel=1e-9)
        else: assert ours[name] == pytest.approx(value, rel=1e-6), name


def picture(seed=0, shape=(40, 52)):
    "A smooth random image with edges, whole gray levels 0..255, float64."
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.random(shape), (0, 0), 3)
    return np.rint(255 * (smooth - smooth.min()) / max(np.ptp(smooth), 1e-9)) // 32 * 36 + rng.integers(0, 4, shape)


def three(seed=0, shape=(40, 52)):
    a, b = picture(seed, shape), picture(seed + 1, shape)
    return np.rint(np.maximum(a, b) * 0.7 + 0.3 * a), a, b


def value(name, f, a, b):
    metric = METRICS[name]
    return metric.function(f, a, b) if metric.needs_sources else metric.function(f)


# ---------------------------------------------------------------- the measures without golden numbers, against slow forms of their definitions

def slow_fmi(f, a, b):
    def entropy(p): return -sum(x * math.log2(abs(x)) for x in np.ravel(p) if x != 0)
    def shared(x, y):
        if np.array_equal(x, y): return 1
        p, q = ((w - w.min()) / np.ptp(w) if np.ptp(w) else np.ones(9) for w in (x, y))
        p, q = p / p.sum(), q / q.sum()
        c = np.corrcoef(p, q)[0, 1] if np.ptp(x) and np.ptp(y) else 0
        # the extreme joint distribution: both sets of places laid out along [0, 1], the second from its end if c < 0
        def spans(p):
            ends = np.cumsum(p)
            return list(zip(ends - p, ends))
        first, second = spans(p), spans(q)
        if c < 0: second = [(1 - high, 1 - low) for low, high in second]
        joint = np.array([[max(0, min(h1, h2) - max(l1, l2)) for l2, h2 in second] for l1, h1 in first])
        place = np.arange(1, 10)
        mean_p, mean_q = p @ place, q @ place
        covariance = sum(joint[i, j] * (place[i] - mean_p) * (place[j] - mean_q) for i in range(9) for j in range(9))
        spread = math.sqrt((p @ place**2 - mean_p**2) * (q @ place**2 - mean_q**2))
        share = c * spread / covariance if c and abs(covariance) > 1e-15 else 0
        both = entropy(p) + entropy(q)
        return 2 * (both - entropy(share * joint + (1 - share) * np.outer(p, q))) / both if both else 0
    total = []
    for i in range(f.shape[0] - 2):
        for j in range(f.shape[1] - 2):
            wf, wa, wb = (x[i:i + 3, j:j + 3].ravel(order="F") for x in (f, a, b))
            total.append((shared(wa, wf) + shared(wb, wf)) / 2)
    return np.mean(total)


def slow_nabf(f, a, b):
    def edge(x, i, j):
        at = lambda di, dj: x[(i + di) % x.shape[0], (j + dj) % x.shape[1]]
        gx = sum(w * (at(d, 1) - at(d, -1)) for d, w in ((-1, 1), (0, 2), (1, 1))) / 8
        gy = sum(w * (at(1, d) - at(-1, d)) for d, w in ((-1, 1), (0, 2), (1, 1))) / 8
        return math.hypot(gx, gy), (math.atan(gy / gx) if gx else math.copysign(math.pi / 2, gy) if gy else 0)
    lost = weights = 0
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            gf, tf = edge(f, i, j)
            there = [edge(x, i, j) for x in (a, b)]
            for g, t in there:
                weight = g**1.5 if g >= 2 else 0.001
                weights += weight
                if gf > max(s for s, _ in there):
                    strength = g / gf
                    direction = abs(abs(t - tf) - math.pi / 2) * 2 / math.pi
                    lost += weight * (1 - math.sqrt(0.9999 / (1 + math.exp(-19 * (strength - 0.5))) * 0.9995 / (1 + math.exp(-22 * (direction - 0.5)))))
    return lost / weights


def slow_qcb(f, a, b):
    def contrast(x):
        x = np.floor((x - x.min()) / np.ptp(x) * 255 + 0.5)
        rows, columns = x.shape
        v, u = np.meshgrid(np.fft.fftfreq(rows) * 2 * rows / 30, np.fft.fftfreq(columns) * 2 * columns / 30, indexing="ij")
        r = np.hypot(u, v)
        x = np.fft.ifft2(np.fft.fft2(x) * (np.exp(-(r / 15.3870) ** 2) - 0.7622 * np.exp(-(r / 1.3456) ** 2))).real
        i, j = np.mgrid[-15:16, -15:16]
        narrow, wide = (convolve2d(x, np.exp(-(i * i + j * j) / (2 * s * s)) / (2 * np.pi * s * s), "same") for s in (2, 4))
        c = np.abs(narrow / wide - 1)
        return c**3 / (c**2 + 0.0001)
    cf, ca, cb = contrast(f), contrast(a), contrast(b)
    return np.mean((ca**2 * np.minimum(ca, cf) / np.maximum(ca, cf) + cb**2 * np.minimum(cb, cf) / np.maximum(cb, cf)) / (ca**2 + cb**2))


def test_qcb_does_not_count_rounding_on_black():
    "A scan's background is exactly black: mirrored, the scan has the same score."
    rng = np.random.default_rng(0)
    scans = [np.zeros((96, 96)) for _ in range(3)]
    for scan in scans: scan[30:60, 34:70] = rng.integers(0, 256, (30, 36))
    assert METRICS["Qcb"].function(*scans) == pytest.approx(METRICS["Qcb"].function(*(scan[::-1, ::-1] for scan in scans)), abs=1e-6)


def gauss11():
    x = np.exp(-np.arange(-5, 6) ** 2 / (2 * 1.5**2))
    return np.outer(x, x) / x.sum() ** 2


def halved(x):
    x = np.pad(x, ((0, x.shape[0] % 2), (0, x.shape[1] % 2)), mode="edge")
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def slow_ms_ssim(f, a, b):
    def one(x, y):
        terms, weights = [], (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
        while min(x.shape) >= 11 and len(terms) < 5:
            mean = lambda z: convolve2d(z, gauss11(), "valid")
            mx, my = mean(x), mean(y)
            cs = (2 * (mean(x * y) - mx * my) + 7.65**2) / (mean(x * x) - mx**2 + mean(y * y) - my**2 + 7.65**2)
            light = (2 * mx * my + 2.55**2) / (mx**2 + my**2 + 2.55**2)
            terms.append((max(0, cs.mean()), max(0, (light * cs).mean())))
            x, y = halved(x), halved(y)
        total = sum(weights[:len(terms)]) if len(terms) < 5 else 1
        return math.prod(cs ** (w / total) for (cs, _), w in zip(terms[:-1], weights)) * terms[-1][1] ** (weights[len(terms) - 1] / total)
    return one(a, f) + one(b, f)


def slow_mef_ssim(f, a, b):
    def one(f, a, b):
        window, quality = gauss11(), []
        for i in range(f.shape[0] - 10):
            for j in range(f.shape[1] - 10):
                pf, pa, pb = (x[i:i + 11, j:j + 11] for x in (f, a, b))
                da, db = pa - pa.mean(), pb - pb.mean()
                na, nb = np.linalg.norm(da), np.linalg.norm(db)
                consistency = min((np.linalg.norm(da + db) + 2e-16) / (na + nb + 2e-16), 1 - 2e-16)
                power = min(math.tan(math.pi / 2 * consistency), 10)
                ca, cb = na + 0.001, nb + 0.001
                wa, wb = (ca / 11) ** power, (cb / 11) ** power
                wish = (wa * da / ca + wb * db / cb) / (wa + wb)
                if np.linalg.norm(wish) > 0: wish = wish / np.linalg.norm(wish) * max(ca, cb)
                mean_w, mean_f = (window * wish).sum(), (window * pf).sum()
                cov = (window * (wish - mean_w) * (pf - mean_f)).sum()
                quality.append((2 * cov + 7.65**2) / ((window * (wish - mean_w) ** 2).sum() + (window * (pf - mean_f) ** 2).sum() + 7.65**2))
        return np.mean(quality)
    weights, scales = (0.0448, 0.2856, 0.3001), []
    while min(f.shape) >= 11 and len(scales) < 3:
        scales.append(max(0, one(f, a, b)))
        f, a, b = halved(f), halved(a), halved(b)
    total = sum(weights[:len(scales)])
    return math.prod(q ** (w / total) for q, w in zip(scales, weights))


def slow_changes(f, a, b):
    "LOSS, AMPL and REV, place by place."
    weights = np.exp(-np.square(np.arange(-4, 5)) / 2)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    def steps(x):
        height, width = x.shape
        at = lambda image, r, c: image[min(max(r, 0), height - 1), min(max(c, 0), width - 1)]
        smooth = {(r, c): sum(weights[i + 4, j + 4] * at(x, r + i, c + j) for i in range(-4, 5) for j in range(-4, 5)) for r in range(-1, height + 1) for c in range(-1, width + 1)}
        return np.array([[[smooth[r + 1, c] - smooth[r - 1, c], smooth[r, c + 1] - smooth[r, c - 1]] for c in range(width)] for r in range(height)]) / 0.64
    shares = []
    for scale in range(4):
        counts = np.zeros(3)
        for step, one, two in zip(*(steps(x).reshape(-1, 2) for x in (f, a, b))):
            size, seen = math.hypot(*step), max(math.hypot(*one), math.hypot(*two))
            along = sorted(step @ source / max(size, 1e-9) for source in (one, two))
            counts += (seen >= 4 and size < 2, size >= 4 and seen < 2, size >= 4 and along[0] <= -4 and along[1] < 2)
        shares.append(counts / f.size)
        f, a, b = map(halved, (f, a, b))
    return 100 * np.mean(shares, 0)


@pytest.mark.parametrize("seed, shape", [(0, (24, 32)), (5, (27, 21))])
def test_contrast_changes_against_the_definition(seed, shape):
    _, a, b = three(seed, shape)
    a[:12, :14] = b[:12, :14] = 90
    f = np.rint(255 - 0.3 * a - 0.2 * b + 9 * np.random.default_rng(seed).standard_normal(shape))  # reversed, flatter, with noise
    expected = slow_changes(f, a, b)
    assert [value(name, f, a, b) for name in ("LOSS", "AMPL", "REV")] == pytest.approx(expected, abs=1e-9) and (expected > 0.2).all()


@pytest.mark.parametrize("seed, shape", [(0, (40, 52)), (5, (47, 25))])
@pytest.mark.parametrize("name, slow", [("FMI", slow_fmi), ("Nabf", slow_nabf), ("Qcb", slow_qcb), ("MS-SSIM", slow_ms_ssim), ("MEF-SSIM", slow_mef_ssim)])
def test_against_the_definition(name, slow, seed, shape):
    f, a, b = three(seed, shape)
    assert value(name, f, a, b) == pytest.approx(slow(f, a, b), rel=1e-9)


# ---------------------------------------------------------------- every measure on every kind of input

gray = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, min_side=16, max_side=40))

@given(f=gray, seed=st.integers(0, 99), flat=st.sampled_from([None, 0, 77, 255]))
@settings(max_examples=40, deadline=None)
def test_finite_and_in_range(f, seed, flat):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (2, *f.shape), dtype=np.uint8)
    if flat is not None: a[:] = flat
    limits = {"EN": (0, 8), "SD": (0, 127.5), "SF": (0, 361), "AG": (0, 255), "MI": (0, 11.1), "MSE": (0, 65025), "CC": (-1, 1), "PSNR": (-60, 149), "SCD": (-2, 2), "SSIM": (-2, 2),
              "VIF": (0, 1e5), "Qabf": (0, 0.98), "FMI": (0, 1), "Nabf": (0, 1), "Qcb": (0, 1), "MS-SSIM": (0, 2), "MEF-SSIM": (0, 1),
              "LOSS": (0, 100), "AMPL": (0, 100), "REV": (0, 100)}
    values = metrics(f, a, b, "all")
    assert set(limits) == set(values)
    for name, (low, high) in limits.items(): assert low - 1e-9 <= values[name] <= high + 1e-9, (name, values[name])
    swapped = metrics(f, b, a, "all")
    for name in values: assert swapped[name] == pytest.approx(values[name], rel=1e-9, abs=1e-12), f"{name} depends on the order of the sources"


BEST = {"MSE": 0, "CC": 1, "SCD": 0, "SSIM": 2, "VIF": 2, "FMI": 1, "Nabf": 0, "Qcb": 1, "MS-SSIM": 2, "MEF-SSIM": 1, "LOSS": 0, "AMPL": 0, "REV": 0}

def test_identical_images():
    f = picture().astype(np.uint8)
    values = metrics(f, f, f, "all")
    for name, best in BEST.items(): assert values[name] == pytest.approx(best, abs=1e-3), name
    assert values["PSNR"] == pytest.approx(20 * math.log10(f.max()) + 100) and values["Qabf"] > 0.97
    assert values["MI"] == pytest.approx(2 * math.log(2) * values["EN"])


@pytest.mark.parametrize("level", [0, 100, 255])
def test_constant_images(level):
    "The values documented for the cases in which a formula divides by zero."
    f = np.full((20, 24), level, np.uint8)
    values = metrics(f, f, f, "all")
    expected = {"EN": 0, "SD": 0, "SF": 0, "AG": 0, "MI": 0, "MSE": 0, "CC": 0, "PSNR": 20 * math.log10(max(1, level)) + 100, "SCD": 0, "SSIM": 2, "VIF": 2,
                "FMI": 1, "Nabf": 0, "Qcb": 1, "MS-SSIM": 2, "MEF-SSIM": 1, "LOSS": 0, "AMPL": 0, "REV": 0}
    for name, number in expected.items(): assert values[name] == pytest.approx(number, abs=1e-9), name
    assert 0 <= values["Qabf"] < 0.98 and (level or values["Qabf"] == 0)


def test_same_picture_in_every_type():
    f, a, b = (x.astype(np.uint8) for x in three())
    expected = metrics(f, a, b, "all")
    for convert in (lambda x: x.astype(np.uint16) * 257, lambda x: (x / 255).astype(np.float32), lambda x: x / 255,
                    lambda x: np.stack([x] * 3, -1), lambda x: np.stack([x] * 3 + [x * 0], -1)):
        assert metrics(convert(f), convert(a), convert(b), "all") == expected


def test_colour_counts_by_its_luma():
    rng = np.random.default_rng(0)
    f, a, b = rng.integers(0, 256, (3, 30, 30, 3), dtype=np.uint8)
    luma = lambda x: np.rint(to_gray(x) * 255).astype(np.uint8)
    assert np.abs(luma(f) - f @ np.array([0.299, 0.587, 0.114])).max() <= 0.5 + 1e-4
    assert metrics(f, a, b, "all") == metrics(luma(f), luma(a), luma(b), "all")


@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (1, 1), (2, 3)])
def test_thin_arrays(shape):
    "Below 16 pixels `metrics` refuses; the functions themselves have a finite value, or name the size they need."
    f, a, b = three(shape=shape)
    with pytest.raises(FilmError, match="at least 16"): metrics(f / 255, a / 255, b / 255)
    for name in METRICS:
        if name in ("FMI", "MS-SSIM", "MEF-SSIM"):
            with pytest.raises(FilmError, match="pixels a side"): value(name, f, a, b)
        else: assert math.isfinite(value(name, f, a, b)), name


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_not_finite_is_refused(bad, place):
    images = [x / 255 for x in three()]
    images[place][3, 3] = bad
    with pytest.raises(FilmError, match="NaN or infinite"): metrics(*images)
    with pytest.raises(FilmError, match="NaN or infinite"): batch_metrics(*(torch.from_numpy(x)[None, None] for x in images))
    for name, metric in METRICS.items():
        if place == 0 or metric.needs_sources:
            with pytest.raises(FilmError, match="NaN or infinite"): value(name, *images)


def test_wrong_arrays():
    f, a, b = three()
    for images, message in (((f, a[:-1], b), "differ in size: 52x40 and 52x39"), ((f[None], a[None], b[None]), "gray"), ((f, np.stack([a] * 3, -1), b), "gray")):
        with pytest.raises(FilmError, match=message): METRICS["VIF"].function(*images)
    with pytest.raises(FilmError, match="no such file"): metrics("nowhere.png", a / 255, b / 255)
    with pytest.raises(FilmError, match="unknown metric 'x', 'FOO': choose"): get_metrics("x,FOO,EN")
    with pytest.raises(FilmError, match="unknown metric"): get_metrics([])
    assert [m.name for m in get_metrics("en, Qabf ,EN")] == ["EN", "Qabf"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_equals_single(device, dtype):
    items = [three(0), three(3), (np.full((40, 52), 50.), *three(6)[1:]), (three(9)[0], np.zeros((40, 52)), three(9)[2])]
    batch = [torch.from_numpy(np.stack(x)[:, None] / 255).to(device, dtype) for x in zip(*items)]
    names = list(METRICS)[:12]
    together = batch_metrics(*batch, names)
    for name in names:
        assert together[name].shape == (4,) and together[name].dtype == torch.float64 and together[name].device.type == device
        assert together[name].cpu().numpy() == pytest.approx([value(name, *item) for item in items], rel=1e-9, abs=1e-9), name
    pixels = [np.array(levels, float).reshape(2, 1, 1) for levels in ([51, 178], [204, 77], [20, 90])]  # no gradient in one pixel
    together = batch_metrics(*(torch.from_numpy(x[:, None] / 255).to(device, dtype) for x in pixels), names)
    for name in names: assert together[name].cpu().numpy() == pytest.approx([value(name, *item) for item in zip(*pixels)], rel=1e-9, abs=1e-9), name
    with pytest.raises(FilmError, match="no batched form of FMI"): batch_metrics(*batch, "FMI")
    with pytest.raises(FilmError, match="of one shape"): batch_metrics(batch[0], batch[1][:2], batch[2])


# ---------------------------------------------------------------- folders

@pytest.fixture
def folders(tmp_path):
    "Three pairs in A and B, fused by two methods: 'good' has all three, 'poor' misses the last."
    for k in range(3):
        f, a, b = (x.astype(np.uint8) for x in three(10 * k))
        write_image(tmp_path / f"A/p{k}.png", a)
        write_image(tmp_path / f"B/p{k}.png", b)
        write_image(tmp_path / f"good/p{k}.png", f)
        if k < 2: write_image(tmp_path / f"poor/p{k}.png", np.full_like(f, 90 + k))
    return tmp_path


def pairs_of(folder): return pair_folders(folder / "A", folder / "B")


def test_scores_are_those_of_the_images(folders):
    result = evaluate_folders(folders / "good", pairs_of(folders), "all", workers=2)
    assert list(result.scores) == ["good"] and list(result.scores["good"]) == ["p0", "p1", "p2"] and not result.problems
    for k in range(3): assert result.scores["good"][f"p{k}"] == metrics(*(folders / d / f"p{k}.png" for d in ("good", "A", "B")), "all")
    mean, low, high = mean_interval(result.values("good"))
    assert mean == pytest.approx(np.mean([list(s.values()) for s in result.scores["good"].values()], axis=0)) and (low <= mean).all() and (mean <= high).all()


def test_everything_wrong_is_listed(folders):
    good = folders / "good"
    write_image(good / "p1.png", np.zeros((30, 30), np.uint8))      # another size
    (good / "p2.png").write_bytes(b"\x89PNG\r\n")                   # damaged
    write_image(good / "stranger.png", np.zeros((30, 30), np.uint8))
    write_image(folders / "A/lonely.png", np.zeros((30, 30), np.uint8))
    write_image(folders / "poor/p1.jpg", np.zeros((40, 52), np.uint8))
    result = evaluate_folders({"good": good, "poor": folders / "poor"}, pairs_of(folders))
    found = {(p.kind, p.method, p.name) for p in result.problems}
    assert found == {("size", "good", "p1"), ("unreadable", "good", "p2"), ("extra", "good", "stranger"), ("source", "", "lonely"), ("ambiguous", "poor", "p1"), ("missing", "poor", "p2")}
    assert all("\n" not in p.message and p.name in p.message for p in result.problems)
    assert result.common() == ["p0"]


def test_nothing_to_evaluate(folders):
    (folders / "empty").mkdir()
    with pytest.raises(FilmError, match="nothing could be evaluated:\n.*p0: no fused image"): evaluate_folders(folders / "empty", pairs_of(folders))
    with pytest.raises(FilmError, match="no such folder"): evaluate_folders(folders / "nowhere", pairs_of(folders))
    with pytest.raises(FilmError, match="p0.png: a file, and a folder"): evaluate_folders(folders / "good" / "p0.png", pairs_of(folders))
    result = evaluate_folders({"good": folders / "good", "empty": folders / "empty"}, pairs_of(folders))
    assert list(result.scores) == ["good"] and {p.method for p in result.problems} == {"empty"}
    (folders / "good/p0.png").unlink(), (folders / "good/p1.png").unlink()
    with pytest.raises(FilmError, match="no image in common"): leaderboard(evaluate_folders({m: folders / m for m in ("good", "poor")}, pairs_of(folders)))


def test_methods_are_compared_on_common_images(folders):
    result = evaluate_folders({m: folders / m for m in ("poor", "good")}, pairs_of(folders), "EN,MSE,Qabf")
    rows = leaderboard(result)
    assert [row.method for row in rows] == ["good", "poor"] and rows[0].rank == {"EN": 1, "MSE": 1, "Qabf": 1} and rows[1].mean_rank == 2
    assert rows[0].mean["EN"] == pytest.approx(np.mean([result.scores["good"][name]["EN"] for name in ("p0", "p1")]))  # p2 is not common
    table = to_markdown(result).splitlines()
    assert table[0] == "| method | EN ↑ | MSE ↓ | Qabf ↑ | mean rank |" and table[-1].startswith("2 images of 3;") and "**0.00 [0.00, 0.00]**" not in table[2]
    assert len(json.loads(to_json(result))["problems"]) == 1


def test_ranks():
    means = np.array([[1.0, 1.0], [3.0, 1.0], [2.0, 0.5]])
    assert ranks(means, ["higher", "lower"]).tolist() == [[3, 2], [1, 2], [2, 1]]


def test_latex_escapes_names(folders):
    (folders / "good").rename(folders / "my_method & 100%")
    text = to_latex(evaluate_folders(folders / "my_method & 100%", pairs_of(folders)))
    assert "my\\_method \\& 100\\%" in text and text.count("\\\\") == 2
    (folders / "my_method & 100%").rename(folders / "a|b^{c}~")
    result = evaluate_folders(folders / "a|b^{c}~", pairs_of(folders))
    assert "a|b\\^{}\\{c\\}\\~{}" in to_latex(result) and "| a\\|b^{c}~ |" in to_markdown(result)


def test_report(folders):
    result = evaluate_folders({m: folders / m for m in ("good", "poor")}, pairs_of(folders))
    written = write_report(folders / "report", result, "Lytro", paper=True)
    assert {path.name for path in written} == {path.name for path in (folders / "report").iterdir()} == {
        "scores.csv", "table.md", "table.tex", "table.json", "paper.md", "problems.txt", "leaderboard.png", "best_and_worst.png"}
    lines = (folders / "report/scores.csv").read_text().splitlines()
    assert lines[0] == "method,name,EN,SD,SF,AG,VIF,Qabf" and len(lines) == 1 + 3 + 2
    assert [float(x) for x in lines[1].split(",")[2:]] == list(result.scores["good"]["p0"].values())
    assert "missing\tpoor\tp2: no fused image" in (folders / "report/problems.txt").read_text()
    with pytest.raises(FilmError, match="name the dataset"): write_report(folders / "report", result, paper=True)
    write_report(folders / "report", evaluate_folders(folders / "good", pairs_of(folders)))
    assert not {"paper.md", "problems.txt"} & {path.name for path in (folders / "report").iterdir()}  # of the evaluation before


def test_a_report_leaves_files_of_its_names_that_are_not_its_own(folders):
    good, poor = (evaluate_folders(folders / name, pairs_of(folders)) for name in ("good", "poor"))
    theirs = {"paper.md": "# My paper\n", "problems.txt": "missing\tgood\tp1: a line of ours\nbuy milk\n"}
    (folders / "report").mkdir()
    for name, text in theirs.items(): (folders / "report" / name).write_text(text)
    for result, paper, name in ((good, True, "paper.md"), (poor, False, "problems.txt")):
        with pytest.raises(FilmError, match=f"{name}: is no file of an evaluation and would be replaced; .*rename it$"): write_report(folders / "report", result, "Lytro", paper)
    assert {path.name: path.read_text() for path in (folders / "report").iterdir()} == theirs
    write_report(folders / "report", good)
    assert {name: (folders / "report" / name).read_text() for name in theirs} == theirs


def test_titles_name_the_metric(folders, monkeypatch):
    titles = []
    monkeypatch.setattr("film.evaluation.contact_sheet", lambda rows, names: titles.extend(names))
    result = evaluate_folders(folders / "good", pairs_of(folders))
    best_and_worst(result)
    assert [line[2] for line in titles] == [f"good: Qabf {value:.2f}" for value in sorted((s["Qabf"] for s in result.scores["good"].values()), reverse=True)[::2]]
    titles.clear()
    best_and_worst(evaluate_folders({method: folders / "good" for method in "xyz"}, pairs_of(folders)))
    assert [len(line) for line in titles] == [4, 1, 4, 1]


def test_names_that_are_not_utf8_are_written_as_they_are(folders):
    odd = os.fsdecode(b"caf\xe9.png")
    for folder in ("A", "B", "good"): shutil.copy(folders / folder / "p0.png", folders / folder / odd)
    write_report(folders / "report", evaluate_folders(folders / "good", pairs_of(folders)))
    assert b"good,caf\xe9," in (folders / "report/scores.csv").read_bytes()


def test_a_picture_of_methods_whose_names_are_not_utf8(folders):
    "OpenCV would end the process."
    odd = evaluate_folders({os.fsdecode(b"caf\xe9"): folders / "good"}, pairs_of(folders))
    plain = evaluate_folders({"caf?": folders / "good"}, pairs_of(folders))
    assert np.array_equal(leaderboard_picture(odd, os.fsdecode(b"d\xe9")), leaderboard_picture(plain, "d?"))


def test_paper_rows(folders):
    result = evaluate_folders(folders / "good", pairs_of(folders))
    table = paper_table(result, "Lytro")
    qabf = leaderboard(result)[0].mean["Qabf"]
    assert "| paper | 7.56 | 59.15 | 19.57 | 6.97 | 0.98 | 0.74 |" in table and f"{qabf:.2f} ({qabf - 0.74:+.2f}) |" in table
    assert "3 of the 20 images" in table and set(PAPER) == set(RELEASED)
    assert "In colour" not in table
    assert "| ours: a\\|b |" in paper_table(evaluate_folders({"a|b": folders / "good"}, pairs_of(folders)), "Lytro")
    write_image(folders / "good/p0.png", np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8))
    both = evaluate_folders([folders / "good", folders / "poor"], pairs_of(folders))
    assert "\nIn colour: good. The paper's tables are of gray images, as film fuse --gray" in paper_table(both, "Lytro")
    with pytest.raises(FilmError, match="not one of the paper's"): paper_table(result, "TNO")
    with pytest.raises(FilmError, match="none of the paper's metrics"): paper_table(evaluate_folders(folders / "good", pairs_of(folders), "MI"), "Lytro")


def test_the_interval_is_students():
    from scipy.stats import t
    values = np.random.default_rng(0).normal(size=(7, 2)) * [1, 100]
    mean, low, high = mean_interval(values, level=0.9)
    assert mean == pytest.approx(values.mean(0))
    assert np.array([low, high]) == pytest.approx(np.array(t.interval(0.9, 6, values.mean(0), values.std(0, ddof=1) / 7**0.5)))
    assert all(np.array_equal(part, values[0]) for part in mean_interval(values[:1]))  # of one image there is none
    assert all(np.array_equal(part, [0.5]) for part in mean_interval(np.full((3, 1), 0.5)))


def test_folders_of_one_name_stay_apart(folders):
    (folders / "again").mkdir()
    (folders / "poor").rename(folders / "again/good")
    with pytest.warns(UserWarning, match="more than once"): result = evaluate_folders([folders / "good", folders / "again/good", folders / "again/../good"], pairs_of(folders))
    assert {name.count("/") for name in result.scores} == {1} and [len(scores) for scores in result.scores.values()] == [3, 2]


def test_image_sets():
    for count, listed, kind in ((19, None, "subset"), (20, None, "whole"), (21, None, "other"), (20, ["0"], "other")):
        assert image_set("Lytro", [str(i) for i in range(count)], listed)[0] == kind


def test_best_first_where_less_is_better(folders, monkeypatch):
    titles = []
    monkeypatch.setattr("film.evaluation.contact_sheet", lambda rows, names: titles.extend(names))
    result = evaluate_folders(folders / "good", pairs_of(folders), "MSE")
    best_and_worst(result)
    values = sorted(scores["MSE"] for scores in result.scores["good"].values())
    assert [line[2] for line in titles] == [f"good: MSE {value:.2f}" for value in (values[0], values[-1])]


def test_tables_mark_the_best_and_half_the_interval(folders):
    result = evaluate_folders({m: folders / m for m in ("good", "poor")}, pairs_of(folders), "EN,MSE")
    good, poor = leaderboard(result)
    lines = to_markdown(result).splitlines()
    assert lines[2].startswith("| good | **") and lines[2].count("**") == 4 and "**" not in lines[3]
    half = (good.high["MSE"] - good.low["MSE"]) / 2
    assert half > 0.01 and f"$\\mathbf{{{good.mean['MSE']:.2f}}}_{{\\pm {half:.2f}}}$" in to_latex(result) and to_latex(result).count("mathbf") == 2


def test_a_lead_that_may_be_luck_is_marked():
    "By the paired t test of SciPy."
    from scipy.stats import ttest_rel
    rng, names = np.random.default_rng(3), [f"p{k}" for k in range(8)]
    images = rng.normal(0.6, 0.2, 8)  # hard and easy ones
    columns = {"best": images + 0.05, "sure": images + rng.normal(0, 0.01, 8), "luck": images + 0.04 + rng.normal(0, 0.03, 8), "same": images + 0.05}
    result = Evaluation(["Qabf", "MSE"], {method: {name: dict(Qabf=value, MSE=-value) for name, value in zip(names, values)} for method, values in columns.items()}, pairs=dict.fromkeys(names))
    rows = {row.method: row for row in leaderboard(result)}
    for method in ("sure", "luck"): assert (ttest_rel(columns["best"], columns[method]).pvalue > 0.05) == (method == "luck") == (rows[method].close == {"Qabf", "MSE"})
    assert rows["sure"].low["Qabf"] < rows["best"].high["Qabf"]  # the intervals of their own overlap
    assert not rows["best"].close and not rows["same"].close and rows["same"].rank["Qabf"] == 1 and not rows["sure"].close
    table, latex = to_markdown(result), to_latex(result)
    assert [line.count("≈ ") for line in table.splitlines() if line.startswith("| luck")] == [2] and table.count("≈ ") == 2 and "≈: behind the best" in table
    assert latex.count("^{\\approx}") == 2 and "≈: behind the best" in latex
    assert [method["method"] for method in json.loads(to_json(result))["methods"] if method["scores"]["Qabf"]["close"]] == ["luck"]
    del result.scores["luck"]
    assert "≈" not in to_markdown(result) + to_latex(result)


def test_sources_of_one_name_are_ambiguous(folders):
    shutil.copy(folders / "A/p0.png", folders / "A/p0.bmp")
    result = evaluate_folders(folders / "good", pairs_of(folders))
    assert [(p.kind, p.name) for p in result.problems] == [("source", "p0")] and "ambiguous" in result.problems[0].message and "p0" not in result.scores["good"]


def test_one_image_has_no_interval(folders):
    one = evaluate_folders(folders / "good", pairs_of(folders)[:1], "EN")
    table, latex, data = to_markdown(one), to_latex(one), json.loads(to_json(one))
    assert "[" not in table and table.endswith("\n1 image.")
    assert "pm" not in latex and latex.endswith("\n% 1 image.") and f"${one.scores['good']['p0']['EN']:.2f}$" in latex
    assert "confidence" not in data and data["methods"][0]["scores"]["EN"].keys() == {"mean", "rank"} and data["note"] == "1 image."
    several = json.loads(to_json(evaluate_folders(folders / "good", pairs_of(folders), "EN")))
    assert several["confidence"] == 0.95 and several["methods"][0]["scores"]["EN"].keys() == {"mean", "low", "high", "rank", "close"}


def test_tables_say_whose_luma_is_scored(folders):
    for name in ("p0", "p1", "p2"): write_image(folders / f"vivid/{name}.png", np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8))
    both = evaluate_folders({m: folders / m for m in ("good", "vivid")}, pairs_of(folders))
    for table in (to_markdown(both), to_latex(both), json.loads(to_json(both))["note"]): assert table.endswith("In colour: vivid; their luma is scored.")
    gray = evaluate_folders(folders / "good", pairs_of(folders))
    assert not any("colour" in table for table in (to_markdown(gray), to_latex(gray), to_json(gray)))


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_says_which_way_is_better_and_whose_it_is(name):
    said = METRICS[name].function.__doc__
    assert f"{METRICS[name].direction} is better" in said and re.search(r"\b(19|20)\d\d\b", said)
