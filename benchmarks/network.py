#!/usr/bin/env python
"""The network's forms side by side: plain (chapter 04), the same with memory kept, the fast path in torch and in native kernels (chapter 04b), which keep memory too.

    python benchmarks/network.py                                # fusing at three sizes, a training step, a folder
    python benchmarks/network.py --only fuse --sizes 1440x1920 --forms native
    python benchmarks/network.py --only train                   # one training step, batch 2 at 288x384, and the share of the data path
    python benchmarks/network.py --only memory                  # the most memory that film fuse --max-memory 1GB takes at 4000x6000
    python benchmarks/network.py --only folder                  # film.fusion.fuse_pairs on the sample's pairs, one by one, as a pipeline, in two processes
    python benchmarks/network.py --device cuda                  # the torch forms on a GPU, fusing and a training step
    python benchmarks/network.py --figure outputs/cost.png      # cost against megapixels; measurements are kept beside it (cost.json), --sizes adds others

Each measurement is a process of its own, so memory is its own too; the forms take turns, so they meet the same load. Time is the best of --repeat
processes for one call, the first of its process (imports and loading not counted); beside it the processor time of all threads, which other work on the
machine disturbs less. Memory is the peak above what the process held before the call. The error is the largest difference from the float64 numbers in
../shared/golden, for the sizes they have. Weights follow the golden rule, the text has 149 tokens of width 768. On a GPU the time is the best of ten calls after
three that are not counted, memory is the GPU's, and there is no processor time."""
import argparse, json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT.parent / "shared" / "golden"
GOLDEN_SIZES = {"288x384": "native", "480x640": "msrs"}
FIGURE_SIZES = "288x384,480x640,768x1024,1440x1920"


KEPT = "plain with memory kept"  # what malloc's setting does without another form


def held(field: str, process: int | str = "self") -> float:  # MB
    "VmRSS, memory that a process holds now, RssAnon, that without files, or VmHWM, the most it has held. Elsewhere than on Linux all are the most."
    try: return next((int(line.split()[1]) / 1024 for line in open(f"/proc/{process}/status") if line.startswith(field)), 0)
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "linux" else 1024) / 1024


def prepared(size: str, training: bool):
    "The network, its inputs (a, b, text), and a function that gives the largest error of a result against float64, or None where there is no golden number."
    import numpy as np, torch
    sys.path.insert(0, str(ROOT / "tests"))
    from film.network import Film
    from test_golden import golden_weight, inputs

    model = Film()
    model.load_state_dict({name: golden_weight(name, tuple(value.shape)) for name, value in model.state_dict().items()})
    case = GOLDEN_SIZES.get(size) if GOLDEN.is_dir() and not training else None
    if case: x = inputs(np.load(GOLDEN / "forward.npz"), case)
    else:
        batch, rng = 1 + training, torch.Generator().manual_seed(0)
        H, W = map(int, size.split("x"))
        x = *(torch.rand(batch, 1, H, W, generator=rng) for _ in "ab"), torch.randn(batch, 149, 768, generator=rng)
    def error(fused): return case and float(np.abs(fused.cpu().numpy().astype(np.float64) - np.load(GOLDEN / "forward.npz")[f"{case}_fused64"]).max())
    return model, x, error


def called(run, x, training: bool):
    "One call: the fused image, or a training step's gradients."
    import torch
    from film.losses import fusion_loss
    if training: return fusion_loss(run(*x), *x[:2])["total"].backward()
    with torch.inference_mode(): return run(*x)


def measure(form: str, size: str, training: bool) -> dict:
    "One call in this process: seconds, processor seconds, peak MB above what was held before, largest error against float64."
    from film import fast
    model, x, error = prepared(size, training)
    if form != "plain": fast.keep_memory()
    run = {"plain": model, KEPT: model, "torch": lambda *x: fast.forward_torch(model, *x), "checkpointed": lambda *x: fast.forward_torch(model, *x, checkpoint=True),
           "native": lambda *x: (fast.forward_differentiable if training else fast.forward_native)(model, *x)}[form]
    before, t, cpu = held("VmRSS"), time.perf_counter(), time.process_time()
    fused = called(run, x, training)
    return dict(seconds=time.perf_counter() - t, cpu=time.process_time() - cpu, memory=held("VmHWM") - before, error=error(fused))


def measure_cuda(size: str, forms: list[str], training: bool) -> dict:
    "Forms one after the other on the GPU: seconds of a call, peak MB above what was held before, largest error against float64."
    import torch
    from film import fast
    from film.export import Graphed, Runner
    model, x, error = prepared(size, training)
    model.cuda()
    x, found = [t.cuda() for t in x], {}
    for form in forms:
        run = {"plain": model, "torch": lambda *x: fast.forward_torch(model, *x), "checkpointed": lambda *x: fast.forward_torch(model, *x, checkpoint=True),
               "graphed": Graphed(model, keep=1), "bfloat16 graphed": Graphed(Runner(model, dtype="bfloat16"), keep=1)}[form]
        torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
        before, seconds = torch.cuda.memory_reserved(), []
        for _ in range(13):
            model.zero_grad()
            torch.cuda.synchronize(); t = time.perf_counter()
            fused = called(run, x, training)
            torch.cuda.synchronize(); seconds.append(time.perf_counter() - t)
        found[form] = dict(seconds=min(seconds[3:]), memory=(torch.cuda.max_memory_reserved() - before) / 2**20, error=error(fused))
    return found


def measure_data() -> dict:
    "Processor seconds of the data path for a batch of two whole images from files, decoded for the first time and kept: what a training step needs."
    import numpy as np
    from film.data import FusionDataset, collate, find_pairs
    pairs = find_pairs(ROOT / "data", "ivf", "Sample")
    texts = {pair.name: np.zeros((149, 768), np.float32) for pair in pairs}
    result = {}
    for name, options in ("288x384", {}), ("crop of 144x192", dict(mode="crop")):
        data = FusionDataset(pairs, "ivf", texts=texts, **options)
        for moment in "first", "kept":
            t = time.process_time()
            for i in range(len(pairs)): collate([data[i], data[(i + 1) % len(pairs)]])
            result[f"{name}, {moment}"] = (time.process_time() - t) / len(pairs)
    return result


def measure_folder(form: str, n: int) -> dict:
    "Fusing a folder of n pairs of the sample, weights loaded before: seconds and processor seconds a pair."
    from film import fast
    from film.core import read_image, write_image
    from film.data import find_pairs, pair_folders
    from film.fusion import fuse, fuse_pairs, load
    fast.keep_memory()
    load("ivf")
    sample = find_pairs(ROOT / "data", "ivf", "Sample")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for i in range(n):
            for side in "ab": write_image(folder / side / f"{i}.png", read_image(getattr(sample[i % len(sample)], side)))
        pairs = pair_folders(folder / "a", folder / "b")
        fuse(pairs[0].a, pairs[0].b)  # text components and encoder are loaded
        t, cpu = time.perf_counter(), sum(os.times()[:4])
        if form == "one by one":
            for pair in pairs: write_image(folder / "out" / f"{pair.name}.png", fuse(pair.a, pair.b))
        else: fuse_pairs(pairs, folder / "out", workers=2 if form == "two processes" else 1)
        return dict(seconds=(time.perf_counter() - t) / n, cpu=(sum(os.times()[:4]) - cpu) / n)


def measure_memory(size: str) -> dict:
    "`film fuse --max-memory 1GB` from TIFF to TIFF: seconds, and the most anonymous MB, which is without mapped files."
    import numpy as np
    from film.large import write_large
    with tempfile.TemporaryDirectory() as folder:
        for seed, side in enumerate("ab"): write_large(f"{folder}/{side}.tif", np.random.default_rng(seed).integers(0, 256, [int(n) for n in size.split("x")], np.uint8))
        t, most = time.perf_counter(), 0
        process = subprocess.Popen([sys.executable, "-m", "film", "fuse", "a.tif", "b.tif", "--text", "noise", "-o", "fused.tif", "--max-memory", "1GB"], cwd=folder, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            most = max(most, held("RssAnon", process.pid))
            time.sleep(.02)
        if process.returncode: sys.exit("film fuse failed")
        return dict(seconds=time.perf_counter() - t, memory=most)


def child(*measure: str) -> dict:
    "A measurement in a process of its own."
    done = subprocess.run([sys.executable, __file__, "--measure", *measure], capture_output=True, text=True)
    if done.returncode: sys.exit(f"{' '.join(measure)} failed: {(done.stderr.strip().splitlines() or ['killed, probably for memory'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(title: str, kind: str, sizes: list[str], forms: list[str], o) -> dict:
    "Prints a table of the forms at each size and returns the best of --repeat measurements."
    heading(title)
    found = {}
    for size in sizes:
        best = {}
        for _ in range(o.repeat):
            for form in forms:
                result = child(kind, form, size)
                if o.json: print(json.dumps(dict(form=form, size=size, **result)))
                best[form] = {key: min(value, best.get(form, result)[key]) for key, value in result.items() if key != "error"} | {"error": result["error"]}
        print_rows(size, best)
        found[size] = best
    return found


def heading(title: str):
    print(f"\n{title}\n\n| size | form | s | times faster | CPU s | times less | added MB | times less | error |\n|---|---|---|---|---|---|---|---|---|")


def print_rows(size: str, best: dict):
    "The rows of one size, with ratios to the plain form."
    for form, r in best.items():
        cells = [size, form]
        for key, digits in ("seconds", 2 if "cpu" in r else 4), ("cpu", 2), ("memory", 0):
            cells += [f"{r[key]:.{digits}f}", f"{best['plain'][key] / r[key]:.1f}" if "plain" in best else ""] if key in r else ["", ""]
        print("| " + " | ".join(cells + ["" if r["error"] is None else f"{r['error']:.1e}"]) + " |", flush=True)


def figure(path: Path, found: dict):
    "Cost of a megapixel against megapixels, from these and earlier measurements beside the figure."
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    kept = path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(kept.read_text()) if kept.exists() else {}
    found = earlier | {size: earlier.get(size, {}) | best for size, best in found.items()}
    kept.write_text(json.dumps(found, indent=1))
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    for form in ("plain", "torch", "native"):
        points = sorted((h * w / 1e6, best[form]) for size, best in found.items() if form in best for h, w in [map(int, size.split("x"))])
        for axis, values in zip(axes, zip(*[(r["cpu"] / mp, r["memory"] / mp * 1.048576) for mp, r in points])):
            axis.plot([mp for mp, _ in points], values, "o-", label={"plain": "plain", "torch": "fast, torch", "native": "fast, native"}[form])
    for axis, title in zip(axes, ("processor seconds a megapixel", "bytes a pixel")):
        axis.set(xscale="log", yscale="log", xlabel="megapixels", title=title)
        axis.grid(True, which="both", alpha=.3)
    axes[0].legend()
    fig.savefig(path, dpi=100)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("fuse", "train", "folder", "memory"), help="one of these (default: all but memory)")
    parser.add_argument("--sizes", help="rows x columns, separated by commas (default: 288x384,480x640,768x1024; training: 288x384)")
    parser.add_argument("--forms", help=f"of plain, '{KEPT}', torch, native, and checkpointed (training); on a GPU graphed and 'bfloat16 graphed' in place of native; default: all that apply")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the torch forms on a GPU (default: cpu)")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of the folder (default: 12)")
    parser.add_argument("--repeat", type=int, default=2, help="processes for each number; the best counts (default: 2)")
    parser.add_argument("--figure", type=Path, metavar="PNG", help=f"only draw the cost against megapixels (default sizes: {FIGURE_SIZES}, the plain form up to 480x640)")
    parser.add_argument("--json", action="store_true", help="print every measurement as a line of JSON too")
    parser.add_argument("--measure", nargs=3, metavar=("KIND", "FORM", "SIZE"), help=argparse.SUPPRESS)  # what this script starts itself with
    o = parser.parse_args()
    if o.measure:
        kind, form, size = o.measure
        if kind == "data": result = measure_data()
        else: result = measure_folder(form, int(size)) if kind == "folder" else measure(form, size, kind == "train")
        return print(json.dumps(result))

    if o.device == "cuda":
        import torch
        if not torch.cuda.is_available(): sys.exit("no CUDA device here")
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, TF32 in convolutions: {torch.backends.cudnn.allow_tf32}")
        for only, title, sizes, forms in (("fuse", "Fusing one pair", "288x384,480x640,768x1024", "plain,torch,graphed,bfloat16 graphed"), ("train", "Training step, batch 2", "288x384", "plain,torch,checkpointed")):
            if o.only not in (None, only): continue
            heading(title)
            for size in (o.sizes or sizes).split(","): print_rows(size, measure_cuda(size, (o.forms or forms).split(","), only == "train"))
        return

    from film import fast
    forms = o.forms.split(",") if o.forms else ["plain", KEPT, "torch"] + ["native"] * (fast.library() is not None)
    print(f"kernels: {fast.backend()}; load of this machine: {os.getloadavg()[0]:.1f}")
    if o.only == "memory":
        for size in (o.sizes or "4000x6000").split(","): print("{}: {memory:.0f} MB at the most with --max-memory 1GB, in {seconds:.0f} s".format(size, **measure_memory(size)))
        return
    if o.figure:
        found = {}
        for size in (o.sizes or FIGURE_SIZES).split(","):
            chosen = forms if o.forms else [form for form in forms if form != KEPT and (form == "native" or size in GOLDEN_SIZES)]
            found |= compare(f"Fusing one pair, {size}", "fuse", [size], chosen, o)
        return figure(o.figure, found)
    if o.only in (None, "fuse"): compare("Fusing one pair", "fuse", (o.sizes or "288x384,480x640,768x1024").split(","), forms, o)
    if o.only in (None, "train"):
        found = compare("Training step, batch 2", "train", (o.sizes or "288x384").split(","), forms[:-1] + ["checkpointed"] + forms[-1:] if not o.forms else forms, o)
        step, data = min(r["cpu"] for best in found.values() for r in best.values()), child("data", "", "")
        print("\nThe data path of a batch of 2:", "; ".join(f"{name}: {1000 * s:.1f} ms = {100 * s / step:.2f} % of the fastest step" for name, s in data.items()))
    if o.only in (None, "folder"):
        print(f"\nA folder of {o.pairs} pairs, described, fused and written\n\n| form | s a pair | pairs a minute | CPU s a pair |\n|---|---|---|---|")
        for form in ("one by one", "pipeline", "two processes"):
            results = [child("folder", form, str(o.pairs)) for _ in range(o.repeat)]
            r = {key: min(result[key] for result in results) for key in results[0]}
            print(f"| {form} | {r['seconds']:.2f} | {60 / r['seconds']:.0f} | {r['cpu']:.2f} |", flush=True)


if __name__ == "__main__": main()
