"""The HTTP API: what it takes, what it refuses and in which words. No engine: masks are measured."""

import base64
import json
import time

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from support.live_server import on_a_port
from support.request_images import HEIGHT, WIDTH, data_url, encoded, photo, png_of_a_size_it_does_not_hold, with_alpha

from ureca.errors import InputError
from ureca.regions.rle import box_to_rle, encode_mask
from ureca.regions.tree import Mask
from ureca.serving.api.app import create_app
from ureca.serving.api.backend import OverloadedError, Sampling, UnavailableError
from ureca.serving.settings import Limits

BOX = {"id": "7", "box": [10, 5, 20, 10]}


def mask() -> np.ndarray:
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[5:15, 10:30] = True
    return inside


def request(**changes: object) -> dict:
    return {"image": data_url(photo()), "regions": [BOX], **changes}


def ask(api, **changes: object):
    return api.post("/v1/captions", json=request(**changes))


def events(text: str) -> list:
    blocks = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    return [block if block == "[DONE]" else json.loads(block) for block in blocks]


@pytest.mark.parametrize(
    "form",
    [
        {"box": [10, 5, 20, 10]},
        {"rle": encode_mask(mask())},
        {"rle": {"size": [HEIGHT, WIDTH], "counts": [10 * HEIGHT + 5, *[10, 30] * 19, 10, 25 + 30 * HEIGHT]}},
        {"polygon": [10, 5, 30, 5, 30, 15, 10, 15]},
        {"polygon": [[10, 5, 30, 5, 30, 15, 10, 15]]},
        {"mask_png": encoded(Image.fromarray(mask()))},
        {"mask_png": encoded(Image.fromarray(mask().astype(np.uint8)))},
        {"mask_png": "data:image/png;base64," + encoded(Image.fromarray(mask().astype(np.uint8) * 255))},
        {"mask_png": encoded(with_alpha(photo(), mask()))},
    ],
)
def test_a_mask_is_the_same_in_every_form(api, form):
    response = ask(api, regions=[{"id": "7", **form}])
    assert response.status_code == 200
    assert response.json() == {
        "model": "measured",
        "captions": [{"id": "7", "caption": "unique 200 at 10,5,20,10", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 300, "completion_tokens": 2, "cached_tokens": 0},
    }


def test_the_backend_gets_pixels_style_and_limits(api, backend):
    image = photo()
    ask(api, image=data_url(image, "jpeg", quality=95), style="brief", temperature=0.5, max_tokens=12)
    ask(api, image=data_url(image))
    jpeg, png = backend.calls
    assert jpeg.sampling == Sampling(max_tokens=12, temperature=0.5)
    assert png.sampling == Sampling(max_tokens=64)
    assert [call.regions[0].style for call in (jpeg, png)] == ["brief", "unique"]
    assert np.array_equal(png.image, np.asarray(image))
    assert jpeg.image.shape == (HEIGHT, WIDTH, 3)
    assert jpeg.digest != png.digest


def test_a_region_may_have_a_style_or_a_question_of_its_own(api, backend):
    regions = [BOX, {"id": "8", "box": [0, 0, 5, 5], "style": "brief"}, {"box": [0, 0, 5, 5], "question": " What? "}]
    captions = ask(api, regions=regions, style="detailed").json()["captions"]
    assert [each["caption"].split(" ")[0] for each in captions] == ["detailed", "brief", "What?"]
    assert [region.style for region in backend.calls[0].regions] == ["detailed", "brief", "detailed"]


def test_the_whole_image_may_be_captioned_in_the_same_call(api):
    answer = ask(api, image_caption=True).json()
    assert answer["image"] == {"id": "image", "caption": "unique 2400 at 0,0,60,40", "finish_reason": "stop"}
    assert [each["id"] for each in answer["captions"]] == ["7"]
    refused = ask(api, image_caption=True, regions=[{**BOX, "id": "image"}])
    assert refused.status_code == 400
    assert "is reserved for the whole image" in refused.json()["error"]["message"]


def test_log_probabilities_are_told_where_asked_for(api):
    assert "logprobs" not in ask(api).json()["captions"][0]
    [caption] = ask(api, logprobs=True).json()["captions"]
    assert caption["logprobs"] == [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]


def two_squares() -> Image.Image:
    """A blue picture with a red square that holds a white one."""
    pixels = np.zeros((80, 80, 3), np.uint8) + np.array([20, 40, 200], np.uint8)
    pixels[20:60, 20:60] = (220, 30, 30)
    pixels[32:48, 32:48] = (250, 250, 250)
    return Image.fromarray(pixels)


def test_points_name_the_smallest_region_that_holds_them_all(api):
    def box(*points: list[float]) -> list[float]:
        answer = ask(api, image=data_url(two_squares()), regions=[{"points": list(points)}]).json()["captions"][0]
        return [float(each) for each in answer["caption"].split(" at ")[1].split(",")]

    assert box([40.5, 40]) == pytest.approx([32, 32, 16, 16], abs=2)
    assert box([40, 40], [24, 24]) == pytest.approx([20, 20, 40, 40], abs=2)


def test_a_tree_says_which_region_is_part_of_which_and_what_was_dropped(api):
    regions = [
        {"id": "inner", "box": [32, 32, 16, 16]},
        {"id": "outer", "box": [20, 20, 40, 40]},
        {"id": "twin", "box": [20, 20, 40, 39]},
        {"id": "speck", "box": [0, 0, 2, 2]},
        {"id": "bad", "box": [0, 0, 0, 0]},
    ]
    response = api.post("/v1/trees", json={"image": data_url(two_squares()), "regions": regions})
    assert response.status_code == 200
    outer, inner = response.json()["regions"]
    assert (outer["id"], outer["merged_ids"], outer["depth"], outer.get("parent")) == ("outer", ["twin"], 0, None)
    assert (inner["id"], inner["parent"], inner["depth"]) == ("inner", "outer", 1)
    assert inner["caption"] == "unique 256 at 32,32,16,16"
    assert (inner["area"], inner["bbox"]) == (256, [32, 32, 16, 16])
    assert {each["id"]: each["error"]["type"] for each in response.json()["dropped"]} == {
        "bad": "invalid_region",
        "speck": "dropped",
    }


def test_a_tree_s_regions_are_asked_in_their_own_style_or_with_their_own_question(api):
    regions = [{"id": "inner", "box": [32, 32, 16, 16], "question": "what?"}, {"id": "outer", "box": [20, 20, 40, 40]}]
    body = {"image": data_url(two_squares()), "regions": [regions[0], {**regions[1], "style": "brief"}]}
    outer, inner = api.post("/v1/trees", json=body).json()["regions"]
    assert (outer["caption"], inner["caption"]) == ("brief 1600 at 20,20,40,40", "what? 256 at 32,32,16,16")


def test_a_tree_without_regions_takes_those_found_in_the_image(api, backend):
    body = {"image": data_url(two_squares()), "captions": False}
    answer = api.post("/v1/trees", json=body).json()
    assert len(answer["regions"]) >= 2
    assert backend.calls == []
    assert not any("caption" in each for each in answer["regions"])
    # Its output can be sent back unchanged.
    again = [{"id": each["id"], "rle": each["rle"]} for each in answer["regions"]]
    captioned = ask(api, image=data_url(two_squares()), regions=again).json()["captions"]
    assert [each["caption"].split(" ")[1] for each in captioned] == [str(each["area"]) for each in answer["regions"]]


def test_regions_are_found_and_put_in_a_tree_without_asking_the_model(api, backend):
    response = api.post("/v1/regions", json={"image": data_url(two_squares())})
    assert response.status_code == 200
    regions = response.json()["regions"]
    tree = api.post("/v1/trees", json={"image": data_url(two_squares()), "captions": False}).json()["regions"]
    assert regions == [{"parent": None, **without_merged} for without_merged in map(without_merged_ids, tree)]
    assert set(regions[0]) == {"id", "parent", "depth", "area", "bbox", "rle"}
    assert any(each["parent"] for each in regions)
    assert backend.calls == []


def without_merged_ids(node: dict) -> dict:
    return {name: value for name, value in node.items() if name != "merged_ids"}


def test_an_image_of_one_color_has_no_regions(api):
    flat = data_url(Image.new("RGB", (80, 80), "teal"))
    assert api.post("/v1/regions", json={"image": flat}).json() == {"regions": []}


@pytest.mark.parametrize(
    ("body", "status", "kind", "said"),
    [
        ({}, 400, "invalid_request", "image: Field required"),
        ({"image": "data:image/png;base64,AAAA"}, 400, "invalid_image", "JPEG, PNG, WEBP"),
        ({"image": "https://example.org/a.png"}, 400, "invalid_image", "example.org"),
        ({"image": data_url(photo(200, 100))}, 413, "too_large", "200 x 100"),
        ({"image": data_url(photo()), "regions": []}, 400, "invalid_request", "regions: Extra inputs"),
    ],
)
def test_regions_are_refused_in_the_same_form(api, body, status, kind, said):
    response = api.post("/v1/regions", json=body)
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind
    assert said.lower() in response.json()["error"]["message"].lower()


def test_another_proposer_finds_the_regions_and_what_lies_at_points(backend):
    """A SAM for one: `proposals` in the settings."""
    proposer = lambda image: [Mask("1", box_to_rle((4, 4, 24, 14), image.shape[:2]))]  # noqa: E731
    api = TestClient(create_app({"measured": backend}, limits=Limits(), proposer=proposer))
    assert [each["bbox"] for each in api.post("/v1/regions", json={"image": data_url(photo())}).json()["regions"]] == [
        [4, 4, 20, 10]
    ]
    inside, outside = ask(api, regions=[{"points": [[5, 5]]}, {"points": [[30, 5]]}]).json()["captions"]
    assert inside["caption"] == "unique 200 at 4,4,20,10"
    assert outside["error"]["type"] == "invalid_region"


@pytest.mark.parametrize("path", ["/v1/regions", "/v1/trees"])
def test_looking_for_regions_past_its_time_is_given_up(backend, path):
    def slow(_: np.ndarray) -> list[Mask]:
        time.sleep(1)
        return []

    api = TestClient(create_app({"measured": backend}, limits=Limits(max_seconds=0.3), proposer=slow))
    response = api.post(path, json={"image": data_url(photo())})
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "timeout"


def test_a_request_past_its_time_is_given_up(slow_api):
    response = ask(slow_api)
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "timeout"
    streamed = ask(slow_api, stream=True)
    assert (streamed.status_code, streamed.json()["error"]["type"]) == (503, "timeout")


def test_a_stream_past_its_time_ends_with_the_reason(slow_api, backend):
    backend.seconds, backend.piece_seconds = 0, 0.08
    first, *_, error, done = events(ask(slow_api, stream=True).text)
    assert first["delta"] == "unique"
    assert error["error"]["type"] == "timeout"
    assert done == "[DONE]"


def test_a_body_that_arrives_too_slowly_is_refused(backend):
    def trickling():
        yield b"{"
        time.sleep(1)
        yield b"}"

    app = create_app({"measured": backend}, limits=Limits(max_seconds=0.3))
    with on_a_port(app) as url:
        response = httpx.post(f"{url}/v1/captions", content=trickling(), timeout=10)
    assert response.status_code == 408
    assert response.json()["error"]["message"].startswith("the body did not arrive within 0.3 s")


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_that_the_model_can_t_take_is_an_error_in_its_own_slot(api, stream):
    regions = [BOX, {"id": "8", "box": [0, 0, 5, 5], "question": "what <|is|> it?"}]
    response = ask(api, regions=regions, stream=stream)
    assert response.status_code == 200
    received = events(response.text)[:-1] if stream else response.json()["captions"]
    captions = {each["id"]: each["caption"] for each in received if "caption" in each}
    [fault] = [each for each in received if "error" in each]
    assert captions == {"7": "unique 200 at 10,5,20,10"}
    assert (fault["id"], fault["error"]["type"]) == ("8", "invalid_region")
    assert fault["error"]["message"] == "question: it holds a control token"


def test_ids_default_to_numbers_and_may_be_integers(api):
    regions = [{"box": [0, 0, 5, 5]}, {"id": 42, "box": [0, 0, 6, 5]}, {"box": [0, 0, 7, 5]}]
    assert [each["id"] for each in ask(api, regions=regions).json()["captions"]] == ["0", "42", "2"]


def test_exif_rotation_is_not_applied_since_masks_count_stored_pixels(api, backend):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert ask(api, image=data_url(photo(), "jpeg", exif=exif.tobytes())).status_code == 200
    assert backend.calls[0].image.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("region", "said"),
    [
        ({}, "mask_png"),
        (
            {"box": [0, 0, 5, 5], "polygon": [0, 0, 5, 0, 5, 5]},
            "polygon",
        ),
        ({"bbox": [0, 0, 5, 5]}, "'bbox'"),
        ({"box": [0, 0, 5, 5], "style": "poetic"}, "'poetic'"),
        ({"box": [0, 0, 5, 5], "question": 5}, "question"),
        ({"box": [0, 0, 5, 5], "question": " "}, "question"),
        ({"box": [0, 0, 5, 5], "question": "?" * 1001}, "1001"),
        ({"points": []}, "64"),
        ({"points": [[1, 2, 3]]}, "numbers"),
        ({"points": [["a", 2]]}, "numbers"),
        ({"points": [[60, 5]]}, "[60, 5]"),
        ({"points": [[0, 0], [59, 39], [0, 39], [59, 0]]}, "proposed"),
        ({"mask_png": encoded(with_alpha(photo(), np.zeros((40, 60), bool)))}, "mask_png"),
        ({"box": [0, 0, -5, 5]}, "height"),
        ({"box": [0, 0, 5]}, "numbers"),
        ({"box": "0,0,5,5"}, "numbers"),
        ({"box": [0, 0, None, 5]}, "numbers"),
        ({"box": [True, 0, 5, 5]}, "numbers"),
        ({"box": [100, 100, 5, 5]}, "[40, 60]"),
        ({"polygon": [0, 0, 5, 5]}, "points"),
        ({"polygon": "0 0 5 5"}, "[x1, y1, x2, y2"),
        ({"polygon": []}, "[x1, y1, x2, y2"),
        ({"polygon": [0, 0, "a", 5, 5, 5]}, "numbers"),
        ({"polygon": [0, 0, 1e9, 0, 5, 5]}, "polygon"),
        ({"polygon": [0, 0, 60, 40] * 500}, "mask_png"),
        (
            {"rle": encode_mask(np.ones((60, 40), bool))},
            "[60, 40]",
        ),
        ({"rle": encode_mask(np.zeros((40, 60), bool))}, "empty"),
        ({"rle": {"size": [40, 60], "counts": "!!"}}, "rle"),
        ({"rle": "x"}, "COCO"),
        ({"mask_png": "%%%"}, "mask_png"),
        ({"mask_png": 5}, "mask_png"),
        ({"mask_png": encoded(photo(), "jpeg")}, "mask_png"),
        ({"mask_png": encoded(photo().convert("L"))[:400]}, "mask_png"),
        ({"mask_png": encoded(photo())}, "mask_png"),
        (
            {"mask_png": encoded(Image.new("L", (40, 60)))},
            "mask_png: [60, 40]",
        ),
        ({"mask_png": encoded(Image.new("L", (60, 40)))}, "mask_png"),
        ({"mask_png": png_of_a_size_it_does_not_hold(60000, 60000)}, "mask_png: "),
    ],
)
def test_a_faulty_region_gets_its_error_in_its_own_slot(api, region, said):
    response = ask(api, regions=[BOX, {"id": "bad", **region}, {"id": "8", "box": [0, 0, 5, 5]}])
    assert response.status_code == 200
    first, bad, last = response.json()["captions"]
    assert first["caption"] == "unique 200 at 10,5,20,10"
    assert last == {"id": "8", "caption": "unique 25 at 0,0,5,5", "finish_reason": "stop"}
    assert set(bad) == {"id", "error"}
    assert bad["error"]["type"] == "invalid_region"
    assert said in bad["error"]["message"]


def test_only_faulty_regions_need_no_backend(api, backend):
    response = ask(api, regions=[{"box": [0, 0, 0, 0]}])
    assert response.status_code == 200
    assert "caption" not in response.json()["captions"][0]
    assert backend.calls == []


@pytest.mark.parametrize(
    ("changes", "status", "param", "said"),
    [
        (
            {"image": "http://169.254.169.254/latest"},
            400,
            "image",
            "URLs",
        ),
        (
            {"image": "https://example.org/a.jpg"},
            400,
            "image",
            "example.org: URLs",
        ),
        ({"image": "file:///etc/passwd"}, 400, "image", "URL"),
        ({"image": "cat.jpg"}, 400, "image", "URL"),
        ({"image": 5}, 400, "image", "should"),
        (
            {"image": "data:image/svg+xml;base64,PHN2Zz4="},
            400,
            "image",
            "image/svg+xml",
        ),
        ({"image": "data:image/png;base64,%%%"}, 400, "image", "base64"),
        (
            {"image": "data:image/png;base64,aGVsbG8="},
            400,
            "image",
            "jpeg, png, webp",
        ),
        ({"image": data_url(photo())[:300]}, 400, "image", "image: "),
        ({"image": data_url(photo(4, 40))}, 400, "image", "sides"),
        ({"image": data_url(photo(800, 9))}, 400, "image", "50"),
        ({"image": data_url(photo(200, 100))}, 413, "image", "10000"),
        (
            {"image": "data:image/png;base64," + png_of_a_size_it_does_not_hold(60000, 60000)},
            413,
            "image",
            "Scale",
        ),
        ({"regions": []}, 400, "regions", "at least 1 item"),
        ({"regions": [BOX] * 9}, 413, "regions", "9 regions"),
        ({"regions": [BOX, BOX]}, 400, "regions", "repeated"),
        ({"regions": [{"id": 1, "box": [0, 0, 5, 5]}, {"id": "1"}]}, 400, "regions", "repeated"),
        ({"regions": ["box"]}, 400, "regions.0", "regions.0"),
        ({"style": "poetic"}, 400, "style", "'brief', 'detailed'"),
        ({"max_tokens": 65}, 400, "max_tokens", "64"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater"),
        ({"temperature": -1}, 400, "temperature", "greater"),
        ({"top_p": 0}, 400, "top_p", "greater"),
        ({"model": "gpt"}, 404, "model", "measured"),
        ({"prompt": "hi"}, 400, "prompt", "permitted"),
        ({"prompt_embeds": "AAAA"}, 400, "prompt_embeds", "permitted"),
    ],
)
def test_a_request_that_can_t_be_answered_is_refused_in_one_form(api, backend, changes, status, param, said):
    response = ask(api, **changes)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"type", "message", "param"}
    assert error["param"] == param
    assert said in error["message"]
    assert backend.calls == []


def test_an_animation_is_refused(api):
    frames = [photo(), photo().rotate(180)]
    response = ask(api, image=data_url(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True))
    assert response.status_code == 400
    assert "has 2 frames" in response.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"", b"\xff\xfe", b'"x"'])
def test_a_body_that_is_no_request_is_refused(api, content):
    response = api.post("/v1/captions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request"


def test_a_body_over_the_limit_is_refused_whether_it_says_its_length_or_not(api, backend):
    large = json.dumps(request(image="data:image/png;base64," + "A" * 500_000)).encode()
    said = api.post("/v1/captions", content=large, headers={"content-type": "application/json"})
    unsaid = api.post(
        "/v1/captions",
        content=(large[start : start + 50_000] for start in range(0, len(large), 50_000)),
        headers={"content-type": "application/json"},
    )
    for response in (said, unsaid):
        assert response.status_code == 413
        assert response.json()["error"]["message"].startswith("the body has more than 400000 bytes")
    assert backend.calls == []


def test_wrong_paths_and_methods_answer_in_the_same_form(api):
    missing = api.get("/v1/caption")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"].startswith("GET /v1/caption: Not Found.")
    wrong = api.get("/v1/captions")
    assert wrong.status_code == 405
    assert wrong.json()["error"]["type"] == "invalid_request"


def test_health_readiness_and_index(api, backend):
    assert api.get("/healthz").json() == {"status": "ok"}
    assert api.get("/readyz").json() == {"status": "ready"}
    links = api.get("/").json()["links"]
    assert links["captions"] == "/v1/captions"
    assert {api.get(links[name]).status_code for name in ("page", "docs", "models", "health", "ready")} == {200}
    assert api.get("/docs").status_code == 200
    assert {"/v1/captions", "/v1/regions"} <= set(api.get("/openapi.json").json()["paths"])
    backend.failure = UnavailableError("its engine is starting")
    assert api.get("/healthz").status_code == 200
    not_ready = api.get("/readyz")
    assert not_ready.status_code == 503
    assert "measured: its engine is starting" in not_ready.json()["error"]["message"]


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (OverloadedError(), 503, "overloaded"),
        (UnavailableError("gone"), 503, "unavailable"),
        (InputError("a prompt of 9 tokens does not fit"), 400, "invalid_request"),
        (ZeroDivisionError("secret"), 500, "internal_error"),
    ],
)
def test_a_backend_s_failure_has_its_status_or_ends_the_stream(api, backend, failure, status, kind):
    backend.failure, backend.fails_after = failure, 1
    regions = [BOX, {"id": "8", "box": [0, 0, 5, 5]}]
    response = ask(api, regions=regions)
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind
    assert "secret" not in response.text
    assert (response.headers.get("retry-after") == "5") == (status == 503)

    *_, error, done = events(ask(api, regions=regions, stream=True).text)
    assert error["error"]["type"] == kind
    assert done == "[DONE]"


def test_every_event_of_a_stream_names_its_region(api):
    regions = [{"id": "bad", "box": [0, 0, 0, 0]}, BOX, {"id": "8", "box": [0, 0, 5, 5]}]
    response = ask(api, regions=regions, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    bad, *received, usage, done = events(response.text)
    assert bad["id"] == "bad"
    assert bad["error"]["message"].startswith("box: width 0")
    for region_id, caption in (("7", "unique 200 at 10,5,20,10"), ("8", "unique 25 at 0,0,5,5")):
        *pieces, last = [event for event in received if event["id"] == region_id]
        assert "".join(piece["delta"] for piece in pieces) == caption
        assert last == {"id": region_id, "finish_reason": "stop", "caption": caption}
    assert usage == {
        "model": "measured",
        "usage": {"prompt_tokens": 600, "completion_tokens": 4, "cached_tokens": 256},
    }
    assert done == "[DONE]"


def test_base64_of_an_image_may_be_any_of_the_three_types_whatever_the_url_says(api):
    as_png = base64.b64decode(encoded(photo(), "webp", lossless=True))
    url = "data:image/png;base64," + base64.b64encode(as_png).decode()
    assert ask(api, image=url).status_code == 200
