from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from elchat import native
from elchat.engine import Engine, Event, Request, find_model
from elchat.errors import DataError, ElchatError, ModelError, QueueFullError
from elchat.sampling import SamplingParams
from elchat.scheduler import Scheduler
from tests import toys

NO_STOP: frozenset[int] = frozenset()
RUNNERS = (
    "torch",
    pytest.param(
        "compiled",
        marks=pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not())),
    ),
)


def make_engine(family: str, runner: str = "torch", weights: Any = "fp32") -> Engine:
    loaded = toys.loaded(family)
    return Engine(
        loaded.model,
        loaded.tokenizer,
        loaded.chat,
        weights=weights,
        compile=runner == "compiled",
        threads=2,
    )


def greedy(n: int, **changes: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_new_tokens=n, logprobs=0, **changes)


def tokens_of(events: list[Event]) -> list[int]:
    assert events[-1].error is None
    return [t.id for e in events if e.phase != "reading" for t in e.tokens]


def write(scheduler: Scheduler, ids: list[int], n: int, **changes: Any) -> list[int]:
    return tokens_of(list(scheduler.run(Request(ids, greedy(n, **changes), NO_STOP))))


def prompt(seed: int, n: int) -> list[int]:
    return toys.ids(seed=seed, rows=1, tokens=n)[0].tolist()


def without_cache(family: str, ids: list[int], n: int) -> list[int]:
    loaded, ids, out = toys.loaded(family), list(ids), []
    with torch.no_grad():
        for _ in range(n):
            logits = loaded.model(torch.tensor([ids]))[0, -1, : loaded.tokenizer.vocab_size]
            out.append(int(logits.argmax()))
            ids.append(out[-1])
    return out


class Listener:
    """Collects a request's events and waits for its end."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()
        self.wrote = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if event.phase == "writing":
            self.wrote.set()
        if event.finish is not None:
            self.ended.set()

    def wait(self) -> list[Event]:
        assert self.ended.wait(60)
        return self.events


@pytest.fixture
def opened() -> Iterator[Any]:
    schedulers: list[Scheduler] = []

    def open_scheduler(engine: Engine, **settings: Any) -> Scheduler:
        schedulers.append(Scheduler(engine, **settings))
        return schedulers[-1]

    yield open_scheduler
    for scheduler in schedulers:
        scheduler.close()


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("family", toys.FAMILIES)
def test_cached_decoding_equals_uncached(opened, family, runner):
    scheduler = opened(make_engine(family, runner))
    ids = prompt(0, 20)
    assert write(scheduler, ids, 24) == without_cache(family, ids, 24)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("family", toys.FAMILIES)
def test_a_batch_of_mixed_lengths_equals_the_same_requests_alone(opened, family, runner):
    prompts = [prompt(seed, n) for seed, n in enumerate((3, 40, 17, 9, 28, 1))]
    lengths = (30, 5, 18, 40, 11, 25)
    together = opened(make_engine(family, runner), max_rows=4, max_queue=8)
    listeners = [Listener() for _ in prompts]
    for ids, n, listener in zip(prompts, lengths, listeners, strict=True):
        together.submit(Request(ids, greedy(n), NO_STOP), listener)
    batched = [tokens_of(listener.wait()) for listener in listeners]
    assert batched == [without_cache(family, i, n) for i, n in zip(prompts, lengths, strict=True)]


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_second_turn_reuses_the_cache_and_changes_nothing(opened, runner):
    scheduler = opened(make_engine("smollm", runner))
    first = prompt(1, 20)
    reply = write(scheduler, first, 12)
    second = first + reply + prompt(2, 7)
    events = list(scheduler.run(Request(second, greedy(12), NO_STOP)))
    assert events[-1].usage.cached_tokens == 20 + 12 - 1  # the last one drawn never went through
    assert tokens_of(events) == without_cache("smollm", second, 12)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_prefix_is_copied_from_a_reply_that_is_being_written(opened, runner):
    scheduler = opened(make_engine("smollm", runner), max_rows=3)
    shared = prompt(3, 40)
    listeners = [Listener() for _ in range(3)]
    for i, listener in enumerate(listeners):
        scheduler.submit(Request([*shared, 7 + i], greedy(20), NO_STOP), listener)
    cached = [listener.wait()[-1].usage.cached_tokens for listener in listeners]
    assert cached[1:] == [40, 40]
    for i, listener in enumerate(listeners):
        expected = without_cache("smollm", [*shared, 7 + i], 20)
        assert tokens_of(listener.events) == expected


def test_another_conversation_does_not_see_the_first(opened):
    scheduler = opened(make_engine("llama"))
    write(scheduler, prompt(3, 30), 5)
    other = prompt(4, 10)
    assert write(scheduler, other, 12) == without_cache("llama", other, 12)


def test_the_least_recently_used_conversation_is_given_away(opened):
    scheduler = opened(make_engine("smollm"))  # one row, two slots
    a, b, c = (prompt(seed, 20) for seed in (5, 6, 7))
    for ids in (a, b, a, c):
        write(scheduler, ids, 1)
    cached = [
        list(scheduler.run(Request(ids, greedy(1), NO_STOP)))[-1].usage.cached_tokens
        for ids in (a, b)
    ]
    assert cached[0] == 19
    assert cached[1] < 5


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_a_compiled_row_has_the_same_bits_alone_and_in_a_batch(opened, weights):
    def logprobs(events: list[Event]) -> list[float]:
        return [t.logprob for e in events for t in e.tokens]

    scheduler = opened(make_engine("qwen", "compiled", weights), max_rows=4)
    prompts = [prompt(seed, n) for seed, n in enumerate((11, 30, 5, 21))]
    listeners = [Listener() for _ in prompts]
    for ids, listener in zip(prompts, listeners, strict=True):
        scheduler.submit(Request(ids, greedy(15), NO_STOP), listener)
    batched = [logprobs(listener.wait()) for listener in listeners]
    alone = opened(make_engine("qwen", "compiled", weights))
    for ids, bits in zip(prompts, batched, strict=True):
        assert logprobs(list(alone.run(Request(ids, greedy(15), NO_STOP)))) == bits


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_torch_and_compiled_kernels_read_the_same_weights(weights):
    if native.why_not() is not None:
        pytest.skip(str(native.why_not()))
    from elchat.runner import Rows

    logits = []
    for runner in ("torch", "compiled"):
        opened_runner = make_engine("qwen", runner, weights).runner(1, 64)
        with torch.inference_mode():
            x = opened_runner.embed([prompt(0, 20)])
            x = opened_runner.run_layers(x, Rows((0,), (0,)), range(3))
            logits.append(opened_runner.finish(x[0])[1])
    apart = (logits[0] - logits[1]).std() / logits[1].std()
    assert apart < 0.06  # bf16 activations against 15 bits


def test_quantized_weights_stay_near_the_model():
    loaded = toys.loaded("smollm")
    ids = prompt(0, 30)
    with torch.no_grad():
        exact = loaded.model(torch.tensor([ids]))[0]
    from elchat.runner import Rows

    for weights, bound in (("int8", 0.1), ("int4", 0.6)):
        runner = make_engine("smollm", "torch", weights).runner(1, 64)
        with torch.inference_mode():
            x = runner.run_layers(runner.embed([ids]), Rows((0,), (0,)), range(3))
            got = runner.finish(x[0])[1]
        assert (got - exact).std() / exact.std() < bound


def test_the_same_seed_gives_the_same_reply_whoever_is_beside_it(opened):
    scheduler = opened(make_engine("smollm"), max_rows=3)
    params = SamplingParams(temperature=1.0, max_new_tokens=15, seed=7, logprobs=0)
    alone = tokens_of(list(scheduler.run(Request(prompt(0, 10), params, NO_STOP))))
    listeners = [Listener() for _ in range(3)]
    for i, listener in enumerate(listeners):
        scheduler.submit(Request(prompt(i, 10), params, NO_STOP), listener)
    assert tokens_of(listeners[0].wait()) == alone
    assert tokens_of(listeners[1].wait()) != alone
    listeners[2].wait()


def test_events_join_to_the_reply_and_the_last_says_why_it_ended(opened):
    scheduler = opened(make_engine("smollm"))
    tokenizer = scheduler.engine.tokenizer
    ids = prompt(0, 10)
    tokens = write(scheduler, ids, 40)
    stop = tokens[25]
    first = tokens.index(stop)
    events = list(scheduler.run(Request(ids, greedy(40), frozenset({stop}))))
    assert [e.finish for e in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].finish == "stop"
    whole = tokenizer.decode(tokens[:first])
    text = "".join(e.text for e in events)
    assert whole.startswith(text)
    assert whole[len(text) :] in ("", "�")  # a character whose last bytes never came
    assert events[-1].usage.completion_tokens == first + 1


def test_a_stop_string_ends_the_reply_and_is_not_part_of_it(opened):
    scheduler = opened(make_engine("smollm"))
    ids = prompt(0, 10)
    whole = "".join(e.text for e in scheduler.run(Request(ids, greedy(60), NO_STOP)))
    stop = whole[20:24]
    events = list(scheduler.run(Request(ids, greedy(60, stop=(stop,)), NO_STOP)))
    text = "".join(e.text for e in events)
    assert text == whole[: whole.index(stop)]
    assert events[-1].finish == "stop"
    told = [t for e in events for t in e.tokens]
    assert "".join(t.text for t in told).startswith(text[:10])


def test_logprobs_are_those_of_the_model(opened):
    scheduler = opened(make_engine("qwen"))
    ids = prompt(0, 10)
    params = SamplingParams(temperature=0.0, max_new_tokens=5, logprobs=3)
    infos = [t for e in scheduler.run(Request(ids, params, NO_STOP)) for t in e.tokens]
    loaded = toys.loaded("qwen")
    with torch.no_grad():
        row = loaded.model(torch.tensor([ids]))[0, -1, : loaded.tokenizer.vocab_size]
    expected = row.log_softmax(-1)
    assert infos[0].logprob == pytest.approx(float(expected.max()), abs=1e-5)
    assert [t[0] for t in infos[0].top] == expected.topk(3).indices.tolist()
    assert infos[0].id == infos[0].top[0][0]


def test_echo_gives_the_logprobs_of_the_prompt(opened):
    scheduler = opened(make_engine("smollm"))
    ids = prompt(0, 30)
    write(scheduler, ids, 2)  # what is cached must not be skipped
    params = SamplingParams(temperature=0.0, max_new_tokens=0, logprobs=0)
    events = list(scheduler.run(Request(ids, params, NO_STOP, echo=True)))
    infos = [t for e in events for t in e.tokens]
    with torch.no_grad():
        logits = toys.loaded("smollm").model(torch.tensor([ids]))[0]
    expected = logits[:, : scheduler.engine.tokenizer.vocab_size].log_softmax(-1)
    assert [t.id for t in infos] == ids
    assert infos[0].logprob is None
    for i, info in enumerate(infos[1:]):
        assert info.logprob == pytest.approx(float(expected[i, ids[i + 1]]), abs=1e-4)
    assert events[-1].finish == "length"


def test_only_ids_of_the_vocabulary_are_written(opened):
    loaded = toys.loaded("smollm", vocab_size=480)  # more rows than ids, as Qwen2.5
    model = loaded.model
    with torch.no_grad():
        model.model.embed_tokens.weight[loaded.tokenizer.vocab_size :] *= 20
    engine = Engine(model, loaded.tokenizer, loaded.chat, compile=False)
    params = SamplingParams(temperature=2.0, max_new_tokens=60, seed=1, logprobs=0)
    scheduler = opened(engine)
    tokens = tokens_of(list(scheduler.run(Request(prompt(0, 5), params, NO_STOP))))
    assert max(tokens) < loaded.tokenizer.vocab_size


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_full_context_ends_the_reply(opened, runner):
    scheduler = opened(make_engine("smollm", runner), max_tokens_per_row=96)
    events = list(scheduler.run(Request(prompt(0, 90), SamplingParams(temperature=0.0), NO_STOP)))
    assert events[-1].usage.completion_tokens == 96 - 90 + 1
    assert events[-1].finish == "length"


def test_what_does_not_fit_is_refused_at_once(opened):
    scheduler = opened(make_engine("smollm"), max_tokens_per_row=32)
    with pytest.raises(DataError, match="acórtalo"):
        scheduler.submit(Request(prompt(0, 33), greedy(1), NO_STOP), Listener())


def test_a_cancelled_reply_ends_within_a_token_and_frees_its_row(opened):
    scheduler = opened(make_engine("smollm"))
    listener = Listener()
    counts: list[int] = []

    def on_event(event: Event) -> None:
        listener(event)
        if event.phase == "writing" and len(counts) < 3:
            counts.append(1)
            if len(counts) == 3:
                ticket.cancel()

    ready = threading.Event()
    blocker = Listener()
    first = Request(prompt(1, 4), greedy(2), NO_STOP)
    scheduler.submit(first, lambda e: (ready.wait(5), blocker(e)))
    ticket = scheduler.submit(Request(prompt(0, 10), greedy(100), NO_STOP), on_event)
    ready.set()
    events = listener.wait()
    assert events[-1].finish == "cancelled"
    assert events[-1].usage.completion_tokens <= 4
    assert len(write(scheduler, prompt(2, 5), 3)) == 3
    assert scheduler.stats().active <= 1


def test_cancelling_one_leaves_the_others_as_they_were(opened):
    scheduler = opened(make_engine("smollm"), max_rows=3)
    ids = [prompt(seed, 12) for seed in range(3)]
    listeners = [Listener() for _ in ids]
    tickets = [
        scheduler.submit(Request(i, greedy(80), NO_STOP), listener)
        for i, listener in zip(ids, listeners, strict=True)
    ]
    assert listeners[1].wrote.wait(30)
    tickets[1].cancel()
    tickets[1].cancel()
    assert listeners[1].wait()[-1].finish in ("cancelled", "length")
    for i in (0, 2):
        assert tokens_of(listeners[i].wait()) == without_cache("smollm", ids[i], 80)


def test_a_listener_that_fails_loses_only_its_own_reply(opened):
    scheduler = opened(make_engine("smollm"), max_rows=2)

    def broken(event: Event) -> None:
        raise OSError("el cliente se fue")

    good = Listener()
    scheduler.submit(Request(prompt(0, 10), greedy(100), NO_STOP), broken)
    scheduler.submit(Request(prompt(1, 10), greedy(30), NO_STOP), good)
    assert tokens_of(good.wait()) == without_cache("smollm", prompt(1, 10), 30)
    while scheduler.stats().active:
        pass
    assert scheduler.stats().requests_total == 2


def test_a_full_queue_says_so_and_a_cancelled_one_makes_room(opened):
    scheduler = opened(make_engine("smollm"), max_rows=1, max_queue=1)
    gate = threading.Event()
    running, waiting = Listener(), Listener()
    scheduler.submit(
        Request(prompt(0, 5), greedy(3), NO_STOP), lambda e: (gate.wait(20), running(e))
    )
    queued = scheduler.submit(Request(prompt(1, 5), greedy(3), NO_STOP), waiting)
    with pytest.raises(QueueFullError, match="ocupado"):
        scheduler.submit(Request(prompt(2, 5), greedy(3), NO_STOP), Listener())
    queued.cancel()
    gate.set()
    assert waiting.wait()[-1].finish == "cancelled"
    running.wait()
    assert len(write(scheduler, prompt(2, 5), 3)) == 3


def test_the_queue_tells_its_position(opened):
    scheduler = opened(make_engine("smollm"), max_rows=1, max_queue=4)
    gate = threading.Event()
    listeners = [Listener() for _ in range(3)]
    scheduler.submit(
        Request(prompt(0, 5), greedy(2), NO_STOP), lambda e: (gate.wait(20), listeners[0](e))
    )
    for listener in listeners[1:]:
        scheduler.submit(Request(prompt(1, 5), greedy(2), NO_STOP), listener)
    gate.set()
    last = [e.done for e in listeners[2].wait() if e.phase == "queued"]
    assert last == sorted(last, reverse=True)
    assert last[0] == 1


def test_closing_ends_everything_and_tells_everyone():
    scheduler = Scheduler(make_engine("smollm"), max_rows=1, max_queue=4)
    listeners = [Listener() for _ in range(3)]
    for listener in listeners:
        scheduler.submit(Request(prompt(0, 5), greedy(110), NO_STOP), listener)
    scheduler.close()
    assert [listener.wait()[-1].finish for listener in listeners[1:]] == ["cancelled"] * 2
    with pytest.raises(QueueFullError):
        scheduler.submit(Request(prompt(0, 5), greedy(1), NO_STOP), Listener())


def conversation(n: int) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turno {i}"} for i in range(n)]
    return [{"role": "system", "content": "breve"}, *turns]


def small_context(n: int) -> Engine:
    loaded = toys.loaded("smollm")
    return Engine(loaded.model, loaded.tokenizer, loaded.chat, context_tokens=n, compile=False)


def test_old_turns_are_dropped_whole_and_the_system_message_stays():
    engine, messages = small_context(128), conversation(21)
    found = engine.prompt(messages, max_new_tokens=16)
    assert found.n_dropped_messages % 2 == 0
    assert found.n_dropped_messages > 0
    kept = [messages[0], *messages[1 + found.n_dropped_messages :]]
    assert found.ids == engine.chat_format.render(kept, add_generation_prompt=True).ids
    assert len(found.ids) <= 128 - 16
    more = [messages[0], *messages[found.n_dropped_messages - 1 :]]
    assert len(engine.chat_format.render(more, add_generation_prompt=True).ids) > 128 - 16


def test_turn_starts_are_where_the_user_speaks():
    engine = small_context(128)
    found = engine.prompt(conversation(3), max_new_tokens=16)
    start = engine.tokenizer.special_ids["<|im_start|>"]
    user = engine.tokenizer.encode("user\nturno")
    assert len(found.turn_starts) == 2
    for at in found.turn_starts:
        assert found.ids[at : at + 1 + len(user)] == [start, *user]


def test_one_message_that_cannot_fit_is_one_sentence():
    with pytest.raises(DataError, match="acórtalo"):
        small_context(64).prompt([{"role": "user", "content": "palabra " * 200}], 16)


def test_auto_measures_and_says_what_it_took():
    engine = make_engine("smollm", "torch", "auto")
    assert engine.weights in ("fp32", "bf16")


def test_compiled_kernels_that_cannot_be_had_are_one_sentence(monkeypatch):
    monkeypatch.setattr(native, "why_not", lambda: "no hay compilador")
    loaded = toys.loaded("smollm")
    with pytest.raises(ModelError, match="no hay compilador"):
        Engine(loaded.model, loaded.tokenizer, loaded.chat, compile=True)
    assert not Engine(loaded.model, loaded.tokenizer, loaded.chat).is_compiled


@pytest.mark.parametrize("name", ["no/existe", "fantasma.gguf", "una-ejecución", "smollm2-135m"])
def test_a_missing_model_is_one_sentence(name):
    with pytest.raises(ElchatError) as caught:
        find_model(name)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_calculator_completes_a_call(opened, runner):
    engine = make_engine("smollm", runner)
    ids = engine.tokenizer.encode("¿cuánto es?")
    call = engine.tokenizer.encode("<<12*7=")
    bias = {}
    scheduler = opened(engine)
    text = ""
    written: list[int] = []
    for token in call:  # lead the model by the hand: one biased token at a time
        bias = {token: 100.0}
        params = SamplingParams(temperature=0.0, max_new_tokens=1, logit_bias=bias)
        done = list(scheduler.run(Request([*ids, *written], params, NO_STOP, tools=True)))
        text += "".join(e.text for e in done)
        written.append(token)
    assert text == "<<12*7="
    params = SamplingParams(temperature=0.0, max_new_tokens=12, logit_bias={call[-1]: 100.0})
    head = Request([*ids, *written[:-1]], params, NO_STOP, tools=True)
    assert "".join(e.text for e in scheduler.run(head)).startswith("=") or len(call) == 1
