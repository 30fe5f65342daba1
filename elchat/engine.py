"""A model ready to answer: what a request is, what comes back, and how one is loaded.

Data flow: messages -> `Engine.prompt` -> `Request` -> `scheduler.Scheduler` -> `Event`s.
"""

from __future__ import annotations

import builtins
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from elchat import bases, model_store, native, runs
from elchat.chat_format import ChatFormat, Message
from elchat.errors import DataError, ModelError
from elchat.gpt import GPT, Block
from elchat.hooks import Decision, TurnHook
from elchat.packed_linear import pack_linears
from elchat.panels import NativeWeights
from elchat.runner import NativeRunner, Runner, TorchRunner, fits_native, head_of
from elchat.sampling import SamplingParams
from elchat.tokenizer import Tokenizer
from elchat.weights import load_model

Weights = Literal["auto", "fp32", "bf16", "int8", "int4"]
Phase = Literal["queued", "reading", "writing", "end"]
Finish = Literal["stop", "length", "cancelled", "abstained", "silent", "error"]
DEFAULT_CONTEXT_TOKENS = 4096


@dataclass(frozen=True)
class Request:
    """One reply to be written.

    Attributes:
        ids: the prompt.
        stop_ids: tokens that end the reply and are not shown.
        conversation: names the dice, and hints where a prefix may be cached.
        hook: autonomy, or None for the plain model.
        tools: the model may call the calculator.
        echo: log-probabilities of the prompt too, in events of phase "reading".
    """

    ids: list[int]
    params: SamplingParams
    stop_ids: frozenset[int]
    conversation: str | None = None
    hook: TurnHook | None = None
    tools: bool = False
    echo: bool = False


@dataclass(frozen=True)
class TokenInfo:
    """One token and how likely it was.

    Attributes:
        logprob: under the model's own distribution, before temperature and penalties; None for
            the first token of an echoed prompt.
        top: the most likely ones: id, text, bytes, log-probability.
    """

    id: int
    text: str
    bytes: builtins.bytes
    logprob: float | None
    top: tuple[tuple[int, str, builtins.bytes, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """What a reply cost.

    Attributes:
        cached_tokens: of the prompt, found in the cache.
        seed: of the dice, to replay.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds_prefill: float
    seconds_decode: float
    seed: int


@dataclass(frozen=True)
class Event:
    """Something happened to a request.

    Attributes:
        text: to be shown; whole characters, never a piece of a stop string. All events' texts
            join to the reply.
        tokens: those whose text is in this event, when log-probabilities are asked.
        phase: where the request is now.
        done, total: prompt tokens read so far; in the queue, how many are before it.
        finish: why it ended; None until then.
        usage: at the end.
        decision: of the turn hook, once taken.
        error: one Spanish sentence.
    """

    text: str = ""
    tokens: tuple[TokenInfo, ...] = ()
    phase: Phase = "writing"
    done: int = 0
    total: int = 0
    finish: Finish | None = None
    usage: Usage | None = None
    decision: Decision | None = None
    error: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A conversation as ids, and how much of it had to be left out to fit.

    Attributes:
        turn_starts: where each user message kept begins; the last is the turn to answer.
    """

    ids: list[int]
    n_dropped_messages: int
    turn_starts: tuple[int, ...]


class Engine:
    """Holds one model for inference; `scheduler.Scheduler` runs it.

    Args:
        model: owned from here on if `weights` is not "fp32" or it is compiled.
        context_tokens: longest sequence; None takes the model's own, up to 4096.
        weights: precision of the matrices in memory. "auto" takes int8 where it is compiled, bf16
            on a GPU, and otherwise whichever of fp32 and bf16 is measured to be faster.
        compile: the compiled kernels: True demands them, "auto" takes them if they can be built.
        threads: of the compiled kernels; None takes torch's.

    Attributes:
        weights: the precision in use.
        is_compiled: whether the compiled kernels are.

    Raises:
        ModelError: `compile` demands what cannot be had here.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        *,
        context_tokens: int | None = None,
        weights: Weights = "fp32",
        compile: bool | Literal["auto"] = "auto",
        name: str = "elchat",
        threads: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.config = model.config
        self.tokenizer = tokenizer
        self.chat_format = chat_format
        self.name = name
        limit = model.config.max_positions
        self.context_tokens = min(context_tokens or DEFAULT_CONTEXT_TOKENS, limit)
        self.is_compiled = _is_compiled(model, weights, compile)
        self.weights: Weights = _resolve(model, weights, self.is_compiled)
        self._threads = threads or torch.get_num_threads()
        self._native: NativeWeights | None = None
        if self.is_compiled:
            self._native = NativeWeights(model, self.weights)  # type: ignore[arg-type]
        elif self.weights in ("int8", "int4"):
            self._head = pack_linears(model, self.weights)
        else:
            self.model = model if self.weights == "fp32" else model.to(torch.bfloat16)
            self._head = head_of(self.model)

    def runner(self, n_slots: int, max_tokens: int) -> Runner:
        """The forward pass over a cache of its own, shared by nobody."""
        if self._native is not None:
            return NativeRunner(self._native, n_slots, max_tokens, self._threads)
        return TorchRunner(self.model, self._head, n_slots, max_tokens)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a turn."""
        return frozenset(self.chat_format.stop_ids)

    def prompt(self, messages: list[Message], max_new_tokens: int | None = None) -> Prompt:
        """Render a conversation, dropping its oldest exchanges whole until a reply fits.

        The system message stays. Half of the context at most is set aside for the reply.

        Raises:
            DataError: the last message alone does not fit.
        """
        limit = self.context_tokens
        room = limit - min(max_new_tokens or 256, limit // 2)
        system = [m for m in messages[:1] if m["role"] == "system"]
        turns = messages[len(system) :]

        def rendered(n_dropped: int) -> Prompt:
            kept = [*system, *turns[n_dropped:]]
            whole = self.chat_format.render(kept, add_generation_prompt=True)
            return Prompt(whole.ids, n_dropped, whole.turn_starts)

        low, high = 0, (len(turns) - 1) // 2  # exchanges to drop; the shortest prompt drops `high`
        while low < high:
            middle = (low + high) // 2
            if len(rendered(2 * middle).ids) <= room:
                high = middle
            else:
                low = middle + 1
        prompt = rendered(2 * low)
        if len(prompt.ids) > room:
            raise DataError(f"El mensaje ocupa {len(prompt.ids)} tokens y caben {room}: acórtalo.")
        return prompt


def load_engine(
    path_or_name: str | Path,
    *,
    context_tokens: int | None = None,
    weights: Weights = "auto",
    compile: bool | Literal["auto"] = "auto",
    default_system: str | None = None,
    threads: int | None = None,
) -> Engine:
    """Load a run folder, a run's name, a base model, a Hugging Face folder or a GGUF file.

    Raises:
        ModelError: it is missing or damaged; one sentence says what.
        RunError: no run has that name, or several begin so.
    """
    path = find_model(path_or_name)
    has_gpu = torch.cuda.is_available()
    loaded = load_model(
        path,
        dtype=torch.bfloat16 if has_gpu and weights in ("auto", "bf16") else torch.float32,
        device="cuda" if has_gpu else "cpu",
        default_system=default_system,
    )
    return Engine(
        loaded.model,
        loaded.tokenizer,
        loaded.chat,
        context_tokens=context_tokens,
        weights=weights,
        compile=compile,
        name=_name_of(path),
        threads=threads,
    )


def find_model(path_or_name: str | Path) -> Path:
    """What `load_model` takes, from a path, a run or the name of a base model.

    Raises:
        ModelError: a run without a finished model, or a base model that is not downloaded.
        RunError: nothing has that name.
    """
    path = Path(path_or_name).expanduser()
    if path.is_file() or (path / "config.json").is_file() or any(path.glob("*.gguf")):
        return path
    if (path / "model" / "config.json").is_file():
        return path / "model"
    name = str(path_or_name)
    if name in bases.BASES:
        base = bases.BASES[name]
        found = model_store.find_cached(base.hub_id("instruct"), base.wheels.get("instruct"))
        if found is None:
            raise ModelError(
                f"El modelo «{name}» no está descargado.",
                hint=f"Bájalo: elchat models pull {name}",
            )
        return found
    if path.is_dir() or os.sep in name or name.endswith(".gguf"):
        raise ModelError(
            f"No hay ningún modelo en {path}: da una carpeta con config.json, un archivo .gguf o "
            "el nombre de una ejecución.",
            hint="Mira los que hay: elchat models, elchat runs",
        )
    run = runs.find(name)
    if not (run.model_path / "config.json").is_file():
        raise ModelError(
            f"La ejecución «{run.id}» todavía no tiene modelo terminado.",
            hint=f"Mira cómo va: elchat status {run.id}",
        )
    return run.model_path


def _name_of(path: Path) -> str:
    return path.parent.name if path.name == "model" else path.stem if path.is_file() else path.name


def _is_compiled(model: GPT, weights: Weights, compile: bool | Literal["auto"]) -> bool:
    if compile is False or weights == "bf16":
        return False
    why = native.why_not()
    if model.model.norm.weight.device.type != "cpu":
        why = "el modelo está en una GPU"
    elif why is None and not fits_native(model.config):
        why = "sus anchuras no son múltiplos de 32"
    if why is not None and compile is True:
        raise ModelError(f"No se puede usar el motor compilado: {why}; quita compile=True.")
    return why is None


def _resolve(model: GPT, weights: Weights, is_compiled: bool) -> Weights:
    weight = model.model.norm.weight
    if weights != "auto":
        return weights
    if weight.device.type != "cpu":
        return "bf16"
    if is_compiled:
        return "int8"
    block = cast(Block, model.model.layers[0])
    matrix = block.mlp.gate_proj.weight.detach()
    return "bf16" if _seconds(matrix, torch.bfloat16) < _seconds(matrix, torch.float32) else "fp32"


def _seconds(matrix: Tensor, dtype: torch.dtype) -> float:
    """Time of one product with one row; without bf16 in the processor, hundreds of times fp32's."""
    w, x = matrix.to(dtype), torch.ones(1, matrix.shape[1], dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        times.append(time.perf_counter() - start)
    return min(times)
