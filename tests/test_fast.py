"The fast path against the plain form and against float64 numbers from the authors' code."
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from film import fast
from film.core import FilmError
from film.large import WORKING, Room
from film.network import Film
from test_golden import CASES, GOLDEN, expect_train_step, golden_weight, inputs

needs_kernels = pytest.mark.skipif(fast.library() is None, reason="the native kernels are not built (no C++ compiler at installation)")
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden numbers are not beside this checkout (../shared/golden)")
INSTRUCTIONS = ("plain", "AVX2", "AVX-512")


def randomised(model):
    "Weights by the golden rule: large enough a text path, and normalisations that do something."
    model.load_state_dict({name: golden_weight(name, tuple(value.shape)) for name, value in model.state_dict().items()})
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return randomised(Film())


@pytest.fixture
def use():
    "Chooses an instruction set, or skips; the best one is back afterwards."
    def choose(name):
        if fast.library().film_use(name.encode()): pytest.skip(f"this machine has no {name}")
    before = fast.library().film_instructions()
    yield choose
    fast.library().film_use(before)


@needs_kernels
@needs_golden
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("case", CASES)
def test_native_golden(model, use, case, instructions):
    use(instructions)
    if instructions == "plain" and case in ("native", "msrs"): pytest.skip("slow, and no other code than the smaller ones")
    forward = np.load(GOLDEN / "forward.npz")
    error = np.abs(fast.forward_native(model, *inputs(forward, case)).numpy().astype(np.float64) - forward[f"{case}_fused64"])
    assert error.max() <= 1e-5


@needs_golden
@pytest.mark.parametrize("case", ["batch", "tall", "odd"])
def test_torch_golden(model, case):
    forward = np.load(GOLDEN / "forward.npz")
    with torch.inference_mode(): fused = fast.forward_torch(model, *inputs(forward, case)).numpy()
    assert np.abs(fused.astype(np.float64) - forward[f"{case}_fused64"]).max() <= 1e-5


GRIDS = [(32, 48), (20, 24), (3, 8)]  # whole tokens in each channel; tokens across channels; a row shorter than a token
def restored(key): return randomised(Film(text_width=16, grid=key[0], depth=key[1]))


MODELS = {key: restored(key) for key in zip(GRIDS, (2, 1, 3))}


def random_inputs(seed, B, H, W, L, masked):
    rng = torch.Generator().manual_seed(seed)
    a, b, text = torch.rand(B, 1, H, W, generator=rng), torch.rand(B, 1, H, W, generator=rng), torch.randn(B, L, 16, generator=rng)
    mask = torch.rand(B, L, generator=rng) < .6 if masked else None
    if masked: mask[torch.arange(B), torch.randint(L, (B,), generator=rng)] = True
    return a, b, text, mask


def double_picks_other_pixels(size, grid):
    "Nearest-neighbour indices are defined in float32; for a few sizes torch names other pixels in float64, and then a float64 run is no reference."
    def index(n, m, dtype): return torch.nn.functional.interpolate(torch.arange(n, dtype=dtype)[None, None], m, mode="nearest").long()
    return any(not torch.equal(index(n, m, torch.float32), index(n, m, torch.float64)) for pair in zip(size, grid) for n, m in (pair, pair[::-1]))


@needs_kernels
@settings(max_examples=20, deadline=None)
@given(key=st.sampled_from(list(MODELS)), B=st.integers(1, 3), H=st.integers(16, 140), W=st.integers(16, 140), L=st.integers(1, 80), masked=st.booleans(),
       seed=st.integers(0, 2**31))
def test_native_equals_plain(key, B, H, W, L, masked, seed):
    assume(not double_picks_other_pixels((H, W), key[0]))
    a, b, text, mask = random_inputs(seed, B, H, W, L, masked)
    model = MODELS[key]
    with torch.no_grad(): plain, exact = model(a, b, text, mask), model.double()(a.double(), b.double(), text.double(), mask)
    native = fast.forward_native(model.float(), a, b, text, mask)
    own_error = (plain - exact).abs().max().item()  # of the plain form in float32
    assert (native - exact).abs().max() <= max(1e-5, own_error)


@settings(max_examples=8, deadline=None)
@given(key=st.sampled_from(list(MODELS)), B=st.integers(1, 2), H=st.integers(16, 100), W=st.integers(16, 100), L=st.integers(1, 80), masked=st.booleans(),
       part=st.sampled_from([1, 4000, fast.PART]), seed=st.integers(0, 2**31))
def test_torch_equals_plain(key, B, H, W, L, masked, part, seed):
    "Strips of 16 rows, of more, and one of all."
    assume(not double_picks_other_pixels((H, W), key[0]))
    a, b, text, mask = random_inputs(seed, B, H, W, L, masked)
    model = MODELS[key]
    try:
        with torch.no_grad(), mock.patch.object(fast, "PART", part): exact, fused = model.double()(a.double(), b.double(), text.double(), mask), fast.forward_torch(model.float(), a, b, text, mask)
    finally: model.float()
    assert (fused - exact).abs().max() <= 1e-5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torch_memory():
    "What `torch_memory` says is enough, and not much too much; the program's own memory not counted."
    code = """if True:
        import torch
        from film import fast
        from film.network import Film
        def held(field): return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
        model, a, text = Film(text_width=16, depth=1).eval(), torch.rand(1, 1, 500, 600), torch.randn(1, 20, 16)
        fast.keep_memory()
        before = held("VmRSS")
        with torch.inference_mode(): fast.forward_torch(model, a, a, text)
        print(held("VmHWM") - before, fast.torch_memory(a.shape))"""
    peak, said = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert said / 2 < peak < said


def test_kept_memory_is_not_mapped_again():
    code = """if True:
        import resource, sys, torch
        from film import fast
        from film.network import Film
        model, a, text = Film(text_width=16, grid=(32, 48), depth=1).eval(), torch.rand(1, 1, 96, 128), torch.randn(1, 20, 16)
        if sys.argv[1] == "kept" and not fast.keep_memory(): sys.exit("no glibc")
        with torch.inference_mode():
            model(a, a, text)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            model(a, a, text)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"""
    usual, kept = (subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True) for how in ("usual", "kept"))
    if "no glibc" in kept.stderr: pytest.skip("keep_memory is for glibc")
    assert int(kept.stdout) < int(usual.stdout) / 2


# Largest error against float64 that the other dtypes may have, which all take the torch form. Seen on random weights, as here: 5e-15, 0.07 and 0.04, 0.008 and 0.005 in the mean
DTYPES = {torch.float64: 1e-12, torch.bfloat16: .2, torch.float16: .1}


@settings(max_examples=15, deadline=None)
@given(dtype=st.sampled_from(list(DTYPES)), key=st.sampled_from(list(MODELS)), B=st.integers(1, 3), H=st.integers(16, 80), W=st.integers(16, 80), L=st.integers(1, 60),
       masked=st.booleans(), seed=st.integers(0, 2**31))
def test_dtypes(dtype, key, B, H, W, L, masked, seed):
    assume(not double_picks_other_pixels((H, W), key[0]))
    a, b, text, mask = random_inputs(seed, B, H, W, L, masked)
    model = MODELS[key]
    try:
        with torch.no_grad():
            exact = model.double()(a.double(), b.double(), text.double(), mask)
            fused = fast.forward(model.to(dtype), a.to(dtype), b.to(dtype), text.to(dtype), mask)
    finally: MODELS[key] = restored(key)  # a narrower dtype rounds the weights
    assert fused.dtype == dtype and (fused.double() - exact).abs().max() <= DTYPES[dtype]


@needs_kernels
@settings(max_examples=15, deadline=None)
@given(key=st.sampled_from(list(MODELS)), B=st.integers(1, 2), H=st.integers(16, 200), W=st.integers(16, 200), L=st.integers(1, 80), masked=st.booleans(), seed=st.integers(0, 2**31))
def test_threads(key, B, H, W, L, masked, seed):
    "1 and 2 threads, in memory and in a mapped file: the same numbers."
    a, b, text, mask = random_inputs(seed, B, H, W, L, masked)
    threads, results = torch.get_num_threads(), []
    try:
        for n, room in ((1, None), (2, None), (2, Room(WORKING))):
            torch.set_num_threads(n)
            results.append(fast.forward_native(MODELS[key], a, b, text, mask, room))
    finally: torch.set_num_threads(threads)
    assert all((results[0] - other).abs().max() <= 1e-6 for other in results)


@needs_kernels
@pytest.mark.parametrize("H, W", [(1, 1), (1, 70), (70, 1), (2, 300), (16, 16), (64, 64), (65, 129)])
def test_edges(H, W):
    a, b, text, mask = random_inputs(0, 1, H, W, 5, False)
    model = MODELS[(32, 48), 2]
    with torch.no_grad(): assert (fast.forward(model, a, b, text) - model(a, b, text)).abs().max() < 1e-5


@needs_kernels
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_long_text_and_threads(use, instructions):
    use(instructions)
    a, b, text, mask = random_inputs(1, 1, 130, 150, 300, True)
    model, threads, results = MODELS[(32, 48), 2], torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(fast.forward_native(model, a, b, text, mask))
    finally: torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results)
    with torch.no_grad(): assert (results[0] - model(a, b, text, mask)).abs().max() < 1e-5


@needs_kernels
def test_pairs_at_the_same_time_leave_the_number_of_threads(model):
    from concurrent.futures import ThreadPoolExecutor
    a, b, text = torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16), torch.rand(1, 3, 768)
    def work(_):
        torch.set_num_threads(2)
        for _ in range(4): fast.forward_native(model, a, b, text)
        return torch.get_num_threads()
    with ThreadPoolExecutor(6) as pool: assert {*pool.map(work, range(6))} == {2}


@needs_kernels
def test_allocator(tmp_path):
    "The same output under one malloc arena, in a process of its own."
    code = """if True:
        import sys, torch
        from film import fast
        from film.network import Film
        torch.manual_seed(0); torch.set_num_threads(2)
        model = Film(text_width=16, grid=(32, 48))
        torch.save(fast.forward_native(model, torch.rand(1, 1, 70, 90), torch.rand(1, 1, 70, 90), torch.randn(1, 20, 16)), sys.argv[1])"""
    for name, variables in ("usual", {}), ("one", {"MALLOC_ARENA_MAX": "1"}):
        subprocess.run([sys.executable, "-c", code, tmp_path / name], env=os.environ | variables, check=True)
    assert (torch.load(tmp_path / "usual") - torch.load(tmp_path / "one")).abs().max() <= 1e-6


@needs_kernels
def test_strided_inputs():
    a, b, text, _ = random_inputs(2, 2, 40, 30, 6, False)
    model = MODELS[(20, 24), 1]
    with torch.no_grad():
        assert torch.equal(fast.forward(model, a.mT.contiguous().mT, b.flip(-1).flip(-1), text.mT.contiguous().mT), fast.forward(model, a, b, text))


@needs_kernels
def test_not_a_number_stays():
    a, b, text, _ = random_inputs(3, 1, 40, 30, 6, False)
    a[0, 0, 3, 3] = float("nan")
    with torch.no_grad(): assert fast.forward(MODELS[(20, 24), 1], a, b, text).isnan().all()


def test_choice(monkeypatch):
    "Kernels on CPU in float32, those that keep nothing where no gradient is asked for; torch otherwise, and where nothing was built."
    calls, model = [], MODELS[(20, 24), 1]
    for form in ("native", "differentiable", "torch"): monkeypatch.setattr(fast, f"forward_{form}", lambda *_, form=form: calls.append(form))
    a, b, text, _ = random_inputs(4, 1, 20, 20, 3, False)
    monkeypatch.setattr(fast, "library", lambda: object())
    with torch.no_grad(): fast.forward(model, a, b, text)
    fast.forward(model, a, b, text)
    fast.forward(model, a.clone().requires_grad_(), b, text)
    with torch.no_grad(), torch.autocast("cpu"): fast.forward(model, a, b, text)
    with torch.no_grad(): fast.forward(model, a, b, text.double())
    monkeypatch.setattr(fast, "library", lambda: None)
    with torch.no_grad(): fast.forward(model, a, b, text)
    assert calls == ["native", "differentiable", "torch", "torch", "torch", "torch"] and fast.backend() == "torch"


@needs_kernels
def test_frozen_weights_need_no_gradient():
    a, b, text, _ = random_inputs(5, 1, 20, 20, 3, False)
    model = MODELS[(20, 24), 1]
    try: assert not fast.forward(model.requires_grad_(False), a, b, text).requires_grad
    finally: model.requires_grad_(True)
    assert fast.forward(model, a, b, text).requires_grad


def nearly_linear(model):
    "PReLU slopes near 1: where float32 rounding takes the other side of a PReLU than float64, the gradient then jumps by little."
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prelu" in name: parameter.copy_(.99 + parameter / 50)
    return model


LINEAR = {(grid, depth): nearly_linear(randomised(Film(text_width=16, grid=grid, depth=depth))) for grid, depth in zip(GRIDS, (2, 1, 3))}


def gradients(form, model, a, b, text, mask, d_fused):
    "Gradients of the sum of fused * d_fused: of the text, then of every parameter."
    model.zero_grad()
    text = text.detach().clone().requires_grad_()
    fused = form(model, a, b, text, mask)
    (fused * d_fused).sum().backward()
    return fused.detach(), [text.grad.double()] + [p.grad.double().clone() for p in model.parameters()]


@needs_kernels
@settings(max_examples=10, deadline=None)
@example(key=((3, 8), 3), B=2, H=73, W=41, L=1, masked=False, seed=4924)
@given(key=st.sampled_from(list(MODELS)), B=st.integers(1, 2), H=st.integers(16, 100), W=st.integers(16, 100), L=st.integers(1, 40), masked=st.booleans(),
       seed=st.integers(0, 2**31))
def test_gradients_equal_plain(key, B, H, W, L, masked, seed):
    assume(not double_picks_other_pixels((H, W), key[0]))
    a, b, text, mask = random_inputs(seed, B, H, W, L, masked)
    d_fused = torch.randn(a.shape, generator=torch.Generator().manual_seed(seed))
    model = LINEAR[key]
    plain = lambda model, *inputs: model(*inputs)
    try: exact, exact_gradients = gradients(plain, model.double(), a.double(), b.double(), text.double(), mask, d_fused.double())
    finally: model.float()
    (_, own), (fused, native) = gradients(plain, model, a, b, text, mask, d_fused), gradients(fast.forward_differentiable, model, a, b, text, mask, d_fused)
    assert (fused - exact).abs().max() < 1e-5
    size = torch.cat([g.flatten() for g in exact_gradients]).norm()
    off = lambda some: torch.cat([(g - h).flatten() for g, h in zip(some, exact_gradients)]).norm() / size
    assert off(native) < max(1e-4, 3 * off(own))
    slack = lambda h: (1e-3 if h.numel() == 1 else 1e-4) * size  # a PReLU's one number is a sum over the image that may cancel
    worst = lambda some: max((g - h).norm() / (h.norm() + slack(h)) for g, h in zip(some, exact_gradients))
    assert worst(native) < max(1e-3, 3 * worst(own))


@needs_kernels
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_gradients_and_threads(use, instructions):
    use(instructions)
    a, b, text, mask = random_inputs(8, 2, 70, 140, 40, True)
    d_fused, threads, results = torch.randn(a.shape), torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(torch.cat([g.flatten() for g in gradients(fast.forward_differentiable, LINEAR[(32, 48), 2], a, b, text, mask, d_fused)[1]]))
    finally: torch.set_num_threads(threads)
    for other in results[1:]: assert (results[0] - other).norm() <= 1e-4 * other.norm()  # the text is projected by torch


@needs_kernels
@needs_golden
def test_train_step(model):
    expect_train_step(fast.forward_differentiable, model, np.load(GOLDEN / "forward.npz"))


def test_gradcheck():
    "The torch form's gradients against finite differences, in float64."
    torch.manual_seed(0)
    model = Film(text_width=4, grid=(3, 8), depth=1).double()
    a, b, text = torch.rand(1, 1, 6, 7).double(), torch.rand(1, 1, 6, 7).double(), torch.randn(1, 3, 4).double()
    weights = [p for p in model.parameters() if p.numel() < 5000]
    assert torch.autograd.gradcheck(lambda a, b, text, *_: fast.forward_torch(model, a, b, text), (a.requires_grad_(), b.requires_grad_(), text.requires_grad_(), *weights),
                                    fast_mode=True)


def test_checkpoint():
    a, b, text, mask = random_inputs(9, 2, 24, 30, 6, True)
    model, d_fused = MODELS[(20, 24), 1], torch.randn(2, 1, 24, 30)
    once, again = (gradients(lambda *x, c=c: fast.forward_torch(*x, checkpoint=c), model, a, b, text, mask, d_fused) for c in (False, True))
    assert torch.equal(once[0], again[0])
    for g, h in zip(once[1], again[1]): assert (g - h).norm() <= 1e-5 * h.norm() + 1e-9


@needs_kernels
def test_gradients_of_black_images():
    "Initial weights make features of nothing from nothing, whose norm has no derivative at 0."
    torch.manual_seed(0)
    model = Film(text_width=16, grid=(20, 24), depth=1)
    a, b, text, _ = random_inputs(7, 1, 32, 40, 3, False)
    for form in (fast.forward_differentiable, fast.forward_torch):
        _, got = gradients(form, model, a * 0, b * 0, text, None, a)
        _, plain = gradients(Film.forward, model, a * 0, b * 0, text, None, a)
        for x, y in zip(got, plain): assert (x - y).abs().max() <= 1e-4 * y.abs().max() + 1e-6  # False for NaN


@pytest.mark.parametrize("form", [fast.forward, fast.forward_torch, fast.forward_native, fast.forward_differentiable])
def test_bad_input(form):
    a, b, text, mask = random_inputs(6, 1, 20, 20, 3, True)
    with torch.no_grad():
        with pytest.raises(FilmError): form(MODELS[(20, 24), 1], a, b[..., :-1], text)
        with pytest.raises(FilmError, match="int64, must be .* bool"): form(MODELS[(20, 24), 1], a, b, text, mask.long())  # a tokenizer's


def test_missing_kernels(monkeypatch):
    monkeypatch.setattr(fast, "library", lambda: None)
    a, b, text, _ = random_inputs(7, 1, 20, 20, 3, False)
    for form in (fast.forward_native, fast.forward_differentiable):
        with pytest.raises(FilmError, match="not built"): form(MODELS[(20, 24), 1], a, b, text)
