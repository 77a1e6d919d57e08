"The network, its gradients and the losses against numbers from the authors' code (shared/golden; skipped where absent)."
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from film.losses import fusion_loss, structure_loss
from film.network import Film

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden numbers are not beside this checkout (../shared/golden)")
CASES = ("native", "msrs", "odd", "batch", "tall")


def golden_weight(name, shape):
    "The rule of golden/README.md, so that no weights need be stored."
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "temperature": x = 1 + 0.5 * x
    elif "norm" in name and leaf == "weight": x = 1 + 0.1 * x
    elif "norm" in name and leaf == "bias": x = 0.1 * x
    elif "prelu" in name: x = 0.25 + 0.05 * x
    elif leaf in ("bias", "in_proj_bias"): x = 0.05 * x
    else: x = x / np.sqrt(np.prod(shape[1:]))
    if name.endswith(("convA2.weight", "convB2.weight")): x = x * 64
    return torch.from_numpy(np.asarray(x, np.float32))


@pytest.fixture(scope="module")
def model():
    model = Film()
    model.load_state_dict({name: golden_weight(name, tuple(value.shape)) for name, value in model.state_dict().items()})
    return model.eval()


@pytest.fixture(scope="module")
def forward():
    return np.load(GOLDEN / "forward.npz")


def inputs(forward, case):
    a, b = (torch.from_numpy(forward[f"{case}_{side}"].astype(np.float32) / np.float32(255)) for side in "ab")
    seed, batch, length = json.loads(str(forward["meta_text"]))[case]
    text = torch.from_numpy(np.random.RandomState(seed).standard_normal((batch, length, 768)).astype(np.float32))
    return a, b, text


def test_names_and_shapes(model):
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == json.loads((GOLDEN / "state_dict.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_forward(model, forward, case):
    with torch.inference_mode(): fused = model(*inputs(forward, case)).numpy()
    error = np.abs(fused.astype(np.float64) - forward[f"{case}_fused64"])
    assert error.max() <= 2e-4 and error.mean() <= 2e-5


def test_train_step(model, forward):
    golden = json.loads((GOLDEN / "train_step.json").read_text())
    a, b, text = inputs(forward, "native")
    model.train().zero_grad()
    terms = fusion_loss(model(a, b, text), a, b)
    terms["total"].backward()
    for ours, theirs in (("total", "loss_total"), ("intensity", "loss_intensity"), ("gradient", "loss_gradient")):
        # theirs is 1.05e-5 from the loss of the float64 image: float32 sums over all pixels, whose order is each processor's own
        assert terms[ours].item() == pytest.approx(golden[theirs], rel=1e-4)
    norms = {name: norm for name, (_, norm) in golden["grad_sum_and_norm"].items()}
    assert set(norms) == {name for name, _ in model.named_parameters()}
    floor = 1e-4 * max(norms.values())  # a PReLU's one slope is a sum over a map that nearly cancels: its gradient in float32 is noise below that
    for name, parameter in model.named_parameters(): assert parameter.grad.double().norm().item() == pytest.approx(norms[name], rel=1e-2, abs=floor), name
    model.zero_grad(set_to_none=True); model.eval()


def test_structure_loss(forward):
    golden = json.loads((GOLDEN / "lp_ssim.json").read_text())
    fused = torch.from_numpy(forward["native_fused"])
    for side in "ab":
        source = torch.from_numpy(forward[f"native_{side}"].astype(np.float32) / np.float32(255))
        assert structure_loss(source, fused).item() == pytest.approx(golden[side.upper()][0], rel=1e-5)
