"Chapters 01 and 01b: what is measured is true, what is written was measured, and nothing else is."
import json, re, subprocess, sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from skimage import data as photographs

from film.core import TASKS, FilmError, write_image
from film.objects import ObjectRegions, box_mask, detect, overlap
from film.text import (COMPONENTS, Mask, Region, automatic_text, blur_effect, describe, draw_regions, get_component, hue_name, light_regions, mask_to_rle, measure,
                       measure_in_masks, plural, region_facts, rle_to_mask, with_article)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "Image"
MEASURED = dict(dense="measured", segmenter="none")
BOX = re.compile(r"\[(\d+), (\d+), (\d+), (\d+)\]")


def boxes_of(text): return [tuple(map(int, box)) for box in BOX.findall(text)]


def check_paragraph(d):
    "What every paragraph must have."
    width, height = d.size
    assert d.paragraph.lower().startswith(d.caption.lower()) and f"the resolution is {width}x{height}" in d.paragraph
    assert 60 <= len(d.paragraph.split()) <= 150 and "\n" not in d.paragraph and "  " not in d.paragraph
    assert re.fullmatch(r"[A-Z].*\.", d.paragraph) and " a a" not in d.paragraph and not re.search(r"\ba [aeio]\w+ (image|area|photograph)", d.paragraph)
    known = {region.box for region in d.regions}
    for box in boxes_of(d.paragraph):
        assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height and box in known


# ---------------------------------------------------------------- the paragraph

images = st.builds(lambda seed, height, width, kind, colour: scene(seed, height, width, kind, colour),
                   st.integers(0, 10**6), st.integers(16, 90), st.integers(16, 120), st.sampled_from(["noise", "flat", "blobs", "ramp", "black", "white"]), st.booleans())


def scene(seed, height, width, kind, colour):
    rng = np.random.default_rng(seed)
    shape = (height, width, 3) if colour else (height, width)
    if kind == "noise": return rng.integers(0, 256, shape).astype(np.uint8)
    if kind == "black": return np.zeros(shape, np.uint8)
    if kind == "white": return np.full(shape, 255, np.uint8)
    if kind == "ramp": return np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8).reshape(1, -1, *[1] * colour), shape).copy()
    image = np.full(shape, rng.integers(256), np.uint8)
    for _ in range(5 if kind == "blobs" else 0):
        y, x = rng.integers(height), rng.integers(width)
        image[y:y + rng.integers(1, height), x:x + rng.integers(1, width)] = rng.integers(0, 256, shape[2:])
    return image


@settings(max_examples=150, deadline=None)
@given(images, st.sampled_from([(task.name, modality) for task in TASKS.values() for modality in task.modalities]))
def test_any_image_gets_one_paragraph_that_keeps_its_promises(image, kind):
    d = describe(image, task=kind[0], modality=kind[1], **MEASURED)
    check_paragraph(d)
    assert describe(image.copy(), task=kind[0], modality=kind[1], **MEASURED) == d
    json.dumps(d.to_dict())


def test_painted_things_are_found_where_they_are_and_nothing_else():
    image = np.full((480, 640), 70, np.uint8)
    painted = {"bright area": (100, 60, 180, 140), "dark area": (400, 300, 520, 380)}
    for label, (x1, y1, x2, y2) in painted.items(): image[y1:y2, x1:x2] = 230 if label == "bright area" else 5
    d = describe(image, **MEASURED)
    assert sorted(region.label for region in d.regions) == sorted(painted)
    for region in d.regions: assert max(abs(a - b) for a, b in zip(region.box, painted[region.label])) <= 5
    assert "one bright area and one dark area" in d.caption
    assert next(r for r in d.regions if r.label == "bright area").facts["light"] == pytest.approx(230 / 255, abs=.1)


def test_a_flat_image_is_said_to_show_nothing():
    d = describe(np.full((200, 300), 128, np.uint8), **MEASURED)
    assert not d.regions and not boxes_of(d.paragraph) and "mostly" not in d.paragraph and "percent" not in d.paragraph
    assert "without an area that stands out" in d.caption and "very low contrast" in d.caption


def test_numbers_in_the_text_are_the_measured_ones():
    image = np.full((100, 200, 3), (180, 40, 40), np.uint8)
    image[:, :50] = 0
    image[:, 50:70] = 255
    d = describe(image, modality="VI", **MEASURED)
    assert "25 percent of the pixels are fully black and 10 percent fully white" in d.paragraph.replace("25 Percent", "25 percent")
    mean = round((180 * .299 + 80 * .587 / 2 + 40 * .114) * .65 + 25.5)
    assert f"{mean} of 255" in d.paragraph or f"{mean - 1} of 255" in d.paragraph
    assert "mostly red" in d.paragraph and "strong" in d.paragraph
    gray = describe(image[..., 0], modality="VI", **MEASURED)
    assert "mostly" not in gray.paragraph and "colours" not in gray.paragraph and " gray visible" in gray.caption


def test_text_follows_what_changes():
    photo = photographs.camera()
    d = {name: describe(image, modality="VI", **MEASURED) for name, image in dict(
        plain=photo, dark=(photo * .2).astype(np.uint8), soft=cv2.GaussianBlur(photo, (0, 0), 6), faint=(photo * .1 + 110).astype(np.uint8)).items()}
    assert d["dark"].caption.startswith("a very dark") and d["plain"].caption.startswith("a mid-toned")
    assert re.search(r"(very smooth|soft)", d["soft"].paragraph) and not re.search(r"(very smooth|soft)", d["plain"].paragraph)
    assert re.search(r"low contrast", d["faint"].caption) and "high contrast" in d["plain"].caption
    assert len({text.paragraph for text in d.values()}) == 4


def test_depth_and_channels_do_not_change_the_text():
    photo = cv2.resize(photographs.camera(), (160, 120), interpolation=cv2.INTER_AREA)
    plain = describe(photo, **MEASURED).paragraph
    for same in (photo.astype(np.uint16) * 257, photo / 255, (photo / 255).astype(np.float32), photo[..., None], np.dstack([photo] * 3), np.dstack([photo] * 4)):
        assert describe(same, **MEASURED).paragraph == plain


@pytest.mark.parametrize("shape", [(16, 2000), (2000, 16), (16, 16), (3000, 2200), (17, 641)])
def test_any_shape(shape):
    rng = np.random.default_rng(1)
    image = cv2.resize(rng.integers(0, 256, (5, 6), dtype=np.uint8), shape[::-1], interpolation=cv2.INTER_CUBIC)
    check_paragraph(describe(image, **MEASURED))
    check_paragraph(describe(image))
    assert draw_regions(image, light_regions(image)).dtype == np.uint8


def test_many_images_get_many_wordings():
    rng = np.random.default_rng(0)
    texts = [describe(scene(seed, 60, 80, "blobs", True), modality="VI", **MEASURED).paragraph for seed in rng.integers(0, 10**6, 40)]
    assert len({re.sub(r"\d+", "", text) for text in texts}) >= 38 and len({text.split(". ")[-1].split(",")[0] for text in texts}) == 3


def test_bad_input_has_one_clear_line(tmp_path):
    image = np.zeros((32, 32), np.uint8)
    (tmp_path / "text.png").write_text("no picture")
    for bad, says in [(dict(image=tmp_path / "none.png"), "no such file"), (dict(image=tmp_path / "text.png"), "not an image"), (dict(image=image[:8]), "too small"),
                      (dict(image=np.full((20, 20), np.nan)), "NaN"), (dict(image=image, modality="VIS"), "choose IR or VI"), (dict(image=image, task="video"), "unknown task"),
                      (dict(image=image, dense="eyes"), "unknown dense 'eyes': choose one of measured, objects"), (dict(image=image, captioner="measured:x"), "no model to choose"),
                      (dict(image=image, segmenter="sam"), "needs its checkpoint file")]:
        with pytest.raises(FilmError, match=says) as caught: describe(**bad)
        assert "\n" not in str(caught.value)


def test_a_notebook_shows_it_without_being_fooled():
    image = np.zeros((32, 40), np.uint8)
    d = describe(image, name="<script>", **MEASURED)
    d.caption, d.paragraph = 'quo"te <b>', "a <script>alert(1)</script> b"
    assert "<script>" not in d._repr_html_() and "data:image/jpeg;base64," in d._repr_html_()
    d.image = None
    assert d._repr_html_() == "<p>a &lt;script&gt;alert(1)&lt;/script&gt; b</p>"


def test_importing_film_text_is_light():
    code = "import film.text, sys; heavy = {'torch', 'transformers', 'openai', 'PIL', 'matplotlib', 'skimage', 'pandas'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_components_by_name_are_built_once_and_are_all_there():
    assert get_component("dense", "measured") is get_component("dense", "measured")
    for role, names in COMPONENTS.items():
        for name, path in names.items():
            module, attribute = path.split(":")
            cls = getattr(__import__(module, fromlist=[attribute]), attribute)
            assert callable(getattr(cls, dict(dense="regions", segmenter="masks", captioner="caption", writer="write")[role])), path


def test_an_option_that_no_component_has_is_said():
    for role, name in (("writer", "openai:m"), ("dense", "measured")):
        with pytest.raises(FilmError, match="unknown option 'temprature': components know .*temperature") as caught: get_component(role, name, seed=0, temprature=5)
        assert "\n" not in str(caught.value)
    assert get_component("dense", "measured", seed=0, device="cpu", points_per_side=4).name == "light-regions/1"  # those of others are left out


def test_components_get_the_description_so_far_and_are_named():
    seen = {}
    class Fake:
        def __init__(self, role, value): self.name, self.role, self.value = f"fake-{role}", role, value
        def answer(self, d): seen[self.role] = (len(d.regions), len(d.masks), d.caption); return self.value
        regions = masks = caption = write = answer
    image = np.zeros((40, 50), np.uint8); image[10:20, 10:20] = 200
    pixels = np.zeros((40, 50), bool); pixels[10:20, 10:20] = True
    d = describe(image, dense=Fake("dense", [Region("lamp", (5, 5, 25, 25))]), segmenter=Fake("segmenter", [Mask("lamp", pixels)]), captioner=Fake("captioner", "a lamp"), writer=Fake("writer", "text"))
    assert seen == dict(dense=(0, 0, ""), segmenter=(1, 0, ""), captioner=(1, 1, ""), writer=(1, 1, "a lamp"))
    assert d.paragraph == "text" and d.made_by == {role: f"fake-{role}" for role in seen}
    assert d.regions[0].facts["light"] == pytest.approx(200 / 255, abs=.01)      # measured in the mask, not in the box


# ---------------------------------------------------------------- its parts

@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_keep_every_pixel(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    rle = mask_to_rle(mask)
    assert np.array_equal(rle_to_mask(json.loads(json.dumps(rle))), mask) and sum(rle["counts"]) == height * width and min(rle["counts"][1:], default=1) > 0


def test_measurements_of_known_images():
    m = measure(np.tile(np.array([[0, 255]], np.uint8), (64, 32)))
    assert (m.light, m.contrast, m.black, m.white) == (.5, .5, .5, .5)
    halves = np.zeros((60, 60), np.uint8); halves[:, 40:] = 200
    assert np.allclose(np.array(measure(halves).light_map), [[0, 0, 200 / 255]] * 3)
    assert blur_effect(np.zeros((20, 20), np.float32)) == 1
    assert [hue_name(np.full((3, 3, 3), c, np.float32)) for c in ((1, .5, 0), (0, 1, 1), (.5, 0, 1), (1, 0, .8))] == ["orange", "cyan", "violet", "magenta"]


def test_a_large_image_is_described_as_what_it_is():
    "Looked at in a smaller copy, with its own size and places in its own pixels; a small one as `describe` does."
    dark = np.full((480, 640, 3), 20, np.uint8)
    dark[100:160, 400:520] = 240
    large = dark.repeat(8, 0).repeat(8, 1)
    for image in (dark, large):
        said, (x1, y1, x2, y2) = automatic_text(image, TASKS["ivf"], "VI"), np.array([400, 100, 520, 160]) * len(image) // 480
        assert f"the resolution is {image.shape[1]}x{image.shape[0]}" in said
        assert np.abs(np.subtract(boxes_of(said)[0], (x1, y1, x2, y2))).max() <= 0.01 * image.shape[1]
    assert automatic_text(dark, TASKS["ivf"], "VI") == describe(dark, modality="VI").paragraph


@pytest.mark.parametrize("word, many", [("lady", "ladies"), ("boy", "boys"), ("leaf", "leaves"), ("foot", "feet"), ("pony on grass", "ponies on grass")])
def test_plurals_of_other_words(word, many): assert plural(word) == many


def test_articles():
    for phrase in ("uniform", "used car", "one-way sign", "European plane", "house", "boy"): assert with_article(phrase) == f"a {phrase}"
    for phrase in ("umbrella", "hourglass", "MRI scan", "unusual area", "onion", "infrared image"): assert with_article(phrase) == f"an {phrase}"


def test_plurals_of_every_class():
    from film.objects import COCO
    assert len(COCO) == 80 and all(plural(label) for label in COCO)
    assert [plural(label) for label in ("people", "cars", "man wearing glasses", "old woman in red", "wine glass")] == ["people", "cars", "men wearing glasses", "old women in red", "wine glasses"]
    assert not [label for label in COCO if label.endswith(("s", "ch", "sh", "x")) and plural(label) == f"{label}s"]


def test_facts_in_masks_only_where_a_mask_fits():
    image = np.zeros((60, 60), np.uint8); image[20:40, 20:40] = 250
    d = describe(image, **MEASURED)
    d.regions, far = [Region("lamp", (10, 10, 50, 50), dict(light=-1))], np.zeros((60, 60), bool)
    far[:5, :5] = True
    d.masks = [Mask("lamp", far), Mask("dog", image > 0)]
    measure_in_masks(d); assert d.regions[0].facts == dict(light=-1)
    d.masks.append(Mask("lamp", image > 0))
    measure_in_masks(d); assert d.regions[0].facts["light"] == pytest.approx(250 / 255, abs=.01)


# ---------------------------------------------------------------- the embedded detector and masks

def test_detector_names_what_photographs_show():
    (astronaut, *_), (cat, *_) = detect(photographs.astronaut()), detect(photographs.chelsea())
    assert (astronaut.label, cat.label) == ("person", "cat") and astronaut.score > .6
    assert overlap(astronaut.box, (14, 14, 365, 508)) > .9


def test_detector_sees_the_same_in_any_depth_and_keeps_boxes_inside():
    photo = photographs.astronaut()
    plain = detect(photo)
    assert [(r.label, r.box) for r in detect(photo.astype(np.uint16) * 257)] == [(r.label, r.box) for r in plain]
    rng = np.random.default_rng(0)
    for shape in ((16, 300, 3), (300, 16), (33, 57, 3)):
        for region in detect(rng.integers(0, 256, shape, dtype=np.uint8), threshold=.05):
            assert 0 <= region.box[0] < region.box[2] <= shape[1] and 0 <= region.box[1] < region.box[3] <= shape[0] and .05 <= region.score <= 1


def test_a_scan_is_not_searched_for_things_of_the_street():
    cat = photographs.chelsea()
    names = lambda task, modality: {region.label for region in describe(cat, task=task, modality=modality, segmenter="none").regions}
    assert "cat" in names("mff", "NEAR") and names("mif", "T") <= {"bright area", "dark area"}


def test_unsure_things_are_written_as_unsure():
    d = describe(photographs.astronaut(), task="mff", modality="NEAR", segmenter="none")
    d.regions = [Region("car", (10, 10, 200, 200), score=.45), Region("person", (200, 200, 300, 300), score=.9)]
    from film.text import measured_caption, write_paragraph
    d.caption = measured_caption(d)
    assert "one person" in d.caption and "car" not in d.caption
    assert "what may be a car" in write_paragraph(d) and "what may be a person" not in write_paragraph(d)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(16, 60), st.integers(16, 60), st.data())
def test_masks_lie_in_their_boxes(seed, height, width, data):
    image = scene(seed, height, width, "blobs", bool(seed % 2))
    x1, y1 = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    box = (x1, y1, data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height)))
    mask, how = box_mask(image, box)
    outside = mask.copy(); outside[box[1]:box[3], box[0]:box[2]] = False
    assert mask.shape == (height, width) and mask.any() and not outside.any() and how in ("grabcut", "threshold", "box")
    assert np.array_equal(box_mask(image, box)[0], mask)


@pytest.mark.parametrize("edge", [1, 3])
def test_a_flat_box_at_the_far_edge_has_pixels(edge):
    for image, box in ((np.zeros((700, 1200), np.uint8), (100, 700 - edge, 1000, 700)), (np.zeros((1200, 700), np.uint8), (700 - edge, 100, 700, 1000))):
        mask, how = box_mask(image, box)
        assert how == "box" and mask.any() and mask.sum() == mask[box[1]:box[3], box[0]:box[2]].sum()


def test_objects_come_before_light_and_the_list_is_bounded():
    d = describe(photographs.astronaut(), task="mff", modality="NEAR", dense=ObjectRegions(limit=3), segmenter="none")
    sources = [region.source for region in d.regions]
    assert len(sources) == 3 and sources == sorted(sources, key=lambda source: source != "nanodet-g")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_people_and_cars_of_infrared_images_are_named():
    pedestrians = describe(SHARED / "IVF/MSRS/IR/00633D.png")
    assert "two people" in pedestrians.caption
    named = [describe(path) for path in sorted((SHARED / "IVF/RoadScene/IR").glob("*.jpg"))[::20]]
    for d in named: check_paragraph(d)
    assert sum("person" in d.paragraph or "people" in d.paragraph for d in named) >= 3 and sum(" car" in d.paragraph for d in named) >= 3


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("task,folder", [("mif", "MIF/Harvard"), ("mef", "MEF/MEFB"), ("mff", "MFF/Lytro")])
def test_real_images_of_every_task(task, folder):
    for modality in TASKS[task].modalities:
        texts = [describe(path, task=task, modality=modality, **MEASURED) for path in sorted((SHARED / folder / modality).iterdir())[::9]]
        for d in texts: check_paragraph(d)
        assert len({d.paragraph for d in texts}) == len(texts)


def test_the_first_modality_is_the_default():
    image = np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))
    for task, modality in (("ivf", "IR"), ("mif", "MRI"), ("mef", "OVER"), ("mff", "NEAR")):
        assert describe(image, task=task, **MEASURED).modality == modality and describe(image, task=task, **MEASURED).paragraph == describe(image, task=task, modality=modality, **MEASURED).paragraph


def test_contrast_is_against_what_lies_around():
    image = np.zeros((60, 60), np.uint8); image[20:40, 20:40] = 255
    assert region_facts(image, (20, 20, 40, 40)) == dict(area=pytest.approx(1 / 9), light=1, contrast=1)
