"""Failures on the wire, in OpenAI's shape: {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from elchat.errors import DataError, ElchatError

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
SENTENCES: Mapping[int, tuple[str, str]] = {
    400: ("La petición no es JSON válido en UTF-8.", "invalid_json"),
    404: ("Esa dirección no existe en este servidor.", "not_found"),
    405: ("Esa dirección no admite este método.", "method_not_allowed"),
}
# pydantic's names for what can be wrong -> what the user should do.
HINTS: Mapping[str, str] = {
    "missing": "falta y es obligatorio",
    "string_type": "debe ser texto",
    "int_type": "debe ser un número entero",
    "int_from_float": "debe ser un número entero",
    "float_type": "debe ser un número",
    "finite_number": "debe ser un número finito (ni NaN ni infinito)",
    "bool_type": "debe ser true o false",
    "list_type": "debe ser una lista",
    "dict_type": "debe ser un objeto",
    "model_type": "debe ser un objeto",
    "model_attributes_type": "debe ser un objeto JSON",
    "json_invalid": "no es JSON válido",
}


class ApiError(Exception):
    """A refusal with its place on the wire."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def busy() -> ApiError:
    """Refuse for lack of room."""
    return ApiError(
        429,
        "El modelo está ocupado y la cola está llena: inténtalo dentro de unos segundos.",
        code="rate_limit_exceeded",
        headers={"Retry-After": "2"},
    )


def bug() -> ApiError:
    """Own up to a defect of ours."""
    return ApiError(500, "Fallo interno de elchat; el detalle está en la terminal del servidor.")


def bad(message: str, param: str | None, code: str | None = None) -> ApiError:
    """Refuse a parameter."""
    return ApiError(400, message, param=param, code=code)


def install(app: FastAPI) -> None:
    """Give every failure of the app the same shape."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ElchatError, _on_elchat_error)


def describe_invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """One sentence for the first of pydantic's findings, without echoing the input.

    Where a value may be of several types pydantic complains once for each; the deepest complaint
    is the useful one.
    """
    first = max(errors, key=lambda error: len(_place(error["loc"])))
    where = _place(first["loc"])
    param = ".".join(where) or None
    kind, context = str(first["type"]), first.get("ctx") or {}
    if kind == "json_invalid":
        return ApiError(400, SENTENCES[400][0], code="invalid_json")
    if kind == "value_error":
        return bad(str(context.get("error", "valor no válido")), param, "invalid_value")
    subject = f"«{param}»" if param else "El cuerpo de la petición"
    return bad(f"{subject} {_hint(kind, context)}.", param, _code(kind))


def _hint(kind: str, context: Mapping[str, Any]) -> str:
    limits = {
        "greater_than_equal": "ge",
        "less_than_equal": "le",
        "greater_than": "gt",
        "less_than": "lt",
        "too_long": "max_length",
        "string_too_long": "max_length",
        "too_short": "min_length",
        "string_too_short": "min_length",
    }
    words = {
        "ge": "debe ser como poco",
        "le": "debe ser como mucho",
        "gt": "debe ser mayor que",
        "lt": "debe ser menor que",
        "max_length": "es demasiado largo: como mucho",
        "min_length": "es demasiado corto: como poco",
    }
    if kind in limits:
        name = limits[kind]
        return f"{words[name]} {context.get(name)}"
    if kind == "literal_error":
        return f"debe ser uno de: {context.get('expected', '')}".replace(" or ", " o ")
    return HINTS.get(kind, "tiene un valor que no se admite")


def _code(kind: str) -> str:
    is_range = kind in ("greater_than_equal", "less_than_equal", "greater_than", "less_than")
    return "out_of_range" if is_range else "invalid_type"


def _place(location: Sequence[Any]) -> list[str]:
    """Path of a value as its author wrote it: no `body`, none of pydantic's internal names."""
    parts = list(location)
    if parts and parts[0] in ("body", "query", "path", "header"):
        parts = parts[1:]
    internal = ("list[", "constrained", "function-", "tagged-")
    types = ("str", "int", "float", "bool", "dict")
    return [
        str(part)
        for part in parts
        if isinstance(part, int)
        or not (part in types or part[:1].isupper() or part.startswith(internal))
    ]


async def _on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return describe_invalid(error.errors()).response()


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    sentence, code = SENTENCES.get(error.status_code, (str(error.detail), None))
    headers = getattr(error, "headers", None)
    return ApiError(error.status_code, sentence, code=code, headers=headers).response()


async def _on_elchat_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ElchatError)
    status = 400 if isinstance(error, DataError) else 500
    return ApiError(status, str(error)).response()
