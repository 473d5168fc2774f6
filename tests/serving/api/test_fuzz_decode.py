"""Thousands of drawn and damaged masks and images: each is taken or refused in words, and nothing else happens."""

import base64
import io
import json
import random
import resource
import time
import zlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.request_images import photo, png_chunk

from ureca.errors import MaskError
from ureca.regions.rle import box_to_rle, decode_rle, encode_mask, rle_area
from ureca.regions.tree import Mask
from ureca.serving.api.decode import alpha_mask, data_url_bytes, decode_request_image, region_to_rle
from ureca.serving.api.errors import RequestError
from ureca.serving.settings import Limits

SIZE = (40, 60)
LIMITS = Limits(max_image_pixels=1_000_000)
FORMS = ("rle", "polygon", "box", "mask_png", "points")
PROPOSED = [Mask("all", box_to_rle((0, 0, 60, 40), SIZE)), Mask("part", box_to_rle((5, 5, 20, 20), SIZE))]

fuzzed = settings(max_examples=400, deadline=None, database=None, derandomize=True)

# All that Python's JSON reader lets through: NaN and Infinity, numbers of any length, half of a surrogate pair.
numbers = st.one_of(
    st.integers(-(10**400), 10**400),
    st.integers(-5, 130),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-10, 130),
)
texts = st.text(st.characters(codec=None), max_size=30)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=20,
)
rle_texts = st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=60)
sizes = st.one_of(st.just(list(SIZE)), json_values)
rles = st.fixed_dictionaries(
    {"size": sizes, "counts": st.one_of(rle_texts, texts, st.lists(numbers, max_size=12), json_values)}
)
flat = st.lists(numbers, max_size=16)
polygons = st.one_of(flat, st.lists(st.one_of(flat, numbers), max_size=4), st.lists(st.lists(flat, max_size=3)))


def check_words(refusal: Exception) -> None:
    """Cases can be sent and read."""
    assert len(str(refusal).encode()) < 1500


def taken_or_refused(region: dict) -> None:
    """A mask of the image's size with at least a pixel, or MaskError in a few words."""
    try:
        rle = region_to_rle(region, SIZE, lambda: PROPOSED)
    except MaskError as refusal:
        check_words(refusal)
    else:
        mask = decode_rle(rle)
        assert mask.shape == SIZE
        assert rle_area(rle) == mask.sum() > 0


@fuzzed
@given(st.sampled_from(FORMS), json_values)
def test_any_json_in_place_of_a_mask(form, value):
    taken_or_refused({form: value})


@fuzzed
@given(rles)
def test_drawn_rles(rle):
    taken_or_refused({"rle": rle})


@fuzzed
@given(polygons)
def test_drawn_polygons(polygon):
    taken_or_refused({"polygon": polygon})


@fuzzed
@given(st.one_of(flat, st.lists(st.lists(numbers, max_size=3), max_size=70)))
def test_drawn_boxes_and_points(value):
    taken_or_refused({"box": value})
    taken_or_refused({"points": value})


def damaged(data: bytes, rng: random.Random) -> bytes:
    """With bytes changed, cut off, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(out)) if out else 0
        kind = rng.randrange(4)
        if kind == 0 and out:
            out[place] = rng.randrange(256)
        elif kind == 1:
            del out[place:]
        elif kind == 2:
            out[place:place] = out[place : place + rng.randint(1, 40)]
        else:
            out[place:place] = rng.randbytes(rng.randint(1, 8))
    return bytes(out)


def test_damaged_rles():
    rng = random.Random(0)
    drawn = np.random.default_rng(0)
    for _ in range(3000):
        counts = encode_mask(drawn.random(SIZE) < 0.2)["counts"].encode()
        taken_or_refused({"rle": {"size": SIZE, "counts": damaged(counts, rng).decode("latin1")}})


def files(mode: str, *kinds: str) -> list[bytes]:
    image = photo().convert(mode)
    found = []
    for kind in kinds:
        buffer = io.BytesIO()
        image.save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def image_taken_or_refused(data: bytes) -> None:
    try:
        pixels = decode_request_image(data, LIMITS)
    except RequestError as refusal:
        check_words(refusal)
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    try:
        alpha_mask(data)
    except MaskError as refusal:
        check_words(refusal)


def test_damaged_images():
    rng = random.Random(0)
    whole = files("RGB", "png", "jpeg", "webp") + files("RGBA", "png", "webp") + files("P", "png")
    whole += files("CMYK", "jpeg")
    for number in range(4000):
        image_taken_or_refused(damaged(whole[number % len(whole)], rng))


def test_damaged_masks_as_png():
    rng = random.Random(0)
    whole = [*files("L", "png"), *files("1", "png"), *files("RGBA", "png"), *files("P", "png"), *files("I;16", "png")]
    for number in range(2000):
        data = damaged(whole[number % len(whole)], rng)
        taken_or_refused({"mask_png": base64.b64encode(data).decode()})


@fuzzed
@given(st.one_of(texts, texts.map(lambda text: f"data:image/png;base64,{text}")))
def test_drawn_data_urls(url):
    try:
        data = data_url_bytes(url)
    except RequestError as refusal:
        check_words(refusal)
    else:
        image_taken_or_refused(data)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that holds all the pixels that its header names."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    pixels = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def test_bombs_take_neither_memory_nor_time():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bombs = [bomb(30_000, 30_000), bomb(8, 3_000_000)]
    text_bomb = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 9))
    [small] = files("RGB", "png")
    color_bomb = png_chunk(b"iCCP", text_bomb[8:-4])
    bombs += [small[:33] + each + small[33:] for each in (text_bomb, color_bomb)]  # 33: behind the header
    made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    for data in bombs:
        image_taken_or_refused(data)
        taken_or_refused({"mask_png": base64.b64encode(data).decode()})
    many = [0.0, 0.0, 60.0, 40.0] * 200_000
    taken_or_refused({"polygon": many})
    taken_or_refused({"polygon": [many[:400]] * 2000})
    taken_or_refused({"points": [[1, 1]] * 200_000})
    taken_or_refused({"rle": {"size": SIZE, "counts": "1" * 2_000_000}})
    taken_or_refused({"rle": {"size": SIZE, "counts": [0] * 2_000_000}})
    taken_or_refused({"rle": {"size": [40] * 200_000, "counts": ""}})
    nested = "[" * 900 + "]" * 900
    for form in FORMS:
        taken_or_refused({form: json.loads(nested)})
    taken_or_refused({"rle": {"size": json.loads(nested), "counts": json.loads(nested)}})
    assert time.process_time() - started < 20
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - max(before, made) < 300_000  # KiB
