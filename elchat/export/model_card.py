"""README.md of an exported model: what it is, how to use it, what it was made of. In Spanish."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from elchat.bases import Base
from elchat.export.licences import Obligations
from elchat.report import markdown, words
from elchat.report.facts import Facts
from elchat.weights import LoadedModel

USAGE = {
    "hf": (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'modelo = AutoModelForCausalLM.from_pretrained("RUTA")\n'
        'vocabulario = AutoTokenizer.from_pretrained("RUTA")\n'
        'mensajes = [{"role": "user", "content": "¿Quién eres?"}]\n'
        "entrada = vocabulario.apply_chat_template(\n"
        '    mensajes, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
        ")\n"
        "salida = modelo.generate(**entrada, max_new_tokens=100)\n"
        "print(vocabulario.decode(salida[0], skip_special_tokens=True))\n"
        "```"
    ),
    "gguf": "```bash\nllama-cli -m ARCHIVO\n```\n\nLo leen llama.cpp, LM Studio y quien use GGUF.",
    "ollama": "```bash\nollama create NOMBRE -f Modelfile\nollama run NOMBRE\n```",
}


def render(
    loaded: LoadedModel,
    name: str,
    kind: str,
    duties: Obligations,
    facts: Facts | None,
    *,
    weights: str,
    model_file: str = "",
) -> str:
    """The whole card.

    Args:
        loaded: the model.
        name: its title.
        kind: "hf", "gguf" or "ollama".
        duties: of the base's licence.
        facts: of the run that made it; None for a model of unknown history.
        weights: how the weights are stored, in words.
        model_file: name of the GGUF.
    """
    usage = USAGE[kind].replace("ARCHIVO", model_file).replace("NOMBRE", name.lower())
    sections = [
        _front_matter(loaded.base, duties, facts),
        f"# {name}",
        f"**{duties.credit}**" if duties.credit else "",
        _what(loaded, facts),
        f"## Cómo usarlo\n\n{usage}\n\nCon elchat: `elchat chat CARPETA`.",
        "\n".join(["## Formato", "", *_format(loaded, weights)]),
        *_history(facts),
        "## Límites\n\nEs un modelo pequeño: inventa datos con seguridad, suma mal y olvida lo que "
        "se le dijo hace rato. No sirve para decisiones de salud, dinero o derecho.",
        "## Licencia\n\n" + "\n".join(f"- {point}" for point in duties.points),
    ]
    return markdown.inert("\n\n".join(filter(None, sections)) + "\n")


def _front_matter(base: Base | None, duties: Obligations, facts: Facts | None) -> str:
    fields: dict[str, object] = {
        "language": ["es"],
        "license": duties.spdx,
        "pipeline_tag": "text-generation",
        "tags": ["elchat", "español"],
    }
    if base is not None:
        start = facts.config.model.start if facts else "instruct"
        fields["base_model"] = base.hub_id(start)
    return "---\n" + yaml.safe_dump(fields, allow_unicode=True, sort_keys=False) + "---"


def _what(loaded: LoadedModel, facts: Facts | None) -> str:
    base = loaded.base.title if loaded.base else "un modelo de la familia Llama o Qwen2"
    text = f"Modelo de conversación en español hecho con elchat a partir de {base}"
    text += f" ({words.number(loaded.model.config.n_params / 1e6, 0)} M de parámetros)."
    if facts is None:
        return text + " No se conoce la ejecución que lo hizo: faltan sus datos y sus medidas."
    judged = words.verdict(facts)
    points = "\n".join(f"- {point}" for point in judged.points)
    return f"{text}\n\n**{judged.headline}**\n\n{points}"


def _format(loaded: LoadedModel, weights: str) -> Iterator[str]:
    yield f"- Pesos: {weights}."
    yield f"- Contexto: {words.number(loaded.model.config.max_positions, 0)} tokens."
    name = "ChatML" if loaded.family == "chatml" else "Llama 3"
    yield f"- Conversación: {name}; la plantilla va dentro."
    if loaded.chat.default_system:
        yield f"- Mensaje de sistema por defecto: «{words.one_line(loaded.chat.default_system)}»"


def _history(facts: Facts | None) -> list[str]:
    if facts is None:
        return []
    licences = ", ".join(f"{name} ({words.documents(n)})" for name, n in words.licences(facts))
    return [
        "## Datos",
        f"Licencias de los datos de entrenamiento: {licences or 'desconocidas'}.",
        markdown.data_table(facts),
        "## Medidas",
        "Bits por byte en texto apartado; menos es mejor.",
        markdown.score_table(facts),
        *markdown.task_sections(facts),
        "## Entrenamiento",
        markdown.training_table(facts),
        f"Configuración `{facts.config.name}`, sha256 `{facts.config_sha256[:16]}`; ejecución "
        f"`{facts.id}`.",
    ]
