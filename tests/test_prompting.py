"Chapter 01d: the openai client against a stand-in of our own (chat_server.py), and every way in which a server can misbehave."
import base64, json, re, threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st
from skimage import data as photographs

from chat_server import GOOD, ChatServer
from film.core import TASKS, FilmError, pip_install
from film.prompting import ABOUT_IMAGE, PRICES, PROMPTS, Budget, BudgetReached, InvalidReply, OpenAIWriter, check_reply, conversations, count_tokens, facts_text
from film.text import ComponentError, Mask, Region, describe

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def description(name="night", task="ivf", modality="IR", size=(120, 160)):
    image = np.full(size, 40, np.uint8); image[20:80, 10:40] = 230
    return describe(image, task=task, modality=modality, name=name, dense="measured")


def writer(server, **options): return OpenAIWriter("local-model", base_url=server.url, **dict(max_retries=2, timeout=5) | options)


# ---------------------------------------------------------------- what is sent

def test_the_prompt_has_caption_boxes_masks_size_and_task():
    d = description()
    ((system, user),) = conversations(d, PROMPTS["paper"])
    assert (system["role"], user["role"]) == ("system", "user") and "the resolution is 160x120" in system["content"]
    for part in (ABOUT_IMAGE["ivf", "IR"], d.caption, "160x120", str(list(d.regions[0].box)), "Masks"): assert part in user["content"]


def test_every_modality_has_its_words():
    assert set(ABOUT_IMAGE) == {(task.name, modality) for task in TASKS.values() for modality in task.modalities}
    texts = {(task, modality): conversations(description(task=task, modality=modality), PROMPTS["questions"]) for task, modality in ABOUT_IMAGE}
    assert len({json.dumps(talks) for talks in texts.values()}) == 8 and all(len(talks) == 4 for talks in texts.values())
    assert "a visible image of the same scene" in texts["ivf", "IR"][3][1]["content"] and "an infrared image" in texts["ivf", "VI"][3][1]["content"]
    assert "that an MRI scan of the same scene" in texts["mif", "T"][3][1]["content"]
    assert not any("{" in message["content"] for talks in texts.values() for talk in talks for message in talk)


def test_a_label_with_braces_or_a_caption_with_quotes_goes_through():
    d = description(); d.caption = 'a {sign} that says "{facts}"'
    assert d.caption in conversations(d, PROMPTS["paper"])[0][1]["content"]


def test_boxes_outside_and_endless_lists_are_caught():
    d = description(); d.regions.append(Region("ghost", (150, 0, 170, 10)))
    with pytest.raises(FilmError, match=r"night: the box \[150, 0, 170, 10\] of 'ghost' lies outside the 160x120"): facts_text(d)
    d.regions = [Region(f"thing {i}", (0, 0, 9, 9)) for i in range(900)]
    d.masks = [Mask(f"mask {i}", np.ones((120, 160), bool)) for i in range(900)]
    text = facts_text(d)
    assert len(text) < 7000 and "thing 0" in text and "mask" not in text.lower().replace("masks", "") and "thing 899" not in text


def test_the_image_is_sent_only_when_asked_for():
    d = describe(photographs.astronaut(), task="mff", modality="NEAR", dense="measured", segmenter="none")
    assert isinstance(conversations(d, PROMPTS["paper"])[0][1]["content"], str)
    text, picture = conversations(d, PROMPTS["paper"], see_image=True)[0][1]["content"]
    kind, data = picture["image_url"]["url"].split(",")
    image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert kind == "data:image/png;base64" and picture["image_url"]["detail"] == "low" and np.array_equal(image[..., ::-1], d.image)
    assert OpenAIWriter("m", base_url="http://127.0.0.1:1/v1", see_image=True).name.endswith(",image")


# ---------------------------------------------------------------- what comes back

@given(st.text(max_size=400))
def test_no_reply_crashes_the_check(text):
    try: paragraph = check_reply(text, (64, 48), (5, 50))
    except InvalidReply: return
    assert 5 <= len(paragraph.split()) <= 50 and "\n" not in paragraph


@pytest.mark.parametrize("bad,why", [("I’m sorry, I cannot describe medical images. " * 9, "refused"), ("As an AI, I see a road. " * 9, "refused"), ("# Title\n" + GOOD, "list"), ("1. one\n2. two", "list"),
                                     ("```\n" + GOOD + "\n```", "markup"), (GOOD.replace("40, 80]", "40, 8000]"), "not inside"), (GOOD.replace("10, 20", "50, 20"), "not inside"), (GOOD * 6, "words")])
def test_replies_that_cannot_be_used(bad, why):
    with pytest.raises(InvalidReply, match=why): check_reply(bad, (160, 120), (40, 260))


# ---------------------------------------------------------------- the client and the server

def test_a_good_reply():
    with ChatServer() as server:
        w = writer(server)
        text = w.write(description())
        (request,) = server.requests
    assert text == GOOD.format(size="160x120") and request["model"] == "local-model" and request["temperature"] == .2 and request["seed"] == 0 and request["max_tokens"] == 600
    assert server.keys == [f"Bearer {KEY}"] and KEY not in w.name and "127.0.0.1" not in w.name
    assert w.budget.calls == 1 and w.budget.tokens_in > 100 and w.budget.tokens_out == len(text) // 4


@pytest.mark.parametrize("script", [("429", "good"), ("500", "429", "good")])
def test_busy_and_failing_servers_are_asked_again(script):
    with ChatServer(*script) as server:
        assert writer(server).write(description()).startswith("A dark infrared street")
        assert len(server.requests) == len(script) and all(request == server.requests[0] for request in server.requests)


@pytest.mark.parametrize("script,error,says", [(("429",), ComponentError, "too many requests, or no quota, after 2 retries"), (("500",), FilmError, "answers 500"), (("404",), ComponentError, "knows no model 'local-model'"),
                                               (("400",), FilmError, "answers 400: .*context length exceeded"), (("401",), ComponentError, "refuses the key in OPENAI_API_KEY")])
def test_a_server_that_will_not(script, error, says):
    with ChatServer(*script) as server, pytest.raises(error, match=says) as caught: writer(server).write(description())
    assert KEY not in str(caught.value) and KEY not in repr(caught.value.__cause__) and "\n" not in str(caught.value) and "night" in str(caught.value)
    assert len(server.requests) == (3 if script[0] in ("429", "500") else 1)


def test_a_silent_server_times_out():
    with ChatServer("slow", delay=1.0) as server, pytest.raises(ComponentError, match="no answer within 0.2 s, 2 times"): writer(server, timeout=.2, max_retries=1).write(description())
    with ChatServer("slow", "good", delay=8.0) as server: assert writer(server, timeout=2).write(description()).startswith("A dark")


def test_no_server_at_all():
    with ChatServer() as server: url = server.url
    with pytest.raises(ComponentError, match="cannot be reached"): OpenAIWriter("m", base_url=url, max_retries=0).write(description())


@pytest.mark.parametrize("behaviour,why", [("html", "not a chat completion|not JSON"), ("broken", "not JSON"), ("latin", "not JSON"), ("empty", "empty"), ("null", "empty"), ("refusal", "refused"), ("no-choices", "not a chat completion"),
                                           ("cut", "cut off"), ("text:Too short.", "2 words"), ("key", "held the key"), ('json:{"choices": "x"}', "not a chat completion"),
                                           ('json:{"choices": [{"message": null}]}', "not a chat completion")])
def test_bad_replies_are_retried_with_the_reason_and_then_given_up(behaviour, why, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")
    with ChatServer(behaviour, "good") as server:
        assert writer(server).write(description()).startswith("A dark infrared street")
        first, second = (request["messages"] for request in server.requests)
        if behaviour in ("html", "broken", "latin", "no-choices") or behaviour.startswith("json:"): assert first == second
        else: assert second[:2] == first and second[-1]["role"] == "user" and "cannot be used" in second[-1]["content"]
    with ChatServer(behaviour) as server, pytest.raises(FilmError, match=f"night: local-model gave no usable reply in 3 tries.*({why})") as caught: writer(server).write(description())
    assert len(server.requests) == 3 and not isinstance(caught.value, ComponentError) and "sk-secret" not in str(server.requests)


def test_usage_that_is_none_is_estimated():
    body = json.dumps(dict(id="1", object="chat.completion", model="m", created=1, choices=[dict(index=0, finish_reason="stop", message=dict(role="assistant", content=GOOD.format(size="160x120")))], usage=dict(prompt_tokens=None, completion_tokens=None, total_tokens=None)))
    with ChatServer(f"json:{body}") as server:
        w = writer(server)
        assert w.write(description()).startswith("A dark infrared") and w.budget.tokens_in > 0


@pytest.mark.parametrize("key, url, says", [("\u201csk-secret\u201d", None, "not a key"), ("sk-\x07", None, "not a key"), ("k", "http://[::1", "base_url")])
def test_a_key_or_an_address_that_is_none(monkeypatch, key, url, says):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ComponentError, match=says): OpenAIWriter("m", base_url=url, max_retries=0).write(description())


def test_key_and_address_are_those_of_the_moment(monkeypatch):
    with ChatServer() as one, ChatServer() as other:
        monkeypatch.setenv("OPENAI_BASE_URL", one.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong\n")
        w = OpenAIWriter("local-model", max_retries=0)
        w.write(description())
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        w.write(description())
        monkeypatch.setenv("OPENAI_BASE_URL", other.url)
        w.write(description())
    assert (one.keys, other.keys) == (["Bearer sk-wrong", f"Bearer {KEY}"], [f"Bearer {KEY}"])


def test_an_image_counts_what_the_model_counts():
    (talk,) = conversations(description(), PROMPTS["paper"], see_image=True)
    assert count_tokens(talk, 2833) - count_tokens(talk) == 2833 - 85
    of = {model: OpenAIWriter(model, base_url="http://127.0.0.1:1/v1", see_image=True).estimate(description())["tokens_in"] for model in ("gpt-4o", "gpt-4o-mini")}
    assert of["gpt-4o-mini"] - of["gpt-4o"] == 2833 - 85
    assert all(request[1]["content"][1] for request in conversations(description(size=(16, 40000)), PROMPTS["paper"], see_image=True))


def test_a_budget_reserves_what_a_call_may_cost():
    with ChatServer() as server, pytest.raises(BudgetReached): writer(server, prices=(0, 1000), max_cost=.3).write(description())  # 600 tokens may come, 250 are expected
    assert not server.requests


def test_questions_are_asked_one_by_one_and_joined():
    with ChatServer("text:It is a dark road at night.", "text:A person stands at the left [10, 20, 40, 80].", "text:Edges are clear at the left side only.",
                    "text:The warm person should be kept in it.") as server:
        text = writer(server, prompts="questions").write(description())
    assert len(server.requests) == 4 and text.split(". ")[1].startswith("A person") and text.endswith("kept in it.")


def test_reasoning_models_get_their_own_limits():
    with ChatServer() as server:
        OpenAIWriter("o4-mini", base_url=server.url).write(description())
        assert "max_completion_tokens" in server.requests[0] and not {"max_tokens", "temperature"} & set(server.requests[0])


def test_requests_at_the_same_time_are_bounded():
    with ChatServer("slow", delay=.2) as server:
        w = writer(server, concurrency=2)
        with ThreadPoolExecutor(8) as pool: texts = list(pool.map(w.write, [description(f"n{i}") for i in range(8)]))
    assert len(texts) == len(server.requests) == w.budget.calls == 8 and server.most_at_once == 2


# ---------------------------------------------------------------- keys, packages, money

def test_without_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(FilmError, match="set the environment variable OPENAI_API_KEY"): OpenAIWriter().write(description())
    with ChatServer() as server: assert writer(server).write(description())   # a server of one's own needs none
    with ChatServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert OpenAIWriter("m").write(description()) and len(server.requests) == 1


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(FilmError, match=re.escape(pip_install("text"))): OpenAIWriter("m", base_url="http://127.0.0.1:1/v1").write(description())


def test_estimates_are_near_what_the_server_counts():
    with ChatServer() as server:
        w = writer(server, prices=(1, 2))
        d = description()
        estimate = w.estimate(d)
        w.write(d)
    assert estimate["calls"] == 1 and .7 < estimate["tokens_in"] / w.budget.tokens_in < 1.3
    assert estimate["cost"] == pytest.approx((estimate["tokens_in"] + 2 * estimate["tokens_out"]) / 1e6)
    assert OpenAIWriter("unknown", base_url="http://127.0.0.1:1/v1").estimate(d)["cost"] is None and OpenAIWriter("gpt-4o-mini").estimate(d)["cost"] > 0


def test_a_price_of_nothing_is_a_price():
    w = OpenAIWriter("unknown", base_url="http://127.0.0.1:1/v1", prices=(0, 0), max_cost=0)
    assert w.estimate(description())["cost"] == 0 and w.budget.reserve(1000, 1000) == 0


def test_a_budget_stops_before_the_call_that_might_exceed_it():
    with ChatServer() as server:
        w = writer(server, prices=(10, 10), max_cost=.02)
        written = 0
        with pytest.raises(BudgetReached, match=r"cost limit of \$0.02: \$0.01\d* spent in \d calls"):
            for _ in range(9): w.write(description()); written += 1
    assert 1 <= written == len(server.requests) and w.budget.spent <= .02
    with pytest.raises(FilmError, match="needs the model's prices"): OpenAIWriter("unknown", max_cost=1)
    assert set(PRICES) and all(a < b for a, b in PRICES.values())


def test_a_budget_holds_with_many_threads_and_gives_back_what_failed():
    budget, refused = Budget((1e6, 0), most=10), []
    def spend(_):
        try: held = budget.reserve(1, 0)
        except BudgetReached: refused.append(1); return
        budget.settle(held, 1, 0)
    threads = [threading.Thread(target=spend, args=(i,)) for i in range(50)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert budget.calls == 10 and len(refused) == 40 and budget.reserved == 0
    with ChatServer("400") as server:
        w = writer(server, prices=(1, 1), max_cost=1)
        with pytest.raises(FilmError): w.write(description())
    assert w.budget.reserved == 0 and w.budget.calls == 0


def test_names_tell_prompts_versions_and_servers_apart(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert OpenAIWriter("m").name == "openai:m,paper/1,t0.2,seed0" and OpenAIWriter("m", prompts="questions").name == "openai:m,questions/2,t0.2,seed0"
    servers = [OpenAIWriter("m", base_url=f"http://{address}/v1").name for address in ("a:1", "user:secret@A:2", "b:1")]  # two may call different models the same
    assert OpenAIWriter("m", base_url="https://api.openai.com/v1/").name == OpenAIWriter("m").name and OpenAIWriter("m", base_url="http://a/v1/").name == servers[0]
    assert servers[0] == servers[1] != servers[2] and "//" not in servers[0]
    with pytest.raises(FilmError, match="choose one of paper, questions"): OpenAIWriter("m", prompts="poem")
    assert count_tokens([dict(content="x" * 400)]) == 104


def test_a_server_that_says_the_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    assert OpenAIWriter("m")._without_key("no quota for sk-test-0123456789abcdef:\n ask us") == "no quota for ***: ask us"
