"""Configuration: one YAML file -> one validated, frozen `Config`.

Data flow: YAML text -> dict -> `--set` overrides -> pydantic (extra keys forbidden) -> paths made
absolute -> canonical JSON -> sha256. Everything after `load` may trust its values.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from elchat.errors import ConfigError
from elchat.files import sha256_json

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
PositiveInt = Annotated[int, Field(ge=1)]
NAMED_AXES = 8  # of the mood: valence, arousal...
FROZEN_PATTERN = r"^(embeddings|head|norms|layers:\d+(-\d+)?)$"


class Section(BaseModel):
    """A part of the configuration: unknown keys refused, values immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """Which weights training starts from."""

    base: str = Field(
        description="Identificador de `elchat models`, carpeta de Hugging Face o GGUF"
    )
    start: Literal["base", "instruct"] = Field(
        "instruct", description="Partir del modelo base o del ya ajustado para conversar"
    )


class SourceSection(Section):
    """One source of text or conversations: a local path or a hub data set."""

    path: str | None = Field(
        None, description="Archivo, carpeta o patrón (txt md jsonl parquet .gz)"
    )
    hub: str | None = Field(None, description="Conjunto de datos del hub: organización/nombre")
    subset: str | None = Field(None, description="Subconjunto (config) del conjunto del hub")
    split: str = Field("train", description="Partición del conjunto del hub")
    field: str = Field("text", description="Columna con el texto")
    messages_field: str = Field("messages", description="Columna con la conversación")
    weight: Positive = Field(1.0, description="Peso de la fuente en la mezcla")
    language: str = Field("es", description="Idioma esperado (ISO 639-1); «any» no filtra")
    licence: str = Field("desconocida", description="Licencia, para el informe y la ficha")
    max_mb: Positive | None = Field(None, description="Tope de texto que se lee, en MB")

    @model_validator(mode="after")
    def _one_origin(self) -> SourceSection:
        if (self.path is None) == (self.hub is None):
            raise ValueError("cada fuente lleva o bien `path` o bien `hub`, uno y solo uno")
        return self


class HeldOutSection(Section):
    """Documents set apart to measure, never trained on."""

    share: Share = Field(0.05, description="Parte de los documentos que se aparta para medir")
    max_bytes: PositiveInt = Field(
        60_000, description="Tope de texto apartado que se mide, por idioma"
    )
    english: list[SourceSection] = Field(
        default_factory=list, description="Texto inglés para medir el olvido (no se entrena)"
    )


class CleaningSection(Section):
    """What counts as good text."""

    min_chars: int = Field(200, ge=0, description="Documentos más cortos se descartan")
    max_repeated_share: Share = Field(
        0.3, description="Parte máxima de líneas o n-gramas repetidos en un documento"
    )
    min_language_probability: Share = Field(
        0.5, description="Confianza mínima en el idioma; 0 desactiva el filtro"
    )
    near_duplicate_similarity: Share = Field(
        0.8, description="Similitud de Jaccard desde la que dos textos son casi iguales; 0 lo apaga"
    )


class DataSection(Section):
    """What the model reads."""

    cpt: list[SourceSection] = Field(
        default_factory=list, description="Textos del preentrenamiento"
    )
    sft: list[SourceSection] = Field(default_factory=list, description="Conversaciones del ajuste")
    held_out: HeldOutSection = HeldOutSection()
    cleaning: CleaningSection = CleaningSection()


class AdapterSection(Section):
    """Low-rank adapters: train a small part and merge it at the end."""

    method: Literal["none", "lora", "dora", "qlora"] = Field(
        "none", description="none entrena todo; lora y dora, poco; qlora, sobre una base en 8 bits"
    )
    rank: PositiveInt = Field(16, description="Rango de la corrección")
    alpha: Positive = Field(32.0, description="Peso de la corrección: alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Entradas apagadas al azar")
    targets: list[
        Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    ] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="Matrices que la llevan",
    )


class StageSection(Section):
    """One training stage: continued pretraining (cpt) or chat tuning (sft)."""

    enabled: bool = Field(True, description="Hacer o saltarse esta etapa")
    context_tokens: PositiveInt = Field(2048, description="Longitud de cada secuencia empaquetada")
    batch_tokens: PositiveInt = Field(262_144, description="Tokens por paso del optimizador")
    learning_rate: Positive = Field(1e-4, description="Tasa de aprendizaje máxima")
    final_learning_rate_share: Share = Field(0.0, description="Tasa final, como parte de la máxima")
    schedule: Literal["wsd", "cosine"] = Field("wsd", description="Forma de la tasa de aprendizaje")
    warmup_share: Share = Field(0.02, description="Parte de los pasos con la tasa subiendo")
    decay_share: Share = Field(
        0.4, description="Parte final de los pasos con la tasa bajando (wsd)"
    )
    weight_decay: float = Field(0.0, ge=0.0, description="Decaimiento de las matrices")
    clip_norm: Positive = Field(1.0, description="Norma máxima del gradiente")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: para las matrices de las capas; el resto, adamw"
    )
    optimizer_state: Literal["fp32", "bf16", "int8"] = Field(
        "fp32", description="Precisión de los momentos de adamw: menos memoria con bf16 o int8"
    )
    adapter: AdapterSection = AdapterSection()
    frozen: list[Annotated[str, Field(pattern=FROZEN_PATTERN)]] = Field(
        default_factory=list,
        description="Partes que no se entrenan: embeddings, head, norms o layers:0-7",
    )
    neftune_alpha: float = Field(
        0.0, ge=0.0, le=50.0, description="Ruido en los embeddings del ajuste (NEFTune); 0, nada"
    )
    max_epochs: Positive = Field(1.0, description="Vueltas a los datos, como mucho")
    max_tokens: PositiveInt | None = Field(
        None, description="Tope de tokens; vacío, el de las vueltas"
    )
    max_minutes: Positive | None = Field(
        None, description="Tope de tiempo; la tasa baja dentro de él"
    )
    early_stop_patience: int = Field(
        0, ge=0, description="Mediciones seguidas sin mejorar antes de parar con lo mejor; 0, nunca"
    )

    @model_validator(mode="after")
    def _whole_sequences(self) -> StageSection:
        if self.batch_tokens % self.context_tokens:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) debe ser múltiplo de context_tokens "
                f"({self.context_tokens})"
            )
        if self.warmup_share + self.decay_share > 1:
            raise ValueError("warmup_share y decay_share no pueden sumar más de 1")
        return self


class TrainingSection(Section):
    """How to train. The first four keys are structural autonomy."""

    stochastic_depth: Share = Field(0.0, description="Probabilidad máxima de saltarse una capa")
    noise_scale: float = Field(0.0, ge=0.0, le=0.03, description="Ruido relativo a la norma (RMS)")
    mood_dim: int = Field(
        0, ge=0, le=256, description="Dimensiones del estado de ánimo: 0 sin él, o de 8 a 256"
    )
    stochastic_temp_var: float = Field(
        0.0, ge=0.0, le=1.0, description="Desviación de ln T, sorteada en cada respuesta"
    )
    seed: int = Field(1234, ge=0, description="Semilla de todo sorteo")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Precisión de las multiplicaciones; auto la mide al empezar"
    )
    backward_precision: Literal["auto", "bf16", "int8"] = Field(
        "auto",
        description="Vuelta de las capas en una CPU con bf16; auto, en 8 bits si va más deprisa",
    )
    micro_batch_rows: PositiveInt | None = Field(
        None, description="Secuencias por pasada; vacío, se busca la mayor que cabe"
    )
    activation_checkpointing: bool = Field(
        False, description="Recalcular activaciones: menos memoria, un tercio más lento"
    )
    spike_factor: float = Field(
        3.0,
        gt=1.0,
        description="Pérdida (o norma) que cuenta como pico, en veces la media reciente",
    )
    max_rollbacks: int = Field(2, ge=0, description="Vueltas atrás antes de rendirse")
    replay_share: float = Field(
        0.0, ge=0.0, lt=1.0, description="Parte del ajuste que repasa los textos de data.cpt"
    )
    cpt: StageSection = StageSection()
    sft: StageSection = StageSection(schedule="cosine", decay_share=0.9)


class AutonomySection(Section):
    """Structural autonomy beyond its four training keys: how it acts, what the chat gets."""

    enabled: bool = Field(True, description="false apaga toda la autonomía: el modelo, tal cual")
    edition: Literal["frozen", "full"] = Field(
        "full",
        description="frozen no toca los pesos base; full los entrena con la autonomía puesta",
    )
    max_skips: int = Field(
        2, ge=0, le=8, description="Capas que una respuesta se salta, como mucho"
    )
    training_depth_factor: float = Field(
        5.0, ge=1.0, le=20.0, description="Veces más que se salta al entrenar: hablar cuesta menos"
    )
    noise_refresh: Share = Field(0.1, description="Parte del ruido que cambia en cada token")
    mood_gain: float = Field(1.0, ge=0.0, le=3.0, description="Fuerza del ánimo; 0 no se nota")
    mood_tokens: PositiveInt = Field(
        60_000, description="Tokens con los que se entrena el ánimo, como mucho"
    )
    max_silence_rate: Share = Field(
        0.05, description="Techo de la probabilidad de callar en un turno del chat; 0 nunca"
    )
    abstain_alpha: Share | None = Field(
        None, description="Tope de respuestas dadas y falsas; vacío, no se abstiene"
    )


class CheckpointSection(Section):
    """When the full training state is written."""

    every_minutes: Positive = Field(10.0, description="Minutos entre puntos de guardado")
    every_steps: PositiveInt | None = Field(None, description="Pasos entre guardados, además")
    keep_last: PositiveInt = Field(2, description="Cuántos se conservan, además del mejor")


class EvaluationSection(Section):
    """What is measured while training."""

    every_steps: PositiveInt = Field(200, description="Pasos entre mediciones de bits por byte")
    log_every_steps: PositiveInt = Field(10, description="Pasos entre líneas de registro")
    tasks: list[str] = Field(
        default_factory=list, description="Tareas o grupos que se miden al acabar, antes y después"
    )
    task_limit: PositiveInt | None = Field(
        None, description="Preguntas de cada tarea, como mucho; vacío, todas"
    )
    sample_prompts: list[str] = Field(
        default_factory=lambda: ["¿Quién eres?"], description="Preguntas de muestra del informe"
    )
    sample_max_new_tokens: PositiveInt = Field(64, description="Largo máximo de cada muestra")
    sinks: list[Literal["tensorboard", "trackio"]] = Field(
        default_factory=list, description="Otros sitios donde ver las métricas (extras opcionales)"
    )


class ExportSection(Section):
    """The finished model."""

    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Precisión del resultado")
    hub_repo: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$",
        description="usuario/nombre donde se publica al acabar (Hugging Face); vacío, en ninguno",
    )
    hub_private: bool = Field(True, description="Publicado solo para ti")


class ComputeSection(Section):
    """Where it runs and what it may cost."""

    provider: Literal["local", "runpod"] = Field("local", description="local o runpod")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Dispositivo")
    threads: PositiveInt | None = Field(
        None, description="Hilos de CPU; vacío, los núcleos que haya"
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="Compilar las capas; auto lo prueba y se queda con lo más rápido"
    )
    processes: PositiveInt = Field(
        1, description="Procesos que entrenan juntos: uno por GPU; 1, sin reparto"
    )
    sharding: Literal["ddp", "fsdp"] = Field(
        "ddp", description="Cada proceso con el modelo entero (ddp) o con un trozo (fsdp)"
    )
    huge_pages: bool = Field(
        True, description="Páginas grandes que no se devuelven entre pasos (Linux): CPU más rápida"
    )
    gpus: list[str] = Field(default_factory=list, description="GPU candidatas, en orden")
    cloud: list[Literal["secure", "community"]] = Field(
        default=["secure"], description="Nubes admitidas, en orden"
    )
    budget_usd: Positive | None = Field(None, description="Límite duro de gasto, en dólares")
    expected_hours: Positive | None = Field(None, description="Horas previstas")
    disk_gb: PositiveInt = Field(60, description="Disco de la máquina alquilada, en GB")
    pull_minutes: Positive = Field(
        30.0, description="Minutos entre copias verificadas de los puntos de guardado a casa"
    )
    grace_minutes: Positive = Field(
        120.0, description="Minutos que la máquina espera a que se recoja el resultado"
    )

    @model_validator(mode="after")
    def _cloud_needs_budget(self) -> ComputeSection:
        if self.provider == "runpod" and (self.budget_usd is None or not self.gpus):
            raise ValueError(
                "con provider: runpod hacen falta budget_usd y al menos una GPU en gpus"
            )
        return self


class Config(Section):
    """A complete, validated configuration."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$", description="Nombre corto de la receta"
    )
    description: str = Field("", description="Para qué sirve")
    model: ModelSection
    data: DataSection
    training: TrainingSection = TrainingSection()
    autonomy: AutonomySection = AutonomySection()
    checkpoints: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()
    export: ExportSection = ExportSection()
    compute: ComputeSection = ComputeSection()

    @model_validator(mode="after")
    def _stages_have_data(self) -> Config:
        for stage in ("cpt", "sft"):
            if getattr(self.training, stage).enabled and not getattr(self.data, stage):
                raise ValueError(
                    f"training.{stage} está activada y data.{stage} está vacía: añade una fuente "
                    f"o pon training.{stage}.enabled: false"
                )
        if 0 < self.training.mood_dim < NAMED_AXES:
            raise ValueError(
                f"training.mood_dim vale {self.training.mood_dim} y los ejes con nombre ya son "
                f"{NAMED_AXES}: ponlo a 0 o a {NAMED_AXES} o más"
            )
        if not (self.training.cpt.enabled or self.training.sft.enabled):
            raise ValueError("no hay nada que entrenar: activa training.cpt o training.sft")
        return self

    @property
    def sha256(self) -> str:
        """Hash of every value, independent of comments and key order."""
        return sha256_json(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        """The resolved configuration, every key explicit."""
        return yaml.safe_dump(self.model_dump(mode="json"), allow_unicode=True, sort_keys=False)


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override and validate a configuration file.

    Args:
        path: YAML file.
        overrides: `key.sub=value` items; values are parsed as YAML, list items by index.

    Raises:
        ConfigError: naming the key, its value and what to write instead.
    """
    return parse(_read_yaml(path), origin=str(path), base_dir=path.parent, overrides=overrides)


def parse(
    raw: Any, *, origin: str, base_dir: Path | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Validate a configuration given as a dict (see `load`)."""
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{origin} no contiene una configuración: debe ser un mapa de claves YAML."
        )
    for item in overrides:
        apply_override(raw, item)
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error)}") from None
    return _with_absolute_paths(config, base_dir)


def apply_override(raw: dict[str, Any], item: str) -> None:
    """Set one `a.b.0.c=value` in a nested dict, creating missing maps."""
    key, separator, text = item.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"--set espera clave=valor y recibió «{item}»: por ejemplo training.seed=7."
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {key}: el valor «{text}» no es YAML válido.") from None
    node: Any = raw
    parts = key.split(".")
    for i, part in enumerate(parts):
        is_last = i == len(parts) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(f"--set {key}: «{part}» no es un índice de esa lista.")
            part_key: Any = int(part)
        elif isinstance(node, dict):
            part_key = part
        else:
            raise ConfigError(f"--set {key}: «{'.'.join(parts[:i])}» no tiene claves dentro.")
        if is_last:
            node[part_key] = value
        elif isinstance(node, dict) and node.get(part_key) is None:
            node[part_key] = {}
        if not is_last:
            node = node[part_key]


def explain(error: ValidationError) -> str:
    """Spanish sentences for pydantic's findings, with a suggestion for misspelt keys."""
    text = "; ".join(_explain_one(item) for item in error.errors()[:5])
    return text if text.endswith("?") else text + "."


def json_schema() -> dict[str, Any]:
    """JSON schema of the configuration, for editors."""
    return Config.model_json_schema()


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"No existe la configuración {path}.", hint="Mira las que hay: ls configs/"
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"{path} es una carpeta; hace falta un archivo .yaml.") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path} no es texto UTF-8: guárdalo de nuevo con esa codificación."
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (línea {mark.line + 1}, columna {mark.column + 1})" if mark else ""
        raise ConfigError(f"{path} no es YAML válido{where}: revisa sangrías y comillas.") from None


def _with_absolute_paths(config: Config, base_dir: Path | None) -> Config:
    """Make paths absolute: relative to the current folder, else to the YAML's or its parent."""

    def resolve(text: str) -> str:
        path = Path(text).expanduser()
        if path.is_absolute():
            return str(path)
        roots = [Path.cwd()]
        if base_dir is not None:
            roots += [base_dir.absolute(), base_dir.absolute().parent]
        for root in roots:
            if (root / path).exists() or (any(c in text for c in "*?[") and any(root.glob(text))):
                return str((root / path).absolute())
        return str(roots[0] / path)

    dump = config.model_dump()
    base = Path(config.model.base).expanduser()
    if "/" in config.model.base or base.suffix == ".gguf":  # a hub id has a slash too
        dump["model"]["base"] = str(base.absolute()) if base.exists() else config.model.base
    data = dump["data"]
    for source in [*data["cpt"], *data["sft"], *data["held_out"]["english"]]:
        if source["path"] is not None:
            source["path"] = resolve(source["path"])
    return Config.model_validate(dump)


def _explain_one(item: Mapping[str, Any]) -> str:
    location, kind, value = item["loc"], item["type"], item.get("input")
    key = ".".join(str(part) for part in location) or "la configuración"
    context = item.get("ctx") or {}
    if kind == "extra_forbidden":
        return f"la clave «{key}» no existe{_suggestion(location)}"
    if kind == "missing":
        return f"falta la clave «{key}»"
    if kind == "value_error":
        return f"en «{key}», {context['error']}"
    if kind == "literal_error":
        return f"«{key}» vale {value!r} y solo admite {context['expected'].replace(' or ', ' o ')}"
    if kind == "string_pattern_mismatch":
        return f"«{key}» vale {value!r}; usa minúsculas, cifras, guion y guion bajo"
    bounds = {
        "greater_than": "mayor que {gt}",
        "greater_than_equal": "{ge} o más",
        "less_than": "menor que {lt}",
        "less_than_equal": "{le} o menos",
    }
    if kind in bounds:
        return f"«{key}» vale {value!r} y debe ser {bounds[kind].format(**context)}"
    expected = {
        "int": "un número entero",
        "float": "un número",
        "bool": "true o false",
        "string": "un texto",
        "list": "una lista",
        "model": "un mapa de claves",
        "finite": "un número finito",
    }
    want = expected.get(kind.split("_")[0], "otro tipo de valor")
    return f"«{key}» vale {value!r} y debe ser {want}"


def _suggestion(location: tuple[Any, ...]) -> str:
    model: Any = Config
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = next(
            (
                a
                for a in (annotation, *get_args(annotation))
                if isinstance(a, type) and issubclass(a, BaseModel)
            ),
            model,
        )
    close = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1, cutoff=0.5)
    if close:
        return f"; ¿quisiste decir «{'.'.join([*map(str, location[:-1]), close[0]])}»?"
    return f"; las que hay aquí son: {', '.join(model.model_fields)}"
