"""The Modelfile that makes an Ollama model out of a GGUF file.

Source: Ollama `docs/modelfile.md` (FROM, TEMPLATE in Go's text/template, PARAMETER, SYSTEM,
LICENSE).
"""

from __future__ import annotations

from elchat.weights import LoadedModel

MAX_CONTEXT_TOKENS = 4096  # Ollama reserves the whole context; more can be asked for when running
# The runner writes <|begin_of_text|> by itself (add_bos_token in the file).
TEMPLATES = {
    "chatml": (
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
        "<|im_start|>assistant\n"
    ),
    "llama3": (
        "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n"
        "{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
}


def modelfile(loaded: LoadedModel, gguf_name: str, name: str, licence_note: str) -> str:
    """Text of a Modelfile that lies beside `gguf_name`.

    Args:
        loaded: gives the chat format and its default system message.
        gguf_name: file name of the weights.
        name: what the model is called, for the comment.
        licence_note: put into LICENSE.
    """
    names = {token_id: text for text, token_id in loaded.tokenizer.special_ids.items()}
    context = min(loaded.model.config.max_positions, MAX_CONTEXT_TOKENS)
    lines = [
        f"# ollama create {name.lower()} -f Modelfile && ollama run {name.lower()}",
        f"FROM ./{gguf_name}",
        f"TEMPLATE {_quoted(TEMPLATES[loaded.family])}",
        *(f'PARAMETER stop "{names[i]}"' for i in loaded.chat_eos_ids if i in names),
        "PARAMETER temperature 0.7",
        "PARAMETER top_p 0.95",
        "PARAMETER repeat_penalty 1.1",
        f"PARAMETER num_ctx {context}",
    ]
    if loaded.chat.default_system:
        lines.append(f"SYSTEM {_quoted(loaded.chat.default_system)}")
    lines.append(f"LICENSE {_quoted(licence_note)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Triple quotes, which the format cannot escape: a run of three inside becomes two."""
    while '"""' in text:
        text = text.replace('"""', '""')
    return f'"""{text}"""'
