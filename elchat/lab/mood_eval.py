"""Is the mood real: does it cause, does it last, does it survive losing the transcript.

Every question has its controls: a placebo (random modulation of the same norm, layer by layer), a
mood trained on shuffled labels, and for the amnesia a reset. The ear is `elchat.lab.scorer`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elchat.autonomy import Autonomy, Conversation, Settings
from elchat.autonomy.mood import AXES, PRESENCE, Mood, half_life
from elchat.chat_format import Message
from elchat.files import write_json
from elchat.lab.scorer import scorer
from elchat.lab.stats import mean_bootstrap, paired_permutation_p, slope_bootstrap
from elchat.lab.writer import Ask, Progress, Writer
from elchat.sampling import SamplingParams
from elchat.weights import LoadedModel

DOSES = (-2.0, -1.0, 0.0, 1.0, 2.0)  # valence, in the mood's own units
DATA = Path(__file__).parent / "data"
EVENTS = ("elogio", "insulto")
RESETS = 8
CALM_REPLY = "Bueno, seguimos."
SAMPLING = SamplingParams(temperature=0.7, top_p=0.95, top_k=100, max_new_tokens=32)
GAIN = Settings(mood_gain=1.0)
ALL_ON = Settings(stochastic_depth=0.1, noise_scale=0.01, stochastic_temp_var=0.2, mood_gain=1.0)


def placebo(mood: Mood, seed: int) -> Mood:
    """The same mood with its modulation drawn at random: equal norm for each layer and effect."""
    fake = copy.deepcopy(mood)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        e, k, m = fake.film.shape
        parts = fake.film.view(e, 3, k // 3, m)
        noise = torch.randn(parts.shape, generator=generator)
        noise[..., PRESENCE + 1 :] = (
            0.0 if not parts[..., PRESENCE + 1 :].any() else noise[..., PRESENCE + 1 :]
        )
        size = parts.pow(2).sum((2, 3), keepdim=True).sqrt()
        parts.copy_(noise * size / noise.pow(2).sum((2, 3), keepdim=True).sqrt())
    return fake


def neutral_questions(n: int) -> list[str]:
    """Questions with nothing in them to be glad or sad about; no mood was ever trained on them."""
    return (DATA / "neutras.txt").read_text(encoding="utf-8").splitlines()[:n]


def blows() -> dict[str, list[str]]:
    """Praise ("elogio") and insults ("insulto") that no mood was trained on."""
    found: dict[str, list[str]] = {}
    for line in (DATA / "golpes.tsv").read_text(encoding="utf-8").splitlines():
        event, _, message = line.partition("\t")
        found.setdefault(event, []).append(message)
    return found


class Speaker:
    """Puts user messages to a model in given moods and hears the replies."""

    def __init__(self, loaded: LoadedModel, autonomy: Autonomy, writer: Writer) -> None:
        self.loaded, self.autonomy, self.writer = loaded, autonomy, writer
        self.ear = scorer()

    def prompt(self, text: str) -> list[int]:
        """Ids of a conversation with one message."""
        message = [{"role": "user", "content": text}]
        return self.loaded.chat.render(message, add_generation_prompt=True).ids

    def ask(self, text: str, vector: np.ndarray, *, seed: int) -> Ask:
        """A message met in a mood; the dice depend on the seed and the message alone."""
        ids = self.prompt(text)
        talk = self.autonomy.open(GAIN, seed=seed, conversation=text)
        talk.pinned, talk.is_exact = vector.astype(np.float32), True
        return Ask(ids, SAMPLING, talk.turn(ids, [0], text=text))

    def live(self, messages: Sequence[str], replies: Sequence[str], *, seed: int) -> Conversation:
        """The moods of a conversation whose replies are given, not generated."""
        talk = self.autonomy.open(GAIN, seed=seed, conversation="vivida")
        model, a = self.loaded.model, self.autonomy.appraisal_layers
        history: list[dict[str, str]] = []
        starts: list[int] = []
        for message, reply in zip(messages, replies, strict=True):
            history.append({"role": "user", "content": message})
            ids = self.loaded.chat.render(history, add_generation_prompt=True).ids
            history.append({"role": "assistant", "content": reply})
            whole = self.loaded.chat.render(history).ids
            starts.append(_turn_start(self.loaded, history[:-2]))
            hook = talk.turn(ids, starts, text=message)
            with torch.no_grad():
                ids_BT = torch.tensor([whole])
                low = model.run_layers(
                    model.model.embed_tokens(ids_BT), model.plan(ids_BT), range(a)
                )[0]
            hook.appraise(low[starts[-1] : len(ids)])
            for step, state in enumerate(low[len(ids) : -2]):
                hook.wrote(step, 0, state)
            hook.end("stop")
        return talk


def _turn_start(loaded: LoadedModel, history: Sequence[Mapping[str, str]]) -> int:
    return len(loaded.chat.render(list(history)).ids) if history else 0


def dose_response(
    speaker: Speaker,
    *,
    n_questions: int = 40,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Valence imposed on the mood at rest, valence heard: slope, interval, some replies."""
    questions = neutral_questions(n_questions)
    asks = []
    for question in questions:
        for dose in DOSES:
            vector = home(speaker.autonomy).astype(np.float32)
            vector[AXES.index("valence")] = dose
            asks.append(speaker.ask(question, vector, seed=seed))
    replies = speaker.writer.write(asks, progress)
    n = len(DOSES)
    heard = np.array([speaker.ear(reply) for reply in replies]).reshape(-1, n)
    doses = np.tile(np.array(DOSES), (len(questions), 1))
    return {
        "slope": slope_bootstrap(doses, heard, seed=seed).to_json(),
        "means": heard.mean(0).tolist(),
        "heard": heard.tolist(),
        "doses": list(DOSES),
        "samples": {q: replies[i * n : (i + 1) * n] for i, q in enumerate(questions[:4])},
    }


def home(autonomy: Autonomy) -> np.ndarray:
    """The mood at rest."""
    assert autonomy.mood is not None
    return autonomy.mood.home.detach().numpy().copy()


def shock(speaker: Speaker, *, n: int = 12, quiet_turns: int = 8, seed: int = 0) -> dict[str, Any]:
    """Insult against praise, then neutral turns: how the difference in valence fades.

    The half-life is read from the straight line through ln(difference) over the turns after the
    blow, as far as the difference stays above a twentieth of the first.
    """
    said_to, mood = blows(), speaker.autonomy.mood
    assert mood is not None
    questions = neutral_questions(quiet_turns)
    curves = {}
    for event in EVENTS:
        rows = []
        for i in range(n):
            messages = said_to[event]
            blow = [messages[i % len(messages)], messages[(i + 5) % len(messages)]]
            said = [*blow, *questions]
            talk = speaker.live(said, [CALM_REPLY] * len(said), seed=seed + i)
            rows.append([float(r.mood[0]) for r in talk.records[1:] if r.mood is not None])
        curves[event] = np.array(rows)
    difference = curves["elogio"] - curves["insulto"]
    mean = difference.mean(0)
    k = np.arange(len(mean))
    kept = (mean > mean[0] / 20) & (np.cumsum(mean <= 0) == 0)
    measured = None
    if mean[0] > 0 and kept.sum() >= 3:
        rate = -np.polyfit(k[kept], np.log(mean[kept]), 1)[0]
        measured = float(np.log(2.0) / rate) if rate > 0 else None
    designed = half_life(float(mood.tau[0].detach()))
    return {
        "first_difference": mean_bootstrap(difference[:, 0].tolist()).to_json(),
        "curve": mean.tolist(),
        "designed_half_life": designed,
        "measured_half_life": measured,
        "n": n,
    }


def trail(speaker: Speaker, *, quiet_turns: int = 8, seed: int = 0) -> dict[str, Any]:
    """Valence and arousal turn by turn: twice praised or insulted, then neutral turns."""
    said_to, rest = blows(), home(speaker.autonomy)
    found: dict[str, Any] = {"home": [float(rest[0]), float(rest[1])]}
    for event in EVENTS:
        said = [*said_to[event][:2], *neutral_questions(quiet_turns)]
        talk = speaker.live(said, [CALM_REPLY] * len(said), seed=seed)
        moods = [record.mood for record in talk.records if record.mood is not None]
        found[event] = [[float(mood[0]), float(mood[1])] for mood in moods]
    return found


def receipts(speaker: Speaker, *, n: int = 4, turns: int = 3) -> list[dict[str, Any]]:
    """Conversations with every knob on, lived twice: the hash of each and whether it came back."""
    questions, rows = neutral_questions(n * turns), []
    for i in range(n):
        said = questions[i * turns : (i + 1) * turns]
        once, again = (converse(speaker, said, seed=i) for _ in range(2))
        digests = [hashlib.sha256("\n".join(one).encode()).hexdigest() for one in (once, again)]
        rows.append(
            {"turns": turns, "sha256": digests[0], "is_identical": digests[0] == digests[1]}
        )
    return rows


def converse(speaker: Speaker, said: Sequence[str], *, seed: int) -> list[str]:
    """The replies, and after each the mood it left, of a conversation with every knob on."""
    talk = speaker.autonomy.open(ALL_ON, seed=seed, conversation="recibo")
    history: list[Message] = []
    found: list[str] = []
    for message in said:
        history.append({"role": "user", "content": message})
        prompt = speaker.loaded.chat.render(history, add_generation_prompt=True)
        hook = talk.turn(prompt.ids, list(prompt.turn_starts), text=message)
        (reply,) = speaker.writer.write([Ask(prompt.ids, SAMPLING, hook)])
        history.append({"role": "assistant", "content": reply})
        found += [reply, talk.mood.to_bytes().hex()]
    return found


def amnesia(
    speaker: Speaker,
    *,
    n_pairs: int = 70,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """After praise or insult the transcript is deleted; only 256 bytes stay. Is it heard?

    Arms, with the same dice on both sides: praise against insult; two conversations of one event
    (`same_event`: it must vanish); both reset to the mood at rest (`reset`: zero by construction,
    there to catch a mistake).
    """
    said_to, questions = blows(), neutral_questions(40)
    pairs = []
    for i in range(n_pairs):
        opened = {}
        for event in EVENTS:
            messages = said_to[event]
            said = [messages[(i + j * 5) % len(messages)] for j in range(3)]
            talk = speaker.live(said, [CALM_REPLY] * 3, seed=seed * 1000 + i)
            saved = talk.mood.to_bytes()
            opened[event] = speaker.autonomy.open(GAIN, seed=i, mood=saved).vector
        pairs.append([opened[event] for event in EVENTS])
        progress(i + 1, n_pairs)
    rest = home(speaker.autonomy)
    arms = {
        "differences": pairs,
        "same_event": [[pairs[i - 1][i % 2], pairs[i][i % 2]] for i in range(n_pairs)],
        "reset": [[rest, rest]] * min(n_pairs, RESETS),
    }
    found: dict[str, Any] = {
        "state_valence_difference": [float(praised[0] - insulted[0]) for praised, insulted in pairs]
    }
    for name, vectors in arms.items():
        asks = [
            speaker.ask(questions[(i * 7) % len(questions)], vector, seed=seed + i)
            for i, pair in enumerate(vectors)
            for vector in pair
        ]
        heard = [speaker.ear(reply) for reply in speaker.writer.write(asks, progress)]
        found[name] = [a - b for a, b in zip(heard[::2], heard[1::2], strict=True)]
    return found


def judge_amnesia(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All seeds together: mean difference, its interval and its permutation p; and the controls."""
    facts: dict[str, Any] = {
        "by_seed": [float(np.mean(run["differences"])) for run in runs],
        "n_pairs": sum(len(run["differences"]) for run in runs),
        "n_seeds": len(runs),
    }
    parts = {
        "mean": "differences",
        "state": "state_valence_difference",
        "same_event": "same_event",
        "reset": "reset",
    }
    for name, key in parts.items():
        pairs = [d for run in runs for d in run.get(key, [])]
        facts[name] = mean_bootstrap(pairs).to_json()
        facts["p" if name == "mean" else f"p_{name}"] = paired_permutation_p(pairs)
    clusters = [mean for run in runs for mean in by_blows(run["differences"])]
    facts["n_clusters"] = len(clusters)
    facts["p_clustered"] = paired_permutation_p(clusters)
    return facts


def by_blows(differences: Sequence[float]) -> list[float]:
    """Mean difference of the pairs that were praised and insulted alike: the blows are few."""
    n = len(blows()[EVENTS[0]])
    return [float(np.mean(differences[i::n])) for i in range(min(n, len(differences)))]


def with_mood(autonomy: Autonomy, mood: Mood) -> Autonomy:
    """The same autonomy with another mood (a control)."""
    return replace(autonomy, mood=mood, model_id=autonomy.model_id + "-control")


def evaluate(
    loaded: LoadedModel,
    autonomy: Autonomy,
    path: Path,
    *,
    seed: int,
    n_questions: int = 40,
    n_pairs: int = 70,
    progress: Callable[[str], Progress],
) -> dict[str, Any]:
    """Everything about one training seed; parts already in `path` are kept: it can be resumed."""
    assert autonomy.mood is not None
    facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"seed": seed}
    writer = Writer(loaded)
    real = Speaker(loaded, autonomy, writer)
    fake = Speaker(loaded, with_mood(autonomy, placebo(autonomy.mood, seed)), writer)

    def dose(speaker: Speaker, name: str) -> dict[str, Any]:
        return dose_response(speaker, n_questions=n_questions, seed=seed, progress=progress(name))

    parts: dict[str, Callable[[], Any]] = {
        "dose": lambda: dose(real, "dosis"),
        "placebo": lambda: dose(fake, "placebo"),
        "shock": lambda: shock(real, seed=seed),
        "trail": lambda: trail(real, seed=seed),
        "receipts": lambda: receipts(real),
        "amnesia": lambda: amnesia(real, n_pairs=n_pairs, seed=seed, progress=progress("amnesia")),
    }
    for name, run in parts.items():
        if name not in facts:
            facts[name] = run()
            write_json(path, facts)
    return facts
