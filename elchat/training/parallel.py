"""Several processes as one: torch's own DDP or FSDP2, and one voice for every decision.

Every process draws the whole step from the loader and keeps its share of the rows, so the data
order does not depend on how many there are. What depends on clocks, flags or files is decided by
the first process and told to the others.

    ddp    each process holds the whole model            torch DistributedDataParallel
    fsdp   weights, gradients and moments in shards      torch fully_shard (FSDP2)
"""

from __future__ import annotations

import contextlib
import datetime
import os
from contextlib import AbstractContextManager
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from elchat.attention import Segments
from elchat.config import StageSection
from elchat.errors import ConfigError
from elchat.gpt import GPT
from elchat.hooks import LayerHook
from elchat.training import fused
from elchat.training.loss import summed_cross_entropy

PATIENCE = datetime.timedelta(hours=12)  # the others wait while the first prepares the data


class LossModule(nn.Module):
    """The model with its loss: what is wrapped, so that every parameter is used in `forward`."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor,
        segments: Segments | None,
        targets_BT: Tensor,
        hook: LayerHook | None = None,
    ) -> Tensor:
        """Cross entropy summed over the valid targets."""
        hidden = self.gpt.hidden(ids_BT, positions_BT=positions_BT, segments=segments, hook=hook)
        head_loss = fused.head_loss if fused.is_active(self.gpt, hidden) else None
        return summed_cross_entropy(
            hidden, self.gpt.head_weight_VC, targets_BT, head_loss=head_loss
        )


class Parallel:
    """This process among those of the run; alone, every method is the obvious identity.

    Attributes:
        rank: 0 is the one that speaks, writes and decides.
        world: how many there are.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.kind: Literal["none", "ddp", "fsdp"] = "none"
        self._wrapped: nn.Module | None = None
        if self.world == 1:
            return
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not dist.is_initialized():
            _join(device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and answers to the user."""
        return self.rank == 0

    def check(self, settings: StageSection, stage: str, kind: str) -> None:
        """Refuse what cannot be shared out.

        Raises:
            ConfigError: naming the keys.
        """
        rows = settings.batch_tokens // settings.context_tokens
        if rows % self.world:
            raise ConfigError(
                f"training.{stage}.batch_tokens da {rows} secuencias por paso y no se reparten "
                f"entre {self.world} procesos: usa un múltiplo de "
                f"{self.world * settings.context_tokens}."
            )
        is_plain = settings.optimizer == "adamw" and settings.optimizer_state == "fp32"
        if self.world > 1 and kind == "fsdp" and not is_plain:
            raise ConfigError(
                f"training.{stage}: con compute.sharding: fsdp solo hay optimizer: adamw y "
                "optimizer_state: fp32; usa sharding: ddp o cambia el optimizador."
            )

    def wrap(self, module: LossModule, kind: Literal["ddp", "fsdp"], device: str) -> nn.Module:
        """Make the processes train one model; alone, the module itself."""
        if self.world == 1:
            return module
        self.kind = kind
        if kind == "fsdp":
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(device, (self.world,))
            for block in module.gpt.model.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(module, mesh=mesh)
            wrapped: nn.Module = module
            with torch.no_grad():  # the root must be the first to run; measuring calls the blocks
                nothing = torch.zeros(1, 2, dtype=torch.long, device=device)
                module(nothing, nothing, None, nothing)
            wrapped.reshard()  # type: ignore[operator]  # the optimizer must be given the shards
        else:
            wrapped = nn.parallel.DistributedDataParallel(module)
        self._wrapped = wrapped
        return wrapped

    def gradients_now(self, is_last: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch: gradients travel once a step, after the last."""
        if self.kind == "ddp":
            assert isinstance(self._wrapped, nn.parallel.DistributedDataParallel)
            return contextlib.nullcontext() if is_last else self._wrapped.no_sync()
        if self.kind == "fsdp":
            self._wrapped.set_requires_gradient_sync(is_last)  # type: ignore[union-attr,operator]
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def whole(self):
        """Outside the training pass, have the parameters that no block owns in one piece."""
        if self.kind == "fsdp":
            self._wrapped.unshard()  # type: ignore[union-attr,operator]
        try:
            yield
        finally:
            if self.kind == "fsdp":
                self._wrapped.reshard()  # type: ignore[union-attr,operator]

    def rows(self, n_rows: int) -> range:
        """This process's rows of a step."""
        share = n_rows // self.world
        return range(self.rank * share, (self.rank + 1) * share)

    def total(self, value: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def agree(self, *values: float) -> tuple[float, ...]:
        """The first process's values, in all of them. Travels on the host."""
        if self.world == 1:
            return values
        told = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(told, 0)
        return tuple(told.tolist())

    def new_group(self) -> dist.ProcessGroup | None:
        """Another line between the same processes, on the host."""
        return dist.new_group(backend="gloo", timeout=PATIENCE) if self.world > 1 else None

    def barrier(self) -> None:
        """Wait for everybody."""
        self.agree(0.0)

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _join(device: str) -> None:
    """Meet the others.

    The launcher keeps its store when it starts everybody again; without a prefix of its own a new
    start would read the addresses of the dead.
    """
    store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
        store=dist.PrefixStore(f"elchat/{attempt}", store),
        rank=rank,
        world_size=world,
        timeout=PATIENCE,
    )


def full_norm(norm: Tensor) -> Tensor:
    """A gradient norm as an ordinary tensor; FSDP's comes in pieces."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
