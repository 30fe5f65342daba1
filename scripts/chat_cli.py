"""Talk to a model in the terminal.

    python -m scripts.chat_cli [RUN | FOLDER | FILE.gguf | BASE] [--temperature 0.7] [--seed N]
    echo "resume esto" | python -m scripts.chat_cli demo --json

Ctrl-C cuts the reply, not the program; Ctrl-D or /salir ends it. With a pipe, all of standard input
is one message (after --prompt, if both are given), the reply goes to standard output and
everything else to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from elchat.autonomy import store
from elchat.autonomy.terminal import TerminalMood
from elchat.engine import Engine, Event, find_model, load_engine
from elchat.errors import ElchatError
from elchat.runs import find
from elchat.sampling import SamplingParams
from elchat.scheduler import Scheduler, Ticket
from elchat.terminal import commands
from elchat.terminal.screen import Screen
from elchat.terminal.session import Session
from scripts.arguments import Parser, tell

GREETING = "Escribe algo. /ayuda enseña las órdenes; Ctrl-C corta una respuesta; Ctrl-D termina."
INTERRUPTED = 130
WEIGHTS = ("auto", "fp32", "bf16", "int8", "int4")


def main(argv: list[str] | None = None) -> int:
    """Run the chat in this process."""
    arguments = parse(argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        return chat(arguments)
    except ElchatError as error:
        return tell(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader left: nothing more to say, here or at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("chat_cli", "Conversa con un modelo en la terminal.")
    parser.add_argument("model", nargs="?", help="ejecución, carpeta, GGUF o modelo base")
    parser.add_argument("--prompt", "-p", help="un mensaje; se responde y se termina")
    parser.add_argument("--temperature", type=float, default=0.7, help="cuánto azar; 0, ninguno")
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="parte más probable que se sortea"
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.1, help="freno a repetir")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="largo máximo")
    parser.add_argument("--seed", type=int, help="para repetir la misma respuesta")
    parser.add_argument("--system", help="mensaje de sistema")
    parser.add_argument(
        "--weights", choices=("auto", "fp32", "bf16", "int8", "int4"), help="precisión"
    )
    parser.add_argument("--tools", action="store_true", help="deja que use la calculadora")
    parser.add_argument("--plain", action="store_true", help="sin colores")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="la respuesta como un objeto JSON")
    output.add_argument("--jsonl", action="store_true", help="cada suceso como una línea JSON")
    return parser.parse_args(argv)


def chat(arguments: argparse.Namespace) -> int:
    """Open the model and answer: one message, or until the end of input."""
    params = SamplingParams(
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
    )
    is_interactive = sys.stdin.isatty() and arguments.prompt is None
    screen = Screen(is_plain=arguments.plain)
    message = None if is_interactive else piped_message(arguments.prompt)
    engine, mood, model_id = open_engine(arguments)
    with contextlib.closing(Scheduler(engine, max_rows=1, max_queue=1)) as scheduler:
        session = Session(
            scheduler, params, arguments.system, mood, tools=arguments.tools, model_id=model_id
        )
        if message is None:
            converse(session, screen)
            return 0
        return answer_once(session, screen, message, arguments)


def open_engine(arguments: argparse.Namespace) -> tuple[Engine, TerminalMood | None, str]:
    """The model asked for, or the newest run's; its mood if it was taught one; its identity."""
    path = find_model(arguments.model or str(find(None).path))
    engine = load_engine(path, weights=arguments.weights or "auto")
    autonomy = store.load(path, engine.config)
    mood = None
    if autonomy.mood is not None:
        mood = TerminalMood(autonomy.open(), engine.tokenizer.decode)
    return engine, mood, autonomy.model_id


def piped_message(prompt: str | None) -> str:
    """--prompt and standard input, joined; text from a terminal is not waited for."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    return "\n\n".join(part.strip() for part in (prompt or "", piped) if part.strip())


def answer_once(
    session: Session, screen: Screen, message: str, arguments: argparse.Namespace
) -> int:
    """Answer one message on standard output."""
    if not message:
        screen.notice("No hay nada que responder: el mensaje está vacío.")
        return 2

    def show(event: Event) -> None:
        if arguments.jsonl:
            print(json.dumps(as_json(event), ensure_ascii=False), flush=True)
        elif not arguments.json:
            screen.stream(event.text)

    last = reply(lambda started: session.ask(message, started), show)
    if arguments.json:
        print(json.dumps(summary(session, last), ensure_ascii=False))
    elif not arguments.jsonl:
        screen.end()
    if session.n_forgotten:
        screen.notice(forgotten(session.n_forgotten))
    return INTERRUPTED if last.finish == "cancelled" else 0


def converse(session: Session, screen: Screen) -> None:
    """Read turns and stream replies until the end of input."""
    read = reader(screen)  # prompt_toolkit takes half a second: after the model
    screen.notice(GREETING)
    draft = ""
    while True:
        line = read(draft)
        draft = ""
        if line is None:
            return
        if not line:
            continue
        try:
            outcome = obeyed(line, session)
            if outcome.say:
                screen.notice(outcome.say)
            if outcome.is_over:
                return
            draft = outcome.draft
            if outcome.ask is not None or outcome.goes_on:
                stream(session, screen, outcome)
        except ElchatError as error:
            screen.notice(f"{error}" + (f" {error.hint}" if error.hint else ""))


def obeyed(line: str, session: Session) -> commands.Outcome:
    """What a line leads to: a command, or a message (`//` writes a leading slash)."""
    if line.startswith("/") and not line.startswith("//"):
        return commands.run(line, session)
    return commands.Outcome(ask=line.removeprefix("/"))


def stream(session: Session, screen: Screen, outcome: commands.Outcome) -> None:
    """One reply on the screen; what was said before a Ctrl-C stays in the conversation."""

    def ask(started: Callable[[Ticket], None]) -> Iterator[Event]:
        if outcome.ask is None:
            return session.go_on(started)
        return session.ask(outcome.ask, started, seed=outcome.seed)

    before = session.n_forgotten
    screen.label("elchat")
    try:
        last = reply(ask, lambda event: screen.stream(event.text))
    finally:
        screen.end()
    notes = {
        "cancelled": "Parado. /seguir continúa.",
        "length": "Respuesta cortada al llegar al largo máximo. /seguir continúa.",
        "silent": "elchat ha preferido no responder. /otra vuelve a preguntar.",
    }
    if last.finish in notes:
        screen.notice(notes[last.finish])
    if session.n_forgotten > before:
        screen.notice(forgotten(session.n_forgotten))


def reply(
    ask: Callable[[Callable[[Ticket], None]], Iterator[Event]], show: Callable[[Event], None]
) -> Event:
    """Run one reply to its end, cancelling it at a Ctrl-C; return the last event."""
    tickets: list[Ticket] = []
    interrupts: list[int] = []

    def interrupt(*_: Any) -> None:
        interrupts.append(1)
        for ticket in tickets:
            ticket.cancel()

    def started(ticket: Ticket) -> None:
        tickets.append(ticket)
        if interrupts:
            ticket.cancel()

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        for event in ask(started):
            show(event)
        return event
    finally:
        signal.signal(signal.SIGINT, previous)


def reader(screen: Screen) -> Callable[[str], str | None]:
    """A function that reads a turn, with editing and history; None at the end of input."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    names = [f"/{name}" for name in commands.COMMANDS]
    session: PromptSession[str] = PromptSession(
        key_bindings=keys,
        completer=WordCompleter(names, sentence=True),
        complete_while_typing=False,
    )

    def read(draft: str) -> str | None:
        while True:
            try:
                return session.prompt("tú> ", default=draft).strip()
            except KeyboardInterrupt:
                screen.notice("Ctrl-D o /salir para salir.")
            except EOFError:
                return None

    return read


def forgotten(n: int) -> str:
    """What the user is told when the conversation outgrows the context."""
    if n == 1:
        return "Para que quepa, elchat ya no recuerda el primer mensaje."
    return f"Para que quepa, elchat ya no recuerda los {n} primeros mensajes."


def summary(session: Session, last: Event) -> dict[str, Any]:
    """The object of --json."""
    return {
        "respuesta": session.messages[-1]["content"],
        "fin": last.finish,
        "uso": dataclasses.asdict(session.last_usage) if session.last_usage else None,
        "semilla": session.seeds[-1] if session.seeds else None,
        "humor": None if session.mood is None else session.mood.describe(),
        "olvidados": session.n_forgotten,
    }


def as_json(event: Event) -> dict[str, Any]:
    """One line of --jsonl."""
    line: dict[str, Any] = {"fase": event.phase}
    if event.text:
        line["texto"] = event.text
    if event.phase in ("queued", "reading"):
        line |= {"hecho": event.done, "total": event.total}
    if event.finish is not None:
        line["fin"] = event.finish
        line["uso"] = None if event.usage is None else dataclasses.asdict(event.usage)
    return line


if __name__ == "__main__":
    sys.exit(main())
