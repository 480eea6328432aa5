"""Requests made up by schemathesis from the application's own OpenAPI document: whatever routes there are, none answers 500.

The model is the embedded one; what is drawn may be any request that the document allows, and many that it does not.
"""

import contextlib
import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from coupled_sampling.serving.http import HttpSettings
from standins.drawing import drawing_app
from standins.serving import served

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402 - only where it is installed
from schemathesis.specs.openapi import checks  # noqa: E402

OWN = {"/v1/mistake", "/v1/echo"}
"""Routes of `standins.drawing` that stand for mistakes."""

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]

KNOWN = {
    "model": st.just("fashion"),
    "prompt": st.sampled_from(["shoe", "257"]),
    "method": st.sampled_from(["scd-match", "ar", None]),
    "window": st.sampled_from([8, None]),
}
sensible = st.fixed_dictionaries({}, optional=KNOWN)


@pytest.fixture(scope="module")
def schema():
    with served("fashion", rows=4, most_waiting=8, lanes=2) as models:
        # A body and a deadline that keep an example short; what is drawn ends in 504 rather than late.
        yield schemathesis.openapi.from_asgi(
            "/openapi.json", drawing_app(models, HttpSettings(most_body=4000, most_choices=4, deadline=0.3))
        )


def bounded(examples):
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def ask(case):
    """Refusals for want of room or time are answers too; everything else is as the document says."""
    response = case.call()
    expected = {status for status in (503, 504) if status == response.status_code}
    excluded = [not_a_server_error] if expected else []
    case.validate_response(response, checks=CHECKS, excluded_checks=excluded)
    if response.status_code >= 400 and case.path.startswith("/v1"):
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert os.sep + "site-packages" not in error["message"]
    return response.status_code


def with_known(case, known):
    """The request with words that the server knows, in the fields that it has: else few would get as far as a model."""
    if isinstance(case.body, dict):
        case.body.update({name: value for name, value in known.items() if name in case.body})
    return case


def fuzz(schema, examples):
    """Ask every operation, by what its document allows and by what it does not; gives how often each status came."""
    found = Counter()
    for operation in (result.ok() for result in schema.get_all_operations()):
        if operation.path in OWN:
            continue
        for mode in GenerationMode:
            strategy = operation.as_strategy(generation_mode=mode)
            known = sensible if mode is GenerationMode.POSITIVE else st.just({})
            with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with a request that has no parts
                given(strategy, known)(
                    bounded(examples)(lambda case, known: found.update([ask(with_known(case, known))]))
                )()
    return found


def test_no_request_is_the_servers_mistake(schema):
    found = fuzz(schema, 8)
    assert found[200] > 5
    assert found[400] > 5


@pytest.mark.long
def test_none_of_many_requests_is_the_servers_mistake(schema):
    assert sum(fuzz(schema, 300).values()) > 1000


def test_the_document_has_every_route_and_every_error(schema):
    document = schema.raw_schema
    assert {"/v1/models", "/v1/models/{name}", "/health", "/metrics"} <= set(document["paths"])
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert {"400", "401", "404", "408", "413", "422", "429", "503", "504"} <= set(operation["responses"]), path
    assert "HTTPValidationError" not in document["components"]["schemas"]
