"""The forward pass over slots of cached keys and values: in torch, or compiled.

A slot holds the keys and values of one sequence. Both runners do the same: `embed`, `run_layers`
over any range of layers (autonomy stops halfway to look), `finish`. Tokens come as B rows of T:
one row with a stretch of a prompt, or one token for each of B replies.

Shape legend of `gpt`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import mmap
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from elchat import native
from elchat.batch_hook import BatchHook
from elchat.gpt import GPT, AttentionPlan, KVCache
from elchat.hooks import LayerEffect, LayerHook
from elchat.model_config import GPTConfig
from elchat.native import library as c
from elchat.panels import NativeWeights, Panels
from elchat.quantize import GROUP

MAX_TOKENS_PER_PASS = 256
# Positions whose keys, and whose values, may lie mixed (`attention.h`, `attention_bf16.h`).
KEY_BLOCK, VALUE_BLOCK = 16, 2
Prepared = tuple[Any, list[Tensor]]  # a ctypes array of effects, and the tensors it points to
KINDS = {"fp32": 0, "int8": 1, "int4": 2}


@dataclass(frozen=True)
class Rows:
    """Where the tokens of one pass go: row b writes positions starts[b].. of slots[b]."""

    slots: tuple[int, ...]
    starts: tuple[int, ...]


class Runner(Protocol):
    """What the scheduler needs of a model."""

    config: GPTConfig
    n_slots: int
    max_tokens: int

    def embed(self, ids_BT: Sequence[Sequence[int]]) -> Tensor:
        """The residual stream before the first layer, [B, T, C]."""

    def run_layers(
        self,
        x_BTC: Tensor,
        rows: Rows,
        layers: range,
        hook: LayerHook | None = None,
        *,
        n_kept: int | None = None,
    ) -> Tensor:
        """Pass through some layers, writing keys and values; `x_BTC` may be changed in place.

        Args:
            n_kept: how many of the last tokens matter past the last layer (None: all). Of the
                others it need only compute keys and values, and what it returns means nothing.
        """

    def finish(self, x_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Final normalised states [N, C] and logits [N, V], fp32 on the CPU."""

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> None:
        """Make `target` begin as `source` does."""


class TorchRunner:
    """The model's own modules, on any device."""

    def __init__(self, model: GPT, head: nn.Module, n_slots: int, max_tokens: int) -> None:
        self.config, self.n_slots, self.max_tokens = model.config, n_slots, max_tokens
        self._model, self._head = model, head
        weight = model.model.norm.weight
        self._cache = KVCache(
            model.config, n_slots, max_tokens, dtype=weight.dtype, device=weight.device
        )

    def embed(self, ids_BT: Sequence[Sequence[int]]) -> Tensor:
        return self._model.model.embed_tokens(torch.tensor(ids_BT, device=self._cache.k.device))

    def run_layers(
        self,
        x_BTC: Tensor,
        rows: Rows,
        layers: range,
        hook: LayerHook | None = None,
        *,
        n_kept: int | None = None,
    ) -> Tensor:
        view = SlotView(self._cache, rows)
        plan = view.plan(self._model, x_BTC)
        return self._model.run_layers(x_BTC, plan, layers, cache=view, hook=hook)  # type: ignore[arg-type]

    def finish(self, x_NC: Tensor) -> tuple[Tensor, Tensor]:
        normed = self._model.model.norm(x_NC)
        return normed.float().cpu(), self._head(normed).float().cpu()

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> None:
        for cached in (self._cache.k, self._cache.v):
            cached[:, target, :, :n_tokens] = cached[:, source, :, :n_tokens]


class SlotView:
    """Some slots of a cache, as `gpt` meets a `KVCache` in one pass."""

    def __init__(self, cache: KVCache, rows: Rows) -> None:
        self._cache, self._rows = cache, rows
        self.length = rows.starts[0] if len(rows.slots) == 1 else 0
        self.max_tokens = cache.max_tokens
        device = cache.k.device
        self._slots = torch.tensor(rows.slots, device=device)
        self._starts = torch.tensor(rows.starts, device=device)
        self._end = max(rows.starts) + 1

    def plan(self, model: GPT, x_BTC: Tensor) -> AttentionPlan:
        """Rotations and mask of this pass."""
        ids = x_BTC[..., 0]  # only its shape and device are looked at
        if len(self._rows.slots) == 1:
            return model.plan(ids, cache=self)  # type: ignore[arg-type]
        plan = model.plan(ids, positions_BT=self._starts[:, None], cache=self)  # type: ignore[arg-type]
        keys = torch.arange(self._end, device=ids.device)
        mask = (keys <= self._starts[:, None])[:, None, None]
        return dataclasses.replace(plan, mask_B1TS=mask, is_causal=False)

    def append(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values; return all that may be attended to."""
        k, v = self._cache.k[layer], self._cache.v[layer]
        if len(self._rows.slots) == 1:
            slot, end = self._rows.slots[0], self.length + k_BKTD.shape[2]
            k[slot, :, self.length : end] = k_BKTD[0]
            v[slot, :, self.length : end] = v_BKTD[0]
            return k[slot : slot + 1, :, :end], v[slot : slot + 1, :, :end]
        k[self._slots, :, self._starts] = k_BKTD[:, :, 0].to(k.dtype)
        v[self._slots, :, self._starts] = v_BKTD[:, :, 0].to(v.dtype)
        n = len(self._rows.slots)
        if self._rows.slots == tuple(range(n)):  # nothing to gather
            return k[:n, :, : self._end], v[:n, :, : self._end]
        return k[self._slots, :, : self._end], v[self._slots, :, : self._end]


class NativeRunner:
    """The compiled forward pass. A row's bits do not depend on the rows beside it."""

    def __init__(self, weights: NativeWeights, n_slots: int, max_tokens: int, threads: int) -> None:
        lib = native.load()
        assert lib is not None, native.why_not()
        self._lib, self._weights = lib, weights
        max_tokens = -(-max_tokens // KEY_BLOCK) * KEY_BLOCK
        self.config, self.n_slots, self.max_tokens = weights.config, n_slots, max_tokens
        cfg = weights.config
        heads, d = (cfg.n_layers, n_slots, cfg.n_kv_heads), cfg.head_dim
        is_bf16 = lib.has_bf16 and weights.kind != "fp32" and d % KEY_BLOCK == 0
        dtype = torch.bfloat16 if is_bf16 else torch.float32
        self._k = lazy_zeros(*heads, max_tokens // KEY_BLOCK, d * KEY_BLOCK, dtype=dtype)
        self._v = lazy_zeros(*heads, max_tokens // VALUE_BLOCK, d * VALUE_BLOCK, dtype=dtype)
        self._head = _matrix(weights.head)
        layers = (c.Layer * cfg.n_layers)(*(self._layer(i) for i in range(cfg.n_layers)))
        c_shape = c.Shape(
            cfg.n_layers, cfg.d_model, cfg.d_ff, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim,
            max_tokens, MAX_TOKENS_PER_PASS, is_bf16, cfg.norm_eps,
        )  # fmt: skip
        pool = lib.pool_new(threads)
        self._model = lib.model_new(
            ctypes.addressof(c_shape), ctypes.addressof(layers), weights.cos.data_ptr(),
            weights.sin.data_ptr(), pool,
        )  # fmt: skip
        weakref.finalize(self, _free, lib, self._model, pool)

    def embed(self, ids_BT: Sequence[Sequence[int]]) -> Tensor:
        embedding = self._weights.embedding
        if embedding is not None:
            return embedding[torch.tensor(ids_BT)].float()
        n = len(ids_BT) * len(ids_BT[0])
        x = torch.empty(len(ids_BT), len(ids_BT[0]), self.config.d_model)
        ids = _int32s(i for row in ids_BT for i in row)
        self._lib.rows(ctypes.addressof(self._head), ctypes.addressof(ids), n, x.data_ptr())
        return x

    def run_layers(
        self,
        x_BTC: Tensor,
        rows: Rows,
        layers: range,
        hook: LayerHook | None = None,
        *,
        n_kept: int | None = None,
    ) -> Tensor:
        b, t, width = x_BTC.shape
        x = x_BTC.contiguous()
        slots = _int32s(slot for slot in rows.slots for _ in range(t))
        positions = _int32s(start + i for start in rows.starts for i in range(t))
        prepared = None if hook is None else self._prepare(hook, layers, b, t)
        effects = None if prepared is None else prepared[0]
        first_kept = 0 if n_kept is None else max(b * t - n_kept, 0)
        self._run(x.view(b * t, width), slots, positions, layers, effects, first_kept)
        return x

    @property
    def layers(self) -> range:
        """All of them."""
        return range(self.config.n_layers)

    def run_tokens(self, x_NC: Tensor, slots: Sequence[int], positions: Sequence[int]) -> None:
        """Pass tokens of any slots through all the layers, in place.

        Those of one slot stand in order of position, after whatever they are to look at.
        """
        assert x_NC.is_contiguous()
        self._run(x_NC, _int32s(slots), _int32s(positions), self.layers, None)

    def _run(
        self,
        x_NC: Tensor,
        slots: ctypes.Array[ctypes.c_int32],
        positions: ctypes.Array[ctypes.c_int32],
        layers: range,
        effects: ctypes.Array[c.Effect] | None,
        first_kept: int = 0,
    ) -> None:
        n, width = x_NC.shape
        for start in range(0, n, MAX_TOKENS_PER_PASS):
            assert start == 0 or effects is None
            count = min(MAX_TOKENS_PER_PASS, n - start)
            self._lib.run(
                self._model, x_NC.data_ptr() + start * width * 4, count,
                ctypes.addressof(slots) + start * 4, ctypes.addressof(positions) + start * 4,
                layers.start, layers.stop, effects, min(max(first_kept - start, 0), count),
            )  # fmt: skip

    def _prepare(self, hook: LayerHook, layers: range, b: int, t: int) -> Prepared:
        """Effects of some layers as the kernels take them; kept with a hook that is used again."""
        known: dict[range, Prepared] = hook.prepared if isinstance(hook, BatchHook) else {}
        if layers not in known:
            kept: list[Tensor] = []
            effects = (c.Effect * self.config.n_layers)()
            for i in layers:
                if (effect := hook.effect(i)) is not None:
                    effects[i] = _effect(effect, b, t, self.config.d_model, kept)
            known[layers] = effects, kept
        return known[layers]

    def finish(self, x_NC: Tensor) -> tuple[Tensor, Tensor]:
        x = x_NC.contiguous()
        normed, logits = torch.empty_like(x), torch.empty(len(x), self._weights.head.n)
        for start in range(0, len(x), MAX_TOKENS_PER_PASS):
            part = slice(start, start + MAX_TOKENS_PER_PASS)
            self._lib.finish(
                self._model, ctypes.addressof(self._head), self._weights.norm.data_ptr(),
                x[part].data_ptr(), len(x[part]), normed[part].data_ptr(), logits[part].data_ptr(),
            )  # fmt: skip
        return normed, logits

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> None:
        # What lies past the prefix in its last block is written over or not read.
        for cached, block in ((self._k, KEY_BLOCK), (self._v, VALUE_BLOCK)):
            n_blocks = -(-n_tokens // block)
            cached[:, target, :, :n_blocks] = cached[:, source, :, :n_blocks]

    def _layer(self, i: int) -> c.Layer:
        matrices = [_matrix(self._weights.layers[i][n]) for n in ("qkv", "out", "gate_up", "down")]
        tensors = (*self._weights.norms[i], self._k[i], self._v[i])
        return c.Layer(*matrices, *(t.data_ptr() for t in tensors))


def _int32s(values: Iterable[int]) -> ctypes.Array[ctypes.c_int32]:
    found = list(values)
    return (ctypes.c_int32 * len(found))(*found)


def lazy_zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros that take memory as they are written; torch's would fill every slot at the start."""
    memory = mmap.mmap(-1, dtype.itemsize * math.prod(shape))
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def fits_native(config: GPTConfig) -> bool:
    """Whether the kernels' vectors divide this shape."""
    widths = (config.d_model, config.d_ff, config.n_heads * config.head_dim)
    return all(w % GROUP == 0 for w in widths) and config.head_dim % 8 == 0


def _matrix(panels: Panels) -> c.Matrix:
    scales, bias = (None if t is None else t.data_ptr() for t in (panels.scales, panels.bias))
    return c.Matrix(
        panels.data.data_ptr(), scales, bias, KINDS[panels.kind], panels.n, panels.k,
    )  # fmt: skip


def _effect(effect: LayerEffect, b: int, t: int, width: int, kept: list[Tensor]) -> c.Effect:
    """Point at the effect's tensors; `kept` holds the copies made on the way."""

    def rows(tensor: Tensor | None) -> tuple[int | None, int]:
        if tensor is None:
            return None, 0
        is_one = tensor.numel() == width
        whole = tensor.float() if is_one else tensor.float().expand(b, t, width)
        kept.append(whole.contiguous())
        return kept[-1].data_ptr(), 0 if is_one else width

    out = c.Effect(is_skipped=int(effect.is_skipped))
    if effect.keep_BT1 is not None:
        kept.append(effect.keep_BT1.expand(b, t, 1).to(torch.uint8).contiguous())
        out.keep = kept[-1].data_ptr()
    out.noise, out.noise_stride = rows(effect.noise_BTC)
    if effect.film is not None:
        out.attention_gain, out.attention_stride = rows(effect.film.attention_gain_BTC)
        out.mlp_gain, out.mlp_stride = rows(effect.film.mlp_gain_BTC)
        out.shift, out.shift_stride = rows(effect.film.shift_BTC)
    return out


def _free(lib: native.Library, model: int, pool: int) -> None:
    lib.model_free(model)
    lib.pool_free(pool)


def head_of(model: GPT) -> nn.Module:
    """The output matrix as a module."""
    head = nn.Linear(model.config.d_model, model.config.vocab_size, bias=False, device="meta")
    head.weight = nn.Parameter(model.head_weight_VC.detach(), requires_grad=False)
    return head
