"""The stages of a run, each a composition of library calls over one run folder."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from elchat import checkpoint, hub, rental, report
from elchat.config import Config, StageSection
from elchat.data.loader import Batch, PackedLoader, heldout_batches
from elchat.data.prepare import Executor, PreparationStopped, Progress, prepare
from elchat.data.shards import ShardSet, TokenSource
from elchat.engine import Engine
from elchat.errors import ConfigError, ElchatError, ModelError
from elchat.evaluation import datasets, documents
from elchat.evaluation.held_out import sample_replies, score_languages
from elchat.export import bundle
from elchat.files import read_json, sha256_file, sha256_json, write_json
from elchat.gpt import GPT
from elchat.report import fertility
from elchat.runs import Run
from elchat.training import blocks
from elchat.training import loop as training_loop
from elchat.training.adapters import add_adapters, add_embedding_noise, freeze
from elchat.training.device import peak_memory_mib, pick_device, plan_compute
from elchat.training.loop import Job, Loop
from elchat.training.parallel import Parallel
from elchat.training.plan import StagePlan, make_plan
from elchat.training.reporter import Reporter
from elchat.weights import LoadedModel, load_model
from scripts import autonomy_stages
from scripts.measure import RunMeter, Stopped

TrainedStage = Literal["cpt", "sft"]
HELD_OUT_LANGUAGES = ("es", "en")
HELD_OUT_ROWS = 2


class OtherFailed(Exception):
    """The process that speaks for all has stopped or failed, and says why."""


@dataclass(frozen=True)
class Worker:
    """What every stage needs."""

    run: Run
    config: Config
    reporter: Reporter
    parallel: Parallel = field(default_factory=Parallel)

    def marker(self, stage: str) -> Path:
        """File that says a stage is finished and with what outputs."""
        return self.run.path / "stages" / f"{stage}.json"

    def finish(self, stage: str, **facts: Any) -> None:
        """Mark a stage as finished."""
        if self.parallel.is_main:
            write_json(self.marker(stage), {"finished": time.time(), **facts})

    def facts(self, stage: str) -> dict[str, Any]:
        """What a finished stage left written."""
        facts: dict[str, Any] = read_json(self.marker(stage))
        return facts

    def is_finished(self, stage: str) -> bool:
        """Whether a stage's marker is there and its outputs still verify."""
        if not self.parallel.is_main:
            return bool(self.parallel.agree(0.0)[0])
        return bool(self.parallel.agree(float(self._is_verified(stage)))[0])

    def _is_verified(self, stage: str) -> bool:
        try:
            outputs = self.facts(stage).get("outputs", {})
            return all(sha256_file(self.run.path / name) == sha for name, sha in outputs.items())
        except (OSError, ValueError):
            return False


def run_data(worker: Worker) -> None:
    """Fetch the base model and prepare the shards of every enabled stage."""
    config, reporter = worker.config, worker.reporter
    datasets.parse_requests(config.evaluation.tasks)  # a wrong name fails now, not in hours
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
    worker.parallel.check(settings, stage, config.compute.sharding)
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
    plan = shared_plan(worker, stage, plan_path, loader)
    model = ready_model(worker, settings, loaded, plan)
    worker.reporter.log(
        f"[{stage}] {plan.compute.device} en {plan.compute.precision}, "
        f"{plan.compute.threads} hilos, pico {plan.compute.peak_tflops:.2f} TFLOP/s "
        f"({plan.compute.peak_origin}), {plan.micro_batch_rows} secuencias por pasada"
    )
    job_loop = Loop(
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
            reload_initial=functools.partial(initial_state, worker, stage),
            knobs=autonomy_stages.knobs_of(config, stage, model, skippable(worker)),
            left_s=functools.partial(rented_time_left, worker, stage),
            **known_scores(worker, stage),
            parallel=worker.parallel,
            sharding=config.compute.sharding,
        )
    )
    blocks.settle(
        model,
        plan,
        config.compute,
        worker.parallel,
        backward=config.training.backward_precision,
        run_pass=job_loop.trial_pass,
        minutes=settings.max_minutes,
        is_changing=job_loop.job.knobs is not None,
        log=lambda line: worker.reporter.log(f"[{stage}] {line}"),
    )
    outcome = job_loop.run()
    if outcome == "stopped":
        raise Stopped
    worker.finish(
        stage,
        checkpoint=final_checkpoint(worker, stage).path.name,
        progress=training_loop.outcome_of(worker.run.checkpoints_path / stage),
        peak_memory_mib=peak_memory_mib(plan.compute.device),
    )


def ready_model(
    worker: Worker, settings: StageSection, loaded: LoadedModel, plan: StagePlan
) -> GPT:
    """The model on its device, with what the stage freezes, adapts or adds to it."""
    training = worker.config.training
    torch.set_num_threads(plan.compute.threads)
    torch.manual_seed(training.seed)
    model = loaded.model.to(plan.compute.device)
    model.uses_activation_checkpointing = training.activation_checkpointing
    freeze(model, settings.frozen)
    add_adapters(model, settings.adapter, seed=training.seed)
    add_embedding_noise(model, settings.neftune_alpha)
    return model


def run_eval(worker: Worker) -> None:
    """Measure the base, what each stage left and the result; compare the last with the first.

    The result is measured as it will be exported: rounded to `export.dtype`.
    """
    config = worker.config
    prompts = config.evaluation.sample_prompts
    device = pick_device(config.compute.device)
    loaded = load_model(base_path(worker), dtype=torch.float32, device=device)
    meter = RunMeter.open(worker.run, config, worker.reporter, held_out_documents(worker, loaded))
    replies = {"base": replies_of(loaded, config, prompts)}
    meter.measure("base", loaded, replies["base"], str(base_path(worker)))
    for stage in enabled_stages(config):
        is_last = stage == enabled_stages(config)[-1]
        loaded.model.load_state_dict(final_checkpoint(worker, stage).model)
        if is_last:
            loaded.model.to(getattr(torch, config.export.dtype)).float()
        label = "final" if is_last else stage
        replies[label] = replies_of(loaded, config, prompts)
        path = str(worker.run.model_path if is_last else stage)
        meter.measure(label, loaded, replies[label], path)
    meter.compare("base", "final")
    worker.finish("eval", prompts=prompts, replies=replies)


def run_export(worker: Worker) -> None:
    """Write the Hugging Face folder with its card; read it back and compare."""
    loaded = load_model(base_path(worker), dtype=torch.float32)
    load_result(worker, loaded)
    done = bundle.export(
        loaded,
        "hf",
        worker.run.model_path,
        name=worker.run.id,
        dtype=getattr(torch, worker.config.export.dtype),
        facts=report.gather(worker.run),
        base_folder=base_path(worker),
        progress=lambda line: worker.reporter.log(f"[export] {line}"),
    )
    names = [*done.files, bundle.MANIFEST]
    outputs = {f"model/{name}": sha256_file(worker.run.model_path / name) for name in names}
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
    """Write report.html, report.md, report.json and the manifest of the run's artifacts."""
    for stage in enabled_stages(worker.config):
        open_shards(worker, stage)
    facts = report.write(worker.run, fertility=fertility.measure(worker.run))
    for problem in facts.problems:
        worker.reporter.log(f"[report] AVISO: {problem}")
    worker.finish("report", outputs=report.outputs(worker.run))


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
        if worker.parallel.agree(float(worker.reporter.should_stop()))[0]:
            raise Stopped
        worker.reporter.status(stage=stage, step=0, total_steps=0, eta_s=None)
        began = time.monotonic()
        try:
            run_together(worker, stage, run_stage)
        except PreparationStopped:
            raise Stopped from None
        worker.reporter.log(f"[{stage}] hecha en {time.monotonic() - began:.0f} s")


def run_together(worker: Worker, stage: str, run_stage: Callable[[Worker], None]) -> None:
    """Training is for every process; the rest for the first, while the others wait.

    Raises:
        OtherFailed: in the others, when the first one could not go on.
    """
    if stage in ("cpt", "sft") or worker.parallel.world == 1:
        run_stage(worker)
        worker.parallel.barrier()
        return
    if not worker.parallel.is_main:
        if not worker.parallel.agree(0.0)[0]:
            raise OtherFailed
        return
    is_good = 0.0
    try:
        run_stage(worker)
        is_good = 1.0
    finally:
        worker.parallel.agree(is_good)


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
    return make_shards(
        worker.config,
        stage,
        loaded,
        progress=data_progress(worker.reporter, stage),
        should_stop=worker.reporter.should_stop,
    )


def make_shards(
    config: Config,
    stage: TrainedStage,
    loaded: LoadedModel,
    *,
    progress: Progress,
    should_stop: Callable[[], bool] | None = None,
    processes: int | None = None,
    executor: Executor | None = None,
) -> ShardSet:
    """Tokenise a stage's data as a model's vocabulary and chat format ask (see `prepare`)."""
    return prepare(
        config,
        stage,
        encode_arrays=loaded.tokenizer.encode_arrays,
        tokenizer_sha256=loaded.tokenizer.sha256,
        prefix_ids=loaded.doc_prefix_ids,
        eos_id=loaded.eos_id,
        render=loaded.chat.render if stage == "sft" else None,
        render_fingerprint=sha256_json(loaded.chat.jinja_template()),
        progress=progress,
        should_stop=should_stop,
        processes=processes,
        executor=executor,
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


def shared_plan(worker: Worker, stage: TrainedStage, path: Path, loader: PackedLoader) -> StagePlan:
    """The stage's plan: kept, or made by the first process and read by the others."""
    if worker.parallel.is_main and StagePlan.load(path) is None:
        new_plan(worker, stage, path, loader)
    worker.parallel.barrier()
    plan = StagePlan.load(path)
    assert plan is not None
    return plan


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
    """Held-out text by language, as batches."""
    sources, context_tokens = held_out_sources(worker)
    return {
        source.language: functools.partial(
            heldout_batches, source, context_tokens=context_tokens, rows=HELD_OUT_ROWS
        )
        for source in sources
    }


def held_out_documents(worker: Worker, loaded: LoadedModel) -> list[documents.HeldOut]:
    """Held-out text by language, document by document."""
    sources, context_tokens = held_out_sources(worker)
    return [
        documents.from_shards(loaded, source, loaded.tokenizer, context_tokens=context_tokens)
        for source in sources
    ]


def held_out_sources(worker: Worker) -> tuple[list[TokenSource], int]:
    """Held-out sources of the first stage that has any, and that stage's context."""
    for stage in enabled_stages(worker.config):
        shards = open_shards(worker, stage)
        found = [shards.held_out(language) for language in HELD_OUT_LANGUAGES]
        sources = [source for source in found if source is not None]
        if sources:
            return sources, stage_settings(worker.config, stage).context_tokens
    return [], 1


def known_scores(worker: Worker, stage: TrainedStage) -> dict[str, Any]:
    """Bits per byte of the weights a stage starts from, if the one before measured them."""
    if previous_stage(worker, stage) is None:
        return {}
    progress = worker.facts("cpt")["progress"]
    return {"before": progress["after"], "eval_seconds": progress["eval_seconds"]}


def rented_time_left(worker: Worker, stage: TrainedStage) -> float | None:
    """Seconds this stage may still train on a rented machine; None on one's own."""
    rented = rental.load(worker.run.path)
    if rented is None:
        return None
    is_sft_to_come = stage == "cpt" and "sft" in enabled_stages(worker.config)
    return rented.left_s(time.time(), is_sft_to_come=is_sft_to_come)


def previous_stage(worker: Worker, stage: TrainedStage) -> TrainedStage | None:
    """The stage whose weights this one starts from, or None for the base model."""
    return "cpt" if stage == "sft" and "cpt" in enabled_stages(worker.config) else None


def initial_state(worker: Worker, stage: TrainedStage) -> dict[str, torch.Tensor]:
    """The state dict a stage began with, its adapters included."""
    previous = previous_stage(worker, stage)
    model = load_model(base_path(worker), dtype=torch.float32).model
    if previous is not None:
        model.load_state_dict(final_checkpoint(worker, previous).model)
    adapter = stage_settings(worker.config, stage).adapter
    add_adapters(model, adapter, seed=worker.config.training.seed)
    return model.state_dict()


def final_checkpoint(worker: Worker, stage: TrainedStage) -> checkpoint.Checkpoint:
    """What a finished stage left, read once and verified."""
    found = checkpoint.load_newest(worker.run.checkpoints_path / stage, warn=worker.reporter.log)
    if found is None or not found.meta["is_final"]:
        worker.marker(stage).unlink(missing_ok=True)  # damaged since: what the sentence promises
        raise ModelError(f"La etapa {stage} no dejó sus pesos finales: elchat resume la repite.")
    return found


def load_result(worker: Worker, loaded: LoadedModel) -> None:
    """Put the last training stage's weights in place of the base model's."""
    last = enabled_stages(worker.config)[-1]
    loaded.model.load_state_dict(final_checkpoint(worker, last).model)


def replies_of(loaded: LoadedModel, config: Config, prompts: list[str]) -> list[str]:
    """Greedy replies of a loaded model."""
    # In torch: the model goes on to be exported, and nobody may repack it.
    engine = Engine(loaded.model, loaded.tokenizer, loaded.chat, context_tokens=1024, compile=False)
    return sample_replies(engine, prompts, max_new_tokens=config.evaluation.sample_max_new_tokens)
