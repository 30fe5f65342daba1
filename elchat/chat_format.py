r"""Conversations to token ids and a loss mask, in ChatML and Llama 3's format.

ChatML (SmolLM2, Qwen2.5), targets underlined:

    <|im_start|>user\nHola<|im_end|>\n<|im_start|>assistant\n¡Buenas!<|im_end|>\n
                                                             ~~~~~~~~~~~~~~~~~~
Llama 3:

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHola<|eot_id|>...

The ids equal what the vendor's Jinja template and tokenizer give, with two intended differences:
special-token text inside a message stays plain text, and an answer is encoded apart from its
header, so that what is trained is a continuation of what generation will be given (it shows only
when an answer starts with white space).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from elchat.bases import Family
from elchat.errors import DataError, TokenizerError
from elchat.tokenizer import Tokenizer
from elchat.tools import calculator

Message = dict[str, str]
ROLES = ("system", "user", "assistant")

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
STOP_TOKENS: Mapping[Family, tuple[str, ...]] = {
    "chatml": ("<|im_end|>", "<|endoftext|>"),
    "llama3": ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
}


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids.

    Attributes:
        is_target: whether predicting ids[i] is trained.
        turn_starts: where each user message begins.
    """

    ids: list[int]
    is_target: list[bool]
    turn_starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class ChatFormat:
    """How one family writes conversations.

    Attributes:
        default_system: system message used when the conversation brings none; None adds none.
        system_prefix: text put before every system message (Llama's dated header, in tests).
    """

    family: Family
    tokenizer: Tokenizer
    default_system: str | None = None
    system_prefix: str = ""

    @classmethod
    def for_tokenizer(
        cls,
        family: Family,
        tokenizer: Tokenizer,
        default_system: str | None = None,
        *,
        system_prefix: str = "",
    ) -> ChatFormat:
        """Check that the vocabulary has the family's tokens.

        Raises:
            TokenizerError: a token is missing; none is ever added, that would spoil the model.
        """
        needed = CHATML_TOKENS if family == "chatml" else LLAMA3_TOKENS
        missing = [token for token in needed if token not in tokenizer.special_ids]
        if missing:
            raise TokenizerError(
                f"El vocabulario no tiene {', '.join(missing)}, que el formato {family} necesita: "
                "elige un modelo que ya sepa conversar en ese formato."
            )
        return cls(family, tokenizer, default_system, system_prefix)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer; the end of turn comes first."""
        special = self.tokenizer.special_ids
        return tuple(special[token] for token in STOP_TOKENS[self.family] if token in special)

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False
    ) -> Rendered:
        """Write a conversation that `validate_messages` accepts.

        Targets are the tokens of each answer and its end of turn; in ChatML the line break that
        follows is not one, nor is what the calculator completes inside an answer.
        """
        ids: list[int] = []
        is_target: list[bool] = []
        turn_starts: list[int] = []

        def write(part: Iterable[int], target: bool = False) -> None:
            start = len(ids)
            ids.extend(part)
            is_target.extend([target] * (len(ids) - start))

        write(self._prefix)
        for role, content in self._turns(messages):
            if role != "assistant":
                turn_starts += [len(ids)] if role == "user" else []
                write(self._turn(role, content))
                continue
            write(self._header)
            for text, is_written in calculator.split_results(content):
                write(self.tokenizer.encode(text), is_written)
            write([self.stop_ids[0]], True)
            write(self._after_turn)
        if add_generation_prompt:
            write(self._header)
        return Rendered(ids, is_target, tuple(turn_starts))

    def jinja_template(self) -> str:
        """The template exported with the model; rendering it gives the text of `render`."""
        is_chatml = self.family == "chatml"
        before = "<|im_start|>" if is_chatml else "<|start_header_id|>"
        after_role = "\n" if is_chatml else "<|end_header_id|>\n\n"
        end = "<|im_end|>\n" if is_chatml else "<|eot_id|>"
        content = "message['content']" if is_chatml else "message['content'] | trim"
        if self.system_prefix:
            prefix = _literal(self.system_prefix)
            content = f"({prefix} if message['role'] == 'system' else '') + ({content})"
        parts = [] if is_chatml else ["{{ '<|begin_of_text|>' }}"]
        if self.default_system is not None:
            text = self._system_text(self.default_system)
            whole = _literal(f"{before}system{after_role}{text}{end}")
            parts.append("{% if messages[0]['role'] != 'system' %}{{ " + whole + " }}{% endif %}")
        parts.append(
            f"{{% for message in messages %}}{{{{ {_literal(before)} + message['role'] + "
            f"{_literal(after_role)} + ({content}) + {_literal(end)} }}}}{{% endfor %}}"
        )
        prompt = _literal(f"{before}assistant{after_role}")
        parts.append(f"{{% if add_generation_prompt %}}{{{{ {prompt} }}}}{{% endif %}}")
        return "".join(parts)

    def _turns(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
        turns = [(message["role"], message["content"]) for message in messages]
        if self.default_system is not None and (not turns or turns[0][0] != "system"):
            turns.insert(0, ("system", self.default_system))
        return [
            (role, self._system_text(text) if role == "system" else self._text(text))
            for role, text in turns
        ]

    def _text(self, content: str) -> str:
        return content.strip() if self.family == "llama3" else content  # as Llama's `| trim`

    def _system_text(self, content: str) -> str:
        return self.system_prefix + self._text(content)

    @cached_property
    def _prefix(self) -> list[int]:
        is_llama3 = self.family == "llama3"
        return [self.tokenizer.special_ids["<|begin_of_text|>"]] if is_llama3 else []

    def _turn(self, role: str, content: str) -> list[int]:
        special, encode = self.tokenizer.special_ids, self.tokenizer.encode
        if self.family == "chatml":
            body = encode(f"{role}\n{content}")
            return [special["<|im_start|>"], *body, special["<|im_end|>"], *self._after_turn]
        head = [special["<|start_header_id|>"], *encode(role), special["<|end_header_id|>"]]
        return [*head, *encode(f"\n\n{content}"), special["<|eot_id|>"]]

    @cached_property
    def _header(self) -> list[int]:
        special, encode = self.tokenizer.special_ids, self.tokenizer.encode
        if self.family == "chatml":
            return [special["<|im_start|>"], *encode("assistant\n")]
        role = encode("assistant")
        return [
            special["<|start_header_id|>"],
            *role,
            special["<|end_header_id|>"],
            *encode("\n\n"),
        ]

    @cached_property
    def _after_turn(self) -> list[int]:
        return self.tokenizer.encode("\n") if self.family == "chatml" else []


def detect_family(tokenizer: Tokenizer, chat_template: str | None = None) -> Family:
    """Tell the chat family of a vocabulary, asking the model's own template when both fit.

    Raises:
        TokenizerError: neither family's tokens are there.
    """
    special = tokenizer.special_ids
    is_chatml = all(token in special for token in CHATML_TOKENS)
    is_llama3 = all(token in special for token in LLAMA3_TOKENS)
    if is_chatml and is_llama3:
        return "chatml" if "<|im_start|>" in (chat_template or "") else "llama3"
    if is_chatml or is_llama3:
        return "chatml" if is_chatml else "llama3"
    raise TokenizerError(
        "El vocabulario no tiene los tokens de conversación de ChatML (<|im_start|>, <|im_end|>) "
        "ni los de Llama 3 (<|start_header_id|>, <|eot_id|>): elige otro modelo."
    )


def validate_messages(
    messages: Any, *, where: str, last: Literal["assistant", "user"] = "assistant"
) -> list[Message]:
    """Check a conversation: an optional system message, then user and assistant in turns.

    Args:
        messages: the conversation; keys other than role and content are dropped.
        where: names the conversation in the error, such as "datos/chat.jsonl, línea 3".
        last: role of the final message: "assistant" to train, "user" to ask for an answer.

    Raises:
        DataError: what is wrong, and in which message.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise DataError(
            f"{where}: la conversación está vacía o no es una lista de mensajes con role y content."
        )
    checked = [_check_message(item, where, i + 1) for i, item in enumerate(messages)]
    turns = checked[1:] if checked[0]["role"] == "system" else checked
    first = len(checked) - len(turns) + 1
    for i, message in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise DataError(
                f"{where}, mensaje {first + i}: el papel es «{message['role']}» y toca "
                f"«{expected}»; el orden es system (opcional), user, assistant, user, assistant…"
            )
    if not turns or turns[-1]["role"] != last:
        raise DataError(
            f"{where}: la conversación debe terminar con un mensaje «{last}» y termina con "
            f"«{checked[-1]['role']}»."
        )
    return checked


def _check_message(item: Any, where: str, number: int) -> Message:
    if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
        raise DataError(f"{where}, mensaje {number}: faltan las claves role y content.")
    role, content = item["role"], item["content"]
    if role not in ROLES:
        raise DataError(
            f"{where}, mensaje {number}: el papel «{role}» no existe; usa system, user o assistant."
        )
    if not isinstance(content, str):
        raise DataError(
            f"{where}, mensaje {number}: content debe ser texto y es {type(content).__name__}."
        )
    if role == "user" and not content.strip():
        raise DataError(f"{where}, mensaje {number}: el mensaje del usuario está vacío.")
    return {"role": role, "content": content}


def _literal(text: str) -> str:
    """A Jinja string literal; every escape survives `trim_blocks` and newline normalisation."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "'" + escaped.replace("\n", "\\n").replace("\r", "\\r") + "'"
