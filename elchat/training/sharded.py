"""Checkpoints of several processes: each writes its part in the background, any number reads it.

Format and resharding are torch.distributed.checkpoint's. A folder becomes a checkpoint only when
every part is written, hashed and renamed, as `elchat.checkpoint` does for one process.
"""

from __future__ import annotations

import copy
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from elchat import checkpoint
from elchat.training.optim import Optimizers
from elchat.training.parallel import Parallel

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class Pending:
    """A checkpoint on its way to disk."""

    future: Future[Any]
    temporary: Path
    final: Path
    step: int
    meta: dict[str, Any]


class ShardedCheckpoints:
    """Saves without stopping the training; one at a time."""

    def __init__(self, parallel: Parallel, root: Path) -> None:
        self.parallel, self.root = parallel, root
        self._pending: Pending | None = None
        # written from another thread: its messages must not cross those of the training
        self._group = parallel.new_group()

    def start(
        self, step: int, module: nn.Module, optimizer: Optimizers, meta: dict[str, Any]
    ) -> None:
        """Copy the state aside and let it be written; waits first for the previous one."""
        self.finish()
        temporary = self.root / f".step_{step:06d}.tmp"
        if self.parallel.is_main:
            self.root.mkdir(parents=True, exist_ok=True)
            checkpoint.remove_leftovers(self.root)
            temporary.mkdir()
        self.parallel.barrier()
        model, moments = get_state_dict(module, optimizer.parts, options=FLAT)
        future = dcp.async_save(
            {"model": model, "optimizer": moments},
            checkpoint_id=str(temporary / checkpoint.SHARDS),
            process_group=self._group,
        )
        final = self.root / f"step_{step:06d}"
        meta = copy.deepcopy(meta)  # the loop's counters go on while this is written
        self._pending = Pending(future, temporary, final, step, meta)  # type: ignore[arg-type]

    def settle(self) -> None:
        """Make the one under way a checkpoint if it is written; does not wait for it.

        The first process's part ends last: it gathers what the others wrote.
        """
        if self._pending is not None and self.parallel.agree(float(self._pending.future.done()))[0]:
            self.finish()

    def finish(self) -> None:
        """Wait for the one under way, if any, and make it a checkpoint."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        pending.future.result()
        self.parallel.barrier()
        if self.parallel.is_main:
            checkpoint.seal(pending.temporary, pending.final, pending.step, pending.meta)
        self.parallel.barrier()


def load(path: Path, module: nn.Module, optimizer: Optimizers, parallel: Parallel) -> None:
    """Read a sharded checkpoint into whatever shards there are now, one process included."""
    model, moments = get_state_dict(module, optimizer.parts, options=FLAT)
    state: dict[str, Any] = {"model": model, "optimizer": moments}
    dcp.load(state, checkpoint_id=str(path / checkpoint.SHARDS), no_dist=parallel.world == 1)
    set_state_dict(
        module,
        optimizer.parts,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=FLAT,
    )


def whole_model(module: nn.Module) -> dict[str, Tensor]:
    """The model's state dict in one piece, on the first process; empty on the others."""
    state = cast("dict[str, Tensor]", get_model_state_dict(module, options=WHOLE))
    return {name.removeprefix("gpt."): tensor.contiguous() for name, tensor in state.items()}


def put_model(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load an ordinary state dict, held by every process, into shards."""
    named: dict[str, Any] = {f"gpt.{name}": tensor for name, tensor in state.items()}
    set_model_state_dict(module, named, options=StateDictOptions(full_state_dict=True))
