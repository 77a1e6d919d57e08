"Every fusion rule on the shared test pairs, on random sizes and on wrong input."
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays

from film.baselines import METHODS, methods_for
from film.core import TASKS, FilmError, to_gray, read_image
from film.evaluation import metrics

IMAGES = Path(__file__).resolve().parents[2] / "shared/data/Image"
PAIRS = {"ivf": "RoadScene/{}/FLIR_00211", "mif": "Harvard/{}/MRI_CT_11", "mef": "MEFB/{}/Arno", "mff": "Lytro/{}/lytro-02"}


def shared_pair(task):
    if not IMAGES.exists(): pytest.skip(f"{IMAGES} is not there")
    folder = IMAGES / TASKS[task].folder
    return [to_gray(read_image(next(folder.glob(PAIRS[task].format(modality) + ".*")))) for modality in TASKS[task].modalities]


@pytest.mark.parametrize("task", TASKS)
def test_keeps_more_edges_than_the_average(task):
    a, b = shared_pair(task)
    scores = {name: metrics(METHODS[name](a, b), a, b, names="Qabf")["Qabf"] for name in methods_for(task)}
    assert all(scores[name] > scores["average"] for name in scores if name not in ("average", "maximum")), scores
    if task == "mff": assert scores["focus"] > 0.7


@pytest.mark.parametrize("name", METHODS)
@given(a=arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.floats(0, 1, width=32)), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_any_size(name, a, seed):
    b = np.random.default_rng(seed).random(a.shape, np.float32)
    before = a.copy(), b.copy()
    fused = METHODS[name](a, b)
    assert fused.shape == a.shape and fused.dtype == np.float32 and np.isfinite(fused).all()
    assert fused.min() >= 0 and fused.max() <= 1
    assert np.array_equal(a, before[0]) and np.array_equal(b, before[1])  # the sources are left alone
    assert np.allclose(METHODS[name](a, a), a, atol=1e-4)                  # two equal images fuse to themselves


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("a, b", [
    (np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)),
    (np.zeros((20, 20, 3), np.float32), np.zeros((20, 20, 3), np.float32)),
    (np.zeros((20, 20), np.float32), np.zeros((1, 20), np.float32)),
])
def test_wrong_input(name, a, b):
    with pytest.raises(FilmError): METHODS[name](a, b)


def test_methods_for():
    assert set(METHODS) - set(methods_for("MIF")) == {"mertens", "focus"}
    with pytest.raises(FilmError, match="choose one of"): methods_for("video")
