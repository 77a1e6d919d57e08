#!/usr/bin/env python
"""The network's forms side by side: plain (chapter 04), the fast path in torch and in native kernels (chapter 04b).

    python benchmarks/network.py                                # fusing one pair at three sizes
    python benchmarks/network.py --sizes 1440x1920 --forms native
    python benchmarks/network.py --training --sizes 288x384     # one training step, batch 2

Each measurement is a process of its own, so memory is its own too; the forms take turns, so they meet the same load. Time is the best of --repeat
processes for one call, the first of its process (imports and loading not counted); beside it the processor time of all threads, which other work on the
machine disturbs less. Memory is the peak above what the process held before the call. The error is the largest difference from the float64 numbers in
../shared/golden, for the sizes they have. Weights follow the golden rule, the text has 149 tokens of width 768."""
import argparse, json, os, resource, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT.parent / "shared" / "golden"
GOLDEN_SIZES = {"288x384": "native", "480x640": "msrs"}


def held(field: str) -> float:  # MB
    "VmRSS, memory that this process holds now, or VmHWM, the most it has held. Elsewhere than on Linux both are the most."
    try: return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(field))
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "linux" else 1024) / 1024


def measure(form: str, size: str, training: bool) -> dict:
    "One call in this process: seconds, processor seconds, peak MB above what was held before, largest error against float64."
    import numpy as np, torch
    sys.path.insert(0, str(ROOT / "tests"))
    from film import fast
    from film.losses import fusion_loss
    from film.network import Film
    from test_golden import golden_weight, inputs

    model = Film()
    model.load_state_dict({name: golden_weight(name, tuple(value.shape)) for name, value in model.state_dict().items()})
    case = GOLDEN_SIZES.get(size) if GOLDEN.is_dir() and not training else None
    if case: a, b, text = inputs(np.load(GOLDEN / "forward.npz"), case)
    else:
        batch, rng = 1 + training, torch.Generator().manual_seed(0)
        H, W = map(int, size.split("x"))
        a, b = (torch.rand(batch, 1, H, W, generator=rng) for _ in "ab")
        text = torch.randn(batch, 149, 768, generator=rng)
    if form != "plain": fast.keep_memory()
    run = {"plain": lambda *x: model(*x), "torch": lambda *x: fast.forward_torch(model, *x),
           "checkpointed": lambda *x: fast.forward_torch(model, *x, checkpoint=True), "native": lambda *x: fast.forward_native(model, *x)}[form]
    fused = None
    def call():
        nonlocal fused
        if training: fusion_loss(run(a, b, text), a, b)["total"].backward()
        else:
            with torch.inference_mode(): fused = run(a, b, text)
    before, t, cpu = held("VmRSS"), time.perf_counter(), time.process_time()
    call()
    result = dict(seconds=time.perf_counter() - t, cpu=time.process_time() - cpu, memory=held("VmHWM") - before)
    if case: result["error"] = float(np.abs(fused.numpy().astype(np.float64) - np.load(GOLDEN / "forward.npz")[f"{case}_fused64"]).max())
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="288x384,480x640,768x1024", help="rows x columns, separated by commas")
    parser.add_argument("--forms", help="of plain, torch, native, and checkpointed (training); default: all that apply")
    parser.add_argument("--training", action="store_true", help="a training step (forward, loss, backward) on a batch of 2, instead of fusing")
    parser.add_argument("--repeat", type=int, default=2, help="processes for each number; the best counts")
    parser.add_argument("--json", action="store_true", help="print every measurement as a line of JSON too")
    parser.add_argument("--measure", nargs=2, metavar=("FORM", "SIZE"), help=argparse.SUPPRESS)  # what this script starts itself with
    o = parser.parse_args()
    if o.measure: return print(json.dumps(measure(*o.measure, o.training)))

    sys.path.insert(0, str(ROOT))
    from film import fast
    forms = o.forms.split(",") if o.forms else ["plain", "torch", "checkpointed"] if o.training else ["plain", "torch"] + ["native"] * (fast.library() is not None)
    print(f"{'Training step, batch 2' if o.training else 'Fusing one pair'}; kernels: {fast.backend()}; load of this machine: {os.getloadavg()[0]:.1f}\n")
    print("| size | form | s | times faster | CPU s | times less | added MB | times less | error |\n|---|---|---|---|---|---|---|---|---|")
    for size in o.sizes.split(","):
        best = {}
        for _ in range(o.repeat):
            for form in forms:
                command = [sys.executable, __file__, "--measure", form, size] + ["--training"] * o.training
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode: sys.exit(f"{form} at {size} failed: {(done.stderr.strip().splitlines() or ['killed, probably for memory'])[-1]}")
                result = json.loads(done.stdout)
                if o.json: print(json.dumps(dict(form=form, size=size, **result)))
                best[form] = {key: min(value, best.get(form, result)[key]) for key, value in result.items() if key != "error"} | {"error": result.get("error")}
        for form, r in best.items():
            ratios = {key: best["plain"][key] / r[key] if "plain" in best else None for key in ("seconds", "cpu", "memory")}
            cells = [size, form]
            for key, digits in ("seconds", 2), ("cpu", 2), ("memory", 0): cells += [f"{r[key]:.{digits}f}", f"{ratios[key]:.1f}" if ratios[key] else ""]
            print("| " + " | ".join(cells + ["" if r["error"] is None else f"{r['error']:.1e}"]) + " |", flush=True)


if __name__ == "__main__": main()
