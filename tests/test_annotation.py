"Chapter 03b: whole datasets described and encoded; killed, resumed, cached, and used."
import hashlib, json, os, signal, subprocess, sys, textwrap, time
from pathlib import Path

import numpy as np
import pytest
from skimage import data as photographs

from chat_server import ChatServer
from film import annotation
from film.annotation import Cache, Summary, describe_dataset, encode_dataset, image_hash, plan_dataset, run_jobs
from film.core import FilmError, read_image, write_image
from film.encoding import read_features
from film.prompting import OpenAIWriter
from film.text import ComponentError, MeasuredWriter, Region, describe
from tiny_models import save_blip2, save_qformer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
LIGHT = dict(dense="measured", segmenter="none")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def root(tmp_path):
    "Four infrared-visible pairs cut from a photograph."
    photo = photographs.astronaut()
    for i in range(4):
        part = photo[40 * i:40 * i + 120, 60 * i:60 * i + 160]
        write_image(tmp_path / "Image/IVF/Toy/IR" / f"p{i}.png", 255 - part[..., 0])
        write_image(tmp_path / "Image/IVF/Toy/VI" / f"p{i}.png", part)
    (tmp_path / "Image/IVF/Toy/test.txt").write_text("p1\np3.png\n")
    return tmp_path


def chat(server, **options): return OpenAIWriter("local-model", base_url=server.url, **dict(max_retries=1, timeout=5) | options)


def texts_of(root): return {path.relative_to(root / "Text").as_posix(): path.read_text() for path in sorted((root / "Text").rglob("*.txt"))}


# ---------------------------------------------------------------- describing

def test_a_text_that_a_person_wrote_in_another_encoding_stays(root):
    describe_dataset(root, "ivf", "Toy", **LIGHT)
    own, odd = (root / "Text/IVF/Toy/VI" / name for name in ("p1.txt", "p2.json"))
    own.write_bytes("Stra\u00dfe".encode("latin-1")); odd.write_text("[]")
    write_image(root / "Image/IVF/Toy/VI/p3.jpg", read_image(root / "Image/IVF/Toy/VI/p3.png"))
    summary = describe_dataset(root, "ivf", "Toy", **LIGHT)
    assert own.read_bytes() == b"Stra\xdfe" and "save it as UTF-8" in summary.failed["VI/p1"] and "ambiguous in" in summary.failed["VI/p3"]
    assert (summary.done, summary.kept, len(summary.failed)) == (0, 5, 2)  # p2, without facts that can be read, passes for a text of a person


def test_files_and_their_facts(root):
    assert str(describe_dataset(root, "ivf", "Toy", **LIGHT)) == "8 made, 0 kept"
    assert list(texts_of(root)) == [f"IVF/Toy/{m}/p{i}.txt" for m in ("IR", "VI") for i in range(4)]
    path = root / "Text/IVF/Toy/VI/p2.txt"
    facts = json.loads(path.with_suffix(".json").read_text())
    from film.core import read_image
    image = read_image(root / "Image/IVF/Toy/VI/p2.png")
    assert facts["paragraph"] == path.read_text().strip() == describe(image, modality="VI", **LIGHT).paragraph
    assert facts["image"] == image_hash(image) and facts["size"] == [160, 120] and facts["made_by"]["writer"] == MeasuredWriter.name
    assert str(root) not in path.with_suffix(".json").read_text()


def test_split_and_another_place_for_the_results(root, tmp_path):
    out = tmp_path / "elsewhere"
    assert describe_dataset(root, "ivf", "Toy", split="test", out=out, **LIGHT).done == 4
    assert [Path(name).stem for name in texts_of(out)] == ["p1", "p3"] * 2 and not (root / "Text").exists()
    assert encode_dataset(root, "ivf", "Toy", texts=out / "Text", out=out).done == 2
    assert sorted(p.name for p in (out / "TextFeature/IVF/Toy").glob("*.npy")) == ["p1.npy", "p3.npy"]


def test_only_what_changed_is_made_again(root):
    describe_dataset(root, "ivf", "Toy", **LIGHT)
    before = {path: path.stat().st_mtime_ns for path in (root / "Text").rglob("*.txt")}
    assert str(describe_dataset(root, "ivf", "Toy", **LIGHT)) == "0 made, 8 kept"
    write_image(root / "Image/IVF/Toy/IR/p0.png", np.full((120, 160), 9, np.uint8))
    (root / "Text/IVF/Toy/VI/p1.json").unlink()           # its text is now nobody's but the person's who wrote it
    (root / "Text/IVF/Toy/VI/p2.txt").write_text("Edited.\n")
    (root / "Text/IVF/Toy/VI/p3.txt").write_text("")
    summary = describe_dataset(root, "ivf", "Toy", **LIGHT)
    assert (summary.done, summary.kept, summary.edited) == (2, 4, 2) and (root / "Text/IVF/Toy/VI/p2.txt").read_text() == "Edited.\n"
    changed = {path for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert {path.parent.name + path.stem for path in changed} == {"IRp0", "VIp2", "VIp3"}
    assert describe_dataset(root, "ivf", "Toy", force=True, **LIGHT).done == 8 and "Edited" not in (root / "Text/IVF/Toy/VI/p2.txt").read_text()


def test_another_component_makes_other_texts(root, tmp_path):
    describe_dataset(root, "ivf", "Toy", **LIGHT)
    blip2 = f"blip2:{save_blip2(tmp_path / 'blip2')}"
    assert describe_dataset(root, "ivf", "Toy", captioner=blip2, **LIGHT).done == 8
    assert all(text.startswith("A photo of") for text in texts_of(root).values())
    assert str(describe_dataset(root, "ivf", "Toy", captioner=blip2, **LIGHT)) == "0 made, 8 kept"


def test_broken_images_are_listed_and_the_others_done(root):
    (root / "Image/IVF/Toy/IR/p1.png").write_text("no picture"); (root / "Image/IVF/Toy/VI/p2.png").unlink()
    summary = describe_dataset(root, "ivf", "Toy", **LIGHT)
    assert summary.done == 6 and set(summary.failed) == {"IR/p1", "VI/p2"} and "not an image" in str(summary) and "2 failed" in str(summary)


def test_bad_names_are_said(root):
    for options, says in ((dict(task="ivf", dataset="None"), "no such dataset"), (dict(task="x", dataset="Toy"), "unknown task"), (dict(task="ivf", dataset="Toy", split="val"), "no such split"),
                          (dict(task="ivf", dataset="Toy", writer="poet"), "choose one of")):
        with pytest.raises(FilmError, match=says): describe_dataset(root, **options)
    with pytest.raises(FilmError, match="describe the dataset first"): encode_dataset(root, "ivf", "Toy")


def test_a_missing_model_stops_at_once(root):
    summary = describe_dataset(root, "ivf", "Toy", dense="measured", segmenter="sam:none.pth")
    assert "checkpoint" in summary.stopped and summary.done == 0 and len(summary.failed) == 0 and "stopped:" in str(summary)


# ---------------------------------------------------------------- a chat server

def test_a_second_run_asks_nothing(root):
    with ChatServer() as server:
        assert describe_dataset(root, "ivf", "Toy", writer=chat(server), workers=4, **LIGHT).done == 8
        assert len(server.requests) == 8
        assert describe_dataset(root, "ivf", "Toy", writer=chat(server), **LIGHT).kept == 8
        assert describe_dataset(root, "ivf", "Toy", writer=chat(server), force=True, **LIGHT).done == 8     # texts anew, answers from the cache
        assert len(server.requests) == 8
        assert describe_dataset(root, "ivf", "Toy", writer=chat(server, temperature=.7), **LIGHT).done == 8  # another setting is another question
        assert len(server.requests) == 16


def test_equal_images_are_asked_about_once(root):
    same = photographs.camera()[:120, :160]
    for i in range(4): write_image(root / f"Image/IVF/Toy/IR/p{i}.png", same)
    with ChatServer() as server:
        assert describe_dataset(root, "ivf", "Toy", writer=chat(server), workers=8, **LIGHT).done == 8
        assert len(server.requests) == 5


def test_a_server_that_refuses_stops_the_run_and_the_next_one_goes_on(root):
    with ChatServer("good", "good", "good", "401") as server:
        summary = describe_dataset(root, "ivf", "Toy", writer=chat(server), **LIGHT)
        assert summary.done == 3 and "refuses the key" in summary.stopped and len(server.requests) == 4
    with ChatServer() as server:
        summary = describe_dataset(root, "ivf", "Toy", writer=chat(server), **LIGHT)
        assert (summary.done, summary.kept, len(server.requests)) == (5, 3, 5)


def test_bad_replies_fail_their_image_only(root):
    with ChatServer("empty", "empty", "empty", "good") as server:
        summary = describe_dataset(root, "ivf", "Toy", writer=chat(server), **LIGHT)
    assert summary.done == 7 and list(summary.failed.values()) == ["p0: local-model gave no usable reply in 3 tries, the last one was empty"] and not summary.stopped


def test_the_budget_ends_the_run_and_a_higher_one_resumes_it(root):
    with ChatServer() as server:
        poor, rich = (chat(server, prices=(10, 10), max_cost=most) for most in (.02, 1))
        first = describe_dataset(root, "ivf", "Toy", writer=poor, workers=3, **LIGHT)
        assert 0 < first.done < 8 and "cost limit" in first.stopped and poor.budget.spent <= .02
        plan = plan_dataset(root, "ivf", "Toy", writer=rich, **LIGHT)
        assert plan["images"] == plan["calls"] == 8 - first.done
        second = describe_dataset(root, "ivf", "Toy", writer=rich, workers=3, **LIGHT)
        assert (second.done, second.kept) == (8 - first.done, first.done) and len(server.requests) == 8
        def calls(**options): return plan_dataset(root, "ivf", "Toy", **dict(LIGHT, writer=rich) | options)["calls"]
        assert calls() == 0 and calls(force=True) == calls(dense="objects") == 8
        write_image(root / "Image" / "IVF" / "Toy" / "IR" / "p0.png", np.full((48, 64), 9, np.uint8))
        assert calls() == 1  # another image
        assert .6 < plan["cost"] / rich.budget.spent < 1.7


def test_a_plan_makes_no_call_and_no_file(root):
    with ChatServer() as server:
        plan = plan_dataset(root, "ivf", "Toy", writer=chat(server, prices=(1, 1)))
        assert not server.requests
    assert plan["calls"] == 8 and plan["tokens_in"] > 8 * 150 and plan["cost"] > 0 and not (root / "Text").exists()
    assert plan_dataset(root, "ivf", "Toy")["calls"] == 0
    assert plan_dataset(root, "ivf", "Toy", writer="openai:some-unknown-model")["cost"] is None


def test_a_killed_run_resumes_without_a_repeated_call(root):
    code = """
        import sys
        from film.annotation import describe_dataset
        from film.prompting import OpenAIWriter
        print(describe_dataset(sys.argv[1], "ivf", "Toy", writer=OpenAIWriter("local-model", base_url=sys.argv[2]), dense="measured", segmenter="none"))
    """
    command = lambda server: [sys.executable, "-c", textwrap.dedent(code), str(root), server.url]
    with ChatServer("good", "good", "good", "slow", "good", delay=60) as server:
        victim = subprocess.Popen(command(server), stdout=subprocess.PIPE, start_new_session=True)
        for _ in range(6000):
            if len(server.requests) == 4: break
            time.sleep(.05)
        assert len(server.requests) == 4                  # three are answered, the fourth is under way
        os.killpg(victim.pid, signal.SIGKILL); victim.wait(); victim.stdout.close()
        assert 0 < len(texts_of(root)) <= 3 and not [p for p in (root / "Text").rglob("*") if p.suffix == ".txt" and not p.read_text().strip()]
        run = subprocess.run(command(server), capture_output=True, text=True)
        assert run.returncode == 0 and "kept" in run.stdout, run.stderr
        asked = [json.dumps(request, sort_keys=True) for request in server.requests]
        assert len(asked) == 9 and len(set(asked)) == 8 and asked[3] == asked[4]   # only the unanswered one was asked again
        assert len(texts_of(root)) == 8


# ---------------------------------------------------------------- the cache

def test_the_cache_knows_pixels_component_and_what_was_found_before(tmp_path):
    class Finder:
        name, asked = "finder", 0
        def regions(self, d): Finder.asked += 1; return [Region("thing", (1, 2, 3, 4), dict(light=.5), "finder", .7)]
    class Speaker:
        name, asked = "speaker", 0
        def caption(self, d): Speaker.asked += 1; return f"{len(d.regions)} things"
    cache, image = Cache(tmp_path), np.arange(400, dtype=np.uint8).reshape(20, 20)
    first = describe(image, dense=Finder(), segmenter="none", captioner=Speaker(), remember=cache)
    assert describe(image, dense=Finder(), segmenter="none", captioner=Speaker(), remember=cache) == first and (Finder.asked, Speaker.asked) == (1, 1)
    describe(image, dense=Finder(), segmenter="none", captioner=Speaker(), name="renamed", remember=cache); assert (Finder.asked, Speaker.asked) == (1, 1)
    describe(image, dense="measured", segmenter="none", captioner=Speaker(), remember=cache); assert (Finder.asked, Speaker.asked) == (1, 2)   # other regions before it
    describe(image, modality="VI", dense=Finder(), segmenter="none", captioner=Speaker(), remember=cache); assert (Finder.asked, Speaker.asked) == (2, 3)
    describe(image.T, dense=Finder(), segmenter="none", captioner=Speaker(), remember=cache); assert (Finder.asked, Speaker.asked) == (3, 4)
    Speaker.name = "speaker 2"
    describe(image, dense=Finder(), segmenter="none", captioner=Speaker(), remember=cache); assert (Finder.asked, Speaker.asked) == (3, 5)


def test_a_damaged_cache_file_is_made_again(tmp_path):
    image = photographs.chelsea()
    first = describe(image, modality="VI", remember=Cache(tmp_path))
    files = sorted(tmp_path.rglob("*.json")); assert len(files) == 2
    for path, rubbish in zip(files, ("{", '{"value": [{"wrong": 1}]}')): path.write_text(rubbish)
    cache = Cache(tmp_path)
    again = describe(image, modality="VI", remember=cache)
    assert cache.made == 2 and again.paragraph == first.paragraph and again.regions == first.regions
    assert all(json.loads(path.read_text())["value"] for path in files)


def test_hashes_tell_images_apart():
    image = np.zeros((20, 30), np.uint8)
    assert len({image_hash(image), image_hash(image.T), image_hash(image.astype(np.uint16)), image_hash(image + 1), image_hash(np.dstack([image] * 3))}) == 5
    assert image_hash(image[::-1]) == image_hash(image) == image_hash(np.asfortranarray(image))


def test_jobs_fail_stop_and_count():
    def fail(): raise FilmError("broken")
    def stop(): raise ComponentError("no more")
    jobs = dict(a=lambda: "done", b=fail, c=lambda: "kept", d=stop, e=lambda: "done", f=lambda: "done")
    summary = run_jobs(jobs, 1, "test")
    assert (summary.done, summary.kept, summary.failed, summary.stopped) == (1, 1, {"b": "broken"}, "no more")
    assert str(Summary(failed={f"n{i}": "why" for i in range(30)})).endswith("... and 10 more")
    with pytest.raises(ZeroDivisionError): run_jobs(dict(a=lambda: 1 / 0), 2, "test")    # a mistake of ours is not hidden


# ---------------------------------------------------------------- encoding

def test_features_are_both_texts_and_only_new_ones_are_encoded(root):
    describe_dataset(root, "ivf", "Toy", **LIGHT)
    assert str(encode_dataset(root, "ivf", "Toy", batch=3)) == "4 made, 0 kept" and str(encode_dataset(root, "ivf", "Toy")) == "0 made, 4 kept"
    from film.encoding import pair_features
    features, facts = read_features(root / "TextFeature/IVF/Toy/p2.npy", "all-MiniLM-L6-v2")
    texts = [(root / f"Text/IVF/Toy/{m}/p2.txt").read_text() for m in ("IR", "VI")]
    assert np.abs(features - pair_features(*texts)).max() < 1e-5 and facts["texts"] == hashlib.sha256("\0".join(t.strip() for t in texts).encode()).hexdigest()
    (root / "Text/IVF/Toy/IR/p0.txt").write_text("A new text."); (root / "TextFeature/IVF/Toy/p1.npy").write_bytes(b"cut"); (root / "Text/IVF/Toy/VI/p3.txt").unlink()
    (root / "Text/IVF/Toy/VI/p2.txt").write_bytes(b"\xff\xfe\x00")
    summary = encode_dataset(root, "ivf", "Toy")
    assert (summary.done, summary.kept) == (2, 0) and set(summary.failed) == {"p2", "p3"} and summary.failed["p3"] == "no text for VI"


def test_a_cache_that_cannot_be_written_stops_the_run_before_anything_is_paid(root):
    (root / "blocked").write_text("a file")
    with ChatServer() as server:
        summary = describe_dataset(root, "ivf", "Toy", **LIGHT, writer=chat(server), cache=Cache(root / "blocked" / "cache"), workers=4)
        assert "choose another folder for the cache" in summary.stopped and (summary.done, len(server.requests)) == (0, 0)


def test_only_segmenter_and_writer_can_be_left_out(root, capsys):
    for role in ("dense", "captioner"):
        with pytest.raises(FilmError, match=f"unknown {role} 'none'"): describe_dataset(root, "ivf", "Toy", **LIGHT | {role: "none"})
        assert film(capsys, "describe", root / "Image/IVF/Toy/IR/p0.png", f"--{role}", "none")[0] == 2
    with pytest.raises(FilmError, match="needs a writer"): describe_dataset(root, "ivf", "Toy", **LIGHT, writer="none")


def test_what_a_crash_left_and_a_writer_that_ends_with_a_line_break(root):
    class Lines(MeasuredWriter):
        name = "lines/1"
        def write(self, d): return super().write(d) + "\n"
    assert describe_dataset(root, "ivf", "Toy", **LIGHT, writer=Lines()).done == 8
    assert str(describe_dataset(root, "ivf", "Toy", **LIGHT, writer=Lines())) == "0 made, 8 kept"
    (root / "Text/IVF/Toy/VI/.film-0123.txt").touch()
    assert str(encode_dataset(root, "ivf", "Toy")) == "4 made, 0 kept"


@pytest.mark.parametrize("name", ["qformer", "blip2-itm-vit-g"])  # the paper's are called alike wherever they are
def test_other_blip2_weights_encode_again(root, tmp_path, name):
    from film.encoding import get_encoder
    describe_dataset(root, "ivf", "Toy", **LIGHT)
    folders = [save_qformer(tmp_path / str(seed) / name, seed) for seed in (0, 1)]
    made = [encode_dataset(root, "ivf", "Toy", encoder=get_encoder(f"blip2:{folder}")).done for folder in (folders[0], folders[0], folders[1])]
    assert made == [4, 0, 4] and (read_features(root / "TextFeature/IVF/Toy/p0.npy")[1]["encoder"] == "blip2-qformer") == (name != "qformer")


def test_another_encoder_encodes_again(root, tmp_path):
    describe_dataset(root, "ivf", "Toy", **LIGHT)
    encode_dataset(root, "ivf", "Toy")
    with pytest.warns(UserWarning, match="cut to the 64"): summary = encode_dataset(root, "ivf", "Toy", encoder=f"blip2:{save_qformer(tmp_path / 'blip2-itm-vit-g')}")
    assert summary.done == 4 and read_features(root / "TextFeature/IVF/Toy/p0.npy", "blip2-qformer")[0].shape[2] == 24


def test_texts_of_different_length_in_one_batch_change_nothing(root):
    import torch
    from film import fast
    from film.data import FusionDataset, collate, find_pairs
    from film.network import Film
    describe_dataset(root, "ivf", "Toy", **LIGHT)
    (root / "Text/IVF/Toy/IR/p0.txt").write_text("A short text.")
    encode_dataset(root, "ivf", "Toy")
    items = [item for item in FusionDataset(find_pairs(root, "ivf", "Toy"), "ivf", mode="whole")]
    batch = collate(items)
    assert len({len(item["text"]) for item in items}) > 1 and batch["text_mask"] is not None
    torch.manual_seed(0)
    model = Film(text_width=384, grid=(36, 48), depth=1).eval()
    with torch.no_grad():
        for run in (model, lambda *tensors: fast.forward(model, *tensors)):
            together = run(batch["a"], batch["b"], batch["text"], batch["text_mask"])
            for row, item in enumerate(items): assert (run(item["a"][None], item["b"][None], item["text"][None])[0] - together[row]).abs().max() < 1e-6


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("texts", ["embedded", "given"])
def test_describe_encode_pack_train_fuse(texts, tmp_path):
    "The whole way, once with our own texts and once with the given ones."
    from film.data import FusionDataset, find_pairs, pack
    from film.fusion import fuse
    from film.training import make_settings, train
    source, mine = SHARED / "Image/IVF/RoadScene", tmp_path / "Image/IVF/RoadScene"
    names = sorted(path.stem for path in (SHARED / "Text/IVF/RoadScene/IR").glob("*.txt") if (SHARED / f"Text/IVF/RoadScene/VI/{path.name}").is_file() and (source / f"IR/{path.stem}.jpg").is_file())[:4]
    for modality in ("IR", "VI"):
        (mine / modality).mkdir(parents=True)
        for name in names: (mine / modality / f"{name}.jpg").symlink_to(source / modality / f"{name}.jpg")
    (mine / "train.txt").write_text("\n".join(names))
    if texts == "embedded":
        assert describe_dataset(tmp_path, "ivf", "RoadScene").done == 8
        summary = encode_dataset(tmp_path, "ivf", "RoadScene")
    else: summary = encode_dataset(tmp_path, "ivf", "RoadScene", texts=SHARED / "Text")
    assert set(names) <= {path.stem for path in (tmp_path / "TextFeature/IVF/RoadScene").glob("*.npy")} and summary.done >= 4 and not summary.failed
    pairs = find_pairs(tmp_path, "ivf", "RoadScene", "train")
    assert all(pair.text for pair in pairs) and pack(tmp_path / "pairs.h5", pairs, "ivf") > 4 * 2 * 288 * 384 * 4
    packed = FusionDataset(tmp_path / "pairs.h5", "ivf")
    assert len(packed) == 4 and packed[0]["text"].shape[1] == 384 and len({len(packed[i]["text"]) for i in range(4)}) > 1   # lengths differ
    settings = make_settings("quick", dataset="RoadScene", crop=(64, 64), grid=(36, 48), depth=1, batch_size=2, max_tokens=None, max_steps=20, epochs=99, validation=0)
    weights = train(settings, tmp_path, tmp_path / "run", device="cpu", picture_every=10**6, checkpoint_every=10**6, log_every=10)
    fused = fuse(pairs[0].a, pairs[0].b, weights=weights, text=Path(pairs[0].text))
    from film.core import read_image
    assert fused.shape[:2] == read_image(pairs[0].a).shape[:2] and fused.std() > 5


# ---------------------------------------------------------------- the command

def film(capsys, *argv):
    "Exit code and what the command prints."
    from film.cli import main
    try: code = main([str(a) for a in argv])
    except SystemExit as stop: code = stop.code
    return code, "".join(capsys.readouterr())


def test_every_component_by_command(root, tmp_path, capsys, monkeypatch):
    "The paper's components on tiny weights, with their options, a chat server that sees the image, and a key that is found nowhere afterwards."
    import torch
    from film.components import import_segment_anything
    from tiny_models import tiny_sam
    import_segment_anything().sam_model_registry["tiny"] = lambda checkpoint=None: tiny_sam()
    torch.save(tiny_sam(seed=1).state_dict(), tmp_path / "sam.pth")
    save_blip2(tmp_path / "blip2")
    (tmp_path / "grit.json").write_text(json.dumps({f"p{i}": [dict(caption="a sure thing", box=[5, 5, 90, 90], score=.9), dict(caption="an unsure thing", box=[9, 9, 60, 60], score=.3)] for i in range(4)}))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-to-be-seen")
    with ChatServer("429", "good") as server:
        command = ["describe", root, "--dataset", "Toy", "--split", "test", "--dense", f"grit:{tmp_path / 'grit.json'}", "--grit-score", ".2", "--captioner", f"blip2:{tmp_path / 'blip2'}", "--dtype", "float32",
                   "--segmenter", f"sam:{tmp_path / 'sam.pth'}", "--sam-size", "tiny", "--sam-points", "2", "--sam-iou", "-10", "--sam-stability", "-1", "--sam-limit", "3",
                   "--writer", "openai:local", "--base-url", server.url, "--see-image", "--temperature", "0.5", "--seed", "7", "--max-retries", "2", "--timeout", "20", "--workers", "2", "--concurrency", "2"]
        code, said = film(capsys, *command)
        assert code == 0 and "4 made, 0 kept" in said, said
        asked = len(server.requests)
        assert asked == 5 and server.keys[0] == "Bearer sk-never-to-be-seen" and {r["temperature"] for r in server.requests} == {.5} and {r["seed"] for r in server.requests} == {7}
        assert all(part["type"] == kind for r in server.requests for part, kind in zip(r["messages"][1]["content"], ("text", "image_url"), strict=True))
        assert film(capsys, *command)[1].strip() == "0 made, 4 kept" and len(server.requests) == asked
    facts = json.loads((root / "Text/IVF/Toy/IR/p1.json").read_text())
    assert [r["label"] for r in facts["regions"]] == ["sure thing", "unsure thing"] and 0 < len(facts["masks"]) <= 3 and facts["caption"].startswith("a photo of")
    assert "tiny,2,-10.0,-1.0" in facts["made_by"]["segmenter"] and "t0.5,seed7,image" in facts["made_by"]["writer"] and facts["made_by"]["dense"].endswith(",0.2")
    assert "sk-never" not in said and not [path for path in root.rglob("*") if path.is_file() and b"sk-never" in path.read_bytes()]


@pytest.mark.parametrize("options, says", [
    (["--device", "tpu"], "device 'tpu' is not available"), (["--device", "meta"], "computes nothing"), (["--dry-run"], "add --dataset"), (["--dtype", "int3"], "invalid choice"), (["--dense", "grit"], "GritResults needs a model or file"), (["--writer", "none"], "add --json"),
    (["--writer", "openai:m", "--concurrency", "0"], "concurrency 0 is not between 1 and 1000"), (["--writer", "openai:m", "--max-retries", "-1"], "max_retries -1"), (["--writer", "openai:m", "--timeout", "0"], "timeout 0"),
    (["--writer", "openai:m", "--temperature", "nan"], "temperature nan"), (["--writer", "openai:m", "--prices", "-1", "2"], "a price -1"), (["--writer", "openai:m"], "set the environment variable OPENAI_API_KEY"),
    (["--segmenter", "sam"], "needs its checkpoint file"), (["--captioner", "measured:x"], "has no model to choose")])
def test_wrong_options_are_one_line(root, capsys, options, says):
    code, said = film(capsys, "describe", root / "Image/IVF/Toy/IR/p0.png", *options)
    assert code == 2 and says in said and "Traceback" not in said and (said.startswith("usage") or said.count("\n") == 1)


def test_devices_and_writers_that_cannot_be(root, capsys):
    assert film(capsys, "describe", root, "--dataset", "Toy", "--writer", "none") [0] == 2
    code, said = film(capsys, "describe", root / "Image/IVF/Toy/IR/p0.png", "--writer", "none", "--segmenter", "none", "--json")
    assert code == 0 and json.loads(said)["paragraph"] == "" and json.loads(said)["caption"]
    describe_dataset(root, "ivf", "Toy", **LIGHT)
    assert "device 'tpu' is not available" in film(capsys, "encode", root, "--dataset", "Toy", "--device", "tpu")[1]
    with pytest.raises(FilmError, match="needs a writer"): describe_dataset(root, "ivf", "Toy", writer="none")


def test_a_text_saved_with_a_byte_order_mark(root):
    describe_dataset(root, "ivf", "Toy", **LIGHT)
    assert encode_dataset(root, "ivf", "Toy").done == 4
    path = root / "Text/IVF/Toy/VI/p0.txt"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert str(encode_dataset(root, "ivf", "Toy")) == "0 made, 4 kept"


def test_texts_that_stand_need_no_folder_that_can_be_written(root, monkeypatch):
    describe_dataset(root, "ivf", "Toy", **LIGHT)
    def read_only(folder, *_, **__): raise FilmError(f"{folder}: cannot be written")
    monkeypatch.setattr(annotation, "check_folder", read_only)
    assert describe_dataset(root, "ivf", "Toy", **LIGHT).kept == 8
    (root / "Text/IVF/Toy/VI/p0.txt").unlink()
    summary = describe_dataset(root, "ivf", "Toy", **LIGHT)
    assert "Toy/VI: cannot be written: choose another root for the texts" in summary.stopped and summary.done == 0


def test_a_text_half_made_again_is_not_a_persons(root, monkeypatch):
    describe_dataset(root, "ivf", "Toy", **LIGHT)
    image = next((root / "Image/IVF/Toy/VI").glob("p0.*"))
    write_image(image, 255 - read_image(image))
    def crash(path, write=annotation.atomic_write):
        if path.suffix == ".txt": raise KeyboardInterrupt
        return write(path)
    with monkeypatch.context() as patch:
        patch.setattr(annotation, "atomic_write", crash)
        with pytest.raises(KeyboardInterrupt): describe_dataset(root, "ivf", "Toy", **LIGHT)
    assert str(describe_dataset(root, "ivf", "Toy", **LIGHT)) == "1 made, 7 kept"
