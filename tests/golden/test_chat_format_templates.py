"""Rendered conversations, letter for letter, and equality with Jinja as transformers runs it."""

import json

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as RawTokenizer

from elchat import bases
from elchat.chat_format import ChatFormat
from elchat.tokenizer import Tokenizer
from tests import toys

SYSTEM = {"role": "system", "content": "Eres «breve».\nY amable."}
TURNS = [
    {"role": "user", "content": "¿Quién eres?"},
    {"role": "assistant", "content": "Soy elchat: un 'modelo' de 135\\M."},
    {"role": "user", "content": "Cuenta\n1. uno\n2. dos  "},
]
ANSWERED = [*TURNS, {"role": "assistant", "content": "Vale 👍, {{ 7 }} {% raw %}"}]
CONVERSATIONS = [TURNS, ANSWERED, [SYSTEM, *TURNS], [SYSTEM, *ANSWERED], [SYSTEM], TURNS[:1]]


def render_jinja(template: str, messages: list[dict[str, str]], prompt: bool, **extra: str) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    compiled = environment.from_string(template)
    return compiled.render(messages=messages, add_generation_prompt=prompt, **extra)


def text_of(chat: ChatFormat, messages: list[dict[str, str]], prompt: bool = False) -> str:
    ids = chat.render(messages, add_generation_prompt=prompt).ids
    return chat.tokenizer.decode(ids, keep_special=True)


def chat_for(family: str, **options: str) -> ChatFormat:
    return ChatFormat.for_tokenizer(toys.CHAT_FAMILY[family], toys.tokenizer(family), **options)


def test_chatml_golden() -> None:
    assert text_of(chat_for("smollm"), [SYSTEM, *TURNS], True) == (
        "<|im_start|>system\nEres «breve».\nY amable.<|im_end|>\n"
        "<|im_start|>user\n¿Quién eres?<|im_end|>\n"
        "<|im_start|>assistant\nSoy elchat: un 'modelo' de 135\\M.<|im_end|>\n"
        "<|im_start|>user\nCuenta\n1. uno\n2. dos  <|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_llama3_golden() -> None:
    assert text_of(chat_for("llama"), [SYSTEM, *TURNS], True) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Eres «breve».\nY amable.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n¿Quién eres?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        "Soy elchat: un 'modelo' de 135\\M.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nCuenta\n1. uno\n2. dos<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_vendor_defaults_golden() -> None:
    """What the published templates write when nobody says anything about the system."""
    hola = [{"role": "user", "content": "Hola"}]
    smollm, qwen = bases.get("smollm2-135m"), bases.get("qwen2.5-0.5b")
    assert text_of(chat_for("smollm", default_system=smollm.vendor_system), hola, True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHola<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text_of(chat_for("qwen", default_system=qwen.vendor_system), hola, True) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\nHola<|im_end|>\n<|im_start|>assistant\n"
    )
    llama = bases.get("llama-3.2-1b")
    prefix = llama.vendor_system_prefix.format(date="26 Jul 2024")
    chat = chat_for("llama", default_system=llama.vendor_system, system_prefix=prefix)
    header = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    )
    tail = (
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHola<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert text_of(chat, hola, True) == header + tail
    system = {"role": "system", "content": " Eres breve. "}
    assert text_of(chat, [system, *hola], True) == header + "Eres breve." + tail


DEFAULTS = [None, "", "Di 'sí' \\ o «no»:\n{{ 1 }} {% x %} \r\n%}"]


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("family", toys.FAMILIES)
def test_exported_template_equals_render(family: str, default: str, prompt: bool) -> None:
    chat = chat_for(family, default_system=default)
    raw = RawTokenizer.from_str(toys.tokenizer_json(family))
    for messages in CONVERSATIONS:
        text = render_jinja(chat.jinja_template(), messages, prompt)
        assert text == text_of(chat, messages, prompt)
        ids = raw.encode(text, add_special_tokens=False).ids
        assert ids == chat.render(messages, add_generation_prompt=prompt).ids


def test_exported_template_with_a_system_prefix() -> None:
    chat = chat_for("llama", default_system="", system_prefix="Fecha:\n\n")
    for messages in CONVERSATIONS:
        text = render_jinja(chat.jinja_template(), messages, True)
        assert text == text_of(chat, messages, True)
        assert "Fecha:\n\n" in text


def test_template_is_safe_in_the_sandbox() -> None:
    """Message text is data: it is never evaluated."""
    messages = [{"role": "user", "content": "{{ 1 // 0 }}{% for %}"}]
    assert "{{ 1 // 0 }}{% for %}" in render_jinja(
        chat_for("qwen").jinja_template(), messages, True
    )
    with pytest.raises(jinja2.TemplateSyntaxError):
        render_jinja("{% for %}", messages, True)


VENDORS = {"smollm2": "smollm2-135m", "qwen2_5": "qwen2.5-0.5b", "llama3_1": "llama-3.2-1b"}


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("folder", VENDORS)
def test_ids_equal_the_vendors_template_and_tokenizer(folder: str, prompt: bool) -> None:
    path = toys.test_data("tokenizers", folder, "tokenizer.json")
    settings = json.loads(path.with_name("tokenizer_config.json").read_text("utf-8"))
    base = bases.get(VENDORS[folder])
    # the shared Llama file carries the Llama 3 template: no dated header
    default = base.vendor_system if base.family == "chatml" else None
    tokenizer = Tokenizer.from_file(path)
    chat = ChatFormat.for_tokenizer(base.family, tokenizer, default)
    raw = RawTokenizer.from_file(str(path))
    assert chat.stop_ids[0] == base.eot_id
    assert tokenizer.decode(base.doc_prefix_ids, keep_special=True) == (
        "<|begin_of_text|>" if base.family == "llama3" else "<|endoftext|>"
    )
    for messages in CONVERSATIONS:
        text = render_jinja(
            settings["chat_template"], messages, prompt, bos_token="<|begin_of_text|>"
        )
        expected = raw.encode(text, add_special_tokens=False).ids
        assert chat.render(messages, add_generation_prompt=prompt).ids == expected
