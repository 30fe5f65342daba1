"""What structural autonomy adds to the stages of a run: knobs while training, then a mood."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from elchat.autonomy import Autonomy, Settings, store
from elchat.autonomy.mood import appraisal_layers
from elchat.autonomy.training_knobs import TrainingKnobs
from elchat.config import Config
from elchat.data.sources import Conversation, iter_documents
from elchat.gpt import GPT
from elchat.lab import ablation, texts, volition
from elchat.philox import Dice
from elchat.training import mood_data
from elchat.training.mood import MoodRecipe, train_mood
from elchat.training.reporter import Reporter
from elchat.weights import LoadedModel

ABLATION_TOKENS = 2000
COMPOSED = 240  # conversations that teach the axes; the run's own come on top
OWN_CONVERSATIONS = 200
OWN_DOCUMENTS, READ_DOCUMENTS, LONG_CHARS = 60, 300, 800  # a mood learns from long texts too


def is_on(config: Config) -> bool:
    """Whether this run has any autonomy."""
    training = config.training
    knobs = (training.stochastic_depth, training.noise_scale, training.stochastic_temp_var)
    return config.autonomy.enabled and bool(any(knobs) or training.mood_dim)


def trains_knobs(config: Config) -> bool:
    """Whether the weights are trained with depth or noise on."""
    layers = config.training.stochastic_depth or config.training.noise_scale
    return is_on(config) and config.autonomy.edition == "full" and bool(layers)


def find_skippable(loaded: LoadedModel, config: Config, reporter: Reporter) -> dict[str, Any]:
    """The layers that may be skipped, measured on the model training starts from."""
    if not is_on(config) or not config.training.stochastic_depth:
        return {"skippable": []}
    model = loaded.model.float()
    documents = texts.read_documents(
        loaded, Path(texts.DEFAULT_TEXTS["es"]), max_tokens=ABLATION_TOKENS
    )
    found = ablation.ablate(model, documents)
    shown = ", ".join(map(str, found.skippable))
    reporter.log(f"[data] capas que se pueden saltar: {shown} ({found.n_tokens} tokens)")
    notes = {
        "base_nats": found.base_nats,
        "extra_nats": list(found.extra_nats),
        "n_tokens": found.n_tokens,
        "skippable": list(found.skippable),
    }
    return {"skippable": list(found.skippable), "ablation": notes}


def knobs_of(config: Config, stage: str, model: GPT, skippable: list[int]) -> TrainingKnobs | None:
    """Depth and noise for one stage; None trains the plain model."""
    if not trains_knobs(config):
        return None
    shape, training = model.config, config.training
    return TrainingKnobs(
        dice=Dice(training.seed, f"entrenamiento-{stage}"),
        n_layers=shape.n_layers,
        width=shape.d_model,
        first_layer=appraisal_layers(shape.n_layers),
        p_max=min(1.0, config.autonomy.training_depth_factor * training.stochastic_depth),
        max_skips=config.autonomy.max_skips,
        skippable=tuple(skippable),
        noise_scale=training.noise_scale,
        ramps=stage == "cpt",
    )


def teach_mood(
    loaded: LoadedModel, config: Config, reporter: Reporter, root: Path, skippable: list[int]
) -> tuple[Autonomy, dict[str, Any]] | None:
    """A mood for the trained weights (which stay as they are), or None if stopped."""
    autonomy = Autonomy(
        loaded.model.config, "", tuple(skippable), settings=Settings.from_config(config)
    )
    if not config.training.mood_dim:
        return autonomy, {}
    recipe = MoodRecipe(
        max_tokens=config.autonomy.mood_tokens,
        dim=config.training.mood_dim,
        seed=config.training.seed,
        stage=1 if config.autonomy.edition == "full" else 0,
    )
    talks = [*_own(config), *mood_data.compose(COMPOSED, seed=config.training.seed)]
    trained = train_mood(
        loaded,
        talks,
        recipe,
        documents=_documents(config),
        root=root,
        log=reporter.log,
        should_stop=reporter.should_stop,
    )
    if trained is None:
        return None
    mood, report = trained
    taught = replace(autonomy, mood=mood)
    notes: dict[str, Any] = {"recipe": asdict(recipe), "report": vars(report)}
    if config.autonomy.max_silence_rate:
        taught.volition, notes["volition"] = volition.teach(loaded, taught)
        told = 100 * notes["volition"]["accuracy"]
        reporter.log(f"[ánimo] cuándo callar: acierta {told:.0f} % de lo apartado")
    return taught, notes


def write(autonomy: Autonomy, folder: Path, notes: dict[str, Any]) -> list[Path]:
    """Put autonomy.safetensors and autonomy.json beside the weights; their paths."""
    store.save(autonomy, folder, notes=notes)
    paths = [folder / name for name in (store.WEIGHTS_FILE, store.FACTS_FILE)]
    return [path for path in paths if path.exists()]


def _documents(config: Config) -> list[str]:
    """Some of the long texts the run reads in continued pretraining, if it does."""
    if config.autonomy.edition != "full" or not config.training.cpt.enabled:
        return []
    found: list[str] = []
    for source in config.data.cpt:
        for item in islice(iter_documents(source, kind="cpt"), READ_DOCUMENTS):
            if len(item.text) > LONG_CHARS:
                found.append(item.text)
    return found[:OWN_DOCUMENTS]


def _own(config: Config) -> list[list[mood_data.Exchange]]:
    """Some of the run's own conversations: their styles teach too."""
    found: list[list[dict[str, str]]] = []
    for source in config.data.sft:
        for item in iter_documents(source, kind="sft"):
            assert isinstance(item, Conversation)
            found.append(list(item.messages))
            if len(found) >= OWN_CONVERSATIONS:
                return mood_data.from_messages(found)
    return mood_data.from_messages(found)
