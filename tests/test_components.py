"Chapter 01c: the research components' real code on tiny random models."
import json, re, subprocess, sys, textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data as photographs

from film.components import (Blip2Captioner, Florence2DenseCaptioner, GritResults, SamSegmenter, batched_nms, box_area, checked_regions, import_segment_anything, model_id,
                             name_masks, pick_device)
from film.core import FilmError, pip_install
from film.text import Mask, Region, describe, get_component, quietly
from tiny_models import save_blip2, save_florence2, tiny_sam

CAT = photographs.chelsea()  # 300 x 451


def description(image=CAT, name="cat"): return describe(image, task="mff", modality="NEAR", name=name, dense="measured", segmenter="none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("models")


def test_downloads_of_models_show_their_progress():
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils.logging import is_progress_bar_enabled
    with quietly(): assert not is_progress_bar_enabled() and not are_progress_bars_disabled()
    assert is_progress_bar_enabled() and not are_progress_bars_disabled()


# ---------------------------------------------------------------- BLIP-2

def test_blip2_is_the_model_run_by_hand(folder):
    from PIL.Image import fromarray
    from transformers import Blip2ForConditionalGeneration, Blip2Processor
    path = save_blip2(folder / "blip2")
    caption = Blip2Captioner(path, max_tokens=7).caption(description())
    processor, model = Blip2Processor.from_pretrained(path, local_files_only=True), Blip2ForConditionalGeneration.from_pretrained(path, local_files_only=True).eval()
    inputs = processor(images=fromarray(CAT), text="a photo of", return_tensors="pt")
    with torch.no_grad(): text = processor.batch_decode(model.generate(**inputs, max_new_tokens=7, do_sample=False), skip_special_tokens=True)[0]
    assert caption == " ".join(text.split()) and caption.startswith("a photo of ") and caption.count("a photo of") == 1
    assert Blip2Captioner(path, max_tokens=7).caption(description()) == caption
    gray = description(CAT[..., 0].astype(np.uint16) * 257)
    assert Blip2Captioner(path, max_tokens=7).caption(gray).startswith("a photo of ")


def test_blip2_by_name_with_a_folder_is_loaded_lazily_and_once(folder, monkeypatch):
    path = save_blip2(folder / "by_name")
    captioner = get_component("captioner", f"blip2:{path}", device="cpu")
    assert captioner is get_component("captioner", f"blip2:{path}", device="cpu") and "loaded" not in vars(captioner)
    d = describe(CAT, task="mff", modality="NEAR", dense="measured", segmenter="none", captioner=captioner)
    assert "loaded" in vars(captioner) and d.paragraph.startswith("A photo of") and d.made_by["captioner"].startswith("blip2:by_name@")
    loaded = captioner.loaded
    captioner.caption(d)
    assert captioner.loaded is loaded


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    for component, call in ((Blip2Captioner(str(tmp_path)), "caption"), (Florence2DenseCaptioner(str(tmp_path)), "regions")):
        with pytest.raises(FilmError, match="cannot be loaded") as caught: getattr(component, call)(description())
        assert "\n" not in str(caught.value)


def test_no_hub_is_asked_for_a_misspelt_folder(monkeypatch):
    import transformers
    def asked(*_, **__): raise AssertionError("a hub is asked")
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", asked)
    for component, call in ((Blip2Captioner("nofolder"), "caption"), (Florence2DenseCaptioner("models/none/florence2"), "regions")):
        with pytest.raises(FilmError, match="neither a folder here nor a hub id") as caught: getattr(component, call)(description())
        assert "\n" not in str(caught.value)
    with pytest.raises(FilmError, match="a hub is asked"): Blip2Captioner("owner/name").caption(description())


def test_what_the_hub_s_library_logs_is_not_shown(monkeypatch):
    import transformers
    from huggingface_hub.utils import logging
    shown, level = [], logging.get_verbosity()
    def unreachable(*_, **__): shown.append(logging.get_logger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)); raise OSError("no network")
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", unreachable)
    with pytest.raises(FilmError, match="no network"): Blip2Captioner("owner/name").caption(description())
    assert shown == [False] and logging.get_verbosity() == level


def test_missing_and_damaged_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file
    path = save_blip2(tmp_path / "blip2")
    whole = load_file(path / "model.safetensors")
    save_file({name: value for name, value in whole.items() if "qformer.encoder.layer.1" not in name}, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FilmError, match=r"weights are missing, such as qformer\.encoder\.layer\.1"): Blip2Captioner(path, device="cpu").caption(description())
    for content in (b"", b"version https://git-lfs.github.com/spec/v1", (path / "model.safetensors").read_bytes()[:1000]):
        (path / "model.safetensors").write_bytes(content)
        with pytest.raises(FilmError, match="BLIP-2: .* cannot be loaded") as caught: Blip2Captioner(path, device="cpu").caption(description())
        assert "\n" not in str(caught.value)


def test_a_model_is_known_by_what_its_files_hold(tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(1 << 20))
    before = model_id(tmp_path)
    with open(tmp_path / "weights.bin", "r+b") as file: file.seek(1 << 19); file.write(b"\1" * (1 << 15))  # as long as before
    assert model_id(tmp_path) != before


def test_names_say_what_is_in_a_folder_not_where_it_is(tmp_path):
    for where in ("here", "there"):
        (tmp_path / where / "model").mkdir(parents=True); (tmp_path / where / "model" / "config.json").write_text("{}")
    here, there = (model_id(str(tmp_path / where / "model")) for where in ("here", "there"))
    assert here == there and here.startswith("model@") and str(tmp_path) not in here
    (tmp_path / "there" / "model" / "config.json").write_text('{"a": 1}')
    assert model_id(str(tmp_path / "there" / "model")) != here
    assert model_id("Salesforce/blip2-opt-2.7b") == "Salesforce/blip2-opt-2.7b"


def test_device_and_dtype_are_chosen_once():
    assert pick_device("cpu") == ("cpu", torch.float32) and pick_device("cuda:1")[1] == torch.float16 and pick_device("cuda", "bfloat16")[1] == torch.bfloat16


# ---------------------------------------------------------------- Florence-2, GRiT

def test_florence2_from_pixels_to_boxes(folder):
    says = "red car<loc_0><loc_100><loc_500><loc_999> person<loc_900><loc_20><loc_30><loc_40> tree<loc_250><loc_250><loc_750><loc_750>"
    dense = Florence2DenseCaptioner(save_florence2(folder / "florence2", says), beams=1)
    regions = dense.regions(description())
    assert [region.label for region in regions] == ["red car", "tree"]          # the person's box has no inside
    for region, thousandths in zip(regions, ((0, 100, 500, 999), (250, 250, 750, 750))):
        assert max(abs(v - t * side / 1000) for v, t, side in zip(region.box, thousandths, (451, 300) * 2)) <= 1
    assert all(region.facts["area"] > 0 and region.source == "florence-2" for region in regions)


def test_florence2_that_says_nothing_gives_no_region(folder):
    assert Florence2DenseCaptioner(save_florence2(folder / "silent"), beams=2, max_tokens=20).regions(description()) == []


def test_only_regions_that_make_sense_pass():
    image = np.zeros((100, 200), np.uint8)
    bad = [("", (0, 0, 9, 9)), ("1234", (0, 0, 9, 9)), ("<loc_1>", (0, 0, 9, 9)), ("x" * 121 + " y", (0, 0, 9, 9)), ("nan", (0, 0, float("nan"), 9)), ("three", (0, 0, 9)), ("line", (0, 0, 1, 9)),
           ("outside", (300, 0, 400, 9)), ("turned", (50, 50, 10, 90))]
    assert checked_regions(image, *zip(*bad), None, "test") == []
    (region,) = checked_regions(image, ["  a  wide\ncar. "], [(-5, 9.6, 250, 40.4)], [.5], "test")
    assert (region.label, region.box, region.score) == ("a wide car", (0, 10, 200, 40), .5)
    assert checked_regions(image, ["car"] * 3, [(0, 0, 9, 9)] * 3, [2.0, -1, .3], "test")[0].score == .3
    assert len(checked_regions(image, ["car"] * 50, [(0, 0, 9 + i, 9) for i in range(50)], None, "test")) == 20


def test_grit_results_in_three_forms(tmp_path):
    forms = {"own": {"cat.png": [{"caption": "an orange cat", "box": [2, 1, 435, 298], "score": .8}, {"label": "faint", "box": [0, 0, 9, 9], "score": .1}], "dog": []},
             "coco": [{"image_id": "some/cat.jpg", "bbox": [2, 1, 433, 297], "score": .8, "object_descriptions": "an orange cat"}],
             "text": {"cat": "1. an orange cat, [2, 1, 435, 298]; "}}
    for name, content in forms.items():
        path = tmp_path / f"{name}.json"; path.write_text(json.dumps(content))
        (region,) = get_component("dense", f"grit:{path}").regions(description())
        assert (region.label, region.box, region.source) == ("orange cat", (2, 1, 435, 298), "grit")
    assert GritResults(tmp_path / "own.json").regions(description(name="dog")) == []
    with pytest.raises(FilmError, match="no image called bird"): GritResults(tmp_path / "own.json").regions(description(name="bird"))


def test_grit_results_of_both_images_of_a_pair(tmp_path):
    thing = lambda label: [{"caption": label, "box": [2, 1, 435, 298]}]
    def labels(content, name="p.0", modality="NEAR"):
        (tmp_path / "grit.json").write_text(json.dumps(content))
        return [region.label for region in get_component("dense", f"grit:{tmp_path / 'grit.json'}").regions(describe(CAT, task="mff", modality=modality, name=name, dense="measured", segmenter="none"))]
    both = {"NEAR/p.0.png": thing("a cat"), "FAR/p.0.png": thing("a dog")}
    assert labels(both) == ["cat"] and labels(both, modality="FAR") == ["dog"]  # the file has changed in between: it is read again
    assert labels({"p.0": thing("a cat"), "p.1": thing("a dog")}) == ["cat"] and labels({"any/p.0.jpg": thing("a cat"), "FAR/p.0": thing("a dog")}) == ["cat"]
    assert labels([dict(image_id=f"{folder}/p.0.png", bbox=[2, 1, 433, 297], caption=label) for folder, label in (("NEAR", "a cat"), ("FAR", "a dog"))], modality="FAR") == ["dog"]
    with pytest.raises(FilmError, match="no image called p.0; call them NEAR/p.0"): labels({"FAR/p.0": thing("a dog")})
    with pytest.raises(FilmError, match="several images called p.0"): labels({"one/p.0": [], "two/p.0": []})


@pytest.mark.parametrize("content", ["{", "3", '{"cat": 3}', '{"cat": [{"box": [1, 2, 3, 4]}]}', '{"cat": [{"caption": "a", "box": "x"}]}', "[1]", '{"cat": [{"caption": "a", "bbox": [1]}]}'])
def test_what_is_no_grit_result_is_said(content, tmp_path):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(FilmError, match="bad.json"): GritResults(tmp_path / "bad.json").regions(description())
    with pytest.raises(FilmError, match="cannot be read"): GritResults(tmp_path / "none.json").regions(description())


# ---------------------------------------------------------------- Segment Anything

@pytest.fixture
def sam(folder):
    import_segment_anything().sam_model_registry["tiny"] = lambda checkpoint=None: tiny_sam()
    path = folder / "sam_tiny.pth"
    torch.save(tiny_sam(seed=1).state_dict(), path)
    return lambda **options: SamSegmenter(path, size="tiny", **dict(points_per_side=4, pred_iou_thresh=-10, stability_score_thresh=-1) | options)


def test_sam_makes_named_masks_of_the_image_s_size(sam):
    d = description()
    d.regions = [Region("all", (0, 0, 451, 300))]
    masks = sam().masks(d)
    assert masks and all(mask.pixels.shape == (300, 451) and mask.pixels.dtype == bool and 0 <= mask.score <= 1 for mask in masks)
    areas = [mask.pixels.sum() for mask in masks]
    assert areas == sorted(areas, reverse=True) and {mask.label for mask in masks} <= {"all", "unnamed area"}
    assert len(sam(limit=1).masks(d)) == 1 and "tiny,4,-10,-1" in sam().name


def test_sam_takes_a_folder_that_holds_one_checkpoint(sam, tmp_path):
    options = dict(size="tiny", points_per_side=4, pred_iou_thresh=-10, stability_score_thresh=-1)
    with pytest.raises(FilmError, match=r"holds no sam_vit_\*.pth; name .*, sam:FILE"): get_component("segmenter", f"sam:{tmp_path}", **options)
    torch.save(tiny_sam(seed=1).state_dict(), tmp_path / "sam_vit_b.pth")
    in_folder = get_component("segmenter", f"sam:{tmp_path}", **options)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(in_folder.masks(description()), sam().masks(description()), strict=True))
    assert in_folder.name == get_component("segmenter", f"sam:{tmp_path / 'sam_vit_b.pth'}", **options).name and SamSegmenter(tmp_path).size == "vit_b"
    (tmp_path / "sam_vit_h.pth").touch()
    with pytest.raises(FilmError, match=r"several checkpoints \(sam_vit_b.pth, sam_vit_h.pth\)") as caught: get_component("segmenter", f"sam:{tmp_path}", **options)
    assert "\n" not in str(caught.value)


def test_sam_without_a_checkpoint_says_what_is_missing():
    with pytest.raises(FilmError, match="needs its checkpoint file, such as sam_vit_b_01ec64.pth: sam:FILE, or sam:FOLDER") as caught: get_component("segmenter", "sam").masks(description())
    assert "\n" not in str(caught.value)


def test_sam_at_default_thresholds_drops_what_random_weights_propose(sam):
    assert sam(pred_iou_thresh=.88, stability_score_thresh=.95).masks(description()) == []


def test_sam_reads_safetensors_and_refuses_pickles_that_run_code(sam, tmp_path, monkeypatch):
    from safetensors.torch import save_file
    monkeypatch.chdir(tmp_path)
    save_file(tiny_sam(seed=1).state_dict(), tmp_path / "sam.safetensors")
    options = dict(size="tiny", points_per_side=4, pred_iou_thresh=-10, stability_score_thresh=-1)
    same = SamSegmenter(tmp_path / "sam.safetensors", **options).masks(description())
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(same, sam().masks(description()), strict=True))

    class Boom:
        def __reduce__(self): return (Path("boom").touch, ())
    torch.save(dict(x=Boom()), tmp_path / "boom.pth")
    for name, says in (("boom.pth", "not a checkpoint"), ("none.pth", "is not there")):
        with pytest.raises(FilmError, match=says): SamSegmenter(tmp_path / name, **options).masks(description())
    assert not Path("boom").exists()
    with pytest.raises(FilmError, match="say which model"): SamSegmenter(tmp_path / "boom.pth").masks(description())
    assert SamSegmenter("sam_vit_h_4b8939.pth").size == "vit_h"


def test_missing_package_is_said(monkeypatch):
    monkeypatch.setattr("film.components.find_spec", lambda name: None)
    with pytest.raises(FilmError, match=re.escape(pip_install("text"))): import_segment_anything()
    for look in (Blip2Captioner("owner/name").caption, Florence2DenseCaptioner("owner/name").regions):
        with pytest.raises(FilmError, match=f"Pillow.*{re.escape(pip_install('text'))}"): look(description())


def test_masks_are_named_by_overlap():
    left = np.zeros((40, 40), bool); left[:, :20] = True
    tiny = np.zeros((40, 40), bool); tiny[0, 0] = True
    regions = [Region("whole", (0, 0, 40, 40)), Region("left half", (0, 0, 21, 40)), Region("right half", (20, 0, 40, 40))]
    assert [mask.label for mask in name_masks([Mask("", left), Mask("", ~left), Mask("", tiny)], regions)] == ["left half", "right half", "unnamed area"]


def test_nms_against_the_definition():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        corner = torch.rand(30, 2, generator=generator) * 20
        boxes, scores, group = torch.cat([corner, corner + 1 + torch.rand(30, 2, generator=generator) * 10], 1), torch.rand(30, generator=generator), torch.randint(0, 2, (30,), generator=generator)
        kept = []
        for i in scores.argsort(descending=True).tolist():
            def iou(j):
                w, h = (torch.minimum(boxes[i, 2:], boxes[j, 2:]) - torch.maximum(boxes[i, :2], boxes[j, :2])).clamp(min=0)
                return float(w * h / (box_area(boxes[i:i+1]) + box_area(boxes[j:j+1]) - w * h))
            if all(group[i] != group[j] or iou(j) <= .4 for j in kept): kept.append(i)
        assert batched_nms(boxes, scores, group, .4).tolist() == kept
    assert batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), .5).tolist() == []


def test_torchvision_is_there_only_while_the_package_is_imported(tmp_path):
    code = """
        import sys, importlib.util
        from film.components import import_segment_anything, batched_nms
        package = import_segment_anything()
        assert package.automatic_mask_generator.batched_nms is batched_nms
        assert not [name for name in sys.modules if name.startswith("torchvision")]
        import transformers.utils
        assert not transformers.utils.is_torchvision_available()
        from transformers import Blip2Processor, Florence2Processor
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=tmp_path)


@pytest.mark.parametrize("works", [True, False])
def test_an_installed_torchvision_is_used_if_it_works(works, tmp_path):
    package = tmp_path / "torchvision"
    for part in ("", "ops", "transforms"): (package / part).mkdir(exist_ok=True); (package / part / "__init__.py").touch()
    (package / "ops" / "boxes.py").write_text("def batched_nms(): 'theirs'\ndef box_area(): 'theirs'\n")
    (package / "transforms" / "functional.py").write_text("def resize(): 'theirs'\ndef to_pil_image(): 'theirs'\n")
    if not works: (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    code = f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        from film.components import import_segment_anything, batched_nms
        used = import_segment_anything().automatic_mask_generator.batched_nms
        assert (used.__doc__ == "theirs") == {works} and (used is batched_nms) != {works}
        assert ("torchvision" in sys.modules) == {works}
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.parametrize("works", [True, False])
def test_a_package_that_cannot_be_imported_is_said_with_the_reason(works, tmp_path):
    for part in ("torchvision", "torchvision/ops", "torchvision/transforms", "segment_anything"): (tmp_path / part).mkdir(); (tmp_path / part / "__init__.py").touch()
    (tmp_path / "torchvision" / "transforms" / "functional.py").touch()
    if not works: (tmp_path / "torchvision" / "ops" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    (tmp_path / "segment_anything" / "__init__.py").write_text("raise ImportError('the real reason\\nat length')\n")
    code = f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        import torchvision
        before = {{name: module for name, module in sys.modules.items() if name.startswith("torchvision")}}
        from film.components import SamSegmenter
        from film.text import ComponentError
        for _ in range(2):
            try: SamSegmenter("sam_vit_b_01ec64.pth", device="cpu").generator
            except ComponentError as error: assert str(error).startswith("Segment Anything cannot be imported (the real reason): ") and "\\n" not in str(error), error
            else: raise AssertionError("no error")
            assert before.items() <= sys.modules.items() and ("torchvision.ops" in sys.modules) == {works} and "torchvision.ops.boxes" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_reason_without_words_is_the_kind_of_error(sam, monkeypatch):
    def silent(*_, **__): raise EOFError
    monkeypatch.setattr(torch, "load", silent)
    with pytest.raises(FilmError, match=r"not a checkpoint of Segment Anything tiny \(EOFError\)"): sam().generator


def test_half_precision_runs(folder):
    for component, call in ((Blip2Captioner(save_blip2(folder / "blip2_half"), device="cpu", dtype="bfloat16", max_tokens=4), "caption"),
                            (Florence2DenseCaptioner(save_florence2(folder / "florence2_half", "red car<loc_100><loc_100><loc_500><loc_900>"), device="cpu", dtype="bfloat16", beams=1), "regions")):
        assert getattr(component, call)(description()) and next(component.loaded[1].parameters()).dtype == torch.bfloat16
        half, component = component.name, type(component)(component.model, device="cpu", **{"max_tokens": 4} if call == "caption" else {"beams": 1})
        assert half == f"{component.name},bfloat16"  # its answers are not taken for those of full precision
