"""Requests and answers against RunPod's own specification, where its file is at hand.

The file is RunPod's, so it is not in this repository. It is looked for in `ELCHAT_RUNPOD_OPENAPI`,
beside `ELCHAT_TEST_DATA`, and beside the repository (docs/simulador.md says which one was used).
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from urllib.parse import parse_qsl

import httpx

NAME = "runpod-openapi-v2.json"
ROOT = Path(__file__).parents[2]
PROBLEM = "application/problem+json"


def specification_path() -> Path | None:
    """The specification's file, or None."""
    candidates = []
    if given := os.environ.get("ELCHAT_RUNPOD_OPENAPI"):
        candidates.append(Path(given))
    if data := os.environ.get("ELCHAT_TEST_DATA"):
        candidates.append(Path(data).parent / "reference" / NAME)
    candidates.append(ROOT.parent / "shared" / "reference" / NAME)
    return next((path for path in candidates if path.is_file()), None)


class ContractError(AssertionError):
    """A request or an answer that breaks the specification."""


class Checker:
    """The specification, ready to judge exchanges.

    Only the declared status codes and `default` (any problem) are known to it, so v1, GraphQL and
    the pages of the edge are outside its reach.
    """

    def __init__(self, path: Path) -> None:
        from openapi_core import Config, OpenAPI

        config = Config(extra_media_type_deserializers={PROBLEM: json.loads})
        found = json.loads(path.read_text(encoding="utf-8"))
        self._openapi = OpenAPI.from_dict(found, config=config)
        self.checked = 0

    def check(self, request: httpx.Request, response: httpx.Response) -> None:
        """Judge an exchange: the answer always, and the request by what was answered to it.

        A 2xx must answer a valid request and a 422 an invalid one: where the simulator is laxer or
        stricter than the specification, this fails.

        Raises:
            ContractError: with the specification's reason.
        """
        if not request.url.path.startswith("/v2/"):
            return
        kind = response.headers.get("content-type", "")
        if kind.startswith("text/html"):
            return
        self.checked += 1
        problem = self._request_problem(request)
        if response.is_success and problem is not None:
            raise ContractError(f"accepted against the specification: {problem}")
        if response.status_code == 422 and problem is None:
            raise ContractError(f"refused a valid request: {response.text}")
        if response.status_code != 405 and not kind.startswith("text/event-stream"):
            self._check_answer(request, response)

    def _request_problem(self, request: httpx.Request) -> str | None:
        from openapi_core.exceptions import OpenAPIError

        try:
            self._openapi.validate_request(_request(request))
        except OpenAPIError as error:
            causes = getattr(error.__cause__, "schema_errors", [])
            return f"{error!r} {[str(cause)[:300] for cause in causes]}"
        return None

    def _check_answer(self, request: httpx.Request, response: httpx.Response) -> None:
        from openapi_core.exceptions import OpenAPIError
        from openapi_core.templating.paths.exceptions import PathError

        asked = _request(request)
        try:
            self._openapi.validate_response(asked, _response(response))
        except PathError:
            if response.status_code not in (401, 404):
                raise ContractError(f"unknown path answered: {request.url}") from None
        except OpenAPIError as error:
            causes = getattr(error.__cause__, "schema_errors", [])
            reasons = [str(cause)[:300] for cause in causes]
            raise ContractError(f"{request.method} {request.url}: {error!r} {reasons}") from error


class CheckedTransport(httpx.BaseTransport):
    """A transport that judges everything that goes through another one."""

    def __init__(self, inner: httpx.BaseTransport, checker: Checker) -> None:
        self._inner = inner
        self._checker = checker

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            return response
        response.read()
        self._checker.check(request, response)
        return response


@cache
def shared_checker() -> Checker | None:
    """The checker of this process: reading the specification takes a while."""
    path = specification_path()
    return Checker(path) if path else None


def checked(inner: httpx.BaseTransport) -> httpx.BaseTransport:
    """A transport judged by the specification where its file is at hand; itself elsewhere."""
    checker = shared_checker()
    return inner if checker is None else CheckedTransport(inner, checker)


def _request(request: httpx.Request):
    from openapi_core.testing import MockRequest

    path, _, query = request.url.raw_path.decode().partition("?")
    body = request.read()
    return MockRequest(
        host_url="https://api.runpod.io",
        method=request.method.lower(),
        path=path,
        args=dict(parse_qsl(query)),
        headers=dict(request.headers),
        data=body or None,
        content_type=request.headers.get("content-type", "application/json"),
    )


def _response(response: httpx.Response):
    from openapi_core.testing import MockResponse

    return MockResponse(
        data=response.content,
        status_code=response.status_code,
        headers=dict(response.headers),
        content_type=response.headers.get("content-type", ""),
    )
