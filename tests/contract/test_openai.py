"""The wire, as OpenAI's own client checks it, against a real uvicorn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from elchat.engine import Engine
from elchat.hooks import Decision
from elchat.scheduler import Scheduler
from elchat.web.settings import WebSettings
from tests import toys
from tests.web_fakes import FakeMoods, FakeScheduler, Running, Script, running

HELLO = [{"role": "user", "content": "Hola"}]
JSON = {"content-type": "application/json"}


def script(request: Any) -> Script:
    """The prompt chooses: a word in it names how the model behaves."""
    text = toys.tokenizer("smollm").decode(request.ids)
    if "CALLA" in text:
        return Script((), finish="silent", decision=Decision("silent", 0.4, 0.1, 0.5, "hastío"))
    if "ROMPE" in text:
        return Script(("Uno ", "dos ", "tres"), crash_at=2)
    if "LENTO" in text:
        return Script(tuple("abcdefghij" * 100), pause_s=0.02, prefill_s=0.5)
    return Script(("¡Ho", "la ", "", "🙂", " mundo!"))


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> Iterator[Running]:
    scheduler = FakeScheduler(script, context_tokens=400)
    settings = WebSettings(model_id="org/modelo", data_dir=tmp_path_factory.mktemp("web"))
    with running(scheduler, settings) as server:
        yield server


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Iterator[Running]:
    loaded = toys.loaded("smollm", max_positions=256)
    scheduler = Scheduler(Engine(loaded.model, loaded.tokenizer, loaded.chat), max_rows=4)
    settings = WebSettings(model_id="juguete", data_dir=tmp_path_factory.mktemp("web"))
    with running(scheduler, settings) as server:
        yield server
    scheduler.close()


def client(server: Running, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="da-igual", max_retries=0, **options)


def chat(server: Running, **body: Any) -> Any:
    body = {"model": "m", "messages": HELLO, **body}
    return client(server).chat.completions.create(**body)


def post(server: Running, path: str, content: Any) -> tuple[int, dict[str, Any]]:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    with server.client() as http:
        answer = http.post(path, content=raw, headers=JSON)
    return answer.status_code, answer.json()


# --- what is answered ----------------------------------------------------------------------------


def test_an_answer_in_one_piece(fake: Running):
    answer = chat(fake, seed=5)
    [choice] = answer.choices
    assert choice.message.content == "¡Hola 🙂 mundo!"
    assert choice.message.role == "assistant"
    assert (choice.finish_reason, choice.index) == ("stop", 0)
    assert answer.object == "chat.completion"
    assert answer.model == "org/modelo"  # the one that answers, whatever was asked for
    assert answer.id.startswith("chatcmpl-")
    assert len(answer.id) == len("chatcmpl-") + 32
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.elchat["semilla"] == 5


def test_the_stream_has_the_chunks_in_their_order(fake: Running):
    chunks = list(chat(fake, stream=True, stream_options={"include_usage": True}))
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[1:-1]]
    assert "".join(texts) == "¡Hola 🙂 mundo!"
    assert "�" not in "".join(texts)
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_without_being_asked_no_chunk_carries_usage(fake: Running):
    with fake.client() as http:
        body = {"messages": HELLO, "stream": True}
        text = http.post("/v1/chat/completions", json=body).text
    lines = [line for line in text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(line[6:]) for line in lines[:-1])


def test_the_headers_of_a_stream(fake: Running):
    with fake.client() as http:
        answer = http.post("/v1/chat/completions", json={"messages": HELLO, "stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-store"


def test_the_stream_helper(fake: Running):
    with client(fake).chat.completions.stream(model="m", messages=HELLO) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "¡Hola 🙂 mundo!"


def test_the_asynchronous_client(fake: Running):
    async def ask() -> tuple[str, str]:
        async with AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="x", max_retries=0) as api:
            whole = await api.chat.completions.create(model="m", messages=HELLO)
            stream = await api.chat.completions.create(model="m", messages=HELLO, stream=True)
            parts = [c.choices[0].delta.content or "" async for c in stream]
            return whole.choices[0].message.content or "", "".join(parts)

    whole, joined = asyncio.run(ask())
    assert whole == joined == "¡Hola 🙂 mundo!"


@pytest.mark.parametrize("is_stream", [False, True])
def test_several_choices(fake: Running, is_stream: bool):
    answer = chat(fake, n=3, seed=1, stream=is_stream)
    seeds = [request.params.seed for request in fake.scheduler.requests[-3:]]
    assert seeds[0] == 1
    assert len(set(seeds)) == 3
    if not is_stream:
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return
    by_index: dict[int, list[Any]] = {}
    for chunk in answer:
        for choice in chunk.choices:
            by_index.setdefault(choice.index, []).append(choice)
    assert sorted(by_index) == [0, 1, 2]
    for choices in by_index.values():
        assert [c.delta.role for c in choices].count("assistant") == 1
        assert [c.finish_reason for c in choices].count("stop") == 1


def test_log_probabilities(fake: Running):
    answer = chat(fake, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert "".join(token.token for token in content) == "¡Hola 🙂 mundo!"
    assert bytes(content[3].bytes).decode() == "🙂"
    assert [len(token.top_logprobs) for token in content] == [2] * 5
    chunks = chat(fake, logprobs=True, stream=True)
    streamed = [t for c in chunks for t in (c.choices[0].logprobs or NONE).content]
    assert [t.token for t in streamed] == [t.token for t in content]


class NONE:
    content: tuple[Any, ...] = ()


def test_silence_is_an_empty_answer_that_says_so(fake: Running):
    answer = chat(fake, messages=[{"role": "user", "content": "CALLA"}])
    assert answer.choices[0].message.content == ""
    assert answer.choices[0].finish_reason == "stop"
    assert answer.elchat["silencio"] is True


def test_a_mood_comes_and_goes_in_the_elchat_field(tmp_path):
    with running(FakeScheduler(script), WebSettings(data_dir=tmp_path), FakeMoods()) as server:
        plain = chat(server)
        assert server.scheduler.requests[-1].hook is None
        assert set(plain.elchat) == {"semilla"}
        wish = {"humor": {"axes": {"valence": -0.8}, "frozen": True}, "responder": True}
        first = chat(server, extra_body={"elchat": wish})
        hook = server.scheduler.requests[-1].hook
        assert hook.must_answer
        assert hook.values[0] == pytest.approx(-0.8)
        assert first.elchat["humor"]["turn"] == 1
        again = {"registro": first.elchat["registro"], "silencio": 0.2}
        chunks = list(chat(server, stream=True, n=2, extra_body={"elchat": again}))
        ends = [c for c in chunks if c.choices[0].finish_reason]
        assert [c.elchat["humor"]["turn"] for c in ends] == [2, 2]
        quiet = chat(
            server,
            messages=[{"role": "user", "content": "CALLA"}],
            extra_body={"elchat": {"silencio": 0.5}},
        )
        assert quiet.elchat["silencio"] is True
        assert quiet.elchat["decision"]["acto"] == "silent"
        assert (quiet.elchat["decision"]["p"], quiet.elchat["decision"]["techo"]) == (0.4, 0.5)


@pytest.mark.parametrize(
    "wish",
    [
        {"registro": "???"},
        {"humor": {"axes": {"sabor": 1.0}}},
        {"humor": {"ejes": {}}},
        {"silencio": 2},
        {"humo": {}},
        "alegre",
    ],
)
def test_an_elchat_field_that_cannot_be_is_refused(tmp_path, wish):
    with running(FakeScheduler(script), WebSettings(data_dir=tmp_path), FakeMoods()) as server:
        status, answer = post(server, "/v1/chat/completions", {"messages": HELLO, "elchat": wish})
    assert status == 400
    assert answer["error"]["param"].startswith("elchat")


def test_a_model_without_autonomy_says_so(fake: Running):
    body = {"messages": HELLO, "elchat": {}}
    status, answer = post(fake, "/v1/chat/completions", body)
    assert (status, answer["error"]["code"]) == (400, "unsupported_parameter")


def test_a_failure_in_the_middle_reaches_the_client(fake: Running):
    body = [{"role": "user", "content": "ROMPE"}]
    with pytest.raises(openai.APIError, match="memoria"):
        list(chat(fake, messages=body, stream=True))
    with pytest.raises(openai.InternalServerError, match="memoria"):
        chat(fake, messages=body)


def test_the_api_page_lists_every_route(fake: Running):
    with fake.client() as http:
        page, schema = http.get("/documentacion").text, http.get("/openapi.json").json()
    assert [path for path in schema["paths"] if f"<code>{path}</code>" not in page] == []
    assert "<script" not in page
    components = schema["components"]["schemas"].values()
    assert not [one for one in components if "description" in one]  # docstrings are English


def test_models(fake: Running):
    [model] = client(fake).models.list().data
    assert (model.id, model.object, model.owned_by) == ("org/modelo", "model", "elchat")
    assert client(fake).models.retrieve("org/modelo").id == "org/modelo"
    with pytest.raises(openai.NotFoundError) as caught:
        client(fake).models.retrieve("otro")
    assert caught.value.code == "model_not_found"
    assert caught.value.request_id


# --- what is accepted, ignored, refused ----------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        {"temperature": 0}, {"temperature": 2}, {"top_p": 0}, {"top_p": 1}, {"max_tokens": 3},
        {"max_completion_tokens": 3, "max_tokens": 9}, {"max_tokens": 99999},
        {"stop": "x"}, {"stop": ["a", "b"]}, {"stop": []}, {"seed": -5}, {"seed": 2**63 - 1},
        {"presence_penalty": -2, "frequency_penalty": 2}, {"logit_bias": {"5": -100}},
        {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2}, {"repeat_penalty": 1.3},
        {"elchat": None}, {"temperature": 1},
        # null is absent
        *({name: None} for name in (
            "temperature", "top_p", "n", "max_tokens", "stop", "stream", "stream_options", "seed",
            "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format",
            "model", "presence_penalty", "user",
        )),
        # accepted and ignored
        {"user": "u"}, {"metadata": {"a": "b"}}, {"store": True}, {"service_tier": "auto"},
        {"safety_identifier": "s"}, {"prompt_cache_key": "k"}, {"parallel_tool_calls": False},
        {"reasoning_effort": "low"}, {"verbosity": "low"}, {"prediction": {"type": "content"}},
        {"campo_raro": [1, 2]}, {"response_format": {"type": "text"}}, {"tools": []},
        {"functions": []}, {"tool_choice": "none"}, {"modalities": ["text"]},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        {"messages": [{"role": "developer", "content": "d"}, *HELLO]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        {"messages": [*HELLO, {"role": "assistant", "content": None}, *HELLO]},
        {"messages": [{"role": "user", "content": "a", "name": "n"}]},
    ],
    ids=lambda extra: json.dumps(extra)[:60],
)  # fmt: skip
def test_accepted(fake: Running, extra: dict[str, Any]):
    with fake.client() as http:
        answer = http.post("/v1/chat/completions", json={"messages": HELLO, **extra})
    assert answer.status_code == 200, answer.text


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"tools": [TOOL]}, "tools", "unsupported_parameter"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"tool_choice": "auto"}, "tool_choice", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
        ({"tool_choice": TOOL}, "tool_choice", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "unsupported_parameter"),
        ({"audio": {"voice": "v"}}, "audio", "unsupported_parameter"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"web_search_options": {"a": 1}}, "web_search_options", "unsupported_parameter"),
        ({"stream_options": {"include_usage": True}}, None, "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"messages": []}, "messages", "invalid_type"),
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": "hola"}, "messages", "invalid_type"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "unsupported_parameter"),  # noqa: E501
        ({"messages": [{"role": "user"}]}, "messages.0.content", "invalid_type"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "unsupported_parameter"),  # noqa: E501
        ({"messages": [{"role": "user", "content": "a" * 33_000}]}, "messages.0.content", "out_of_range"),  # noqa: E501
        ({"messages": HELLO * 501}, "messages", "out_of_range"),
        ({"messages": [{"role": "user", "content": "hola " * 400}]}, "messages", "context_length_exceeded"),  # noqa: E501
        ({"n": 0}, "n", "out_of_range"),
        ({"n": 9}, "n", "out_of_range"),
        ({"n": 1.5}, "n", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "out_of_range"),
        ({"temperature": -1}, "temperature", "out_of_range"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"top_p": 1.1}, "top_p", "out_of_range"),
        ({"max_tokens": 0}, "max_tokens", "out_of_range"),
        ({"max_tokens": True}, "max_tokens", "invalid_type"),
        ({"max_tokens": 10**40}, "max_tokens", "out_of_range"),
        ({"seed": 2**63}, "seed", "out_of_range"),
        ({"seed": 1.5}, "seed", "invalid_type"),
        ({"stop": [""]}, "stop.0", "invalid_type"),
        ({"stop": "a" * 65}, "stop", "out_of_range"),
        ({"stop": ["a"] * 17}, "stop", "out_of_range"),
        ({"logit_bias": {"abc": 1}}, "logit_bias", "out_of_range"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias", "out_of_range"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "out_of_range"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "out_of_range"),
        ({"stream": "sí"}, "stream", "invalid_type"),
        ({"presence_penalty": 3}, "presence_penalty", "out_of_range"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)  # fmt: skip
def test_refused(fake: Running, extra: dict[str, Any], param: str | None, code: str):
    status, body = post(fake, "/v1/chat/completions", {"messages": HELLO, **extra})
    error = body["error"]
    assert status == 400, body
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert error["message"].endswith(".")
    assert "body" not in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"5", b"\xff\xfe{}", b'{"messages": "\xff"}',
        b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}',
        b'{"messages":[{"role":"user","content":"a"}],"temperature":Infinity}',
        b'{"messages":[{"role":"user","content":"a"}],"temperature":1e999}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"\\ud800","content":"a"}]}',
        b'{"messages":[{"role":"user","content":"a"}],"stop":"\\udfff"}',
        b'{"x":NaN}', b"[" * 100_000, b'{"a":' * 50_000, b'{"n":' + b"9" * 6000 + b"}",
        b'{"messages":{"a":1}}', b'{"messages":[null]}', b'{"messages":[[]]}',
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda body: repr(body[:40]),
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/api/turnos"])
def test_malformed_bodies_are_refused_in_our_shape(fake: Running, path: str, body: bytes):
    status, answer = post(fake, path, body)
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_wrong_paths_and_methods_have_our_shape_too(fake: Running):
    with fake.client() as http:
        for answer, status in (
            (http.get("/v1/nada"), 404),
            (http.get("/v1/chat/completions"), 405),
            (http.delete("/v1/models"), 405),
        ):
            assert answer.status_code == status
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


# --- the queue -----------------------------------------------------------------------------------


def test_a_full_queue_is_429_with_retry_after(tmp_path):
    scheduler = FakeScheduler(Script(("a",) * 100, pause_s=0.02), max_rows=1, max_queue=1)
    with running(scheduler, WebSettings(data_dir=tmp_path)) as server:
        api = client(server)
        first = api.chat.completions.create(model="m", messages=HELLO, stream=True)
        next(iter(first))
        with pytest.raises(openai.RateLimitError) as caught:
            chat(server, n=2)
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 5
        first.close()
        scheduler.wait_idle()
        assert chat(server).choices[0].message.content


@pytest.mark.parametrize("moment", ["prefill", "decode"])
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_hangs_up_frees_its_slot(fake: Running, moment: str, is_stream: bool):
    body = {"messages": [{"role": "user", "content": "LENTO"}], "stream": is_stream}

    async def ask_and_leave() -> None:
        import httpx

        async with httpx.AsyncClient(base_url=fake.url) as http:
            wait = 0.2 if moment == "prefill" else 0.9
            with pytest.raises((asyncio.TimeoutError, httpx.ReadTimeout)):
                await asyncio.wait_for(http.post("/v1/chat/completions", json=body), wait)

    fake.scheduler.wait_idle()
    before = len(fake.scheduler.finished)
    asyncio.run(ask_and_leave())
    fake.scheduler.wait_idle(1.0)
    assert fake.scheduler.finished[before:] == ["cancelled"]


# --- /v1/completions -----------------------------------------------------------------------------


def test_completions_take_every_shape_of_prompt(fake: Running):
    api = client(fake)
    for prompt, count in (("Hola", 1), (["a", "b"], 2), ([5, 6, 7], 1), ([[5], [6, 7]], 2)):
        answer = api.completions.create(model="m", prompt=prompt, n=2)
        assert [choice.index for choice in answer.choices] == list(range(2 * count))
        assert answer.choices[0].text == "¡Hola 🙂 mundo!"


def test_completions_stream(fake: Running):
    chunks = list(client(fake).completions.create(model="m", prompt="Hola", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "¡Hola 🙂 mundo!"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_echo_with_log_probabilities(fake: Running):
    answer = client(fake).completions.create(
        model="m", prompt=[10, 11, 12], echo=True, max_tokens=1, logprobs=1, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == 4
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert logprobs.token_logprobs[1:3] == [-1.0, -1.0]
    assert logprobs.text_offset == [0, *_ends(logprobs.tokens)[:-1]]
    assert answer.choices[0].text.endswith("¡Ho")


def _ends(tokens: list[str]) -> list[int]:
    ends, end = [], 0
    for token in tokens:
        end += len(token)
        ends.append(end)
    return ends


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"), ({"prompt": [99999]}, "prompt"), ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt.1"), ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"), ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": ["a"] * 257}, "prompt"), ({"prompt": [5] * 500}, "prompt"),
        ({"prompt": "a", "echo": True, "stream": True}, "echo"),
        ({"prompt": [True]}, "prompt.0"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)  # fmt: skip
def test_completions_refused(fake: Running, body: dict[str, Any], param: str):
    status, answer = post(fake, "/v1/completions", body)
    assert status == 400
    assert answer["error"]["param"].split(".")[0] == param.split(".")[0]


# --- with a real engine --------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_text_and_the_stream_joins_to_the_whole(real: Running):
    def ask(**extra: Any) -> Any:
        return chat(real, seed=7, temperature=1.0, max_tokens=24, **extra)

    whole, again = ask(), ask()
    assert whole.choices[0].message.content == again.choices[0].message.content
    assert whole.system_fingerprint == again.system_fingerprint
    parts = [chunk.choices[0].delta.content or "" for chunk in ask(stream=True)]
    assert "".join(parts) == whole.choices[0].message.content
    other = chat(real, seed=8, temperature=1.0, max_tokens=24)
    assert other.choices[0].message.content != whole.choices[0].message.content


def test_max_tokens_and_usage(real: Running):
    answer = chat(real, max_tokens=5, temperature=0)
    assert answer.usage.completion_tokens <= 5
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_stop_strings_are_not_shown(real: Running):
    text = chat(real, seed=3, max_tokens=40, temperature=1.5).choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    cut = chat(real, seed=3, max_tokens=40, temperature=1.5, stop=stop)
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_real_log_probabilities_are_ordered(real: Running):
    answer = chat(real, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3)
    for token in answer.choices[0].logprobs.content:
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert token.logprob <= 0
