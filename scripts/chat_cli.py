"""Talk to a model in the terminal.

    python -m scripts.chat_cli [RUN | FOLDER | FILE.gguf | BASE] [--temperature 0.7] [--seed N]

Ctrl-C cuts the reply, not the program; Ctrl-D or /salir ends it. With a pipe, each line of standard
input is one user turn and only the replies are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from elchat import bases, hub, runs
from elchat.chat_format import Message
from elchat.engine import Engine
from elchat.errors import ElchatError, ModelError
from elchat.sampling import SamplingParams
from elchat.weights import load_model

HELP = "/nuevo empieza otra conversación · /ayuda muestra esto · /salir termina"


def main(argv: list[str] | None = None) -> int:
    """Run the chat in this process."""
    parser = argparse.ArgumentParser(prog="python -m scripts.chat_cli", description=__doc__)
    parser.add_argument("model", nargs="?", help="ejecución, carpeta, GGUF o modelo base")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--repetition-penalty", type=float, default=1.1)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--system", help="mensaje de sistema")
    arguments = parser.parse_args(argv)
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        params = SamplingParams(
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            repetition_penalty=arguments.repetition_penalty,
            max_new_tokens=arguments.max_new_tokens,
            seed=arguments.seed,
        )
        engine = open_engine(model_path(arguments.model))
        chat(engine, params, arguments.system)
    except ElchatError as error:
        print(f"Error: {error}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def model_path(name: str | None) -> Path:
    """A model folder or file, a base model, or the finished model of a run.

    Raises:
        ModelError: the run has no finished model yet.
    """
    if name is not None:
        path = Path(name)
        if path.is_file() or (path / "config.json").exists():
            return path
        if name in bases.BASES:
            return hub.fetch_base(name, progress=lambda line: print(line, file=sys.stderr))
    run = runs.find(name)
    if not (run.model_path / "config.json").exists():
        raise ModelError(
            f"La ejecución «{run.id}» todavía no tiene modelo terminado.",
            hint=f"Mira cómo va: elchat status {run.id}",
        )
    return run.model_path


def open_engine(path: Path) -> Engine:
    """Load a model in the precision its products run fastest in here."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_model(path, dtype=dtype, device=device)
    return Engine(loaded.model, loaded.tokenizer, loaded.chat)


def chat(engine: Engine, params: SamplingParams, system: str | None) -> None:
    """Read turns and print replies until the end of input."""
    is_terminal = sys.stdin.isatty()
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    if is_terminal:
        print(HELP)
    for text in read_turns(is_terminal):
        if text == "/salir":
            return
        if text == "/ayuda":
            print(HELP)
        elif text == "/nuevo":
            messages = list(start)
            print("Conversación nueva.")
        elif text:
            messages.append({"role": "user", "content": text})
            answer(engine, messages, params, is_terminal)


def read_turns(is_terminal: bool) -> Iterator[str]:
    """User turns, stripped; Ctrl-C on an empty prompt just asks again."""
    while True:
        try:
            yield input("\ntú> " if is_terminal else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D o /salir para terminar)")


def answer(
    engine: Engine, messages: list[Message], params: SamplingParams, is_terminal: bool
) -> None:
    """Stream one reply; what was said before a Ctrl-C stays in the conversation."""
    if is_terminal:
        print("elchat> ", end="", flush=True)
    said: list[str] = []
    with interrupt_flag() as interrupted:
        try:
            for piece in engine.reply(messages, params, should_stop=lambda: bool(interrupted)):
                said.append(piece.text)
                print(piece.text, end="", flush=True)
        except ElchatError as error:
            messages.pop()
            print(f"Error: {error}", file=sys.stderr)
            return
    print(" …(cortado)" if interrupted else "", flush=True)
    messages.append({"role": "assistant", "content": "".join(said)})


@contextlib.contextmanager
def interrupt_flag() -> Iterator[list[bool]]:
    """While active, Ctrl-C only fills the yielded list: the reply ends after the current token."""
    seen: list[bool] = []
    previous = signal.signal(signal.SIGINT, lambda *_: seen.append(True))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, previous)


if __name__ == "__main__":
    sys.exit(main())
