"Metrics against the golden numbers, on hostile input, and folder evaluation."
import json, math
from pathlib import Path

import numpy as np
import pytest

from film.core import TASKS, FilmError
from film.evaluation import METRICS, gray_levels, metrics

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
