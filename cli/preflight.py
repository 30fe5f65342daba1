"""What can be known before starting: the configuration's files, model, memory, time and money."""

from __future__ import annotations

import glob
import json
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cli.output import count, dollars, duration, number, percent
from cli.processes import ROOT, script_argv, script_env
from elchat import bases, estimate, hardware, paths
from elchat import config as config_module
from elchat.config import Config, SourceSection
from elchat.errors import ConfigError, DataError
from elchat.files import format_bytes, free_bytes
from elchat.model_config import GPTConfig, config_from_hf

MEASURE_S = 300.0
DEFAULT_CONFIG = Path("configs/training_10usd.yaml")


@dataclass(frozen=True)
class SourceFound:
    """A source as it lies on disk; `n_bytes` is None for hub data sets."""

    stage: str
    name: str
    n_files: int
    n_bytes: int | None
    weight: float
    language: str
    licence: str


def load_config(path: Path, overrides: list[str], provider: str | None = None) -> Config:
    """Load a configuration given by path or by short name ("demo"), here or in elchat's folder."""
    extra = [f"compute.provider={provider}"] if provider else []
    return config_module.load(find_config(path), [*overrides, *extra])


def find_config(path: Path) -> Path:
    """The file meant by `path`: itself, the one shipped with elchat, or configs/training_X.yaml."""
    candidates = [path, ROOT / path]
    if path.parent == Path("."):
        candidates.append(ROOT / "configs" / f"training_{path.stem}.yaml")
    return next((item for item in candidates if item.is_file()), path)


def sources_found(config: Config) -> list[SourceFound]:
    """Every source of an enabled stage.

    Raises:
        DataError: a local path that leads to no file.
    """
    stages = [s for s in ("cpt", "sft") if getattr(config.training, s).enabled]
    found = [
        _locate(stage, f"data.{stage}.{i}", source)
        for stage in stages
        for i, source in enumerate(getattr(config.data, stage))
    ]
    english = config.data.held_out.english
    found += [_locate("medir", f"data.held_out.english.{i}", s) for i, s in enumerate(english)]
    return found


def model_shape(base: str) -> GPTConfig | None:
    """The shape of a registered base or a local HF folder; None when only a download can tell.

    Raises:
        ConfigError: neither a registered name, a path nor a hub id.
    """
    local = Path(base).expanduser()
    if (local / "config.json").is_file():
        try:
            return config_from_hf(json.loads((local / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise ConfigError(f"model.base: {local}/config.json no se puede leer.") from None
    if local.exists():
        return None
    for known in bases.BASES.values():
        if base in (known.key, known.hub_id_base, known.hub_id_instruct):
            return known.shape
    if "/" in base and not base.endswith(".gguf") and base.count("/") == 1:
        return None
    return bases.get(base).shape


def check(config: Config) -> tuple[list[SourceFound], GPTConfig | None]:
    """Everything that can be refused before a run folder exists.

    Raises:
        ConfigError: unknown model or GPU, or a context longer than the model's.
        DataError: a source that is not there.
    """
    shape = model_shape(config.model.base)
    for stage in ("cpt", "sft"):
        section = getattr(config.training, stage)
        if shape is not None and section.enabled and section.context_tokens > shape.max_positions:
            raise ConfigError(
                f"training.{stage}.context_tokens vale {section.context_tokens} y "
                f"{config.model.base} admite {shape.max_positions} como mucho."
            )
    for gpu_id in config.compute.gpus:
        hardware.gpu_by_id(gpu_id)
    return sources_found(config), shape


def plan(config: Config, *, is_measured: bool = False) -> dict[str, Any]:
    """The resolved plan of a run, with no side effects (for --dry-run and estimate).

    Args:
        is_measured: find memory by running the model without data, which takes some seconds.
    """
    found, shape = check(config)
    is_local = config.compute.provider == "local"
    footprint = measure(config, shape) if is_measured and shape is not None else None
    rented = _by_rows(footprint["gpu"]) if footprint else None
    offers = estimate.offers(config, shape, measured=rented) if shape is not None else []
    local = None
    if shape is not None and is_local:
        cores = config.compute.threads or hardware.usable_cores()
        peak = hardware.cpu_peak_tflops(cores, hardware.cpu_flags())
        known = estimate.Memory(**footprint["cpu"]) if footprint else None
        local = estimate.on_cpu(
            config,
            shape,
            cores=cores,
            peak_tflops=peak,
            measured=known,
            blocks=footprint["blocks"] if footprint else "plain",
        )
    return {
        "is_measured": footprint is not None,
        "cpu_path": footprint["cpu_path"] if footprint else None,
        "gpu_memory": rented,
        "config": config,
        "sources": found,
        "shape": shape,
        "offers": offers,
        "local": local,
        "local_gpus": local_gpus() if config.compute.provider == "local" else [],
    }


def measure(config: Config, shape: GPTConfig) -> dict[str, Any] | None:
    """What `scripts.footprint` finds; None without torch or if it fails: the formula stands in."""
    asked = {
        "shape": asdict(shape),
        "config": config.model_dump(mode="json"),
        "cpu": config.compute.provider == "local",
        "gpu": bool(config.compute.gpus),
    }
    try:
        done = subprocess.run(
            script_argv("scripts.footprint"),
            input=json.dumps(asked),
            env=script_env(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=MEASURE_S,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
    return answer


def _by_rows(answer: dict[str, Any] | None) -> dict[bool, estimate.Measured] | None:
    if not answer:
        return None
    return {
        name == "checkpointed": estimate.Measured(*(estimate.Memory(**one) for one in pair))
        for name, pair in answer.items()
    }


def plan_json(made: dict[str, Any]) -> dict[str, Any]:
    """The plan for programs."""
    config, shape, local = made["config"], made["shape"], made["local"]
    return {
        "config": config.model_dump(mode="json"),
        "config_sha256": config.sha256,
        "sources": [asdict(item) for item in made["sources"]],
        "n_params": shape.n_params if shape else None,
        "is_memory_measured": made["is_measured"],
        "cpu_path": made["cpu_path"],
        "prices_observed": estimate.PRICES_OBSERVED,
        "offers": [_offer_json(item) for item in made["offers"]],
        "local": (asdict(local) | {"memory_bytes": local.memory.total}) if local else None,
        "local_gpus": made["local_gpus"],
        "runs_dir": str(paths.runs_dir()),
        "free_bytes": free_bytes(paths.runs_dir()),
    }


def offer_row(offer: estimate.Offer) -> list[str]:
    """A row of the table of offers (see OFFER_COLUMNS)."""
    if offer.fit is None:
        memory = "no cabe"
    else:
        memory = f"{offer.fit.rows} filas" + (" (recalcula)" if offer.fit.is_checkpointed else "")
    return [
        offer.gpu.name,
        "segura" if offer.cloud == "secure" else "comunidad",
        f"{offer.gpu.vram_gib} GB",
        number(offer.usd_per_h, 2),
        memory,
        number(offer.tokens_per_s),
        percent(offer.mfu),
        duration(offer.hours * 3600),
        dollars(offer.usd),
        count(offer.cpt_tokens),
        count(offer.sft_tokens),
        f"{duration(offer.budget_hours * 3600)} → {count(offer.budget_cpt_tokens)}",
    ]


OFFER_COLUMNS = (
    "GPU",
    "nube",
    "memoria",
    "$/h",
    "cabe",
    "tokens/s",
    "MFU",
    "horas",
    "coste",
    "tokens texto",
    "tokens chat",
    "con todo el presupuesto",
)


def local_gpus() -> list[dict[str, Any]]:
    """NVIDIA GPUs of this machine, asked of the driver's own tool; empty without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    argv = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 1) for line in result.stdout.strip().splitlines()]
    return [{"name": name.strip(), "memory_mib": int(mib)} for name, mib in rows]


def source_row(item: SourceFound) -> list[str]:
    """A row of the table of sources (see SOURCE_COLUMNS)."""
    size = "en el hub" if item.n_bytes is None else format_bytes(item.n_bytes)
    files = "—" if item.n_bytes is None else str(item.n_files)
    weight = number(item.weight, 2)
    return [item.stage, item.name, files, size, weight, item.language, item.licence]


SOURCE_COLUMNS = ("etapa", "fuente", "archivos", "tamaño", "peso", "idioma", "licencia")


def _offer_json(offer: estimate.Offer) -> dict[str, Any]:
    return asdict(offer) | {"gpu": offer.gpu.id, "gpu_name": offer.gpu.name}


def _locate(stage: str, key: str, source: SourceSection) -> SourceFound:
    if source.hub is not None:
        name = "/".join(filter(None, [source.hub, source.subset]))
        files, n_bytes = 0, None
    else:
        assert source.path is not None
        name = _short(source.path)
        found = _files(Path(source.path))
        if not found:
            raise DataError(
                f"{key}.path: no hay ningún archivo en {source.path}.",
                hint="Pon ahí tus textos o cambia la ruta en la configuración.",
            )
        files, n_bytes = len(found), sum(path.stat().st_size for path in found)
    return SourceFound(stage, name, files, n_bytes, source.weight, source.language, source.licence)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]


def _short(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
