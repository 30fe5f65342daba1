"""The turn hook, with a fake in the place of autonomy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from elchat.engine import Engine, Event, Request
from elchat.hooks import Decision, Film, LayerEffect, RowEffects
from elchat.philox import Dice
from elchat.sampling import SamplingParams
from elchat.scheduler import Scheduler
from tests import toys
from tests.unit.test_engine import NO_STOP, RUNNERS, Listener, make_engine, prompt, tokens_of

LOW, LAYERS, WIDTH = 1, 3, 64
PARAMS = SamplingParams(temperature=0.0, max_new_tokens=14, logprobs=0)


class Fake:
    """A turn hook that writes down what it is asked, and answers from fixed tensors."""

    def __init__(
        self, *, turn_start: int = 0, size: float = 0.0, skips: tuple[int, ...] = ()
    ) -> None:
        self.dice, self.turn = Dice(11, "charla"), 2
        self.turn_start, self.appraisal_layers = turn_start, LOW
        self.calls: list[Any] = []
        self.low: list[torch.Tensor] = []
        self.states = torch.empty(0)
        self.decision = Decision()
        generator = torch.Generator().manual_seed(5)
        self.noise = size * torch.randn(LAYERS, WIDTH, generator=generator)
        self.film = size * torch.randn(LAYERS, 3, WIDTH, generator=generator)
        self.noise[:LOW], self.film[:LOW] = 0, 0
        self.kept = tuple(i not in skips for i in range(LAYERS))

    def appraise(self, states_TC: torch.Tensor) -> None:
        self.calls.append("appraise")
        self.states = states_TC.clone()

    def prefill(self, start: int, end: int) -> Fake:
        self.calls.append(("prefill", start, end))
        return self

    def effect(self, layer: int) -> LayerEffect | None:  # prompts: the mood, without skips
        film = Film(*(part[None, None] for part in self.film[layer]))
        return LayerEffect(noise_BTC=self.noise[layer][None, None], film=film)

    def decide(self, middle_C, top_C, logits_V) -> Decision:
        self.calls.append("decide")
        self.decided = (middle_C.clone(), top_C.clone(), logits_V.clone())
        return self.decision

    def temperature(self, base: float) -> float:
        self.calls.append(("temperature", base))
        return base

    def effects(self, step: int) -> RowEffects:
        self.calls.append(("effects", step))
        return RowEffects(self.kept, self.noise, self.film)

    def wrote(self, step: int, token: int, low_C: torch.Tensor) -> None:
        self.calls.append(("wrote", step, token))
        self.low.append(low_C.clone())

    def end(self, finish: str) -> None:
        self.calls.append(("end", finish))


def run(
    scheduler: Scheduler, ids: list[int], hook: Any, params: SamplingParams = PARAMS, **more: Any
) -> list[Event]:
    request = Request(ids, params, NO_STOP, hook=hook, conversation="charla", **more)
    return list(scheduler.run(request))


@pytest.fixture(params=RUNNERS)
def engine(request) -> Engine:
    return make_engine("smollm", request.param)


@pytest.fixture
def scheduler(engine):
    scheduler = Scheduler(engine, max_rows=3)
    yield scheduler
    scheduler.close()


def test_every_point_is_called_in_its_order(scheduler):
    hook = Fake(turn_start=9)
    written = tokens_of(run(scheduler, prompt(0, 20), hook))
    n = len(written)
    expected: list[Any] = [("prefill", 0, 9), "appraise", ("prefill", 9, 20), "decide"]
    expected.append(("temperature", 0.0))
    for step in range(n - 1):  # the last token does not go through the model
        expected += [("effects", step), ("wrote", step, written[step])]
    assert hook.calls == [*expected, ("end", "length")]


def test_zeros_are_the_plain_model(scheduler):
    ids = prompt(0, 20)
    plain = run(scheduler, ids, None)
    # In torch, products of 9 and 11 rows round otherwise than one of 20.
    hooked = run(scheduler, ids, Fake(turn_start=9 if scheduler.engine.is_compiled else 0))
    assert [(t.id, t.logprob) for e in plain for t in e.tokens] == [
        (t.id, t.logprob) for e in hooked for t in e.tokens
    ]


def test_what_the_hook_sees_is_the_model(scheduler):
    hook, ids = Fake(turn_start=9), prompt(0, 20)
    written = tokens_of(run(scheduler, ids, hook))
    model = toys.loaded("smollm").model
    with torch.no_grad():
        whole = torch.tensor([ids + written])
        low = model.run_layers(model.model.embed_tokens(whole), model.plan(whole), range(LOW))[0]
        hidden = model.hidden(whole)[0]
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(hook.states, low[9:20], **close)
    torch.testing.assert_close(hook.decided[0], low[19], **close)
    torch.testing.assert_close(hook.decided[1], hidden[19], **close)
    torch.testing.assert_close(torch.stack(hook.low), low[20 : 20 + len(hook.low)], **close)


def recomputed(hook: Fake, ids: list[int], written: list[int]) -> list[int]:
    """The same reply with nothing cached: prompt and reply in one pass for each token."""

    class Whole:
        def effect(self, layer: int) -> LayerEffect:
            n, m = len(ids), len(ids) + count
            keep = torch.ones(1, m, 1, dtype=torch.bool)
            keep[:, n:] = hook.kept[layer]
            return LayerEffect(keep, False, hook.noise[layer][None, None],
                               Film(*(part[None, None] for part in hook.film[layer])))  # fmt: skip

    model, out = toys.loaded("smollm").model, []
    vocabulary = toys.tokenizer("smollm").vocab_size
    with torch.no_grad():
        for count in range(len(written)):
            logits = model(torch.tensor([ids + written[:count]]), hook=Whole())
            out.append(int(logits[0, -1, :vocabulary].argmax()))
    return out


@pytest.mark.parametrize("skips", [(), (1,), (1, 2)])
def test_token_by_token_equals_a_full_recompute(scheduler, skips):
    hook, ids = Fake(turn_start=9, size=0.3, skips=skips), prompt(0, 20)
    written = tokens_of(run(scheduler, ids, hook))
    assert written == recomputed(hook, ids, written)
    assert written != tokens_of(run(scheduler, ids, None))


def test_rows_with_different_effects_do_not_disturb_each_other(scheduler):
    def hooks() -> list[Any]:
        return [Fake(turn_start=4, size=0.3, skips=(1,)), None, Fake(turn_start=0, size=0.6)]

    prompts = [prompt(seed, n) for seed, n in enumerate((12, 20, 9))]
    alone = [
        tokens_of(run(scheduler, ids, hook)) for ids, hook in zip(prompts, hooks(), strict=True)
    ]
    listeners = [Listener() for _ in prompts]
    for i, (ids, hook) in enumerate(zip(prompts, hooks(), strict=True)):
        request = Request(ids, PARAMS, NO_STOP, hook=hook, conversation=f"otra {i}")
        scheduler.submit(request, listeners[i])
    assert [tokens_of(listener.wait()) for listener in listeners] == alone


class Steady(Fake):
    """The same effects object at every step, as a mood without noise has."""

    def effects(self, step: int) -> RowEffects:
        if not hasattr(self, "steady"):
            self.steady = super().effects(step)
        return self.steady


def test_effects_that_stay_are_laid_out_once_and_change_nothing(scheduler):
    """Rows come and go beside each other, so the set of rows changes between steps too."""
    made = [dict(size=0.3, skips=(1,)), dict(size=0.6), dict(turn_start=4, size=0.1)]
    prompts = [prompt(seed, n) for seed, n in enumerate((12, 20, 9))]
    lengths = [replace(PARAMS, max_new_tokens=n) for n in (4, 9, 14)]
    found = []
    for kind in (Fake, Steady):
        listeners = [Listener() for _ in prompts]
        for i, (ids, options) in enumerate(zip(prompts, made, strict=True)):
            request = Request(
                ids, lengths[i], NO_STOP, hook=kind(**options), conversation=f"{kind} {i}"
            )
            scheduler.submit(request, listeners[i])
        found.append([tokens_of(listener.wait()) for listener in listeners])
    assert found[0] == found[1]
    assert len(set(map(tuple, found[0]))) == 3


def test_history_is_reused_by_its_own_conversation_only(scheduler):
    ids = prompt(0, 20)
    written = tokens_of(run(scheduler, ids, Fake(turn_start=0, size=0.2)))
    longer = [*ids, *written[:-1], *prompt(1, 6)]
    start = len(ids) + len(written) - 1
    same = run(scheduler, longer, Fake(turn_start=start, size=0.2))
    assert same[-1].usage.cached_tokens == start
    assert run(scheduler, longer, None)[-1].usage.cached_tokens < 5
    again = run(scheduler, longer, Fake(turn_start=10, size=0.2))
    assert again[-1].usage.cached_tokens == 10  # a turn to be appraised is always read


@pytest.mark.parametrize(("act", "text"), [("abstained", "No lo sé."), ("silent", "")])
def test_a_turn_that_is_not_answered(scheduler, act, text):
    hook = Fake(turn_start=9)
    hook.decision = Decision(act, p=0.9, draw=0.1, ceiling=0.5, reason="prueba", text=text)
    events = run(scheduler, prompt(0, 20), hook)
    assert events[-1].finish == act
    assert "".join(e.text for e in events) == text
    assert events[-1].decision == hook.decision
    assert events[-1].usage.completion_tokens == 0
    assert hook.calls[-1] == ("end", act)


def test_the_reply_has_the_temperature_and_the_dice_of_the_hook(scheduler):
    class Hot(Fake):
        def temperature(self, base: float) -> float:
            return base + 1.0

    first, second = (tokens_of(run(scheduler, prompt(0, 20), Hot(turn_start=9))) for _ in range(2))
    assert first == second
    assert first != tokens_of(run(scheduler, prompt(0, 20), Fake(turn_start=9)))


@pytest.mark.parametrize("point", ["appraise", "prefill", "decide", "effects", "wrote", "end"])
def test_a_hook_that_fails_ends_its_own_reply_only(scheduler, point):
    class Broken(Fake):
        pass

    def fail(*_: Any) -> None:
        hook.calls.append(point)
        raise RuntimeError("roto")

    hook = Broken(turn_start=9)
    setattr(hook, point, fail)
    listener, broken = Listener(), Listener()
    scheduler.submit(Request(prompt(0, 20), PARAMS, NO_STOP, hook=hook, conversation="a"), broken)
    scheduler.submit(Request(prompt(1, 12), PARAMS, NO_STOP), listener)
    assert broken.wait()[-1].finish == "error"
    assert "roto" in broken.events[-1].error
    assert listener.wait()[-1].finish == "length"
    assert sum(call == "end" or call[0] == "end" for call in hook.calls) == 1


def test_a_cancelled_turn_ends_once(scheduler):
    hook = Fake(turn_start=9)
    listener = Listener()
    request = Request(prompt(0, 20), PARAMS, NO_STOP, hook=hook)
    ticket = scheduler.submit(request, listener)
    ticket.cancel()
    listener.wait()
    assert sum(call[0] == "end" for call in hook.calls) == 1
