"""Our client's streams where the service breaks off."""

import json
from typing import Any

import pytest
from support.request_images import photo
from support.scripted_server import scripted

from ureca.client import stream_resume
from ureca.client.client import Client, RegionCaption, ServiceError
from ureca.serving.api import schema

REGIONS = [{"id": "a", "box": [0, 0, 5, 5]}, {"id": "b", "box": [5, 0, 5, 5]}]
LOST = {"error": {"type": "unavailable", "message": "its replica was lost and is being replaced"}}


def piece(region_id: str, text: str) -> dict[str, Any]:
    return {"id": region_id, "delta": text}


def end(region_id: str, caption: str) -> dict[str, Any]:
    return {"id": region_id, "caption": caption, "finish_reason": "stop"}


def stream(*events: dict[str, Any], done: bool = False) -> tuple[int, str]:
    return 200, "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n" * done


def received(events: Any) -> list[tuple[str, str]]:
    """Each event; of the last of a region, its caption in brackets."""
    return [(id, f"[{event.caption}]" if isinstance(event, RegionCaption) else event) for id, event in events]


@pytest.mark.parametrize("with_words", [True, False], ids=["error event", "broken off"])
def test_a_broken_stream_goes_on_where_it_was_and_asks_for_what_is_left(with_words):
    first = stream(
        piece("a", "a red "), piece("b", "two "), piece("a", "car"), end("a", "a red car"), *[LOST] * with_words
    )
    second = stream(piece("b", "t"), piece("b", "wo gre"), piece("b", "en cars"), end("b", "two green cars"), done=True)
    with scripted(first, second) as (url, asked), Client(url) as client:
        assert received(client.stream(photo(), REGIONS)) == [
            ("a", "a red "), ("b", "two "), ("a", "car"), ("a", "[a red car]"),
            ("b", "gre"), ("b", "en cars"), ("b", "[two green cars]"),
        ]  # fmt: skip
    assert [[each["id"] for each in body["regions"]] for body in asked] == [["a", "b"], ["b"]]


def test_regions_without_an_id_keep_their_numbers():
    boxes = [{"box": each["box"]} for each in REGIONS]
    with (
        scripted(stream(end("0", "one")), stream(end("1", "two"), done=True)) as (url, asked),
        Client(url) as client,
    ):
        assert received(client.stream(photo(), boxes)) == [("0", "[one]"), ("1", "[two]")]
    assert asked[1]["regions"] == [{"id": "1", "box": REGIONS[1]["box"]}]


def test_the_whole_image_is_asked_for_again_beside_a_region_that_is_told_once():
    first = stream(end("a", "one"), piece("image", "a str"))
    second = stream(end("a", "one"), piece("image", "a street"), end("image", "a street"), done=True)
    with scripted(first, second) as (url, asked), Client(url) as client:
        events = received(client.stream(photo(), REGIONS[:1], image_caption=True))
    assert events == [("a", "[one]"), ("image", "a str"), ("image", "eet"), ("image", "[a street]")]
    assert [body["image_caption"] for body in asked] == [True, True]


@pytest.mark.parametrize("second", [stream(piece("a", "a blue")), stream(piece("a", "a"), end("a", "a"))])
def test_a_caption_that_begins_in_another_way_is_no_continuation(second):
    with scripted(stream(piece("a", "a red ")), second) as (url, _), Client(url) as client:
        events = client.stream(photo(), REGIONS)
        assert next(events) == ("a", "a red ")
        with pytest.raises(ServiceError, match="caption"):
            next(events)


def test_drawn_captions_are_asked_again_only_if_none_had_begun():
    first, second = stream(end("a", "one")), stream(piece("b", "tw"))
    with scripted(first, second) as (url, asked), Client(url) as client:
        events = client.stream(photo(), REGIONS, temperature=0.7)
        assert received([next(events), next(events)]) == [("a", "[one]"), ("b", "tw")]
        with pytest.raises(ServiceError, match="broke"):
            next(events)
    assert len(asked) == 2


def test_a_stream_that_breaks_again_and_again_is_given_up():
    with scripted(*[stream(piece("a", "one"))] * 3) as (url, asked), Client(url, retries=2) as client:
        events = client.stream(photo(), REGIONS)
        assert next(events) == ("a", "one")
        with pytest.raises(ServiceError, match="broke"):
            next(events)
    assert len(asked) == 3


def test_another_error_is_said_and_nothing_is_asked_again():
    internal = {"error": {"type": "internal_error", "message": "captioning failed; the service's log says why"}}
    with scripted(stream(piece("a", "one"), internal)) as (url, asked), Client(url) as client:
        events = client.stream(photo(), REGIONS)
        assert next(events) == ("a", "one")
        with pytest.raises(ServiceError, match="service's log"):
            next(events)
    assert len(asked) == 1


def test_whole_image_id_equals_the_service_s():
    assert stream_resume.WHOLE_IMAGE == schema.WHOLE_IMAGE
