"""One decoder for SmolLM2, Qwen2.5, Llama 3.2 and any Llama-shaped model.

Shape legend: B rows, T new tokens, S cached + new tokens, C residual width, H query heads,
K key/value heads, D head width, V vocabulary. Parameter names are Hugging Face's own, so a state
dict is a `model.safetensors` and the reverse (docs/decisiones/0001). RoPE tables are computed,
never stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elchat.attention import Segments, attend_by_block, attend_packed
from elchat.errors import ModelError
from elchat.hooks import LayerEffect, LayerHook
from elchat.model_config import GPTConfig, RopeScaling

__all__ = ["GPT", "GPTConfig", "KVCache"]


class KVCache:
    """Preallocated keys and values of every layer, filled from position 0.

    Args:
        rows: sequences decoded side by side (B).
        max_tokens: capacity in tokens; writing past it raises `ModelError`.
    """

    def __init__(
        self,
        config: GPTConfig,
        rows: int,
        max_tokens: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.n_layers, rows, config.n_kv_heads, max_tokens, config.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def max_tokens(self) -> int:
        """Capacity in tokens."""
        return self.k.shape[3]

    def append(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values; return all of that layer's, [B, K, S, D]."""
        end = self.length + k_BKTD.shape[2]
        self.k[layer, :, :, self.length : end] = k_BKTD
        self.v[layer, :, :, self.length : end] = v_BKTD
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.length = min(self.length, length)


@dataclass(frozen=True)
class AttentionPlan:
    """What every layer of one forward pass shares: rotations and who may look at whom.

    Attributes:
        cos_BT1D, sin_BT1D: rotation tables, broadcast over heads.
        mask_B1TS: True where attention is allowed (B may be 1); None means plain causal, or a
            single query.
        is_causal: passed to SDPA when there is no mask.
        segments: documents packed in the rows, or None.
        blocks: lengths of the stretches of a row between which the mask lets nothing through.
    """

    cos_B1TD: Tensor
    sin_B1TD: Tensor
    mask_B1TS: Tensor | None
    is_causal: bool
    segments: Segments | None = None
    blocks: Sequence[int] | None = None


class RMSNorm(nn.Module):
    """y = x / rms(x) · weight over the last dimension, statistics in fp32.

    Source: Zhang & Sennrich 2019 (arXiv 1910.07467); rounding order of transformers' LlamaRMSNorm.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BTC: Tensor) -> Tensor:
        weight = self.weight.to(x_BTC.dtype)
        if x_BTC.dtype == torch.float32:
            return F.rms_norm(x_BTC, weight.shape, weight, self.eps)
        # In half precision torch's own multiplies by the weight before it rounds, transformers'
        # after: a quarter of the outputs would differ in their last bit.
        return weight * F.rms_norm(x_BTC, weight.shape, None, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with half-split rotary positions."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        c, d = config.d_model, config.head_dim
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, d
        self.q_proj = nn.Linear(c, config.n_heads * d, bias=config.has_qkv_bias)
        self.k_proj = nn.Linear(c, config.n_kv_heads * d, bias=config.has_qkv_bias)
        self.v_proj = nn.Linear(c, config.n_kv_heads * d, bias=config.has_qkv_bias)
        self.o_proj = nn.Linear(config.n_heads * d, c, bias=config.has_o_bias)

    def forward(
        self, x_BTC: Tensor, plan: AttentionPlan, cache: KVCache | None, layer: int
    ) -> Tensor:
        b, t, _ = x_BTC.shape
        q = self.q_proj(x_BTC).view(b, t, self.n_heads, self.head_dim).transpose(1, 2)
        q = rotate(q, plan.cos_B1TD, plan.sin_B1TD)
        k, v = self.keys_values(x_BTC, plan, cache, layer)
        if plan.segments is not None:
            y_BHTD = attend_packed(q, k, v.to(q.dtype), plan.segments)
        elif plan.blocks is not None and plan.mask_B1TS is not None:
            y_BHTD = attend_by_block(q, k, v.to(q.dtype), plan.mask_B1TS, plan.blocks)
        elif t == 1 and not plan.is_causal and q.dtype == torch.float32:
            # the heads of a group stand as queries of one head: keys and values are not repeated
            # (not in half precision, where it turns last bits that transformers does not turn)
            q = q.reshape(b, self.n_kv_heads, -1, self.head_dim)
            y = F.scaled_dot_product_attention(q, k, v.to(q.dtype), attn_mask=plan.mask_B1TS)
            y_BHTD = y.view(b, self.n_heads, 1, self.head_dim)
        else:
            y_BHTD = F.scaled_dot_product_attention(
                q,
                k,
                v.to(q.dtype),
                attn_mask=plan.mask_B1TS,
                is_causal=plan.is_causal,
                enable_gqa=self.n_heads != self.n_kv_heads,
            )
        return self.o_proj(y_BHTD.transpose(1, 2).reshape(b, t, -1))

    def keys_values(
        self, x_BTC: Tensor, plan: AttentionPlan, cache: KVCache | None, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values to attend to, [B, K, S, D]; the new ones enter the cache."""
        b, t, _ = x_BTC.shape
        k = self.k_proj(x_BTC).view(b, t, self.n_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x_BTC).view(b, t, self.n_kv_heads, self.head_dim).transpose(1, 2)
        k = rotate(k, plan.cos_B1TD, plan.sin_B1TD)
        return (k, v) if cache is None else cache.append(layer, k, v)


class MLP(nn.Module):
    """SwiGLU. Source: Shazeer 2020 (arXiv 2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        c, f = config.d_model, config.d_ff
        self.gate_proj = nn.Linear(c, f, bias=config.has_mlp_bias)
        self.up_proj = nn.Linear(c, f, bias=config.has_mlp_bias)
        self.down_proj = nn.Linear(f, c, bias=config.has_mlp_bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTC)) * self.up_proj(x_BTC))


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x_BTC: Tensor,
        plan: AttentionPlan,
        cache: KVCache | None,
        layer: int,
        effect: LayerEffect | None = None,
    ) -> Tensor:
        if effect is not None:
            return self._affected(x_BTC, plan, cache, layer, effect)
        x_BTC = x_BTC + self.self_attn(self.input_layernorm(x_BTC), plan, cache, layer)
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))

    def _affected(
        self,
        x_BTC: Tensor,
        plan: AttentionPlan,
        cache: KVCache | None,
        layer: int,
        effect: LayerEffect,
    ) -> Tensor:
        """The block as autonomy changes it; an effect of zeros gives the plain block's bits."""
        if effect.noise_BTC is not None:
            x_BTC = x_BTC + effect.noise_BTC * rms(x_BTC)
        film = effect.film
        attention_in = self.input_layernorm(x_BTC)
        if film is not None:
            attention_in = attention_in * (1 + film.attention_gain_BTC)
        if effect.is_skipped:  # written through: later tokens attend to what passed by
            self.self_attn.keys_values(attention_in, plan, cache, layer)
            return x_BTC
        y_BTC = x_BTC + self.self_attn(attention_in, plan, cache, layer)
        mlp_in = self.post_attention_layernorm(y_BTC)
        if film is not None:
            mlp_in = mlp_in * (1 + film.mlp_gain_BTC)
        y_BTC = y_BTC + self.mlp(mlp_in)
        if film is not None:
            y_BTC = y_BTC + film.shift_BTC
        return y_BTC if effect.keep_BT1 is None else torch.where(effect.keep_BT1, y_BTC, x_BTC)


class Trunk(nn.Module):
    """Embedding, blocks and final norm (Hugging Face's `model.` prefix)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)


class GPT(nn.Module):
    """A causal language model.

    Build on `torch.device("meta")` and load a state dict with `assign=True` to skip the random
    initialisation.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        if not config.is_tied:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.uses_activation_checkpointing = False
        self._inv_freq: Tensor | None = None

    @property
    def head_weight_VC(self) -> Tensor:
        """The output matrix: the embedding's own when tied."""
        return self.model.embed_tokens.weight if self.config.is_tied else self.lm_head.weight

    def init_weights(self, generator: torch.Generator, std: float = 0.02) -> None:
        """Fill every matrix from N(0, std²), norms with 1, biases with 0, in place."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.fill_(1.0)
                elif name.endswith("bias"):
                    parameter.zero_()
                else:
                    parameter.normal_(0.0, std, generator=generator)

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        segments: Segments | None = None,
        mask_BTS: Tensor | None = None,
        blocks: Sequence[int] | None = None,
        cache: KVCache | None = None,
        hook: LayerHook | None = None,
    ) -> Tensor:
        """Final normalised states, [B, T, C].

        Args:
            ids_BT: token ids.
            positions_BT: RoPE positions; default continues the cache.
            segments: packing: a token attends only to its own segment's past. None is faster
                where no row holds two. Not with a cache.
            mask_BTS: True where a new token may look at a cached or new one, instead of the causal
                mask: a tree of continuations in one row, or padding in front of a row.
            blocks: lengths of stretches, T in all, that the mask keeps apart: what lies between
                them is not computed. Not with a cache.
            cache: keys and values of earlier tokens; extended in place.
            hook: autonomy, or None for the plain model.

        Raises:
            ModelError: the sequence is longer than the cache or the model's context.
        """
        plan = self.plan(
            ids_BT, positions_BT=positions_BT, segments=segments, mask_BTS=mask_BTS, cache=cache
        )
        if blocks is not None:
            plan = replace(plan, blocks=blocks)
        x_BTC = self.model.embed_tokens(ids_BT)
        x_BTC = self.run_layers(x_BTC, plan, range(self.config.n_layers), cache=cache, hook=hook)
        if cache is not None:
            cache.length += ids_BT.shape[1]
        return self.model.norm(x_BTC)

    def run_layers(
        self,
        x_BTC: Tensor,
        plan: AttentionPlan,
        layers: range,
        *,
        cache: KVCache | None = None,
        hook: LayerHook | None = None,
    ) -> Tensor:
        """Pass the residual stream through some of the layers.

        `hidden` is embed, all layers, norm; whoever needs a state halfway (the mood is appraised
        in the lowest quarter) calls this twice over the same plan, and advances `cache.length`
        itself when the last layer is done.
        """
        for i in layers:
            block, effect = self.model.layers[i], None if hook is None else hook.effect(i)
            if cache is not None:
                x_BTC = block(x_BTC, plan, cache, i, effect)
            elif self.uses_activation_checkpointing and self.training:
                x_BTC = checkpoint(block, x_BTC, plan, None, 0, effect, use_reentrant=False)
            else:  # the same arguments for every layer, so that compiled blocks are one program
                x_BTC = block(x_BTC, plan, None, 0, effect)
        return x_BTC

    def plan(
        self,
        ids_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        segments: Segments | None = None,
        mask_BTS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> AttentionPlan:
        """What all layers share for these tokens (arguments and errors of `hidden`)."""
        past = cache.length if cache is not None else 0
        t = ids_BT.shape[1]
        limit = cache.max_tokens if cache is not None else self.config.max_positions
        has_many_texts = mask_BTS is not None and cache is None  # each within its own positions
        if past + t > limit and not has_many_texts:
            raise ModelError(
                f"La secuencia tiene {past + t} tokens y solo caben {limit}: acorta el texto o "
                "baja context_tokens."
            )
        return self._plan(ids_BT, positions_BT, segments, mask_BTS, past)

    def forward(
        self,
        ids_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        segments: Segments | None = None,
        cache: KVCache | None = None,
        hook: LayerHook | None = None,
    ) -> Tensor:
        """Next-token logits at every position, [B, T, V] (see `hidden`)."""
        x_BTC = self.hidden(
            ids_BT, positions_BT=positions_BT, segments=segments, cache=cache, hook=hook
        )
        return F.linear(x_BTC, self.head_weight_VC)

    def _plan(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None,
        segments: Segments | None,
        mask_BTS: Tensor | None,
        past: int,
    ) -> AttentionPlan:
        t, device = ids_BT.shape[1], ids_BT.device
        if positions_BT is None:
            positions_BT = torch.arange(past, past + t, device=device)[None]
        cos, sin = self.rotations(positions_BT)
        mask = None if mask_BTS is None else mask_BTS[:, None]
        if mask is None and segments is None and past and t > 1:
            query = torch.arange(past, past + t, device=device)
            mask = (query[:, None] >= torch.arange(past + t, device=device))[None, None]
        return AttentionPlan(cos, sin, mask, is_causal=mask is None and t > 1, segments=segments)

    def rotations(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions' angles, each [B, 1, T, D], the halves repeated."""
        if self._inv_freq is None or self._inv_freq.device != positions_BT.device:
            self._inv_freq = rope_inv_freq(self.config).to(positions_BT.device)
        angles_BTD = positions_BT[..., None].float() * self._inv_freq.repeat(2)
        dtype = self.model.norm.weight.dtype
        return angles_BTD.cos().to(dtype)[:, None], angles_BTD.sin().to(dtype)[:, None]


def rms(x_BTC: Tensor) -> Tensor:
    """Root mean square over the width, [B, T, 1], in fp32 and back to the input's dtype."""
    return x_BTC.float().pow(2).mean(-1, keepdim=True).sqrt().to(x_BTC.dtype)


def rotate(x_BHTD: Tensor, cos_B1TD: Tensor, sin_B1TD: Tensor) -> Tensor:
    """Rotary embedding, half-split: dimension i pairs with i + D/2.

    Source: RoFormer (arXiv 2104.09864) in Hugging Face's layout.
    """
    first, second = x_BHTD.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_BHTD * cos_B1TD.to(x_BHTD.dtype) + turned * sin_B1TD.to(x_BHTD.dtype)


def rope_inv_freq(config: GPTConfig) -> Tensor:
    """Inverse frequencies, [D/2] fp32, with Llama 3's scaling where the model asks for it."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    inv_freq = 1.0 / (config.rope_theta**exponents)
    return inv_freq if config.rope_scaling is None else scale_llama3(inv_freq, config.rope_scaling)


def scale_llama3(inv_freq: Tensor, scaling: RopeScaling) -> Tensor:
    """Stretch long wavelengths by `factor`, keep short ones, blend between.

    Source: Llama 3.1 release, as in transformers `_compute_llama3_parameters`.
    """
    wavelength = 2 * math.pi / inv_freq
    longest = scaling.original_max_positions / scaling.low_freq_factor
    shortest = scaling.original_max_positions / scaling.high_freq_factor
    blend = (scaling.original_max_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    stretched = inv_freq / scaling.factor
    blended = (1 - blend) * stretched + blend * inv_freq
    scaled = torch.where(wavelength > longest, stretched, inv_freq)
    return torch.where((wavelength <= longest) & (wavelength >= shortest), blended, scaled)
