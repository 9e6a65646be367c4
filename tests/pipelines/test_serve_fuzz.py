"""Hostile requests, made by schemathesis from the service's own description: none may be a 5xx."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from zoo import config, game_of, spec_of

from ganlib.export import save_generator
from pipelines.serve.api import api
from pipelines.serve.settings import Settings

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(
    "family", ["mlp", "ctgan", "restore", "f_anogan", "relgan"]
)  # pictures, rows, files, answers, lines
def test_hostile_requests_are_refused_not_crashed_on(family, mode, tmp_path):
    spec = spec_of(family)
    save_generator(tmp_path, game_of(family, spec).generator, network=config(family), spec=spec)
    app = api(Settings(model=str(tmp_path), hosts=("*",)))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    checks = CHECKS + [negative_data_rejection] * (mode is GenerationMode.NEGATIVE)
    asked = 0
    for operation in (result.ok() for result in schema.get_all_operations()):
        if mode is GenerationMode.NEGATIVE and not operation.body and not operation.query:
            continue  # nothing can be wrong with it

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=12, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        def ask(case):
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=checks)

        ask()
    assert asked > 20
