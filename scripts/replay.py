"""Live a recorded conversation again and compare it byte for byte.

    python -m scripts.replay FILE MODEL [--json]

What `elchat replay` starts. The receipt of a chat (`/recibo`) is done again by the engine, with one
row; the record of a conversation by the laboratory's decoder. What else a server was doing when it
was recorded would otherwise be part of the result.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from elchat.autonomy import Conversation, store
from elchat.autonomy.replay import Outcome, Run, load_replay, run_replay
from elchat.autonomy.terminal import TerminalMood
from elchat.engine import load_engine
from elchat.errors import ElchatError
from elchat.lab.decoder import Decoder, Sampling
from elchat.sampling import SamplingParams
from elchat.scheduler import Scheduler
from elchat.terminal import journal
from elchat.terminal.session import Session
from elchat.weights import LoadedModel, load_model
from scripts.arguments import Parser, tell


def main(argv: list[str] | None = None) -> int:
    """Run a replay; 1 if anything came out otherwise."""
    parser = Parser("replay", "Repite una conversación grabada y la compara byte a byte.")
    parser.add_argument("file", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args(argv)
    try:
        outcome = (chat if journal.is_receipt(args.file) else record)(args.file, args.model)
    except ElchatError as error:
        return tell(error)
    differences = [vars(one) for one in outcome.differences]
    if args.as_json:
        print(json.dumps({"replies": outcome.replies, "differences": differences}))
    elif differences:
        for one in outcome.differences:
            print(f"turno {one.turn}, {one.what}: era «{one.was}» y sale «{one.now}»")
    else:
        print(f"Idéntica byte a byte: {len(outcome.replies)} turnos.")
    return 1 if differences else 0


def record(file: Path, model: Path) -> Outcome:
    """A conversation saved by the library."""
    replay = load_replay(file)
    loaded = load_model(model, dtype=torch.float32)
    autonomy = store.load(model, loaded.model.config)
    return run_replay(replay, autonomy, runner(loaded))


def chat(file: Path, model: Path) -> journal.ChatOutcome:
    """A chat, by an engine set up as it was."""
    receipt = journal.load(file)
    torch.set_num_threads(int(receipt.engine.get("threads", 1)))
    engine = load_engine(
        model,
        context_tokens=receipt.engine.get("context_tokens"),
        weights=receipt.engine.get("weights", "auto"),
        compile=bool(receipt.engine.get("is_compiled")),
    )
    autonomy = store.load(model, engine.config)
    mood = None
    if autonomy.mood is not None:
        mood = TerminalMood(autonomy.open(), engine.tokenizer.decode)
    with contextlib.closing(Scheduler(engine, max_rows=1, max_queue=1)) as scheduler:
        session = Session(scheduler, SamplingParams(), mood=mood, model_id=autonomy.model_id)
        return journal.do_again(receipt, session)


def runner(loaded: LoadedModel) -> Run:
    """Turns decoded one at a time, the whole past recomputed."""
    decoder = Decoder(loaded.model, loaded.chat.stop_ids, loaded.tokenizer.vocab_size)

    def run(messages: list[dict[str, str]], params: Mapping[str, Any], talk: Conversation) -> str:
        ids = loaded.chat.render(messages, add_generation_prompt=True).ids
        starts = [
            len(loaded.chat.render(messages[:i]).ids) if i else 0
            for i, message in enumerate(messages)
            if message["role"] == "user"
        ]
        hook = talk.turn(ids, starts, text=messages[-1]["content"])
        written = decoder.write(ids, [hook], Sampling(**params))[0]
        return loaded.tokenizer.decode(list(written.ids))

    return run


if __name__ == "__main__":
    sys.exit(main())
