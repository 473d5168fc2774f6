"""The client against the API over real HTTP."""

import json
import time

import numpy as np
import pytest
from PIL import Image
from support.live_server import on_a_port
from support.request_images import photo
from support.scripted_server import scripted

from ureca.client.client import Client, RegionCaption, ServiceError, as_read
from ureca.errors import ImageError, UrecaError
from ureca.regions.rle import box_to_rle
from ureca.serving.api.app import create_app
from ureca.serving.api.backend import OverloadedError
from ureca.serving.api.errors import RETRY_AFTER_SECONDS
from ureca.serving.settings import Limits

RLE = box_to_rle((10, 5, 30, 15), (40, 60))


@pytest.fixture
def client(api_url):
    with Client(api_url) as client:
        yield client


def test_an_image_may_come_in_any_form(client, backend, tmp_path):
    photo().save(tmp_path / "photo.png")
    file = tmp_path / "photo.png"
    for image in (file, str(file), file.read_bytes(), np.asarray(photo()), photo()):
        [answer] = client.caption(image, [{"id": "7", "rle": RLE}], style="brief")
        assert answer == RegionCaption("7", "brief 200 at 10,5,20,10", None, "stop")
    assert all(np.array_equal(call.image, np.asarray(photo())) for call in backend.calls)


def test_an_rle_alone_is_a_region_and_a_faulty_one_an_answer(client):
    good, bad = client.caption(photo(), [RLE, {"id": "x", "box": [0, 0, 0, 0]}])
    assert good == RegionCaption("0", "unique 200 at 10,5,20,10", None, "stop")
    assert (bad.id, bad.caption) == ("x", None)
    assert bad.error == "box: width 0, height 0; both must be above 0: [x, y, width, height]."


def test_stream_gives_pieces_then_the_answer(client):
    received = list(client.stream(photo(), [RLE, {"id": "x"}]))
    assert received[0][0] == "x"
    assert isinstance(received[0][1], RegionCaption)
    assert "".join(piece for _, piece in received[1:-1]) == "unique 200 at 10,5,20,10"
    assert received[-1] == ("0", RegionCaption("0", "unique 200 at 10,5,20,10", None, "stop"))


def test_a_closed_stream_ends_the_work_behind_it(client, backend):
    stream = client.stream(photo(), [{"id": str(n), "rle": RLE} for n in range(8)])
    next(stream)
    stream.close()
    deadline = time.monotonic() + 5
    while backend.num_closed < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert backend.num_closed == 1


def test_what_the_service_refuses_is_raised_in_its_words(client, backend):
    with pytest.raises(ServiceError, match="'brief', 'detailed'.*'unique'"):
        client.caption(photo(), [RLE], style="poetic")
    with pytest.raises(ServiceError, match="max_tokens: 100;.*64"):
        list(client.stream(photo(), [RLE], max_tokens=100))
    backend.failure = ZeroDivisionError()
    with pytest.raises(ServiceError, match="log"):
        list(client.stream(photo(), [RLE]))
    assert issubclass(ServiceError, UrecaError)


def test_a_missing_file_or_service_is_said(client):
    with pytest.raises(ImageError, match=r"nothing\.jpg"):
        client.caption("nothing.jpg", [RLE])
    with Client("http://127.0.0.1:9", timeout_seconds=2, retries=0) as nobody:
        assert not nobody.is_ready()
        with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:9: ConnectError"):
            nobody.caption(photo(), [RLE])
    assert client.is_ready()


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_overloaded_or_lost_is_asked_again(client, backend, stream):
    backend.failure, backend.num_failures = OverloadedError(), 1
    started = time.monotonic()
    with Client(str(client._http.base_url), retries=2) as patient:
        if stream:
            *_, (_, answer) = patient.stream(photo(), [RLE])
        else:
            [answer] = patient.caption(photo(), [RLE])
    assert answer.caption == "unique 200 at 10,5,20,10"
    assert time.monotonic() - started > 0.75 * RETRY_AFTER_SECONDS  # the client waits a quarter less at most
    assert len(backend.calls) == 2


def test_what_took_too_long_is_not_asked_again(backend):
    backend.seconds = 60
    app = create_app({"measured": backend}, limits=Limits(max_seconds=0.2))
    with on_a_port(app) as url, Client(url) as client, pytest.raises(ServiceError, match="within"):
        client.caption(photo(), [RLE])
    assert len(backend.calls) == 1


def test_what_stays_overloaded_is_given_up_in_the_service_s_words(client, backend):
    backend.failure = OverloadedError()
    with (
        Client(str(client._http.base_url), retries=0) as impatient,
        pytest.raises(ServiceError, match="requests"),
    ):
        list(impatient.stream(photo(), [RLE]))
    assert len(backend.calls) == 1


def test_an_answer_of_a_proxy_that_lost_its_service_is_asked_again():
    """Ray Serve's proxy says 500 in plain words then."""
    answer = {"id": "0", "caption": "a cat", "finish_reason": "stop"}
    whole = json.dumps({"model": "m", "captions": [answer], "usage": {}})
    with scripted((500, "Internal Server Error"), (200, whole)) as (url, asked), Client(url, retries=2) as client:
        assert [answer.caption for answer in client.caption(photo(), [RLE])] == ["a cat"]
    assert len(asked) == 2


def test_a_tree_comes_as_the_service_tells_it(client):
    tree = client.tree(photo(), [{"id": "a", "box": [10, 5, 20, 10]}, {"id": "b", "box": [12, 7, 6, 6]}])
    assert [(each["id"], each.get("parent"), each["caption"]) for each in tree["regions"]] == [
        ("a", None, "unique 200 at 10,5,20,10"),
        ("b", "a", "unique 36 at 12,7,6,6"),
    ]


def test_regions_come_as_the_service_finds_them(client):
    square = Image.new("RGB", (80, 80), "navy")
    square.paste("orange", (20, 20, 60, 60))
    [*_, found] = client.regions(square)
    assert (found["bbox"], found["area"]) == ([20, 20, 40, 40], 1600)
    [answer] = client.caption(square, [found["rle"]])
    assert answer.caption == "unique 1600 at 20,20,40,40"


def test_captions_tell_what_they_took_and_who_wrote_them(client):
    captions = client.caption(photo(), [RLE, RLE])
    assert captions.model == "measured"
    assert captions.usage == {"prompt_tokens": 600, "completion_tokens": 4, "cached_tokens": 256}
    assert client.models() == ["measured"]


def test_an_error_holds_the_status_of_the_answer(client, backend):
    with pytest.raises(ServiceError) as refused:
        client.caption(photo(), [RLE], max_tokens=100)
    assert refused.value.status == 400
    with Client("http://127.0.0.1:9", timeout_seconds=2, retries=0) as nobody, pytest.raises(ServiceError) as lost:
        nobody.models()
    assert lost.value.status is None
    backend.failure = ZeroDivisionError()
    with pytest.raises(ServiceError) as failed:
        client.caption(photo(), [RLE])
    assert failed.value.status == 500


def test_a_file_is_sent_as_it_is_where_the_service_sees_the_same_pixels(tmp_path):
    turn = Image.Exif()
    turn[0x0112] = 3
    pixels = np.asarray(photo())
    for name, options, as_file in (
        ("a.png", {}, True),
        ("a.jpg", {}, True),
        ("turned.jpg", {"exif": turn.tobytes()}, False),
        ("a.bmp", {}, False),
    ):
        photo().save(tmp_path / name, **options)
        data = (tmp_path / name).read_bytes()
        assert as_read(data, pixels) is (data if as_file else pixels), name
