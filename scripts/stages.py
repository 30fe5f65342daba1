"""The stages of a run, each a composition of library calls over one run folder."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from elchat import checkpoint, hub, report
from elchat.config import Config, StageSection
from elchat.data.loader import Batch, PackedLoader, heldout_batches
from elchat.data.prepare import PreparationStopped, prepare
from elchat.data.shards import ShardSet, TokenSource
from elchat.engine import Engine
from elchat.errors import ConfigError, ElchatError, ModelError
from elchat.evaluation import sample_replies, score_languages
from elchat.files import read_json, sha256_file, sha256_json, write_json
from elchat.runs import Run
from elchat.training import loop as training_loop
from elchat.training.device import peak_memory_mib, plan_compute
from elchat.training.loop import Job, Loop
from elchat.training.plan import StagePlan, make_plan
from elchat.training.reporter import Reporter
from elchat.weights import LoadedModel, load_model, save_hf
from scripts import autonomy_stages

TrainedStage = Literal["cpt", "sft"]
HELD_OUT_LANGUAGES = ("es", "en")
HELD_OUT_ROWS = 2
RELOAD_TOLERANCE = 1e-4  # of logits, between the weights exported and the same read back


class Stopped(Exception):
    """A stop was asked for and obeyed; the run can be resumed."""


@dataclass(frozen=True)
class Worker:
    """What every stage needs."""

    run: Run
    config: Config
    reporter: Reporter

    def marker(self, stage: str) -> Path:
        """File that says a stage is finished and with what outputs."""
        return self.run.path / "stages" / f"{stage}.json"

    def finish(self, stage: str, **facts: Any) -> None:
        """Mark a stage as finished."""
        write_json(self.marker(stage), {"finished": time.time(), **facts})

    def facts(self, stage: str) -> dict[str, Any]:
        """What a finished stage left written."""
        facts: dict[str, Any] = read_json(self.marker(stage))
        return facts

    def is_finished(self, stage: str) -> bool:
        """Whether a stage's marker is there and its outputs still verify."""
        try:
            outputs = self.facts(stage).get("outputs", {})
            return all(sha256_file(self.run.path / name) == sha for name, sha in outputs.items())
        except (OSError, ValueError):
            return False


def run_data(worker: Worker) -> None:
    """Fetch the base model and prepare the shards of every enabled stage."""
    config, reporter = worker.config, worker.reporter
    base_path = hub.fetch_base(config.model.base, config.model.start, progress=reporter.log)
    loaded = load_model(base_path, dtype=torch.bfloat16)
    check_contexts(config, loaded)
    autonomy = autonomy_stages.find_skippable(loaded, config, reporter)
    loaded.model.bfloat16()
    sets = {}
    for stage in enabled_stages(config):
        sets[stage] = str(prepare_shards(worker, stage, loaded).path)
    worker.finish("data", base_path=str(base_path), shards=sets, **autonomy)


def run_training(worker: Worker, stage: TrainedStage) -> None:
    """Train one stage from where the previous one ended, or from its newest checkpoint."""
    config, settings = worker.config, stage_settings(worker.config, stage)
    shards = open_shards(worker, stage)
    previous = previous_stage(worker, stage)
    loaded = load_model(base_path(worker), dtype=torch.float32)
    if previous is not None:
        loaded.model.load_state_dict(final_checkpoint(worker, previous).model)
    plan_path = worker.run.path / "stages" / f"{stage}.plan.json"
    loader = PackedLoader(
        with_replay(worker, stage, shards),
        context_tokens=settings.context_tokens,
        seed=config.training.seed,
        pad_id=loaded.pad_id,
        prefetch=True,
    )
    plan = StagePlan.load(plan_path) or new_plan(worker, stage, plan_path, loader)
    torch.set_num_threads(plan.compute.threads)
    torch.manual_seed(config.training.seed)
    model = loaded.model.to(plan.compute.device)
    model.uses_activation_checkpointing = config.training.activation_checkpointing
    worker.reporter.log(
        f"[{stage}] {plan.compute.device} en {plan.compute.precision}, "
        f"{plan.compute.threads} hilos, pico {plan.compute.peak_tflops:.2f} TFLOP/s "
        f"({plan.compute.peak_origin}), {plan.micro_batch_rows} secuencias por pasada"
    )
    outcome = Loop(
        Job(
            stage=stage,
            model=model,
            loader=loader,
            settings=settings,
            training=config.training,
            checkpointing=config.checkpoints,
            evaluation=config.evaluation,
            plan=plan,
            reporter=worker.reporter,
            root=worker.run.checkpoints_path / stage,
            evaluate=functools.partial(
                score_languages,
                model,
                held_out(worker),
                plan.compute,
                should_stop=worker.reporter.should_stop,
            ),
            reload_initial=functools.partial(initial_state, worker, previous),
            knobs=autonomy_stages.knobs_of(config, stage, model, skippable(worker)),
            **known_scores(worker, stage),
        )
    ).run()
    if outcome == "stopped":
        raise Stopped
    worker.finish(
        stage,
        checkpoint=final_checkpoint(worker, stage).path.name,
        progress=training_loop.outcome_of(worker.run.checkpoints_path / stage),
        peak_memory_mib=peak_memory_mib(plan.compute.device),
    )


def run_eval(worker: Worker) -> None:
    """Sample replies of the base and of the result; scores come from the training stages."""
    config = worker.config
    prompts = config.evaluation.sample_prompts
    loaded = load_model(base_path(worker), dtype=torch.float32)
    replies = {"base": replies_of(loaded, config, prompts)}
    load_result(worker, loaded)
    if worker.reporter.should_stop():
        raise Stopped
    replies["result"] = replies_of(loaded, config, prompts)
    worker.finish("eval", prompts=prompts, replies=replies)


def run_export(worker: Worker) -> None:
    """Write the Hugging Face folder, read it back and compare its logits."""
    loaded = load_model(base_path(worker), dtype=torch.float32)
    load_result(worker, loaded)
    dtype = getattr(torch, worker.config.export.dtype)
    save_hf(loaded, worker.run.model_path, dtype=dtype)
    verify_export(loaded, worker.run.model_path, dtype)
    outputs = {
        str(path.relative_to(worker.run.path)): sha256_file(path)
        for path in sorted(worker.run.model_path.iterdir())
    }
    worker.finish("export", outputs=outputs)


def run_mood(worker: Worker) -> None:
    """Teach a mood to the exported model, whose weights stay as they are; write it beside them."""
    loaded = load_model(worker.run.model_path, dtype=torch.float32)
    taught = autonomy_stages.teach_mood(
        loaded,
        worker.config,
        worker.reporter,
        worker.run.checkpoints_path / "mood",
        skippable(worker),
    )
    if taught is None:
        raise Stopped
    autonomy, training = taught
    notes = {"training": training, "ablation": worker.facts("data").get("ablation")}
    written = autonomy_stages.write(autonomy, worker.run.model_path, notes)
    outputs = {str(path.relative_to(worker.run.path)): sha256_file(path) for path in written}
    worker.finish("mood", outputs=outputs)


def run_report(worker: Worker) -> None:
    """Write report.md and the manifest of the run's artifacts."""
    path = worker.run.path / "report.md"
    stages = ["data", *enabled_stages(worker.config), "eval", "export"]
    facts = {stage: worker.facts(stage) for stage in stages}
    manifests: dict[str, Mapping[str, Any]] = {
        stage: open_shards(worker, stage).manifest for stage in enabled_stages(worker.config)
    }
    report.write(path, worker.run, worker.config, facts, manifests)
    files = {path.name: sha256_file(path), **facts["export"]["outputs"]}
    if autonomy_stages.is_on(worker.config):
        files |= worker.facts("mood")["outputs"]
    write_json(worker.run.path / "manifest.json", {"files": files})
    worker.finish("report", outputs={path.name: files[path.name]})


STAGES: dict[str, Callable[[Worker], None]] = {
    "data": run_data,
    "cpt": functools.partial(run_training, stage="cpt"),
    "sft": functools.partial(run_training, stage="sft"),
    "eval": run_eval,
    "export": run_export,
    "mood": run_mood,
    "report": run_report,
}


def walk(worker: Worker, only: str | None = None) -> None:
    """Run every stage that is enabled and not finished, in order (or just one).

    Raises:
        Stopped: a stop was obeyed.
        ElchatError: a stage failed; those before it stay finished.
    """
    skipped = {"cpt", "sft"} - set(enabled_stages(worker.config))
    if not autonomy_stages.is_on(worker.config):
        skipped.add("mood")
    for stage, run_stage in STAGES.items():
        if stage in skipped or (only is not None and stage != only):
            continue
        if worker.is_finished(stage):
            worker.reporter.log(f"[{stage}] ya estaba hecha")
            continue
        if worker.reporter.should_stop():
            raise Stopped
        worker.reporter.status(stage=stage, step=0, total_steps=0, eta_s=None)
        began = time.monotonic()
        try:
            run_stage(worker)
        except PreparationStopped:
            raise Stopped from None
        worker.reporter.log(f"[{stage}] hecha en {time.monotonic() - began:.0f} s")


# --- pieces ------------------------------------------------------------------------------------


def enabled_stages(config: Config) -> list[TrainedStage]:
    """Training stages of this configuration, in order."""
    stages: tuple[TrainedStage, ...] = ("cpt", "sft")
    return [stage for stage in stages if stage_settings(config, stage).enabled]


def stage_settings(config: Config, stage: TrainedStage) -> StageSection:
    """Settings of one training stage."""
    return config.training.cpt if stage == "cpt" else config.training.sft


def base_path(worker: Worker) -> Path:
    """Folder or GGUF file of the base model."""
    path = Path(worker.facts("data")["base_path"])
    if not path.exists():
        raise ModelError(f"El modelo base ya no está en {path}: bájalo con elchat models pull.")
    return path


def check_contexts(config: Config, loaded: LoadedModel) -> None:
    """Refuse sequences longer than the model was made for."""
    limit = loaded.model.config.max_positions
    for stage in enabled_stages(config):
        length = stage_settings(config, stage).context_tokens
        if length > limit:
            raise ConfigError(
                f"training.{stage}.context_tokens vale {length} y {config.model.base} llega a "
                f"{limit}: bájalo."
            )


def skippable(worker: Worker) -> list[int]:
    """Layers that may be skipped, as the data stage found them."""
    return list(worker.facts("data").get("skippable", []))


def prepare_shards(worker: Worker, stage: TrainedStage, loaded: LoadedModel) -> ShardSet:
    """Tokenised data of one stage, made now or found made."""
    return prepare(
        worker.config,
        stage,
        encode_batch=loaded.tokenizer.encode_batch,
        tokenizer_sha256=loaded.tokenizer.sha256,
        prefix_ids=loaded.doc_prefix_ids,
        eos_id=loaded.eos_id,
        render=loaded.chat.render if stage == "sft" else None,
        render_fingerprint=sha256_json(loaded.chat.jinja_template()),
        progress=data_progress(worker.reporter, stage),
        should_stop=worker.reporter.should_stop,
    )


def data_progress(reporter: Reporter, stage: str) -> Callable[[int, int, str], None]:
    """A progress callback that logs at most one line every five seconds."""
    last = 0.0

    def show(done: int, total: int, message: str) -> None:
        nonlocal last
        if time.monotonic() - last > 5.0 or (total and done >= total):
            last = time.monotonic()
            share = f" {100 * done // total} %" if total else ""
            reporter.log(f"[data] {stage}:{share} {message}")

    return show


def open_shards(worker: Worker, stage: TrainedStage) -> ShardSet:
    """Shards named by the data stage; prepared again if they were damaged or removed."""
    path = Path(worker.facts("data")["shards"][stage])
    try:
        return ShardSet.open(path)
    except ElchatError as error:
        worker.reporter.log(f"[data] AVISO: {error} Se preparan de nuevo.")
        loaded = load_model(base_path(worker), dtype=torch.bfloat16)
        return prepare_shards(worker, stage, loaded)


def new_plan(worker: Worker, stage: TrainedStage, path: Path, loader: PackedLoader) -> StagePlan:
    """Measure the machine and decide how this stage will run."""
    config = worker.config
    compute = plan_compute(config.compute.device, config.training.precision, config.compute.threads)
    plan = make_plan(
        path,
        stage_settings(config, stage),
        compute,
        epoch_rows=sum(loader.epoch_tokens()) / loader.tokens_per_row(),
        micro_batch_rows=config.training.micro_batch_rows,
    )
    plan.save()
    return plan


def with_replay(worker: Worker, stage: TrainedStage, shards: ShardSet) -> tuple[TokenSource, ...]:
    """A stage's sources; in chat tuning also the texts, for `replay_share` of the tokens.

    Reading on while learning to chat keeps what the reading taught.
    """
    share = worker.config.training.replay_share
    if stage != "sft" or not share or "cpt" not in enabled_stages(worker.config):
        return shards.train
    texts = open_shards(worker, "cpt").train
    scale = share / (1 - share) * sum(source.weight for source in shards.train)
    total = sum(source.weight for source in texts)
    replayed = [replace(text, weight=scale * text.weight / total) for text in texts]
    return (*shards.train, *replayed)


def held_out(worker: Worker) -> dict[str, Callable[[], Iterable[Batch]]]:
    """Held-out text by language, from the first stage that has any."""
    for stage in enabled_stages(worker.config):
        settings = stage_settings(worker.config, stage)
        shards = open_shards(worker, stage)
        found = {language: shards.held_out(language) for language in HELD_OUT_LANGUAGES}
        if any(found.values()):
            return {
                language: functools.partial(
                    heldout_batches,
                    source,
                    context_tokens=settings.context_tokens,
                    rows=HELD_OUT_ROWS,
                )
                for language, source in found.items()
                if source is not None
            }
    return {}


def known_scores(worker: Worker, stage: TrainedStage) -> dict[str, Any]:
    """Bits per byte of the weights a stage starts from, if the one before measured them."""
    if previous_stage(worker, stage) is None:
        return {}
    progress = worker.facts("cpt")["progress"]
    return {"before": progress["after"], "eval_seconds": progress["eval_seconds"]}


def previous_stage(worker: Worker, stage: TrainedStage) -> TrainedStage | None:
    """The stage whose weights this one starts from, or None for the base model."""
    return "cpt" if stage == "sft" and "cpt" in enabled_stages(worker.config) else None


def initial_state(worker: Worker, previous: TrainedStage | None) -> dict[str, torch.Tensor]:
    """The state dict a stage began with."""
    if previous is not None:
        return final_checkpoint(worker, previous).model
    return load_model(base_path(worker), dtype=torch.float32).model.state_dict()


def final_checkpoint(worker: Worker, stage: TrainedStage) -> checkpoint.Checkpoint:
    """What a finished stage left, read once and verified."""
    found = checkpoint.load_newest(worker.run.checkpoints_path / stage, warn=worker.reporter.log)
    if found is None or not found.meta["is_final"]:
        raise ModelError(f"La etapa {stage} no dejó sus pesos finales: elchat resume la repite.")
    return found


def load_result(worker: Worker, loaded: LoadedModel) -> None:
    """Put the last training stage's weights in place of the base model's."""
    last = enabled_stages(worker.config)[-1]
    loaded.model.load_state_dict(final_checkpoint(worker, last).model)


def replies_of(loaded: LoadedModel, config: Config, prompts: list[str]) -> list[str]:
    """Greedy replies of a loaded model."""
    engine = Engine(loaded.model, loaded.tokenizer, loaded.chat, max_tokens=1024)
    return sample_replies(engine, prompts, max_new_tokens=config.evaluation.sample_max_new_tokens)


def verify_export(loaded: LoadedModel, path: Path, dtype: torch.dtype) -> None:
    """Compare logits of the weights in memory, cast to `dtype`, with the folder read back.

    Raises:
        ModelError: they differ; the folder is removed.
    """
    reread = load_model(path, dtype=dtype)
    text = "Comprobación del modelo exportado: ¿se lee igual que se escribió?"
    ids = torch.tensor([loaded.tokenizer.encode(text)])
    rounded = loaded.model.to(dtype).float().eval()
    with torch.no_grad():
        difference = (rounded(ids) - reread.model.float().eval()(ids)).abs().max()
    if not difference <= RELOAD_TOLERANCE:
        shutil.rmtree(path)
        raise ModelError(
            f"El modelo exportado no se lee igual que se escribió (diferencia {difference:.3g})."
        )
