"""The fused kernels compute what the plain model does, rounded to bf16 in fewer places."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from elchat.attention import Segments
from elchat.config import AdapterSection, ComputeSection
from elchat.gpt import GPT, GPTConfig
from elchat.native import train_library
from elchat.training import blocks, fused, int8_backward
from elchat.training.adapters import add_adapters
from elchat.training.device import ComputePlan
from elchat.training.parallel import LossModule, Parallel
from elchat.training.plan import StagePlan
from elchat.training.schedule import Timeline
from tests.conftest import make_tiny

SHAPE = GPTConfig(
    vocab_size=208, n_layers=2, d_model=96, d_ff=160, n_heads=6, n_kv_heads=2, head_dim=64,
    max_positions=512, rope_theta=1e4, norm_eps=1e-5,
)  # fmt: skip
WIDE = dataclasses.replace(SHAPE, head_dim=128, n_heads=2, has_qkv_bias=True, is_tied=False)
ODD = dataclasses.replace(SHAPE, n_heads=3, n_kv_heads=1)  # one head is left over for two threads
DOCUMENTS = ((150, 1, 64, 41), (256,))  # per row; the lengths cross the kernels' blocks of 64

SHAPES = {"grouped": SHAPE, "wide, biased, untied": WIDE, "odd": ODD}

needs_kernels = pytest.mark.skipif(
    train_library.why_not() is not None, reason=str(train_library.why_not())
)


def rows(is_packed: bool) -> dict[str, torch.Tensor | Segments | None]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, SHAPE.vocab_size, (2, 256), generator=generator)
    targets = ids.roll(-1, 1)
    targets[0, 20:50] = -100
    segments, positions = None, torch.arange(256).expand(2, -1)
    if is_packed:
        numbers = torch.stack(
            [torch.repeat_interleave(torch.arange(len(d)), torch.tensor(d)) for d in DOCUMENTS]
        )
        positions = torch.stack([torch.cat([torch.arange(n) for n in d]) for d in DOCUMENTS])
        segments = Segments.of(numbers, "cpu")
    return {
        "ids_BT": ids, "positions_BT": positions, "segments": segments, "targets_BT": targets,
    }  # fmt: skip


def gradients(model: GPT, is_packed: bool = True, precision: str = "bf16") -> torch.Tensor:
    """The loss and every gradient, in one vector."""
    model.zero_grad()
    compute = ComputePlan("cpu", precision, 1, 1.0, "medido")
    with compute.autocast():
        loss = LossModule(model)(**rows(is_packed))
    (loss / 400).backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([loss.detach()[None] / 400, *found])


def in_int8(model: GPT) -> GPT:
    fused.fuse(model, is_int8=True)
    return model


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@needs_kernels
@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "one document"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_closer_to_fp32_than_autocast_is(shape, is_packed):
    model = make_tiny(shape)
    exact = gradients(model, is_packed, "fp32")
    autocast = distance(gradients(model, is_packed), exact)
    fused.fuse(model)
    ours = distance(gradients(model, is_packed), exact)
    assert 0.0 < ours < 1.05 * autocast < 0.1


@needs_kernels
@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "one document"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_8_bits_change_no_loss_and_little_of_the_gradients(shape, is_packed):
    model = make_tiny(shape)
    exact = gradients(model, is_packed, "fp32")
    fused.fuse(model)
    bf16 = gradients(model, is_packed)
    int8 = gradients(in_int8(model), is_packed)
    assert torch.equal(int8[0], bf16[0])
    assert not torch.equal(int8, bf16)
    assert distance(bf16[1:], exact[1:]) < distance(int8[1:], exact[1:]) < 0.1


@needs_kernels
def test_a_document_does_not_see_the_one_before():
    model, data = make_tiny(SHAPE), rows(is_packed=True)
    fused.fuse(model)

    def second_document() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            hidden = model.hidden(
                data["ids_BT"], positions_BT=data["positions_BT"], segments=data["segments"]
            )
        return hidden[0, 151:215]

    before = second_document()
    data["ids_BT"][0, :150] = 7
    assert torch.equal(before, second_document())


@needs_kernels
@pytest.mark.parametrize("is_int8", [False, True], ids=["bf16", "int8"])
@pytest.mark.parametrize("shape", [SHAPE, ODD], ids=["grouped", "odd"])
def test_threads_change_no_bit(shape, is_int8):
    model = make_tiny(shape)
    fused.fuse(model, is_int8=is_int8)
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(gradients(model))
        assert torch.equal(*found)
    finally:
        torch.set_num_threads(threads)


@needs_kernels
def test_outside_bf16_and_undone_it_is_the_plain_model_bit_for_bit():
    model = make_tiny(SHAPE)
    plain = {name: gradients(model, precision=name) for name in ("fp32", "bf16")}
    fused.fuse(model)
    assert torch.equal(gradients(model, precision="fp32"), plain["fp32"])
    assert not torch.equal(gradients(model), plain["bf16"])
    fused.undo(model)
    assert torch.equal(gradients(model), plain["bf16"])


@needs_kernels
@pytest.mark.parametrize("is_int8", [False, True], ids=["bf16", "int8"])
@pytest.mark.parametrize("name", ["q_proj", "gate_proj", "down_proj", "input_layernorm"])
def test_a_nan_reaches_the_loss(name, is_int8):
    model = make_tiny(SHAPE)
    fused.fuse(model, is_int8=is_int8)
    with torch.no_grad():
        chosen = next(m for n, m in model.named_modules() if n.endswith(name))
        chosen.weight.view(-1)[3] = float("nan")
    assert gradients(model)[0].isnan()


@needs_kernels
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_reaches_both_gradients(odd):
    layer = torch.nn.Linear(32, 48)
    x = torch.randn(20, 32, requires_grad=True)
    (y,) = int8_backward.linears(train_library.load(), (layer,), x)
    y.backward(torch.ones(20, 48).index_put_((torch.tensor(3), torch.tensor(5)), torch.tensor(odd)))
    assert not x.grad[3].isfinite().any()
    assert x.grad[4:].isfinite().all()
    assert not layer.weight.grad[5].isfinite().any()
    assert layer.weight.grad[6:].isfinite().all()
    assert not layer.bias.grad[5].isfinite()


@needs_kernels
def test_bytes_are_the_nearest_to_what_they_stand_for():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(37, 48, generator=generator) * torch.randn(48, generator=generator).exp()
    x[5], x[:, 7] = 0.0, 0.0
    x = x.bfloat16()
    found = int8_backward.Bytes(train_library.load(), x, by_row=True)
    for codes, scale, dim in (
        (found.by_row, found.row_scale[:, None], 1), (found.by_column, found.column_scale, 0)
    ):  # fmt: skip
        expected = x.float().abs().amax(dim, keepdim=True) / 127
        assert torch.allclose(scale.expand_as(expected), expected, rtol=1e-6)
        steps = (x.float() / expected.clamp_min(1e-30)).round()
        assert (codes - steps).abs().max() <= 1  # a tie may fall on either side
        assert ((codes * scale - x.float()).abs() <= 0.5001 * expected).all()


@needs_kernels
def test_only_what_is_trained_gets_a_gradient_in_8_bits():
    model = make_tiny(WIDE)
    attention = model.model.layers[1].self_attn
    for parameter in (*model.model.layers[0].parameters(), attention.k_proj.weight):
        parameter.requires_grad_(False)
    exact = gradients(model, precision="fp32")
    assert distance(gradients(in_int8(model)), exact) < 0.05
    assert model.model.layers[0].mlp.up_proj.weight.grad is None
    assert attention.k_proj.weight.grad is None
    assert attention.k_proj.bias.grad is not None


@needs_kernels
@pytest.mark.parametrize("is_int8", [False, True], ids=["bf16", "int8"])
@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
def test_adapters_train_on_the_kernels(method, is_int8):
    model = make_tiny(SHAPE)
    add_adapters(model, AdapterSection(method=method, rank=4), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(2))
    exact = gradients(model, precision="fp32")
    autocast = distance(gradients(model), exact)
    fused.fuse(model, is_int8=is_int8)
    assert distance(gradients(model), exact) < (2.0 if is_int8 else 1.1) * autocast


@needs_kernels
def test_shapes_the_kernels_cannot_take_are_said():
    assert fused.why_not(SHAPE) is None
    for change in ({"head_dim": 32}, {"vocab_size": 201}, {"d_ff": 100}):
        assert "forma" in str(fused.why_not(dataclasses.replace(SHAPE, **change)))


def settle(
    plan: StagePlan, model: GPT, *, backward: blocks.Backward = "auto", **compute
) -> list[str]:
    said: list[str] = []
    blocks.settle(
        model, plan, ComputeSection(**compute), Parallel(), backward=backward,
        run_pass=lambda: None, minutes=10.0, is_changing=False, log=said.append,
    )  # fmt: skip
    return said


def plan_for(tmp_path, precision: str) -> StagePlan:
    compute = ComputePlan("cpu", precision, 1, 1.0, "medido")
    return StagePlan(tmp_path / "plan.json", compute, 1, 10, Timeline([(0, 10)]))


@needs_kernels
@pytest.mark.parametrize(
    ("backward", "gains", "chosen"),
    [
        ("auto", (1.4, 1.7), "fused-int8"),
        ("auto", (1.4, 1.42), "fused"),
        ("auto", (1.0, 1.2), "fused-int8"),
        ("bf16", (1.4, 1.7), "fused"),
        ("int8", (1.4, 1.2), "fused-int8"),
        ("int8", (1.4, 0.0), "fused"),
    ],
)
def test_the_choice_is_measured_said_and_kept(tmp_path, monkeypatch, backward, gains, chosen):
    model, plan = make_tiny(SHAPE), plan_for(tmp_path, "bf16")
    monkeypatch.setattr(fused, "gains", lambda config: gains)
    said = " ".join(settle(plan, model, backward=backward))
    assert all(f"{gain:.2f}" in said for gain in gains)
    again, kept = make_tiny(SHAPE), StagePlan.load(plan.path)
    assert kept.blocks == chosen
    assert settle(kept, again) == []
    assert torch.equal(gradients(model), gradients(again))


@needs_kernels
def test_kernels_that_do_not_pay_are_left(tmp_path, monkeypatch):
    model, plan = make_tiny(SHAPE), plan_for(tmp_path, "bf16")
    monkeypatch.setattr(fused, "gains", lambda config: (1.01, 1.04))
    settle(plan, model)
    assert plan.blocks == "plain"
    assert not fused.is_active(model, torch.zeros(1))


def test_fp32_and_a_machine_without_kernels_train_on_torch(tmp_path, monkeypatch):
    plan = plan_for(tmp_path, "fp32")
    settle(plan, make_tiny(SHAPE))
    assert plan.blocks == "plain"
    monkeypatch.setattr(train_library, "why_not", lambda: "no hay compilador de C++")
    plan = plan_for(tmp_path, "bf16")
    assert "no hay compilador" in " ".join(settle(plan, make_tiny(SHAPE)))
    assert plan.blocks == "plain"


@needs_kernels
def test_the_trial_leaves_the_random_stream_where_it_was(monkeypatch):
    before = torch.get_rng_state()
    assert min(fused.gains(SHAPE)) > 0
    monkeypatch.delattr(torch, "_int_mm")
    assert fused.gains(SHAPE)[1] == 0
    assert torch.equal(before, torch.get_rng_state())


@needs_kernels
def test_a_run_that_goes_on_where_there_are_no_kernels_says_so_and_trains(tmp_path, monkeypatch):
    model, plan = make_tiny(SHAPE), plan_for(tmp_path, "bf16")
    plain = gradients(model)
    plan.blocks = "fused"
    monkeypatch.setattr(train_library, "why_not", lambda: "no hay compilador de C++")
    assert "no hay compilador" in " ".join(settle(plan, model))
    assert torch.equal(gradients(model), plain)
    assert plan.blocks == "fused"
