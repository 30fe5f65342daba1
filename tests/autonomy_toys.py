"""A toy model with autonomy, and conversations with it run by the laboratory's decoder."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from elchat.autonomy import Autonomy, Conversation, Settings
from elchat.autonomy.mood import Mood, MoodShape
from elchat.autonomy.silence import Head
from elchat.gpt import GPT, GPTConfig, KVCache
from elchat.lab.decoder import Decoder, Sampling

SHAPE = GPTConfig(
    vocab_size=128,
    n_layers=4,
    d_model=32,
    d_ff=48,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    max_positions=512,
    rope_theta=1e4,
    norm_eps=1e-5,
)
STOP = 1
ALL_ON = Settings(
    stochastic_depth=0.6,
    noise_scale=0.02,
    stochastic_temp_var=0.2,
    mood_gain=1.0,
    max_silence_rate=0.3,
)
OFF = Settings()


def model(seed: int = 0, shape: GPTConfig = SHAPE) -> GPT:
    made = GPT(shape)
    made.init_weights(torch.Generator().manual_seed(seed), std=0.2)
    return made.eval()


def mood(seed: int = 0, dim: int = 64, shape: GPTConfig = SHAPE) -> Mood:
    """A cell and a modulation drawn at random: one that acts."""
    generator = torch.Generator().manual_seed(seed)
    made = Mood(MoodShape.of(shape, dim))
    made.init_weights(generator)
    with torch.no_grad():
        made.film.normal_(0.0, 0.05, generator=generator)
        made.home.normal_(0.0, 0.3, generator=generator)
    return made.requires_grad_(False)


def autonomy(seed: int = 0, dim: int = 64) -> Autonomy:
    head = Head(2 * SHAPE.d_model)
    with torch.no_grad():
        head.linear.bias.fill_(3.0)  # would nearly always be silent, if it were let
    return Autonomy(
        SHAPE,
        "modelo-de-juguete",
        skippable=(1, 2, 3),
        mood=mood(seed, dim),
        volition=head,
        settings=ALL_ON,
    )


@dataclass
class Talk:
    """A conversation in ids: user turns given, replies decoded, keys and values kept."""

    gpt: GPT
    talk: Conversation
    sampling: Sampling = field(default_factory=lambda: Sampling(0.9, max_new_tokens=8))
    ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    cache: KVCache | None = None

    def say(self, user_ids: list[int], text: str = "hola", **options) -> list[int]:
        """One turn; returns the reply's ids."""
        if self.cache is None:
            self.cache = KVCache(self.gpt.config, 1, 512)
        self.starts.append(len(self.ids))
        self.ids += user_ids
        hook = self.talk.turn(self.ids, self.starts, text=text, **options)
        decoder = Decoder(self.gpt, [STOP], self.gpt.config.vocab_size)
        written = decoder.write(self.ids, [hook], self.sampling, cache=self.cache)[0]
        self.ids += [*written.ids, STOP]
        return list(written.ids)


def user_turn(seed: int, n: int = 7) -> list[int]:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(2, 128, (n,), generator=generator).tolist()
