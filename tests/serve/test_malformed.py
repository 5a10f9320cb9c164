"""The service beside its own OpenAPI document, and bodies that make no sense: no 500, and each route's own form."""

import pytest
import requests
from hypothesis import HealthCheck, given, settings

from tests.serve.malformed import check_answer, requests_of

schemathesis = pytest.importorskip("schemathesis")


@pytest.fixture(scope="session")
def session():
    with requests.Session() as session:
        yield session


@pytest.mark.slow
@given(requests_of())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_malformed_bodies(url, session, asked):
    check_answer(url, *asked, session)


# A body that fits the document can still be too long, name another model, or have ids of another tokenizer.
CHECKS = {"positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404", "413", "422"]}}


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_the_document_is_kept(url, mode):
    """Requests that fit the document, and others: each answer has a status and a form that it names."""
    config = schemathesis.config.SchemathesisConfig.from_dict({"checks": CHECKS})
    operations = [
        one.ok() for one in schemathesis.openapi.from_url(f"{url}/openapi.json", config=config).get_all_operations()
    ]
    assert {operation.path for operation in operations} > {"/v1/embeddings", "/embed", "/similarity"}
    for operation in operations:
        if mode == schemathesis.GenerationMode.NEGATIVE and operation.method == "get":
            continue  # takes nothing that could be wrong

        @given(operation.as_strategy(generation_mode=mode))
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        def check(case):
            case.call_and_validate()

        check()
