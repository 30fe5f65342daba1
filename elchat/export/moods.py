"""A model with one of its moods frozen into the weights, so that other programs have it too."""

from __future__ import annotations

from dataclasses import replace

import torch

from elchat.autonomy import Autonomy
from elchat.autonomy.conversation import with_axes
from elchat.autonomy.fold import fold, preset
from elchat.autonomy.mood import AXES
from elchat.errors import DataError
from elchat.gpt import GPT
from elchat.weights import LoadedModel


def with_mood(loaded: LoadedModel, autonomy: Autonomy, name: str) -> LoadedModel:
    """An ordinary model whose logits are ours with that mood frozen; what is given is not changed.

    The named axes stand where the name says, the free dimensions at rest, as after `/humor NAME`
    in a new conversation.

    Raises:
        DataError: no such mood, or a model that was not taught any.
    """
    axes = preset(name)
    if autonomy.mood is None:
        raise DataError(
            "Este modelo no tiene estado de ánimo que exportar.",
            hint="Enséñale uno con elchat autonomy train MODELO, o quita --mood.",
        )
    rest = autonomy.mood.home.detach().float().numpy()
    vector = with_axes(rest, {axis: axes.get(axis, 0.0) for axis in AXES})
    gain = autonomy.settings.mood_gain or 1.0
    film_L3C = autonomy.mood.film_L3C(torch.from_numpy(vector), gain)
    config, state = fold(loaded.model.config, loaded.model.state_dict(), film_L3C)
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(state, assign=True)
    return replace(loaded, model=model.eval())
