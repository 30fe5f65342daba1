"""What a mood costs while decoding one reply at a time: plain against each knob, in the engine.

    python benchmarks/bench_autonomy.py --model MODEL [--weights int8] [--tokens 64] [--rounds 15]

Rounds take the arms in turn, so that a busy machine slows all alike; the ratio to plain of each
round is taken and its median is shown, with a 95 % interval by resampling rounds. The mood is
random: its cost is that of a trained one. Prints a table and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
from pathlib import Path

import numpy as np
import torch

from elchat.autonomy import Autonomy, Settings
from elchat.autonomy.mood import Mood, MoodShape
from elchat.engine import Engine, Request, load_engine
from elchat.sampling import SamplingParams
from elchat.scheduler import Scheduler

PLAIN = "sin autonomía"
ARMS = {
    PLAIN: None,
    "ánimo": Settings(mood_gain=1.0),
    "ruido": Settings(noise_scale=0.01),
    "profundidad": Settings(stochastic_depth=0.1),
}


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(argv)
    engine = load_engine(args.model, weights=args.weights)
    autonomy = with_random_mood(engine)
    assert autonomy.mood is not None
    ms: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with contextlib.closing(Scheduler(engine, max_rows=1, max_queue=1)) as scheduler:
        for round_ in range(args.rounds + 1):
            for arm, settings in ARMS.items():
                seconds = decode(scheduler, autonomy, settings, args.tokens, round_)
                if round_:  # the first one warms up
                    ms[arm].append(1000 * seconds / args.tokens)
    extra = {arm: overhead(times, ms[PLAIN]) for arm, times in ms.items()}
    for arm, times in ms.items():
        median, low, high = extra[arm]
        print(
            f"{arm:15s} {statistics.median(times):7.2f} ms por token  "
            f"{median:+.1f} % [{low:+.1f}, {high:+.1f}]"
        )
    n = sum(p.numel() for p in autonomy.mood.parameters())
    facts = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "model": args.model.name,
        "weights": engine.weights,
        "is_compiled": engine.is_compiled,
        "ms_per_token": statistics.median(ms[PLAIN]),
        "extra_percent": extra,
        "mood_parameters_percent": 100 * n / engine.config.n_params,
        "rounds": args.rounds,
        "tokens": args.tokens,
    }
    print(json.dumps(facts, ensure_ascii=False))
    return 0


def with_random_mood(engine: Engine) -> Autonomy:
    """Autonomy with a modulation drawn at random and everything above the appraisal skippable."""
    mood = Mood(MoodShape.of(engine.config))
    mood.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        mood.film.normal_(0.0, 0.01, generator=torch.Generator().manual_seed(1))
    skippable = tuple(range(mood.shape.appraisal_layers, engine.config.n_layers - 2))
    return Autonomy(engine.config, "prueba", skippable, mood=mood.requires_grad_(False))


def decode(
    scheduler: Scheduler, autonomy: Autonomy, settings: Settings | None, n: int, seed: int
) -> float:
    """Seconds to decode one reply of `n` tokens, its prompt not counted."""
    engine = scheduler.engine
    message = [{"role": "user", "content": "Cuéntame algo del mar."}]
    prompt = engine.prompt(message)
    hook = None
    if settings is not None:
        hook = autonomy.open(settings, seed=seed).turn(prompt.ids, prompt.turn_starts, text="hola")
    params = SamplingParams(temperature=0.0, max_new_tokens=n, seed=seed)
    events = list(scheduler.run(Request(prompt.ids, params, frozenset(), hook=hook)))
    usage = events[-1].usage
    assert usage is not None
    assert usage.completion_tokens == n
    return usage.seconds_decode


def overhead(times: list[float], plain: list[float]) -> tuple[float, float, float]:
    """Median extra percent over the rounds, and its interval."""
    ratios = np.array(times) / np.array(plain)
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, 1), (0.025, 0.975))
    return tuple(100 * (float(x) - 1) for x in (np.median(ratios), low, high))  # type: ignore[return-value]


if __name__ == "__main__":
    raise SystemExit(main())
