"""The API described: /openapi.json, and a plain page of it that needs no script nor network."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from elchat.web.schemas import ErrorAnswer

FAILURES = {
    "400": "La petición no vale; la frase dice qué campo y por qué.",
    "401": "Falta la clave.",
    "403": "Host u origen que este servidor no atiende.",
    "404": "No existe.",
    "408": "La petición tardó demasiado en llegar.",
    "409": "Ya hay una respuesta en marcha ahí.",
    "413": "Demasiado grande.",
    "415": "No es application/json.",
    "429": "Ocupado; Retry-After dice cuánto esperar.",
    "500": "Fallo interno.",
}
HEADINGS = {
    "OpenAI": "Como la de OpenAI",
    "Servidor": "El servidor",
    "Página": "De la página: puede cambiar entre versiones",
}


def install(app: FastAPI) -> None:
    """Describe failures as they are: ours, not FastAPI's 422."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            app.openapi_schema = _with_failures(schema)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _with_failures(schema: dict[str, Any]) -> dict[str, Any]:
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    model = ErrorAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    components.update(model.pop("$defs", {}))
    components["ErrorAnswer"] = model
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    for component in components.values():
        component.pop("description", None)  # our docstrings: for who reads the code
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for status, words in FAILURES.items():
                operation["responses"].setdefault(
                    status, {"description": words, "content": content}
                )
    return schema


def page(schema: dict[str, Any]) -> str:
    """The description as HTML."""
    routes: dict[str, list[str]] = {}
    for path, methods in schema["paths"].items():
        for method, item in methods.items():
            routes.setdefault(item["tags"][0], []).append(_operation(path, method, item))
    parts = [f"<h2>{escape(HEADINGS[tag])}</h2>{''.join(routes[tag])}" for tag in HEADINGS]
    models = [
        _model(name, model) for name, model in sorted(schema["components"]["schemas"].items())
    ]
    return (
        '<!doctype html><html lang="es"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>API de elchat</title>"
        '<link rel="icon" href="/static/icono.svg">'
        '<link rel="stylesheet" href="/static/base.css">'
        '<link rel="stylesheet" href="/static/documentacion.css"></head><body><main>'
        f"<h1>API de elchat {escape(schema['info']['version'])}</h1>"
        "<p>Compatible con la de OpenAI: basta con apuntar <code>base_url</code> a este servidor. "
        'Para programas: <a href="/openapi.json">openapi.json</a>.</p>'
        f"{''.join(parts)}<h2>Objetos</h2>{''.join(models)}</main></body></html>"
    )


def _operation(path: str, method: str, item: dict[str, Any]) -> str:
    body = item.get("requestBody", {}).get("content", {}).get("application/json", {})
    reference = _type_name(body["schema"]) if body else ""
    takes = f"<p>Recibe {reference}</p>" if reference else ""
    return (
        f'<section class="ruta"><h3><span class="metodo">{escape(method.upper())}</span> '
        f"<code>{escape(path)}</code></h3><p>{escape(item.get('summary', ''))}</p>{takes}</section>"
    )


def _model(name: str, model: dict[str, Any]) -> str:
    required = set(model.get("required", []))
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code>{' *' if field in required else ''}</td>"
        f"<td>{_type_name(value)}</td><td>{escape(_limits(value))}</td></tr>"
        for field, value in model.get("properties", {}).items()
    )
    return (
        f'<section id="{escape(name)}"><h3>{escape(name)}</h3>'
        '<div class="tabla" tabindex="0"><table><thead><tr><th>campo</th><th>tipo</th>'
        f"<th>notas</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _type_name(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = escape(value["$ref"].rsplit("/", 1)[1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in value:
        return " | ".join(_type_name(part) for part in value["anyOf"])
    if value.get("type") == "array":
        return f"lista de {_type_name(value.get('items', {}))}"
    return escape(str(value.get("type", "cualquiera")))


def _limits(value: dict[str, Any]) -> str:
    parts = [value, *value.get("anyOf", [])]
    names = {"minimum": "≥", "maximum": "≤", "exclusiveMaximum": "<", "exclusiveMinimum": ">",
             "maxLength": "largo ≤", "default": "por omisión"}  # fmt: skip
    found = [
        f"{sign} {part[name]}"
        for part in parts
        for name, sign in names.items()
        if part.get(name) is not None
    ]
    return "; ".join([*found, *filter(None, [value.get("description")])])
