"""Measure and give structural autonomy to a finished model.

    python -m scripts.autonomy ablate|cost|train|evaluate|diversity|abstain|card MODEL [options]

What `elchat autonomy` starts; the work is elchat.lab's and elchat.training.mood's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from elchat.autonomy import Autonomy, store
from elchat.autonomy.settings import CHAT_SILENCE_RATE
from elchat.errors import DataError, ElchatError
from elchat.files import write_json
from elchat.lab import ablation, abstention, card, cost, diversity, mood_eval, texts, volition
from elchat.training import mood_data
from elchat.training.mood import MoodRecipe, train_mood
from elchat.weights import LoadedModel, load_model
from scripts.arguments import Parser, tell

Arguments = argparse.Namespace


def main(argv: list[str] | None = None) -> int:
    """Run one of the actions and return the exit code."""
    parser = Parser("autonomy", "Mide y enseña la autonomía estructural de un modelo terminado.")
    parser.add_argument("action", choices=list(ACTIONS))
    parser.add_argument("model", type=Path, help="carpeta de un modelo o archivo GGUF")
    parser.add_argument("--to", type=Path, help="dónde se escribe; junto al modelo, si no se dice")
    parser.add_argument("--spanish", type=Path, help="texto español con el que medir")
    parser.add_argument("--english", type=Path, help="texto inglés con el que medir")
    parser.add_argument("--skippable", type=int, nargs="*", help="capas, en vez de las escritas")
    parser.add_argument("--tokens", type=int, help="tokens por idioma")
    parser.add_argument("--conversations", type=int, default=240, help="con las que se entrena")
    parser.add_argument("--stage", type=int, choices=[0, 1], default=0, help="1: también lo libre")
    parser.add_argument("--bf16", action="store_true", help="entrena en bf16")
    parser.add_argument("--shuffled", action="store_true", help="control: etiquetas barajadas")
    parser.add_argument("--questions", type=int, default=40, help="preguntas o peticiones")
    parser.add_argument("--pairs", type=int, default=70, help="pares de la prueba de amnesia")
    parser.add_argument("--alpha", type=float, default=0.1, help="tope de contestar mal")
    parser.add_argument("--seeds", type=Path, nargs="*", help="carpetas de las otras semillas")
    parser.add_argument("--shuffled-from", type=Path, help="carpeta del control barajado")
    parser.add_argument("--draws", type=int, default=2, help="sorteos de cada texto, en los costes")
    parser.add_argument("--label", default="", help="nombre de la medición, para comparar")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args(argv)
    try:
        answer, text = ACTIONS[args.action](args)
    except ElchatError as error:
        return tell(error)
    except KeyboardInterrupt:
        print("\nInterrumpido: lo escrito hasta ahora está entero.", file=sys.stderr)
        return 130
    print(json.dumps(answer, ensure_ascii=False, indent=2) if args.as_json else text)
    return 0


def run_ablate(args: Arguments) -> tuple[Any, str]:
    """Find the layers that can be skipped and write them with the model."""
    loaded, autonomy, folder = open_model(args)
    documents = read_texts(loaded, args, 2000)["es"]
    began = time.monotonic()
    found = ablation.ablate(loaded.model, documents, progress=Ticker("capas").show)
    autonomy.skippable = found.skippable
    notes = {
        "base_nats": found.base_nats,
        "extra_nats": list(found.extra_nats),
        "n_tokens": found.n_tokens,
        "n_documents": len(documents),
        "skippable": list(found.skippable),
        "seconds": round(time.monotonic() - began, 1),
    }
    store.save(autonomy, folder, model_path=args.model, notes={"ablation": notes})
    lines = [f"pérdida sin saltar: {found.base_nats:.3f} nats por token ({found.n_tokens} tokens)"]
    lines += [f"  capa {i:2d}: {nats:+.3f}" for i, nats in enumerate(found.extra_nats)]
    lines.append(f"Se pueden saltar: {', '.join(map(str, found.skippable))}")
    return notes, "\n".join(lines)


def run_cost(args: Arguments) -> tuple[Any, str]:
    """Nats per token of each knob at 0, 1/2, 1 and 2 times its default."""
    if args.draws < 1:
        raise DataError(f"--draws vale {args.draws} y debe ser 1 o más.")
    loaded, autonomy, folder = open_model(args)
    if args.skippable:
        autonomy = replace(autonomy, skippable=tuple(args.skippable))
    require_skippable(autonomy, args)
    documents = read_texts(loaded, args, 4000)
    lines: list[str] = []

    def progress(line: str) -> None:
        lines.append(line)
        print(line, file=sys.stderr, flush=True)

    found = cost.costs(
        loaded.model, autonomy, documents, seed=args.seed, draws=args.draws, progress=progress
    )
    facts = {
        "costs": found,
        "n_tokens": {language: sum(map(len, texts)) for language, texts in documents.items()},
        "seed": args.seed,
        "draws": args.draws,
    }
    keep_notes(loaded, args, folder, {f"cost{':' + args.label if args.label else ''}": facts})
    return facts, "\n".join(lines) if not args.as_json else ""


def run_train(args: Arguments) -> tuple[Any, str]:
    """Train a mood on the frozen model and write it beside it."""
    loaded, autonomy, folder = open_model(args)
    talks = mood_data.compose(args.conversations, seed=args.seed)
    recipe = MoodRecipe(
        max_tokens=args.tokens or 100_000,
        stage=args.stage,
        seed=args.seed,
        shuffled=args.shuffled,
        dtype="bfloat16" if args.bf16 else "float32",
    )
    trained = train_mood(
        loaded,
        talks,
        recipe,
        root=folder / "autonomy_checkpoints",
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    assert trained is not None
    autonomy.mood, report = trained
    autonomy.settings = replace(
        autonomy.settings, mood_gain=1.0, max_silence_rate=CHAT_SILENCE_RATE
    )
    facts = {"recipe": asdict(recipe), "report": vars(report), "conversations": len(talks)}
    autonomy.volition, silence = volition.teach(loaded, autonomy, progress=Ticker("silencio").show)
    notes = {"training": facts, "volition": silence}
    store.save(autonomy, folder, model_path=args.model, notes=notes)
    return facts, f"Ánimo entrenado y escrito en {folder}: {report.tokens} tokens."


def run_evaluate(args: Arguments) -> tuple[Any, str]:
    """Dose, placebo, shock and amnesia of one training seed; resumable."""
    loaded, autonomy, folder = open_model(args)
    require_mood(autonomy, args)
    path = folder / "autonomy_evaluation.json"
    facts = mood_eval.evaluate(
        loaded,
        autonomy,
        path,
        seed=args.seed,
        n_questions=args.questions,
        n_pairs=args.pairs,
        progress=lambda name: Ticker(name).show,
    )
    slope = cost.as_estimate(facts["dose"]["slope"]).text()
    fake = cost.as_estimate(facts["placebo"]["slope"]).text()
    return facts, f"pendiente {slope}; placebo {fake}; en {path}"


def run_diversity(args: Arguments) -> tuple[Any, str]:
    """Fronts of every arm; resumable."""
    loaded, autonomy, folder = open_model(args)
    require_mood(autonomy, args)
    require_skippable(autonomy, args)
    rows = folder / "autonomy_diversity.json"
    found = diversity.run(
        loaded,
        autonomy,
        rows,
        n_prompts=args.questions,
        seed=args.seed,
        progress=Ticker("diversidad").show,
    )
    keep_notes(loaded, args, folder, {"diversity": found})
    gains = found["hypervolume_gain"]
    lines = [f"{arm}: {cost.as_estimate(gain).text(4)}" for arm, gain in gains.items()]
    return found, "\n".join(lines)


def run_abstain(args: Arguments) -> tuple[Any, str]:
    """Teach and judge "no lo sé"."""
    loaded, autonomy, folder = open_model(args)
    questions = abstention.read_questions()
    rows = abstention.observe(loaded, autonomy, questions, progress=Ticker("preguntas").show)
    found = abstention.judge(rows, alpha=args.alpha)
    autonomy.epistemic, autonomy.threshold = abstention.finish(rows, alpha=args.alpha)
    store.save(autonomy, folder, model_path=args.model, notes={"abstention": found})
    estimates = {k: v for k, v in found.items() if isinstance(v, dict) and "value" in v}
    shown = {name: cost.as_estimate(raw).text() for name, raw in estimates.items()}
    return found, "\n".join(f"{name}: {text}" for name, text in shown.items())


def run_card(args: Arguments) -> tuple[Any, str]:
    """Write autonomy_card.json from everything measured; --seeds gathers other folders."""
    _, _, folder = open_model(args)
    notes = store.read_notes(folder)
    seeds = [
        json.loads((Path(one) / "autonomy_evaluation.json").read_text(encoding="utf-8"))
        for one in args.seeds or [folder]
        if (Path(one) / "autonomy_evaluation.json").exists()
    ]
    if seeds:
        notes["mood"] = {
            "seeds": seeds,
            "amnesia": mood_eval.judge_amnesia(
                [one["amnesia"] for one in seeds if "amnesia" in one]
            ),
        }
        if args.shuffled_from:
            other = json.loads((args.shuffled_from / "autonomy_evaluation.json").read_text())
            notes["mood"]["shuffled"] = other["dose"]
    built = card.build(notes)
    write_json(folder / "autonomy_card.json", built)
    return built, f"Ficha de autonomía escrita en {folder / 'autonomy_card.json'}"


ACTIONS: dict[str, Callable[[Arguments], tuple[Any, str]]] = {
    "ablate": run_ablate,
    "cost": run_cost,
    "train": run_train,
    "evaluate": run_evaluate,
    "diversity": run_diversity,
    "abstain": run_abstain,
    "card": run_card,
}


# --- pieces --------------------------------------------------------------------------------------


def open_model(args: Arguments) -> tuple[LoadedModel, Autonomy, Path]:
    """The model, the autonomy it has so far and the folder where that is kept."""
    folder = args.to or (args.model if args.model.is_dir() else args.model.parent)
    loaded = load_model(args.model, dtype=torch.float32)
    autonomy = store.load(args.model, loaded.model.config, folder=folder)
    loaded.model.eval().requires_grad_(False)
    return loaded, autonomy, folder


def keep_notes(loaded: LoadedModel, args: Arguments, folder: Path, notes: dict[str, Any]) -> None:
    """Write what was measured beside whatever is there by now: it took long to measure."""
    now = store.load(args.model, loaded.model.config, folder=folder)
    store.save(now, folder, model_path=args.model, notes=notes)


def require_mood(autonomy: Autonomy, args: Arguments) -> None:
    """Refuse to measure a mood that is not there."""
    if autonomy.mood is None:
        raise DataError(
            f"{args.model} no tiene estado de ánimo que medir.",
            hint=f"Antes: elchat autonomy train {args.model}",
        )


def require_skippable(autonomy: Autonomy, args: Arguments) -> None:
    """Refuse to measure depth where nobody knows which layers may be skipped."""
    if not autonomy.skippable:
        raise DataError(
            f"{args.model} no tiene escrito qué capas se pueden saltar.",
            hint=f"Antes: elchat autonomy ablate {args.model}",
        )


def read_texts(loaded: LoadedModel, args: Arguments, tokens: int) -> dict[str, list[list[int]]]:
    """Documents by language, from what was given or from the seed corpus."""
    paths = {
        "es": args.spanish or texts.DEFAULT_TEXTS["es"],
        "en": args.english or texts.DEFAULT_TEXTS["en"],
    }
    most = args.tokens or tokens
    return {
        language: texts.read_documents(loaded, path, max_tokens=most)
        for language, path in paths.items()
    }


class Ticker:
    """A line with the share done and the time left, at most every five seconds."""

    def __init__(self, what: str) -> None:
        self.what, self.began, self.last = what, time.monotonic(), 0.0

    def show(self, done: int, total: int) -> None:
        """Say how far it is."""
        now = time.monotonic()
        if now - self.last < 5.0 or not done:
            return
        self.last = now
        left = (now - self.began) * (total - done) / done
        print(f"{self.what}: {100 * done // total} %, faltan {left:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
