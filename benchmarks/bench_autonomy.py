"""What a mood costs while decoding one reply at a time: plain against every knob, same process.

    python benchmarks/bench_autonomy.py --model MODEL [--tokens 64] [--rounds 7]

Rounds alternate, so that a busy machine slows all arms alike; medians are compared. The mood of a
model that has none is random: its cost is the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from elchat.autonomy import Autonomy, Settings
from elchat.autonomy.mood import Mood, MoodShape
from elchat.lab.decoder import Decoder, Sampling
from elchat.weights import load_model

ARMS = {
    "sin autonomía": Settings(),
    "ánimo": Settings(mood_gain=1.0),
    "ruido": Settings(noise_scale=0.01),
    "profundidad": Settings(stochastic_depth=0.1),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    loaded = load_model(args.model, dtype=torch.float32)
    config = loaded.model.config
    mood = Mood(MoodShape.of(config))
    mood.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        mood.film.normal_(0.0, 0.01, generator=torch.Generator().manual_seed(1))
    skippable = tuple(range(mood.shape.appraisal_layers, config.n_layers - 2))
    autonomy = Autonomy(config, "prueba", skippable, mood=mood.requires_grad_(False))
    bare = Autonomy(config, "prueba", skippable)
    decoder = Decoder(loaded.model, [-1], loaded.tokenizer.vocab_size)
    message = [{"role": "user", "content": "Cuéntame algo del mar."}]
    ids = loaded.chat.render(message, add_generation_prompt=True).ids
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for round_ in range(args.rounds + 1):
        for arm, settings in ARMS.items():
            owner = bare if arm == "sin autonomía" else autonomy
            hook = owner.open(settings, seed=round_).turn(ids, [0], text="hola")
            began = time.perf_counter()
            decoder.write(ids, [hook], Sampling(0.0, max_new_tokens=args.tokens))
            if round_:  # the first one warms up
                times[arm].append((time.perf_counter() - began) / args.tokens)
    plain = statistics.median(times["sin autonomía"])
    extra = {}
    for arm, seconds in times.items():
        pairs = [a / b for a, b in zip(seconds, times["sin autonomía"], strict=True)]
        extra[arm] = 100 * (statistics.median(pairs) - 1)
        print(
            f"{arm:15s} {1000 * statistics.median(seconds):7.2f} ms por token  {extra[arm]:+.1f} %"
        )
    n = sum(p.numel() for p in mood.parameters())
    facts = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "model": str(args.model.name),
        "ms_per_token": 1000 * plain,
        "extra_percent": extra,
        "mood_parameters_percent": 100 * n / config.n_params,
        "rounds": args.rounds,
    }
    print(json.dumps(facts, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
