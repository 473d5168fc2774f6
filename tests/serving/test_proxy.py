"""The middleware around Serve's proxy, before applications that behave as the proxy does."""

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
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


@pytest.mark.parametrize(("given", "received"), [({}, "5"), ({"Retry-After": "60"}, "60")])
def test_a_503_names_a_time_and_keeps_the_one_it_has(given, received):
    response = behind(PlainTextResponse("No replicas are up.", 503, given)).get("/")
    assert (response.status_code, response.headers["retry-after"]) == (503, received)


def test_every_other_answer_stays_as_it_is():
    response = behind(PlainTextResponse("fine", 200)).get("/")
    assert (response.status_code, response.text) == (200, "fine")
    assert "retry-after" not in response.headers


@pytest.mark.parametrize("routes", [JSONResponse({}), PlainTextResponse("Route table is not populated yet.", 503)])
def test_where_nothing_is_served_the_proxy_s_404_says_come_again(routes):
    response = behind(proxy_of(routes)).post("/v1/captions?x=1", content=b"{}", headers={"X-Request-Id": "mine"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"]["type"] == "unavailable"
    assert response.headers["x-request-id"] == "mine"


def test_where_something_is_served_a_404_stays():
    response = behind(proxy_of(JSONResponse({"/": "captioner"}))).get("/nowhere")
    assert (response.status_code, response.text) == (404, "Not Found")
    assert "retry-after" not in response.headers


def proxy_of(routes: Response) -> Starlette:
    """It knows no other path than /-/routes, as Serve's proxy where no application is left."""
    return Starlette(routes=[Route("/-/routes", lambda _: routes)])
