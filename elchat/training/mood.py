"""Training a mood on a frozen model: it learns to be heard without a word in the prompt.

Stage 0 teaches the eight named axes, stage 1 adds the free dimensions. The reply's style is the
mood's value, and the text must become likelier under it than under none or another's:

    loss = NLL(reply | mood) + margin + 0.01 · |film|²    (+ KL, words, contrast in stage 1)

Three of four batches lose their earlier turns, so that the mood and not the transcript must tell;
15 % get no mood at all, so that off stays natural. Nothing of the backbone changes: the low layers
run without gradient, the upper ones pass it through.

Shape legend: B examples, T tokens, N turns, E expressing layers, C width, M mood.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from elchat import checkpoint as checkpoints
from elchat.autonomy.mood import AXES, PRESENCE, Mood, MoodShape
from elchat.errors import DataError
from elchat.gpt import GPT
from elchat.hooks import Film, LayerEffect
from elchat.philox import Dice, Stream
from elchat.training.mood_cell import CellFit, Padded, fit_cell, unroll
from elchat.training.mood_data import Exchange
from elchat.training.mood_examples import (
    READ_TOKENS,
    SEGMENT_TOKENS,
    Example,
    encode,
    encode_document,
    measure_constants,
    pools_of,
)
from elchat.training.mood_free import FreeDimensions, kl_with_free_bits
from elchat.training.optim import Optimizers
from elchat.weights import LoadedModel

IGNORED = -100
LONGEST_TOKENS, FEWEST_CONVERSATIONS = 1024, 8
LABEL_SHARE, CELL_SHARE = 0.7, 0.15  # the rest of the turns get no mood at all
LABEL_NOISE = 0.2
WHOLE_EVERY, MOST_SEGMENTS = 4, 5
SWAP_EVERY, SWAP_MARGIN = 4, 0.02
FILM_PENALTY = 0.01
HELD_OUT_EXAMPLES = 24
KILL_SWAP_NATS, KILL_R2, KILL_BITS = 0.005, 0.2, 1.0


@dataclass(frozen=True)
class MoodRecipe:
    """How much and how fast.

    Attributes:
        max_tokens: tokens of the expressing half; what bounds the time.
        stage: 0 named axes only; 1 the free dimensions too.
        dtype: of the frozen layers while training ("bfloat16" is twice as fast where the
            processor has it); the mood itself, what it is read from and its judging stay fp32.
        shuffled: control: each reply gets the label of another, so nothing can be learned.
    """

    max_tokens: int = 60_000
    batch_tokens: int = 320
    learning_rate: float = 3e-3
    dim: int = 64
    stage: int = 0
    seed: int = 0
    shuffled: bool = False
    dtype: str = "float32"
    save_every_steps: int = 20


@dataclass
class MoodReport:
    """What training saw; goes into the notes of autonomy.json."""

    cell: dict[str, Any] = field(default_factory=dict)
    documents: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    swap_nats: float = 0.0
    none_nats: float = 0.0
    warnings: list[str] = field(default_factory=list)


class TurnFilms:
    """`LayerHook` that gives each token the film of its turn, differentiable."""

    def __init__(
        self, mood: Mood, mood_BNM: Tensor, turn_BT: Tensor, dtype: torch.dtype = torch.float32
    ) -> None:
        self.shape = mood.shape
        flat = mood_BNM.flatten(0, 1)
        self.films = mood.films(flat).to(dtype)  # [B·N, E, 3, C]
        offset = torch.arange(len(mood_BNM))[:, None] * mood_BNM.shape[1]
        self.turn_BT = turn_BT + offset

    def effect(self, layer: int) -> LayerEffect | None:
        """Film of one layer."""
        if layer < self.shape.appraisal_layers:
            return None
        film = self.films[:, layer - self.shape.appraisal_layers][self.turn_BT]
        return LayerEffect(film=Film(*film.unbind(2)))


@dataclass(frozen=True)
class MoodBatch:
    """Examples side by side, padded behind; [B, T] and [B, N, ...]."""

    ids_BT: Tensor
    targets_BT: Tensor
    turn_BT: Tensor
    style_BN8: Tensor
    cell_BNM: Tensor
    own_BNC: Tensor

    @property
    def n_tokens(self) -> int:
        """Tokens, padding included."""
        return self.ids_BT.numel()


def train_mood(
    loaded: LoadedModel,
    conversations: Sequence[Sequence[Exchange]],
    recipe: MoodRecipe,
    *,
    documents: Sequence[str] = (),
    root: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Mood, MoodReport] | None:
    """Train a mood for a model that stays as it is.

    Args:
        documents: long texts, which teach by segments; those under two segments are left out.
        root: folder of checkpoints; what is there is continued.

    Returns:
        The mood and what was seen, or None if stopped (a checkpoint has been written).
    """
    trainer = _MoodTrainer(loaded, conversations, recipe, root, log, should_stop)
    trainer.add_documents(documents, loaded)
    return trainer.run()


class _MoodTrainer:
    def __init__(
        self,
        loaded: LoadedModel,
        conversations: Sequence[Sequence[Exchange]],
        recipe: MoodRecipe,
        root: Path | None,
        log: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.model: GPT = loaded.model.eval().requires_grad_(False)
        self.passes = self.model  # what the passes of training run on
        self.recipe, self.root, self.log, self.should_stop = recipe, root, log, should_stop
        self.dice = Dice(recipe.seed, "ánimo")
        self.vocab = loaded.tokenizer.vocab_size
        limit = min(LONGEST_TOKENS, self.model.config.max_positions)
        encoded = [encode(c, loaded.chat, group=0) for c in conversations]
        fitting = [c for c, e in zip(conversations, encoded, strict=True) if len(e.ids) <= limit]
        conversations = require_enough(fitting)
        self.whole = [encode(c, loaded.chat, group=i) for i, c in enumerate(conversations)]
        self.singles = [
            encode([turn], loaded.chat, group=i, first=j)
            for i, c in enumerate(conversations)
            for j, turn in enumerate(c)
        ]
        self.mood = Mood(MoodShape.of(self.model.config, recipe.dim))
        self.mood.init_weights(torch.Generator().manual_seed(recipe.seed))
        self.free: FreeDimensions | None = None
        if recipe.stage == 1:
            self.free = FreeDimensions(self.mood.shape, self.vocab)
            self.free.init_weights(torch.Generator().manual_seed(recipe.seed + 1))
        self.report = MoodReport()

    def add_documents(self, documents: Sequence[str], loaded: LoadedModel) -> None:
        """Long texts join the conversations that keep their past, as long as they are the fewer."""
        tokenizer = loaded.tokenizer
        limit = min(MOST_SEGMENTS * SEGMENT_TOKENS, self.model.config.max_positions)
        found: list[Example] = []
        for text in documents:
            ids = [*loaded.doc_prefix_ids, *tokenizer.encode(text)][:limit]
            n = len(ids) // SEGMENT_TOKENS
            if n < 2 or len(found) >= len(self.whole):
                continue
            parts = [ids[SEGMENT_TOKENS * i : SEGMENT_TOKENS * (i + 1)] for i in range(n)]
            texts = [tokenizer.decode(part[READ_TOKENS:]) for part in parts]
            group = len(self.whole) + len(found)
            found.append(encode_document(ids, texts, group=group))
        self.whole += found
        self.report.documents = len(found)

    def run(self) -> tuple[Mood, MoodReport] | None:
        began = time.monotonic()
        self._appraise()
        held = self.singles[-HELD_OUT_EXAMPLES:]
        if self.recipe.dtype != "float32":
            self.passes = copy.deepcopy(self.model).to(getattr(torch, self.recipe.dtype))
        trained = _Trained(self.mood, self.free)
        adamw = torch.optim.AdamW(trained.groups(), lr=0.0, weight_decay=0.0)
        optimizer = Optimizers([adamw])
        total = max(1, self.recipe.max_tokens // self.recipe.batch_tokens)
        step = self._restore(trained, optimizer)
        while step < total:
            if self.should_stop():
                self._save(trained, optimizer, step)
                return None
            rate = self.recipe.learning_rate * min(1.0, (step + 1) / 10) * (1 - step / total)
            optimizer.set_learning_rate(rate)
            figures = self._step(trained, optimizer, step, total)
            step += 1
            if step % 10 == 0 or step == total:
                self.report.curve.append({"step": step, **figures})
                shown = " · ".join(f"{k} {v:.3f}" for k, v in figures.items())
                self.log(f"[ánimo] paso {step}/{total} · {shown}")
            if self.root is not None and step % self.recipe.save_every_steps == 0:
                self._save(trained, optimizer, step)
        self.report.steps = total
        self.report.seconds += time.monotonic() - began
        self._judge(held)
        self.mood.requires_grad_(False)
        return self.mood.eval(), self.report

    # --- the cell --------------------------------------------------------------------------------

    def _appraise(self) -> None:
        """Pools of every conversation, the constants, and the cell fitted to them."""
        measure_constants(self.mood, self.model, self.whole[:64])
        a = self.mood.shape.appraisal_layers
        pools = [pools_of(self.model, example, a) for example in self.whole]
        self.log(f"[ánimo] {len(pools)} conversaciones leídas por las {a} capas bajas")
        talks = len(pools) - self.report.documents  # the last are kept to judge: conversations
        fit = fit_cell(self.mood, [*pools[talks:], *pools[:talks]])
        self._note_cell(fit)
        with torch.no_grad():
            self.cell = unroll(self.mood, Padded.of(pools))
        self.own = [self.mood.standardise(p.own_NC) for p in pools]

    def _note_cell(self, fit: CellFit) -> None:
        self.report.cell = asdict(fit)
        self.log(f"[ánimo] la célula prevé el temple con R² {fit.r2:.3f} ({fit.n_turns} turnos)")
        if fit.r2 < KILL_R2:
            self._warn(f"R² {fit.r2:.3f} no llega a {KILL_R2}: la célula apenas prevé el temple")

    # --- one step --------------------------------------------------------------------------------

    def _step(
        self, trained: _Trained, optimizer: Optimizers, step: int, total: int
    ) -> dict[str, float]:
        batch = self._batch(step)
        mood_BNM, extra, figures = self._moods(batch, step, total)
        loss = self._nats(batch, mood_BNM)
        figures = {"nats": float(loss.detach()), **figures}
        if step % SWAP_EVERY == SWAP_EVERY - 1:
            swapped = self._nats(batch, mood_BNM.roll(1, 0))
            figures["cambiado"] = float((swapped - loss).detach())
            loss = loss + F.relu(loss + SWAP_MARGIN - swapped)
        loss = loss + extra
        films = self.mood.films(mood_BNM.flatten(0, 1))
        loss = loss + FILM_PENALTY * films.pow(2).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        self.report.tokens += batch.n_tokens
        return figures

    def _moods(
        self, batch: MoodBatch, step: int, total: int
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Moods of every turn of the batch, [B, N, M]; stage 1's losses; what to log."""
        shape = (*batch.style_BN8.shape[:2],)
        n = int(np.prod(shape))
        u = torch.from_numpy(self.dice.uniforms(Stream.MASK, n, turn=step)).view(*shape, 1)
        xi = self._normals(Stream.NOISE, (*shape, len(AXES)), step)
        label = batch.style_BN8 + LABEL_NOISE * xi
        foreseen = batch.cell_BNM[..., : len(AXES)]
        named = torch.where(u < LABEL_SHARE, label, foreseen)
        is_on = (u < LABEL_SHARE + CELL_SHARE).float()
        z_dim = self.mood.shape.dim - len(AXES)
        z = torch.zeros(*shape, z_dim)
        extra: Tensor = torch.zeros(())
        figures: dict[str, float] = {}
        if self.free is not None:
            z, extra, figures = self._free(batch, step, total, z_dim)
        if z_dim:
            z = torch.cat((torch.ones_like(z[..., :1]), z[..., 1:]), -1)
        return torch.cat((named, z), -1) * is_on, extra, figures

    def _free(
        self, batch: MoodBatch, step: int, total: int, z_dim: int
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        assert self.free is not None
        prior = batch.cell_BNM[..., len(AXES) :].flatten(0, 1)
        pool = batch.own_BNC.flatten(0, 1)
        spread = torch.ones(z_dim)
        drawn = self.free.draw(pool, prior, spread, self._normals(Stream.TOKEN, prior.shape, step))
        beta = 0.5 * min(1.0, step / max(1.0, 0.2 * total))
        words = batch.targets_BT.repeat_interleave(batch.style_BN8.shape[1], 0)
        turn = batch.turn_BT.repeat_interleave(batch.style_BN8.shape[1], 0)
        which = torch.arange(len(words)) % batch.style_BN8.shape[1]
        words = torch.where(turn == which[:, None], words, IGNORED)
        mood = torch.cat((batch.style_BN8.flatten(0, 1), drawn.z_NZ), -1)
        extra = beta * kl_with_free_bits(drawn.kl_N)
        extra = extra + 0.1 * self.free.word_loss(drawn.z_NZ, words)
        extra = extra + 0.1 * self.free.contrast_loss(mood, pool)
        bits = float(drawn.kl_N.detach().mean()) / float(np.log(2.0))
        return drawn.z_NZ.view(*batch.cell_BNM.shape[:2], z_dim), extra, {"bits": bits}

    def _normals(self, stream: Stream, shape: Sequence[int], step: int) -> Tensor:
        draws = self.dice.normals(stream, int(np.prod(shape)), turn=step)
        return torch.from_numpy(draws).float().view(*shape)

    def _nats(self, batch: MoodBatch, mood_BNM: Tensor) -> Tensor:
        """Mean loss per reply token under these moods."""
        model = self.passes
        a, n = self.mood.shape.appraisal_layers, self.mood.shape.n_layers
        plan = model.plan(batch.ids_BT)
        with torch.no_grad():
            low = model.run_layers(model.model.embed_tokens(batch.ids_BT), plan, range(a))
        hook = TurnFilms(self.mood, mood_BNM, batch.turn_BT, low.dtype)
        x_BTC = model.run_layers(low, plan, range(a, n), hook=hook)
        keep = batch.targets_BT != IGNORED
        hidden = model.model.norm(x_BTC[keep])
        logits = F.linear(hidden, model.head_weight_VC[: self.vocab])
        return F.cross_entropy(logits.float(), batch.targets_BT[keep])

    # --- batches ---------------------------------------------------------------------------------

    def _batch(self, step: int) -> MoodBatch:
        """Examples for one step, a function of the seed: few whole, most without their past."""
        pool = self.singles[:-HELD_OUT_EXAMPLES] if step % WHOLE_EVERY else self.whole
        chosen: list[Example] = []
        size, i = 0, 0
        while not chosen or (size + 1) * len(chosen) < self.recipe.batch_tokens:
            u = self.dice.uniform(Stream.MOOD, turn=step, step=i)
            chosen.append(pool[int(u * len(pool))])
            size, i = max(size, len(chosen[-1].ids)), i + 1
            if size * (len(chosen) + 1) > self.recipe.batch_tokens and len(chosen) > 1:
                break
        return self.collate(chosen, step)

    def collate(self, examples: Sequence[Example], step: int) -> MoodBatch:
        """Pad examples into a batch."""
        t = max(len(e.ids) for e in examples)
        n = max(len(e.replies) for e in examples)
        c, m = self.mood.shape.width, self.mood.shape.dim
        ids = torch.zeros(len(examples), t, dtype=torch.int64)
        targets = torch.full_like(ids, IGNORED)
        turns = torch.zeros_like(ids)
        styles = torch.zeros(len(examples), n, len(AXES))
        cell, own = torch.zeros(len(examples), n, m), torch.zeros(len(examples), n, c)
        for i, example in enumerate(examples):
            ids[i, : len(example.ids)] = torch.tensor(example.ids)
            turns[i, : len(example.ids)] = torch.tensor(example.turn_of)
            for start, end in example.replies:
                targets[i, start - 1 : end - 1] = ids[i, start:end]
            k, first = len(example.replies), example.first_turn
            styles[i, :k] = torch.from_numpy(example.styles)
            cell[i, :k] = self.cell[example.group, first : first + k]
            own[i, :k] = self.own[example.group][first : first + k]
        if self.recipe.shuffled:
            order = np.argsort(self.dice.uniforms(Stream.SILENCE, len(examples), turn=step))
            styles = styles[torch.from_numpy(order)]
        return MoodBatch(ids, targets, turns, styles, cell, own)

    # --- judging, saving -------------------------------------------------------------------------

    @torch.no_grad()
    def _judge(self, held: Sequence[Example]) -> None:
        """On replies never trained: the mood they had, another's, none."""
        self.passes = self.model
        own = other = none = 0.0
        n = 0
        for at in range(0, len(held), 8):
            batch = self.collate(held[at : at + 8], 0)
            mood = F.pad(batch.style_BN8, (0, self.mood.shape.dim - len(AXES)))
            mood[..., PRESENCE : PRESENCE + 1] = 1.0
            count = int((batch.targets_BT != IGNORED).sum())
            own += count * float(self._nats(batch, mood))
            other += count * float(self._nats(batch, mood.roll(1, 0)))
            none += count * float(self._nats(batch, torch.zeros_like(mood)))
            n += count
        self.report.swap_nats, self.report.none_nats = (other - own) / n, (none - own) / n
        self.log(
            f"[ánimo] apartado: con el ánimo de otro {self.report.swap_nats:+.4f} nats por token, "
            f"sin ánimo {self.report.none_nats:+.4f}"
        )
        if self.report.swap_nats < KILL_SWAP_NATS:
            self._warn(f"cambiar el ánimo cuesta {self.report.swap_nats:.4f} nats: no se oye")
        bits = [row["bits"] for row in self.report.curve if "bits" in row]
        if bits and bits[-1] < KILL_BITS:
            self._warn(f"las dimensiones libres llevan {bits[-1]:.2f} bits por turno: se ignoran")

    def _warn(self, text: str) -> None:
        self.report.warnings.append(text)
        self.log(f"[ánimo] AVISO: {text}")

    def _save(self, trained: _Trained, optimizer: Optimizers, step: int) -> None:
        if self.root is None:
            return
        checkpoints.save(
            self.root,
            step,
            model={k: v.detach().contiguous() for k, v in trained.state_dict().items()},
            optimizer=optimizer.tensors(trained),
            meta={"report": vars(self.report), "recipe": asdict(self.recipe)},
        )
        checkpoints.prune(self.root, keep_last=1)

    def _restore(self, trained: _Trained, optimizer: Optimizers) -> int:
        found = None
        if self.root is not None:
            found = checkpoints.load_newest(self.root, warn=self.log)
        if found is None or found.meta["recipe"] != asdict(self.recipe):
            return 0
        trained.load_state_dict(found.model)
        optimizer.load_tensors(trained, found.optimizer)
        self.report = MoodReport(**found.meta["report"])
        self.log(f"[ánimo] continúa desde el paso {found.step}")
        return found.step


def require_enough(conversations: list[Sequence[Exchange]]) -> list[Sequence[Exchange]]:
    """The same, if there are enough of them to learn from and to judge by.

    Raises:
        DataError: there are not.
    """
    if len(conversations) < FEWEST_CONVERSATIONS:
        raise DataError(
            f"Para enseñar el ánimo quedan {len(conversations)} conversaciones que caben en el "
            f"contexto del modelo y hacen falta {FEWEST_CONVERSATIONS}: usa uno de más contexto."
        )
    return conversations


class _Trained(torch.nn.Module):
    """What the optimizer moves: the modulation, and in stage 1 what finds the free dimensions."""

    def __init__(self, mood: Mood, free: FreeDimensions | None) -> None:
        super().__init__()
        self.film = mood.film
        self.free = free

    def groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimizer."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]
