"""What a training stage writes and reads back: one file when alone, shards when many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from elchat import checkpoint
from elchat.training.adapters import merged_state_dict
from elchat.training.optim import Optimizers
from elchat.training.parallel import LossModule, Parallel
from elchat.training.sharded import ShardedCheckpoints, load, put_model, whole_model


class Saver:
    """Checkpoints of one stage.

    Args:
        root: folder of the stage's checkpoints.
    """

    def __init__(
        self, module: LossModule, optimizer: Optimizers, parallel: Parallel, root: Path
    ) -> None:
        self.module, self.optimizer, self.parallel, self.root = module, optimizer, parallel, root
        self._sharded = ShardedCheckpoints(parallel, root)

    def save(self, step: int, meta: dict[str, Any]) -> None:
        """Write the whole training state; several processes go on while it is written."""
        if self.parallel.world > 1:
            self._sharded.start(step, self.module, self.optimizer, meta)
            return
        model = self.module.gpt
        weights = {name: t.detach().contiguous() for name, t in model.state_dict().items()}
        moments = self.optimizer.tensors(model)
        checkpoint.save(self.root, step, model=weights, optimizer=moments, meta=meta)

    def settle(self) -> None:
        """Finish what is written by now."""
        self._sharded.settle()

    def save_final(self, step: int, meta: dict[str, Any]) -> None:
        """Write the stage's result: an ordinary model, adapters merged, no moments."""
        self._sharded.finish()
        if self.parallel.kind == "fsdp":
            weights = whole_model(self.module)
        else:
            weights = merged_state_dict(self.module.gpt)
        if self.parallel.is_main:
            checkpoint.save(self.root, step, model=weights, optimizer={}, meta=meta)
        self.parallel.barrier()

    def load(self, found: checkpoint.Checkpoint) -> None:
        """Put a checkpoint of any kind into the model and the optimizer there are now.

        A final one, or one in which every step so far was skipped, has no moments.
        """
        if found.is_sharded:
            load(found.path, self.module, self.optimizer, self.parallel)
            return
        self.load_model(found.model)
        if found.optimizer:
            self.optimizer.load_tensors(self.module.gpt, found.optimizer)

    def load_model(self, state: dict[str, Tensor]) -> None:
        """Put weights in and forget the moments."""
        if self.parallel.kind == "fsdp":
            put_model(self.module, state)
        else:
            self.module.gpt.load_state_dict(state)
        self.optimizer.clear()

    def prune(self, *, keep_last: int, keep_step: int | None) -> None:
        """Delete old checkpoints, the best one aside."""
        if self.parallel.is_main:
            keep = None if keep_step is None else self.root / f"step_{keep_step:06d}"
            checkpoint.prune(self.root, keep_last=keep_last, keep=keep)

    def close(self) -> None:
        """Wait for what is still being written."""
        self._sharded.finish()
