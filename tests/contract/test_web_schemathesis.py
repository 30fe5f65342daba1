"""Our own OpenAPI description, turned into requests: none is answered with a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from elchat.web.app import create_app
from elchat.web.settings import WebSettings
from tests.web_fakes import FakeMoods, FakeScheduler, Running, running

MODES = {"válidas": GenerationMode.POSITIVE, "rotas": GenerationMode.NEGATIVE}


def describe(app: Any) -> Any:
    return schemathesis.openapi.from_dict(app.openapi())


def names() -> list[str]:
    schema = describe(create_app(FakeScheduler()))
    return [operation.ok().label for operation in schema.get_all_operations()]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Running]:
    options = WebSettings(
        data_dir=tmp_path_factory.mktemp("web"), viewer_timeout_s=0.1, ping_s=0.2, max_chars=2000
    )
    with running(FakeScheduler(context_tokens=300), options, FakeMoods()) as it:
        yield it


def try_many(server: Running, name: str, mode: str, examples: int) -> None:
    schema = describe(create_app(FakeScheduler()))
    operation = next(item.ok() for item in schema.get_all_operations() if item.ok().label == name)

    @given(case=operation.as_strategy(generation_mode=MODES[mode]))
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        response = case.call(base_url=server.url, timeout=20)
        assert response.status_code < 500, (case.as_curl_command(), response.text)
        if response.status_code >= 400 and response.status_code != 422:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    with_nothing_to_break = mode == "rotas" and not operation.body and not list(operation.query)
    try:
        check()
    except Unsatisfiable:
        assert with_nothing_to_break


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", names())
def test_no_request_breaks_the_server(server: Running, name: str, mode: str):
    try_many(server, name, mode, 8)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", names())
def test_no_request_breaks_the_server_in_many_tries(server: Running, name: str, mode: str):
    try_many(server, name, mode, 200)
