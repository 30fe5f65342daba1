"""Stochastic depth and noise while training: the rule of inference, in tensors over a batch.

A run is what one draw covers: a reply of a conversation, or a document being read. Tokens of a
reply are those that were predicted (their predecessor has a target), so prompts stay whole, as
when decoding. A draw's address is (seed, stage, step, row, run): resuming draws the same again,
and so does cutting the step into other micro-batches.

Shape legend: B rows, T tokens, R runs, L layers, E layers with noise, C width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from elchat.autonomy.stochastic_depth import check_skippable, ramp, training_share
from elchat.hooks import LayerEffect
from elchat.philox import Dice, Stream

IGNORED = -100  # a position whose next token is not trained
RUN_BITS = 12


@dataclass(frozen=True)
class TrainingKnobs:
    """What acts on the layers while a stage trains.

    Attributes:
        dice: of this stage.
        p_max, max_skips, skippable: stochastic depth.
        noise_scale: in units of RMS.
        ramps: p_max grows over the first fifth of the stage (continued pretraining).
    """

    dice: Dice
    n_layers: int
    width: int
    first_layer: int
    p_max: float
    max_skips: int
    skippable: tuple[int, ...]
    noise_scale: float
    ramps: bool

    def __post_init__(self) -> None:
        check_skippable(self.skippable, self.n_layers, self.first_layer)

    def hook(
        self,
        targets_BT: Tensor,
        segments_BT: Tensor | None,
        *,
        step: int,
        first_row: int,
        progress: float,
    ) -> BatchHook:
        """Effects on some rows of a step.

        Args:
            targets_BT, segments_BT: as the loader gives them; the device decides.
            first_row: number of the first of these rows within the step.
            progress: of the stage, 0 to 1.
        """
        run_BT, n_runs = number_runs(targets_BT, segments_BT)
        p_max = self.p_max * (training_share(progress) if self.ramps else 1.0)
        keep_RL = np.ones((1 + sum(n_runs), self.n_layers), dtype=bool)
        at = 1
        for row, n in enumerate(n_runs):
            for run in range(n):
                where = (first_row + row) << RUN_BITS | run
                keep_RL[at + run, list(self._skips(p_max, step, where))] = False
            at += n
        device = targets_BT.device
        return BatchHook(
            run_BT,
            torch.from_numpy(keep_RL).to(device),
            self._noise(n_runs, step, first_row, device),
            self.first_layer,
        )

    def _skips(self, p_max: float, step: int, where: int) -> tuple[int, ...]:
        if not p_max or not self.skippable:
            return ()
        u_L = self.dice.uniforms(Stream.MASK, self.n_layers, turn=step, step=where)
        margins = sorted(
            (float(u_L[layer]) / (p_max * ramp(layer, self.n_layers)), layer)
            for layer in self.skippable
        )
        return tuple(layer for margin, layer in margins[: self.max_skips] if margin < 1.0)

    def _noise(
        self, n_runs: list[int], step: int, first_row: int, device: torch.device
    ) -> Tensor | None:
        """[1 + R, E, C], the first zero; a generator per row, on the device, seeded by the dice."""
        if not self.noise_scale:
            return None
        shape = (self.n_layers - self.first_layer, self.width)
        parts = [torch.zeros(1, *shape, device=device)]
        for row, n in enumerate(n_runs):
            u = self.dice.uniform(Stream.NOISE, turn=step, step=(first_row + row) << RUN_BITS)
            generator = torch.Generator(device).manual_seed(int(u * 2.0**62))
            parts.append(torch.randn(n, *shape, generator=generator, device=device))
        return self.noise_scale * torch.cat(parts)


class BatchHook:
    """`LayerHook` over packed rows; run 0 is everything that no draw covers."""

    def __init__(
        self, run_BT: Tensor, keep_RL: Tensor, noise_REC: Tensor | None, first_layer: int
    ) -> None:
        self.run_BT, self.keep_RL, self.noise_REC = run_BT, keep_RL, noise_REC
        self.first_layer = first_layer
        self._skips_any_L = (~keep_RL).any(0).tolist()

    def effect(self, layer: int) -> LayerEffect | None:
        """What happens to one layer."""
        if layer < self.first_layer:
            return None
        keep = self.keep_RL[:, layer][self.run_BT][..., None] if self._skips_any_L[layer] else None
        noise = None
        if self.noise_REC is not None:
            noise = self.noise_REC[:, layer - self.first_layer][self.run_BT]
        return None if keep is None and noise is None else LayerEffect(keep, noise_BTC=noise)


def number_runs(targets_BT: Tensor, segments_BT: Tensor | None) -> tuple[Tensor, list[int]]:
    """Number the runs of a batch from 1; 0 marks prompts and padding.

    Returns:
        [B, T] run numbers on the targets' device, and how many runs each row has.

    Example: targets -100 -100 5 6 -100 7 8 make runs 0 0 0 1 1 0 1' 1', with 1' another number.
    """
    targets = targets_BT.cpu().numpy()
    segments = np.ones_like(targets) if segments_BT is None else segments_BT.cpu().numpy()
    predicted = np.zeros_like(targets, dtype=bool)
    predicted[:, 1:] = (targets[:, :-1] != IGNORED) & (segments[:, 1:] == segments[:, :-1])
    starts = predicted.copy()
    starts[:, 1:] &= ~predicted[:, :-1] | (segments[:, 1:] != segments[:, :-1])
    in_row = np.cumsum(starts, 1)
    n_runs = in_row[:, -1]
    before = np.concatenate(([0], np.cumsum(n_runs)[:-1]))
    run = np.where(predicted, in_row + before[:, None], 0)
    return torch.from_numpy(run).to(targets_BT.device), [int(n) for n in n_runs]
