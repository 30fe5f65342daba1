"""What must not change the result: packing, accumulation, a bad batch."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch

from elchat import checkpoint, runs
from elchat.attention import Segments
from elchat.config import CheckpointSection, EvaluationSection, StageSection, TrainingSection
from elchat.data.loader import PackedLoader
from elchat.data.shards import TokenSource
from elchat.errors import TrainingError
from elchat.training import parallel as parallel_module
from elchat.training.adapters import add_adapters, add_embedding_noise
from elchat.training.device import ComputePlan
from elchat.training.loop import Job, Loop
from elchat.training.loss import summed_cross_entropy
from elchat.training.plan import StagePlan
from elchat.training.reporter import Reporter
from elchat.training.schedule import Timeline
from tests.conftest import TINY, make_tiny

T = 32


def source(seed: int = 0, documents: int = 60) -> TokenSource:
    import numpy as np

    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 70, documents)
    offsets = np.concatenate([[0], lengths.cumsum()])
    return TokenSource(
        name="toy",
        split="train",
        language="es",
        licence="CC0-1.0",
        licences={"CC0-1.0": documents},
        weight=1.0,
        ids=rng.integers(0, TINY.vocab_size, offsets[-1]).astype("uint32"),
        offsets=offsets,
        bytes=lengths * 3,
        targets=rng.integers(0, 2, offsets[-1]).astype("uint8"),
    )


def loader(seed: int = 0) -> PackedLoader:
    return PackedLoader([source()], context_tokens=T, seed=seed)


def gradients(model, loss) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_packed_equals_unpacked_in_loss_and_gradients():
    model = make_tiny()
    batch = loader().next_step(8)
    segments = Segments.of(batch.segments, "cpu")
    hidden = model.hidden(batch.ids, positions_BT=batch.positions, segments=segments)
    packed = summed_cross_entropy(hidden, model.head_weight_VC, batch.targets) / batch.n_targets
    packed_gradients = gradients(model, packed)
    alone = torch.zeros(())
    n_segments = 0
    for ids, segments, targets in zip(batch.ids, batch.segments, batch.targets, strict=True):
        for segment in segments.unique():
            if segment == 0:
                continue
            inside = segments == segment
            n_segments += 1
            states = model.hidden(ids[inside][None])
            alone = alone + summed_cross_entropy(
                states, model.head_weight_VC, targets[inside][None]
            )
    alone = alone / batch.n_targets
    alone_gradients = gradients(model, alone)
    assert n_segments > 8
    assert abs(packed.item() - alone.item()) <= 1e-3 * alone.item()
    error = (packed_gradients - alone_gradients).norm() / alone_gradients.norm()
    assert error <= 1e-3


def make_loop(
    tmp_path: Path, *, micro_rows: int = 8, steps: int = 12, stage: dict | None = None, **training
) -> Loop:
    tmp_path.mkdir(parents=True, exist_ok=True)
    run = runs.Run(tmp_path, 0.0, "local", "tiny", "0")
    torch.manual_seed(0)
    model = make_tiny()
    settings = StageSection(
        context_tokens=T, batch_tokens=8 * T, learning_rate=1e-3, **(stage or {})
    )
    add_adapters(model, settings.adapter, seed=0)
    add_embedding_noise(model, settings.neftune_alpha)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    plan = StagePlan(
        path=tmp_path / "plan.json",
        compute=ComputePlan("cpu", "fp32", 1, 0.1, "medido"),
        micro_batch_rows=micro_rows,
        max_steps=steps,
        timeline=Timeline([(0, steps)]),
    )
    return Loop(
        Job(
            stage="cpt",
            model=model,
            loader=loader(),
            settings=settings,
            training=TrainingSection(**training),
            checkpointing=CheckpointSection(every_steps=4),
            evaluation=EvaluationSection(log_every_steps=1),
            plan=plan,
            reporter=Reporter(run),
            root=tmp_path / "checkpoints",
            evaluate=lambda: {"es": 1.0},
            reload_initial=functools.partial(dict, start),
        )
    )


def final_weights(job: Loop) -> dict[str, torch.Tensor]:
    found = checkpoint.load_newest(job.job.root, warn=pytest.fail)
    assert found is not None
    return found.model


@pytest.mark.parametrize(
    "stage",
    [
        {"adapter": {"method": "dora", "dropout": 0.1}},
        {"adapter": {"method": "qlora"}},
        {"optimizer": "muon"},
        {"optimizer_state": "bf16"},
        {"optimizer_state": "int8", "neftune_alpha": 5.0},
    ],
)
def test_a_killed_stage_continues_to_the_same_weights(tmp_path, stage):
    whole = make_loop(tmp_path / "whole", stage=stage)
    assert whole.run() == "done"
    killed = make_loop(tmp_path / "killed", stage=stage)
    take_step, left = killed._step, iter(range(6))

    def step() -> bool:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return take_step()

    killed._step = step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    again = make_loop(tmp_path / "killed", stage=stage)
    assert again.run() == "done"
    expected, found = final_weights(whole), final_weights(again)
    assert set(found) == set(make_tiny().state_dict()), "adapters are merged at the end"
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    start = make_tiny().state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in found.items())


def test_one_micro_batch_equals_eight(tmp_path):
    """The loss is divided by the step's targets, not averaged per micro-batch."""
    whole = make_loop(tmp_path / "a", micro_rows=8, steps=1)
    split = make_loop(tmp_path / "b", micro_rows=1, steps=1)
    batch = loader().next_step(8)
    counts = {int((row != -100).sum()) for row in batch.targets}
    assert len(counts) > 1, "rows with equal counts would prove nothing"
    losses = []
    for loop in (whole, split):
        loss, norm = loop._forward_backward(batch)
        losses.append((loss, norm, [p.grad for p in loop.model.parameters()]))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-4)
    for a, b in zip(losses[0][2], losses[1][2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_out_of_memory_halves_the_micro_batch_and_changes_no_result(tmp_path, monkeypatch):
    plain = make_loop(tmp_path / "plain", micro_rows=2)
    assert plain.run() == "done"
    starved = make_loop(tmp_path / "starved", micro_rows=8)
    hidden = starved.model.hidden

    def small_memory(ids, **rest):
        if ids.shape[0] > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 TB")
        return hidden(ids, **rest)

    monkeypatch.setattr(starved.model, "hidden", small_memory)
    assert starved.run() == "done"
    assert starved.job.plan.micro_batch_rows == 2
    expected = final_weights(plain)
    assert all(torch.equal(v, expected[k]) for k, v in final_weights(starved).items())


def test_one_row_that_does_not_fit_is_one_sentence(tmp_path, monkeypatch):
    loop = make_loop(tmp_path)

    def no_memory(*_args, **_rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.model, "hidden", no_memory)
    with pytest.raises(TrainingError, match="no cabe en la memoria"):
        loop.run()


def poison(monkeypatch, when) -> None:
    """Make the loss NaN in the steps `when` says."""
    calls = iter(range(10_000))

    def poisoned(*arguments, **options):
        loss = summed_cross_entropy(*arguments, **options)
        return loss * math.nan if when(next(calls)) else loss

    monkeypatch.setattr(parallel_module, "summed_cross_entropy", poisoned)


def test_one_nan_step_is_skipped_and_told(tmp_path, monkeypatch):
    poison(monkeypatch, lambda call: call == 5)
    loop = make_loop(tmp_path)
    assert loop.run() == "done"
    assert all(value.isfinite().all() for value in final_weights(loop).values())
    warnings = [m["warning"] for m in loop.job.reporter.run.metrics() if "warning" in m]
    assert len(warnings) == 1
    assert "saltado" in warnings[0]


def test_three_nan_steps_roll_back_to_the_last_good_point(tmp_path, monkeypatch):
    poison(monkeypatch, lambda call: 5 <= call < 8)
    loop = make_loop(tmp_path)
    assert loop.run() == "done"
    assert loop.guard.n_rollbacks == 1
    assert loop.guard.rate_scale == 0.5
    assert all(value.isfinite().all() for value in final_weights(loop).values())


def test_endless_nan_stops_with_a_sentence_and_keeps_the_last_good_point(tmp_path, monkeypatch):
    poison(monkeypatch, lambda call: call >= 5)
    loop = make_loop(tmp_path, steps=60)
    with pytest.raises(TrainingError, match="diverge"):
        loop.run()
    found = checkpoint.load_newest(loop.job.root, warn=pytest.fail)
    assert found is not None
    assert found.step <= 12
    assert all(value.isfinite().all() for value in found.model.values())


def test_nan_before_any_checkpoint_goes_back_to_the_initial_weights(tmp_path, monkeypatch):
    poison(monkeypatch, lambda call: call < 3)
    loop = make_loop(tmp_path)
    assert loop.run() == "done"
    assert loop.guard.n_rollbacks == 1


def test_metrics_stay_valid_json(tmp_path, monkeypatch):
    import json

    poison(monkeypatch, lambda call: call in (3, 4))
    loop = make_loop(tmp_path)
    loop.run()
    for line in loop.job.reporter.run.metrics_path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in metrics.jsonl"))
