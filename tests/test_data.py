"Chapter 03: layout, checks, transforms, the dataset's randomness, batches, packed files, the bundled sample."
import json, pickle, re, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch.utils.data import DataLoader

from film.core import TASKS, FilmError, pip_install, read_image, to_gray, write_image
from film.data import (GENERATORS, FusionDataset, Pair, check_pairs, collate, data_root, defocus_pair, exposure_pair, find_pairs, generate_pairs, list_images, near_mask, pack, pair_folders, pairs_digest,
                       random_crop, random_flip, resize_paper, token_subset)
from film.encoding import AUTHORS_ENCODER, write_features

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE = REPOSITORY / "data"
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture
def root(tmp_path):
    "Five infrared-visible pairs of different sizes with text features of different length, and a split list of three."
    rng = np.random.default_rng(3)
    folder = tmp_path / "Image" / "IVF" / "Toy"
    for i, shape in enumerate([(48, 64), (64, 48), (50, 50), (40, 80), (300, 400)]):
        write_image(folder / "IR" / f"p{i}.png", rng.integers(0, 256, shape, np.uint8))
        write_image(folder / "VI" / f"p{i}.bmp", rng.integers(0, 256, (*shape, 3), np.uint8))
        write_features(tmp_path / "TextFeature" / "IVF" / "Toy" / f"p{i}.npy", rng.standard_normal((1, 6 + i, 8)), "toy")
    (folder / "train.txt").write_bytes("\ufeffp3.JPG\r\n\r\n p1 \r\np0.png\r\np1\r\n".encode())
    return tmp_path


def same(x, y): return all(torch.equal(x[k], y[k]) for k in ("a", "b", "text")) and x["name"] == y["name"]


# ---------------------------------------------------------------- layout

def test_data_root_is_argument_then_environment_then_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FILM_DATA", raising=False)
    with pytest.raises(FilmError, match="FILM_DATA"): data_root()
    for name in ("data", "env", "argument"): (tmp_path / name).mkdir()
    assert data_root() == Path("data")
    monkeypatch.setenv("FILM_DATA", str(tmp_path / "env"))
    assert data_root() == tmp_path / "env" and data_root(tmp_path / "argument") == tmp_path / "argument"
    with pytest.raises(FilmError, match="nowhere"): data_root("nowhere")


def test_split_list_keeps_its_order_and_may_carry_extensions(root):
    pairs = find_pairs(root, "IVF", "Toy", "train")
    assert [p.name for p in pairs] == ["p3", "p1", "p0"]
    assert pairs[0].a.name == "p3.png" and pairs[0].b.name == "p3.bmp" and pairs[0].text.name == "p3.npy"
    assert [p.name for p in find_pairs(root, "ivf", "Toy")] == [f"p{i}" for i in range(5)]
    assert find_pairs(root, "ivf", "Toy", text=None)[0].text is None
    check_pairs(pairs)


def test_errors_say_what_there_is(root):
    for arguments, says in [(("ivf", "MSRS"), "there is Toy"), (("mif", "Toy"), "none for this task"), (("ivf", "Toy", "val"), "there is train"), (("ir", "Toy"), "choose one of")]:
        with pytest.raises(FilmError, match=says): find_pairs(root, *arguments)
    (root / "Image/IVF/Toy/val.txt").write_text("\n\n")
    with pytest.raises(FilmError, match="empty"): find_pairs(root, "ivf", "Toy", "val")
    (root / "Image/IVF/Half/IR").mkdir(parents=True)
    with pytest.raises(FilmError, match="VI: no such folder"): find_pairs(root, "ivf", "Half")


def test_names_may_hold_dots_and_extensions_any_case(tmp_path):
    gray = np.zeros((20, 20), np.uint8)
    write_image(tmp_path / "a" / "x.v2.PNG", gray)
    write_image(tmp_path / "b" / "x.v2.Tiff", gray)
    (tmp_path / "a" / ".x.v2.PNG.tmp.png").write_bytes(b"half written")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "folder.png").mkdir()
    assert list(list_images(tmp_path / "a")) == ["x.v2"]
    [pair] = check_pairs(pair_folders(tmp_path / "a", tmp_path / "b"))
    assert pair.name == "x.v2" and pair.a.name == "x.v2.PNG" and pair.b.name == "x.v2.Tiff"


@pytest.mark.parametrize("a, b, names", [
    ("x_ir y_ir", "x_vis y_vis", "x y"),
    ("IR1 IR2 IR10", "VIS1 VIS2 VIS10", "1 10 2"),
    ("lytro-01-A lytro-02-A", "lytro-01-B lytro-02-B", "lytro-01 lytro-02"),
    ("ir.x.night ir.y.night", "vi.x.day vi.y.day", "x y"),   # at both ends
    ("x y", "x_vis y_vis", "x y"),                           # of one folder alone
    ("x_ir y_ir z_ir", "x_vis z_vis", "x y z")])             # one is missing
def test_what_all_names_of_a_folder_share_is_left_away(tmp_path, a, b, names):
    for side, called in (("a", a), ("b", b)):
        for name in called.split(): write_image(tmp_path / side / f"{name}.png", np.zeros((20, 20), np.uint8))
    with pytest.warns(UserWarning, match="no name is both in"): pairs = pair_folders(tmp_path / "a", tmp_path / "b")
    assert " ".join(pair.name for pair in pairs) == names
    for side in "ab": assert sorted(path for pair in pairs if (path := getattr(pair, side)).is_file()) == sorted((tmp_path / side).iterdir())
    assert all(pair.name in path.stem for pair in pairs for path in (pair.a, pair.b))


@pytest.mark.parametrize("a, b", [
    ("x_ir y", "x_vis y"),           # a name in both: names are meant as they are
    ("x_ir y_ir", "x_vis w_vis"),    # never all the same
    ("x_ir y_ir", "x_vis y_rgb"),    # not all names of the folder
    ("bikes cars", "bikesh carsh"),  # not where a word ends
    ("101 102", "201 202")])         # other scenes
def test_names_that_stay_as_they_are(tmp_path, a, b, recwarn):
    for side, called in (("a", a), ("b", b)):
        for name in called.split(): write_image(tmp_path / side / f"{name}.png", np.zeros((20, 20), np.uint8))
    assert [pair.name for pair in pair_folders(tmp_path / "a", tmp_path / "b")] == sorted({*a.split(), *b.split()}) and not len(recwarn)


def test_a_data_set_whose_names_say_the_modality(tmp_path):
    folder = tmp_path / "Image/IVF/Own"
    for name in ("001", "002", "003"):
        for side, word in (("IR", "ir"), ("VI", "vis")): write_image(folder / side / f"{name}_{word}.png", np.full((20, 20), int(name), np.uint8))
    (folder / "train.txt").write_text("003\n001\n")
    with pytest.warns(UserWarning, match=r"taken for \*_ir and \*_vis of 001, 002, 003$"): pairs = check_pairs(find_pairs(tmp_path, "ivf", "Own", "train"))
    assert [(pair.name, pair.a.name, pair.b.name) for pair in pairs] == [(name, f"{name}_ir.png", f"{name}_vis.png") for name in ("003", "001")]


def test_one_message_lists_all_that_is_wrong(root):
    folder = root / "Image/IVF/Toy"
    (folder / "IR/p0.png").unlink()
    (folder / "VI/p1.bmp").write_text("not a picture")
    write_image(folder / "VI/p2.bmp", np.zeros((20, 50), np.uint8))
    write_image(folder / "IR/p3.jpg", np.zeros((40, 80), np.uint8))
    with pytest.raises(FilmError) as error: check_pairs(find_pairs(root, "ivf", "Toy"))
    lines = str(error.value).splitlines()
    assert lines[0] == "4 of 5 pairs cannot be used:" and len(lines) == 5
    for line, name, says in zip(lines[1:], ("p0", "p1", "p2", "p3"), ("no image of that name", "not an image", "A is 50x50 .* B is 50x20", "ambiguous.*p3.jpg, p3.png")):
        assert line.strip().startswith(f"{name}: ")
        assert re.search(says, line), line


def test_a_long_list_is_cut_and_counted(tmp_path):
    pairs = [Pair(f"n{i}", tmp_path / f"a/n{i}.png", tmp_path / f"b/n{i}.png") for i in range(30)]
    with pytest.raises(FilmError) as error: check_pairs(pairs, limit=10)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("30 of 30") and len(lines) == 12 and lines[-1].strip() == "... and 50 more"


# ---------------------------------------------------------------- transforms

@given(st.integers(16, 60), st.integers(16, 60), st.integers(16, 70), st.integers(16, 70), st.integers(0, 2**32))
def test_crops_and_flips_stay_aligned_at_any_size(h, w, height, width, seed):
    a = np.arange(h * w, dtype=np.float32).reshape(h, w)
    rng = np.random.default_rng(seed)
    x, y = random_flip(*random_crop(a, 2 * a, (height, width), rng), rng)
    assert x.shape == y.shape == (height, width) and np.array_equal(2 * x, y)
    assert set(np.unique(x)) <= set(np.unique(a))


def test_resize_is_bilinear_with_half_pixel_centres_and_transposes_upright_images():
    gray = np.random.default_rng(0).integers(0, 256, (411, 520), np.uint8)
    expected = torch.nn.functional.interpolate(torch.from_numpy(gray / 255)[None, None], (288, 384), mode="bilinear", align_corners=False)[0, 0].numpy()
    assert np.abs(resize_paper(gray) - expected).max() < 2e-6
    assert np.abs(resize_paper(gray.T) - expected).max() < 2e-6
    assert np.allclose(resize_paper(gray.astype(np.uint16) * 257), resize_paper(gray), atol=2e-6)
    with pytest.raises(FilmError, match="shape"): resize_paper(np.zeros((20, 20, 3), np.uint8))


def test_a_square_image_is_transposed():
    gray = np.zeros((64, 64), np.uint8)
    gray[:, 40:] = 255  # a vertical edge
    resized = resize_paper(gray)
    assert (resized[0] == 0).all() and (resized[-1] == 1).all()  # lies on its side


def test_token_subset_has_no_repetition_and_keeps_order():
    tokens = np.arange(40, dtype=np.float32)[:, None]
    kept = token_subset(tokens, 15, np.random.default_rng(0))[:, 0]
    assert len(kept) == 15 and (np.diff(kept) > 0).all()
    assert token_subset(tokens, None, None) is tokens and token_subset(tokens, 40, None) is tokens


# ---------------------------------------------------------------- dataset

def test_items_hold_the_images_as_the_released_code_reads_them(root):
    dataset = FusionDataset(find_pairs(root, "ivf", "Toy"), "ivf", "whole")
    item, pair = dataset[3], dataset.source.pairs[3]
    assert item["a"].shape == item["b"].shape == (1, 40, 80) and item["text"].shape == (9, 8) and item["name"] == "p3"
    assert all(item[k].dtype == torch.float32 for k in ("a", "b", "text"))
    assert np.array_equal(item["b"][0].numpy(), to_gray(read_image(pair.b)).astype(np.float32))
    assert dataset.encoder == "toy" and dataset.text_width == 8
    assert len(list(dataset)) == 5


def test_paper_mode_resizes_all_but_medical_images(root):
    pairs = find_pairs(root, "ivf", "Toy")
    assert {tuple(x["a"].shape) for x in FusionDataset(pairs, "ivf")} == {(1, 288, 384)}
    assert [tuple(x["a"].shape) for x in FusionDataset(pairs, "mif")][:2] == [(1, 48, 64), (1, 64, 48)]


def test_sixteen_bits_are_kept(tmp_path):
    deep = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    write_image(tmp_path / "a/x.png", deep)
    write_image(tmp_path / "b/x.png", deep)
    item = FusionDataset(pair_folders(tmp_path / "a", tmp_path / "b"), "mef", "whole", texts={"x": np.ones((3, 4), np.float32)})[0]
    assert np.array_equal(item["a"][0].numpy(), deep / np.float32(65535))


def test_an_item_depends_on_seed_epoch_and_index_alone(root):
    def make(seed=0, **more): return FusionDataset(find_pairs(root, "ivf", "Toy"), "ivf", "crop", crop=(32, 40), max_tokens=4, seed=seed, **more)
    first, second = make(), make(cache=False)
    first.set_epoch(7)
    forward = [first[i] for i in range(5)]
    second.set_epoch(7)
    backward = [second[i] for i in reversed(range(5))][::-1]  # another order, without the cache
    assert all(map(same, forward, backward))
    resumed = pickle.loads(pickle.dumps(second))              # a worker's copy
    assert all(same(resumed[i], forward[i]) for i in range(5))
    first.set_epoch(8)
    assert not any(same(first[i], forward[i]) for i in range(5))
    third = make(seed=1)
    third.set_epoch(7)
    assert not any(same(third[i], forward[i]) for i in range(5))
    dark = make(darken=3)
    dark.set_epoch(7)
    assert not all(same(dark[i], forward[i]) for i in range(5)) and all(torch.equal(dark[i]["text"], forward[i]["text"]) and (dark[i]["a"] <= forward[i]["a"]).all() for i in range(5))
    grainy = make(darken=3, grain=4)
    grainy.set_epoch(7)
    changed = [(item[side], before[side], plain[side]) for item, before, plain in zip((grainy[i] for i in range(5)), (dark[i] for i in range(5)), forward) for side in "ab"]
    assert all(torch.equal(item, plain) for item, before, plain in changed[::2] if torch.equal(before, plain))  # noise only in what is darkened; the first image has the darkening that it has without
    assert any(item.unique().numel() > 2 * before.unique().numel() and (item - before).abs().max() < 8 * 4 / 255 for item, before, _ in changed[::2])
    with pytest.raises(FilmError, match="darken"): make(darken=0.5)
    for grain, darken in [(-1, 2), (256, 2), (float("nan"), 2), (1, 1)]:
        with pytest.raises(FilmError, match="grain must be"): make(grain=grain, darken=darken)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_any_number_of_workers(root, workers):
    dataset = FusionDataset(find_pairs(root, "ivf", "Toy"), "ivf", "crop", crop=(32, 40))
    for epoch in range(2):
        dataset.set_epoch(epoch)
        expected = [collate([dataset[0], dataset[1]]), collate([dataset[2], dataset[3]])]
        for batch, want in zip(DataLoader(dataset, 2, num_workers=workers, collate_fn=collate), expected):
            assert batch["name"] == want["name"] and all(torch.equal(batch[k], want[k]) for k in ("a", "b", "text", "text_mask"))


def test_the_cache_is_not_handed_out(root):
    dataset = FusionDataset(find_pairs(root, "ivf", "Toy"), "ivf", "whole")
    before = {k: v.clone() for k, v in dataset[0].items() if k != "name"}
    for value in dataset[0].values():
        if torch.is_tensor(value): value.zero_()
    assert all(torch.equal(dataset[0][k], v) for k, v in before.items())


@pytest.mark.parametrize("cache", [True, False])
def test_packed_samples_are_read_once(root, cache, monkeypatch):
    pytest.importorskip("h5py")
    pack(root / "toy.h5", find_pairs(root, "ivf", "Toy"), "ivf")
    dataset, read = FusionDataset(root / "toy.h5", "ivf", cache=cache), []
    original = type(dataset.source).__getitem__
    monkeypatch.setattr(type(dataset.source), "__getitem__", lambda self, index: read.append(self.names[index]) or original(self, index))
    assert same(dataset[0], dataset[0]) and same(dataset[1], dataset[1])
    assert read == (["p0", "p1"] if cache else ["p0", "p0", "p1", "p1"])


def test_names_are_compared_as_people_read_them(tmp_path):
    "A Mac writes ü as u and two dots."
    for side, name in (("A", "u\u0308ber"), ("B", "\u00fcber")): write_image(tmp_path / "Image" / "IVF" / "T" / {"A": "IR", "B": "VI"}[side] / f"{name}.png", np.zeros((20, 24), np.uint8))
    folder = tmp_path / "Image" / "IVF" / "T"
    (folder / "test.txt").write_text("u\u0308ber\n", encoding="utf-8")
    for pairs in (pair_folders(folder / "IR", folder / "VI"), find_pairs(tmp_path, "ivf", "T", "test")): assert [pair.name for pair in check_pairs(pairs)] == ["\u00fcber"]


@pytest.mark.parametrize("name", ["p1.avif", "p1.dcm", "p1.hdr"])
def test_pictures_of_other_kinds_are_named(tmp_path, name):
    write_image(tmp_path / "A" / "p1.png", np.zeros((20, 24), np.uint8))
    (tmp_path / "B").mkdir()
    (tmp_path / "B" / name).write_bytes(b"something")
    with pytest.raises(FilmError, match=f"p1: {name} in .*B is of a kind that is not read in folders: save it as PNG"): check_pairs(pair_folders(tmp_path / "A", tmp_path / "B"))


def test_wrong_settings_and_missing_texts_are_refused(root):
    pairs = find_pairs(root, "ivf", "Toy")
    for more, says in [(dict(mode="train"), "'paper', 'crop' or 'whole'"), (dict(crop=(8, 64)), "16 pixels"), (dict(max_tokens=0), "max_tokens"), (dict(seed=-1), "seed"),
                       (dict(encoder="other"), "encode the texts again"), (dict(texts={"p0": np.ones((3, 4), np.float32)}), "4 of 5 pairs have no text features: p1, p2, p3, p4"),
                       (dict(texts={p.name: np.ones(4) for p in pairs}), r"\(L, D\)"), (dict(texts={p.name: np.full((3, 4), np.nan) for p in pairs}), "NaN")]:
        with pytest.raises(FilmError, match=says): FusionDataset(pairs, "ivf", **more)
    with pytest.raises(FilmError, match="no pairs"): FusionDataset([], "ivf")
    with pytest.raises(FilmError, match="only is for a packed file"): FusionDataset(pairs, "ivf", only=["p1"])
    write_features(root / "TextFeature/IVF/Toy/p2.npy", np.ones((1, 4, 8)), "other")
    mixed = FusionDataset(pairs, "ivf")
    with pytest.raises(FilmError, match="p2.npy: made with other"): mixed[2]


def test_padding_is_masked_and_equal_lengths_need_no_mask(root):
    dataset = FusionDataset(find_pairs(root, "ivf", "Toy"), "ivf")
    batch = collate([dataset[0], dataset[2]])
    assert batch["text"].shape == (2, 8, 8) and batch["text_mask"].tolist() == [[True] * 6 + [False] * 2, [True] * 8]
    assert (batch["text"][~batch["text_mask"]] == 0).all() and torch.equal(batch["text"][0, :6], dataset[0]["text"])
    assert collate([dataset[0], dataset[0]])["text_mask"] is None
    dataset = FusionDataset(find_pairs(root, "ivf", "Toy"), "ivf", "whole")
    with pytest.raises(FilmError, match="image sizes differ.*batch size 1"): collate([dataset[0], dataset[1]])


# ---------------------------------------------------------------- the packed file

def test_packed_samples_equal_the_files(root):
    h5py = pytest.importorskip("h5py")
    pairs = find_pairs(root, "ivf", "Toy")
    assert pack(root / "new/toy.h5", pairs, "ivf") == (root / "new/toy.h5").stat().st_size
    packed, files = FusionDataset(root / "new/toy.h5", "ivf", encoder="toy"), FusionDataset(pairs, "ivf")
    assert packed.names == files.names and packed.encoder == "toy" and packed.text_width == 8
    assert all(map(same, packed, files))
    with h5py.File(root / "new/toy.h5") as file:
        assert sorted(file) == ["imageA", "imageB", "text"] and file["imageA/p0"].shape == (1, 288, 384) and file["text/p0"].shape == (1, 6, 8)
    loaded = [x for x in DataLoader(packed, 1, num_workers=2, collate_fn=collate)]
    assert all(torch.equal(batch["a"][0], item["a"]) for batch, item in zip(loaded, files))
    assert same(pickle.loads(pickle.dumps(packed))[4], files[4])
    pack(root / "whole.h5", pairs, "ivf", "whole")
    crops = [FusionDataset(source, "ivf", "crop", crop=(32, 40))[4] for source in (root / "whole.h5", pairs)]
    assert same(*crops)
    with pytest.raises(FilmError, match="made with toy, but other"): FusionDataset(root / "whole.h5", "ivf", encoder="other")
    with pytest.raises(FilmError, match="brings its text"): FusionDataset(root / "whole.h5", "ivf", texts={"p0": np.ones((3, 8), np.float32)})


def test_a_file_as_the_authors_wrote_it(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "MSRS_train.h5", "w") as file:
        for group, shape in (("imageA", (1, 288, 384)), ("imageB", (1, 288, 384)), ("text", (1, 149, 768))):
            for name in ("00001D", "00004N"): file.create_group(group) if group not in file else None; file[group].create_dataset(name, data=rng.random(shape, np.float32))
        expected = file["imageB/00004N"][()]
    dataset = FusionDataset(tmp_path / "MSRS_train.h5", "ivf")
    batch = collate([dataset[0], dataset[1]])
    assert dataset.encoder == AUTHORS_ENCODER and batch["text"].shape == (2, 149, 768) and batch["text_mask"] is None
    assert batch["name"] == ["00001D", "00004N"] and np.array_equal(batch["b"][1].numpy(), expected)


def test_bad_packed_files_give_one_line(tmp_path):
    h5py = pytest.importorskip("h5py")
    def write(name, **groups):
        with h5py.File(tmp_path / name, "w") as file:
            for group, samples in groups.items():
                file.create_group(group)
                for key, value in samples.items(): file[group].create_dataset(key, data=value)
        return tmp_path / name
    image, text = np.full((1, 20, 20), 0.5, np.float32), np.ones((1, 3, 4), np.float32)
    (tmp_path / "text.h5").write_text("not HDF5")
    for path, says in [(tmp_path / "none.h5", "no such file"), (tmp_path / "text.h5", "not an HDF5 file"), (write("a.h5", imageA={"x": image}), "no group imageB and no group text"),
                       (write("b.h5", imageA={"x": image}, imageB={"x": image, "y": image}, text={"x": text}), "1 samples are not in all.*: y"),
                       (write("c.h5", imageA={}, imageB={}, text={}), "no samples")]:
        with pytest.raises(FilmError, match=says) as error: FusionDataset(path, "ivf")
        assert len(str(error.value).splitlines()) == 1
    for path, says in [(write("d.h5", imageA={"x": image * 255}, imageB={"x": image}, text={"x": text}), r"outside \[0, 1\]"),
                       (write("e.h5", imageA={"x": image}, imageB={"x": image[:, :9]}, text={"x": text}), r"\(1, H, W\)"),
                       (write("f.h5", imageA={"x": image}, imageB={"x": image}, text={"x": text * np.nan}), "NaN")]:
        with pytest.raises(FilmError, match=says): FusionDataset(path, "ivf")[0]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(root):
    pytest.importorskip("h5py")
    pytest.importorskip("resource")
    target = root / "packed" / "toy.h5"
    target.parent.mkdir()
    target.write_text("the old file")
    code = f"""
import resource, signal
from film.core import FilmError
from film.data import find_pairs, pack
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # the next write beyond 1 MB fails, as on a full disk
try: pack({str(target)!r}, find_pairs({str(root)!r}, "ivf", "Toy"), "ivf")
except FilmError as e: print("refused:", e)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"refused: {target}: cannot be written") and len(result.stdout.splitlines()) == 1
    assert target.read_text() == "the old file" and [p.name for p in target.parent.iterdir()] == ["toy.h5"]


def test_a_packed_file_knows_its_task(root):
    pack(root / "own.h5", find_pairs(root, "ivf", "Toy"), "ivf")
    assert len(FusionDataset(root / "own.h5", "ivf")) == 5
    with pytest.raises(FilmError, match="holds ivf pairs, not mef"): FusionDataset(root / "own.h5", "mef")


def test_packing_refuses_what_it_cannot_hold(root, monkeypatch):
    pairs = find_pairs(root, "ivf", "Toy")
    with pytest.raises(FilmError, match="crop when reading"): pack(root / "x.h5", pairs, "ivf", "crop")
    with pytest.raises(FilmError, match="come twice: p0"): pack(root / "x.h5", [pairs[0], pairs[0]], "ivf")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(FilmError, match="h5py: " + re.escape(pip_install("train"))): pack(root / "x.h5", pairs, "ivf")
    assert not list(root.glob("*.h5")) and not list(root.glob(".*"))


# ---------------------------------------------------------------- pairs made from photographs

@pytest.mark.parametrize("task", GENERATORS)
@pytest.mark.parametrize("shape", [(16, 16), (40, 90, 3)])
@pytest.mark.parametrize("fill", [None, 0, 255])
def test_generators_take_every_photograph(task, shape, fill):
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 256, shape, np.uint8) if fill is None else np.full(shape, fill, np.uint8)
    pair = GENERATORS[task](photograph, rng)
    assert len(pair) == 2 and all(image.dtype == np.uint8 and image.shape == (shape if task != "mif" else shape[:2]) for image in pair)


def test_photographs_whose_view_cannot_be_read_are_said(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in "abc": write_image(tmp_path / "photographs" / f"{name}.png", rng.integers(0, 256, (48, 64, 3), np.uint8))
    (tmp_path / "photographs" / "broken.jpg").write_bytes(b"not an image")
    for seed in range(9):
        generate_pairs(tmp_path / "photographs", "mef", f"Views{seed}", tmp_path, seed, views=True)
        lost = set("abc") - set((tmp_path / f"Image/MEF/Views{seed}/train.txt").read_text().split())
        said = capsys.readouterr().out
        assert all(f"{name}.png: " in said for name in lost)
        if lost: break
    else: raise AssertionError("no view was drawn from the broken photograph")


def test_generated_data_set_is_resumed_and_its_seed_kept(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in "abc": write_image(tmp_path / "photographs" / f"{name}.png", rng.integers(0, 256, (48, 64, 3), np.uint8))
    (tmp_path / "photographs" / "broken.jpg").write_bytes(b"not an image")
    make = lambda name, seed=0: generate_pairs(tmp_path / "photographs", "mff", name, tmp_path, seed)
    folder = make("One")
    assert "passed over" in capsys.readouterr().out and (folder / "train.txt").read_text() == "a\nb\nc\n"
    assert len(check_pairs(find_pairs(tmp_path, "mff", "One", "train"))) == 3
    assert generate_pairs(tmp_path / "photographs", "mff", "One", tmp_path / "new" / "root") == tmp_path / "new/root/Image/MFF/One"  # the root is made
    before = (folder / "NEAR" / "b.png").read_bytes()
    (folder / "NEAR" / "b.png").unlink()  # as if stopped before it was written
    kept = (folder / "NEAR" / "a.png").stat().st_mtime_ns
    make("One")
    assert (folder / "NEAR" / "b.png").read_bytes() == before and (folder / "NEAR" / "a.png").stat().st_mtime_ns == kept
    assert (make("Two", 1) / "NEAR" / "b.png").read_bytes() != before
    with pytest.raises(FilmError, match="another kind, seed"): make("One", 1)
    made = json.loads((folder / "generated.json").read_text())
    (folder / "generated.json").write_text(json.dumps(made | dict(code="0" * 16)))
    with pytest.raises(FilmError, match="another version"): make("One")
    (folder / "generated.json").write_text(json.dumps({key: value for key, value in made.items() if key != "code"}))  # as older versions wrote it
    assert make("One") == folder and json.loads((folder / "generated.json").read_text()) == made
    plain, views = (generate_pairs(tmp_path / "photographs", "mef", name, tmp_path, views=views) for name, views in (("Plain", False), ("Views", True)))
    assert (plain / "OVER" / "a.png").read_bytes() != (views / "OVER" / "a.png").read_bytes()
    under = (views / "UNDER" / "a.png").read_bytes()
    (views / "UNDER" / "a.png").unlink()
    assert (generate_pairs(tmp_path / "photographs", "mef", "Views", tmp_path, views=True) / "UNDER" / "a.png").read_bytes() == under
    with pytest.raises(FilmError, match="with other views"): generate_pairs(tmp_path / "photographs", "mef", "Views", tmp_path)
    lamps = generate_pairs(tmp_path / "photographs", "mef", "Lamps", tmp_path, lamps=True)
    assert (plain / "UNDER" / "a.png").read_bytes() != (lamps / "UNDER" / "a.png").read_bytes() != under
    with pytest.raises(FilmError, match="or lamps"): generate_pairs(tmp_path / "photographs", "mef", "Lamps", tmp_path, views=True)
    silhouettes = generate_pairs(tmp_path / "photographs", "mef", "Silhouettes", tmp_path, silhouettes=True)
    over, under = (to_gray(read_image(silhouettes / word / "a.png")) for word in ("OVER", "UNDER"))
    assert (over == 1).mean() > 0.02 and over.min() < 0.4 and over.mean() > 1.5 * under.mean()
    with pytest.raises(FilmError, match="another kind"): generate_pairs(tmp_path / "photographs", "mef", "Silhouettes", tmp_path, views=True)
    with pytest.raises(FilmError, match="neither views nor lamps"): generate_pairs(tmp_path / "photographs", "mef", "Five", tmp_path, lamps=True, silhouettes=True)
    write_image(tmp_path / "photographs" / "z.png", np.full((64, 80, 3), 99, np.uint8))
    assert "z\n" in (make("One") / "train.txt").read_text()
    for kind in ("views", "silhouettes"):  # may be any other's view or ground
        with pytest.raises(FilmError, match="other photographs"): generate_pairs(tmp_path / "photographs", "mef", kind.capitalize(), tmp_path, **{kind: True})
    write_image(tmp_path / "photographs" / "a.png", np.full((64, 80, 3), 99, np.uint8))
    with pytest.raises(FilmError, match="other photographs"): make("One")
    with pytest.raises(FilmError, match="only multi-exposure pairs have views, lamps or silhouettes"): generate_pairs(tmp_path / "photographs", "mff", "Four", tmp_path, views=True)
    with pytest.raises(FilmError, match="no generator for ivf"): generate_pairs(tmp_path / "photographs", "ivf", "One", tmp_path)
    with pytest.raises(FilmError, match="holds no images"): generate_pairs(folder, "mff", "Three", tmp_path)


def test_a_view_stays_bright_beside_lamps():
    gray = np.full((96, 128), 118, np.uint8)
    lit = [sum((exposure_pair(gray, np.random.default_rng(seed), gray, lamps)[1] > 70).mean() for seed in range(6)) for lamps in (False, True)]
    assert lit[1] > 0.8 * lit[0] > 1


def test_names_that_end_like_images(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("foo.jpg.webp", " lead.png", "ok.png"): write_image(tmp_path / "photographs" / name, rng.integers(0, 256, (40, 50, 3), np.uint8))
    folder = generate_pairs(tmp_path / "photographs", "mff", "Made", tmp_path)
    assert "passed over" in capsys.readouterr().out and (folder / "train.txt").read_text() == "foo.jpg\nok\n"
    assert [pair.name for pair in check_pairs(find_pairs(tmp_path, "mff", "Made", "train"))] == ["foo.jpg", "ok"]
    (folder / "train.txt").write_text("foo.jpg.png\nok.jpg\n")
    assert [pair.name for pair in check_pairs(find_pairs(tmp_path, "mff", "Made", "train"))] == ["foo.jpg", "ok"]


@pytest.mark.parametrize("shape", [(48, 64), (64, 48, 3), (1, 1), (200, 3, 3)])
@pytest.mark.parametrize("view", [(30, 30), (64, 90, 3), (1, 1)])
def test_a_view_of_any_size_and_kind(shape, view):
    rng = np.random.default_rng(0)
    image, other = (rng.integers(0, 256, size, np.uint8) for size in (shape, view))
    for seed in range(5):  # windows, skies and signs
        pair = exposure_pair(image, np.random.default_rng(seed), other)
        assert all(x.shape == shape and x.dtype == np.uint8 for x in pair)
        assert all((x == y).all() for x, y in zip(pair, exposure_pair(image, np.random.default_rng(seed), other)))


# ---------------------------------------------------------------- the bundled sample and the real data

@pytest.mark.parametrize("task", TASKS)
def test_the_bundled_sample_is_complete(task):
    pairs = check_pairs(find_pairs(SAMPLE, task, "Sample", "test"))
    assert len(pairs) >= 2 and {p.name for p in pairs} == {p.name for p in find_pairs(SAMPLE, task, "Sample")}
    assert {p.name for p in find_pairs(SAMPLE, task, "Sample", "train")} < {p.name for p in pairs}
    notice = (SAMPLE / "NOTICE.md").read_text(encoding="utf-8")
    for pair in pairs:
        a, b = read_image(pair.a), read_image(pair.b)
        assert min(a.shape[:2]) >= 256 and f"`{TASKS[task].folder}/{pair.name}`" in notice
        assert np.corrcoef(to_gray(a).ravel(), to_gray(b).ravel())[0, 1] < 0.995  # two views, not one
    assert sum(p.stat().st_size for p in SAMPLE.rglob("*") if p.is_file()) < 4e6


def test_the_sample_is_remade_by_its_script(tmp_path):
    pytest.importorskip("skimage")
    subprocess.run([sys.executable, SAMPLE / "make_sample.py", "--task", "mef", "--out", tmp_path], check=True, capture_output=True, timeout=300)
    made, kept = (find_pairs(root, "mef", "Sample", "test") for root in (tmp_path, SAMPLE))
    assert [p.name for p in made] == [p.name for p in kept]
    for new, old in zip(made, kept):
        for x, y in ((new.a, old.a), (new.b, old.b)): assert np.abs(read_image(x).astype(int) - read_image(y)).mean() < 0.5


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data (../shared) are not here")
@pytest.mark.parametrize("task, dataset, split, count", [("ivf", "RoadScene", "train", 171), ("ivf", "RoadScene", "test", 50), ("mif", "Harvard", "test", 69), ("mef", "HDR27", "train", 27), ("mff", "Lytro", "test", 10)])
def test_real_data_sets_are_read(task, dataset, split, count):
    assert len(check_pairs(find_pairs(SHARED / "data", task, dataset, split))) == count


def test_the_first_exposure_is_the_longer():
    photograph = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for seed in range(5):
        for options in ({}, dict(lamps=True), dict(view=photograph)):
            over, under = exposure_pair(photograph, np.random.default_rng(seed), **options)
            assert over.mean() > 1.2 * under.mean(), (seed, options)


def test_near_and_far_are_sharp_where_the_mask_says():
    photograph = np.random.default_rng(0).integers(0, 256, (96, 128), np.uint8)
    for seed in range(5):
        mask = near_mask(to_gray(photograph), np.random.default_rng(seed))
        near, far = (np.abs(image.astype(int) - photograph) for image in defocus_pair(photograph, np.random.default_rng(seed)))
        assert near[mask > 0.99].mean() < far[mask > 0.99].mean() and far[mask < 0.01].mean() < near[mask < 0.01].mean()


def test_the_digest_knows_the_text(root):
    pairs = find_pairs(root, "ivf", "Toy")
    digest = pairs_digest(pairs)
    write_features(pairs[0].text, np.ones((1, 3, 8)), "toy")
    assert pairs_digest(pairs) != digest


def test_equal_photographs_of_two_names_differ_as_pairs(tmp_path):
    for name in "ab": write_image(tmp_path / "photographs" / f"{name}.png", np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8))
    folder = generate_pairs(tmp_path / "photographs", "mff", "Made", tmp_path)
    assert (folder / "NEAR/a.png").read_bytes() != (folder / "NEAR/b.png").read_bytes()


def test_every_index_has_its_own_window(root):
    data = FusionDataset([find_pairs(root, "ivf", "Toy")[4]] * 4, "ivf", "crop", crop=(32, 40))
    assert len({data[i]["a"].numpy().tobytes() for i in range(4)}) == 4
