"""The middleware around Serve's proxy, before applications that behave as the proxy does."""

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from ureca.serving.proxy import middlewares


def behind(inner):
    [middleware] = middlewares()
    return TestClient(middleware.cls(inner, *middleware.args, **middleware.kwargs))


async def whose_ingress_died(scope, receive, send):
    """It answers nothing at all; its HTTP server would make that a bare 500."""


def test_a_request_whose_ingress_died_is_told_to_come_again():
    response = behind(whose_ingress_died).post("/v1/captions", headers={"X-Request-Id": "from-the-client.1"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"]["type"] == "unavailable"
    assert response.headers["x-request-id"] == "from-the-client.1"


@pytest.mark.parametrize(("given", "told"), [({}, "5"), ({"Retry-After": "60"}, "60")])
def test_a_503_names_a_time_and_keeps_the_one_it_has(given, told):
    response = behind(PlainTextResponse("No replicas are up.", 503, given)).get("/")
    assert (response.status_code, response.headers["retry-after"]) == (503, told)


def test_every_other_answer_stays_as_it_is():
    response = behind(PlainTextResponse("fine", 200)).get("/")
    assert (response.status_code, response.text) == (200, "fine")
    assert "retry-after" not in response.headers
