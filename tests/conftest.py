"Synthetic pairs on disk that the tests share."
import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are about the CPU, also where there is a GPU

import numpy as np
import pytest

from film.core import write_image


@pytest.fixture
def images(tmp_path, monkeypatch):
    "A folder, made the current one, with a pair a.png (gray) and b.png (colour), 48 rows x 64 columns."
    rng = np.random.default_rng(0)
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
    write_image(tmp_path / "a.png", ramp)
    write_image(tmp_path / "b.png", np.stack([ramp[:, ::-1], ramp // 2, rng.integers(0, 256, ramp.shape, np.uint8)], -1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def dataset(tmp_path):
    "A data root with six small infrared-visible pairs."
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:48, 0:64]
    folder = tmp_path / "data" / "Image" / "IVF" / "Tiny"
    for i in range(6):
        spot = (x - 10 * i) ** 2 + (y - 24) ** 2 < 90
        write_image(folder / "IR" / f"p{i}.png", np.where(spot, 240, 30 + 5 * i).astype(np.uint8))
        write_image(folder / "VI" / f"p{i}.png", rng.integers(40, 200, (48, 64, 3), np.uint8))
    (folder / "train.txt").write_text("".join(f"p{i}\n" for i in range(6)))
    return tmp_path / "data"
