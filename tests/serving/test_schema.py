"""Every answer is as the description says, whatever is asked: schemathesis makes the requests."""

from __future__ import annotations

import io
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode

from petface.serving.app import make_app
from petface.serving.intake import Intake
from petface.serving.limits import Limits
from tests.serving.made_server import FakeEngine, photo, running

NUM_EXAMPLES = 150  # per operation


def test_the_description_is_served_and_names_every_route():
    with running(Limits()) as server:
        described = server.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert set(described["paths"]) == {
        "/predict", "/predict_animal", "/explain", "/health", "/model_card", "/metrics"
    }  # fmt: skip
    for path in ("/predict", "/predict_animal", "/explain"):
        operation = described["paths"][path]["post"]
        assert {"200", "400", "403", "408", "413", "415", "422", "500", "503"} <= set(
            operation["responses"]
        )
        form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert form["required"] == list(form["properties"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_whatever_is_asked_the_answer_is_as_described(mode):
    stream = io.BytesIO()
    Image.new("L", (9, 5), 77).save(stream, "JPEG")
    photos = st.sampled_from([photo(), photo((0, 0, 255)), stream.getvalue()])
    schemathesis.openapi.media_type("image/png", photos)
    intake = Intake(FakeEngine(), Limits(max_body_mb=0.05, max_photos=3))
    app = make_app(intake, hosts=("localhost", "testserver"))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    codes: Counter[tuple[str, int]] = Counter()
    for operation in schema.get_all_operations():
        if mode == "negative" and operation.ok().method == "get":
            continue  # nothing to get wrong

        @settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.ok().as_strategy(GenerationMode(mode)))
        def ask(case):
            response = case.call()
            codes[case.operation.path, response.status_code] += 1
            case.validate_response(response)

        ask()
    intake.close()
    assert max(code for _, code in codes) < 500
    if mode == "positive":
        assert codes["/predict", 200] > 50 and codes["/predict_animal", 200] > 50
        assert codes["/explain", 200] and codes["/explain", 404]
    else:
        assert codes["/predict", 422] > 50 and codes["/explain", 422] > 50
