"""Run-length masks: malformed input is refused, accepted input is exact."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ureca.errors import MaskError, MaskSizeError
from ureca.regions.rle import (
    box_to_rle,
    check_rle,
    check_rles,
    decode_rle,
    encode_mask,
    iou_matrix,
    polygon_to_rle,
    rle_area,
    rle_bbox,
)


def random_masks(num: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(rng.integers(1, 14, 2)) < rng.random() for _ in range(num)]


def runs_of(mask: np.ndarray) -> list[int]:
    """Return uncompressed COCO counts, pixel by pixel: down the columns, background first."""
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = bool(pixel)
        runs[-1] += 1
    return runs


def test_encoding_area_and_box_equal_the_dense_mask():
    for mask in random_masks(300, seed=0):
        rle = encode_mask(mask)
        np.testing.assert_array_equal(decode_rle(rle), mask)
        assert decode_rle(rle).dtype == bool
        assert rle_area(rle) == mask.sum()
        ys, xs = np.nonzero(mask)
        if len(ys):
            box = (xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)
            assert rle_bbox(rle) == box


@pytest.mark.parametrize("form", ["str", "bytes", "list", "list with empty runs"])
def test_check_rle_forms_of_counts_give_the_same_mask(form: str):
    for mask in random_masks(300, seed=1):
        if not mask.any():
            continue
        rle = encode_mask(mask)
        counts = {
            "str": lambda rle=rle: rle["counts"],
            "bytes": lambda rle=rle: rle["counts"].encode(),
            "list": lambda mask=mask: runs_of(mask),
            # an empty run splits every run in two
            "list with empty runs": lambda mask=mask: [
                part for run in runs_of(mask) for part in (run // 2, 0, run - run // 2)
            ],
        }[form]()
        assert check_rle({"size": list(mask.shape), "counts": counts}, mask.shape, where="test") == rle


def test_check_rle_rewrites_string_with_empty_runs():
    with_empty_runs = coco_mask.frPyObjects({"size": [4, 4], "counts": [2, 3, 0, 2, 0, 1, 8]}, 4, 4)
    assert len(with_empty_runs["counts"]) == 7
    mask = np.zeros(16, dtype=bool)
    mask[2:8] = True
    assert check_rle(with_empty_runs, (4, 4), where="test") == encode_mask(mask.reshape(4, 4, order="F"))


def test_check_rle_reads_multi_symbol_runs_of_large_image():
    mask = np.zeros((3000, 4000), dtype=bool)
    mask[100:2900, 1500] = mask[7, 3000:] = True
    rle = encode_mask(mask)
    assert check_rle(rle, (3000, 4000), where="test") == rle
    assert rle_area(rle) == 2800 + 1000


def test_check_rle_of_other_size_names_both_sizes_and_cause():
    message = r"^sa_1\.json: region '7' .*\[5, 4\].*\[4, 5\] \(height, width\).*EXIF"
    with pytest.raises(MaskSizeError, match=message):
        check_rle(encode_mask(np.ones((5, 4), dtype=bool)), (4, 5), where="sa_1.json: region '7'")


def test_check_rle_empty_mask_is_refused():
    with pytest.raises(MaskError, match="Remove"):
        check_rle(encode_mask(np.zeros((4, 5), dtype=bool)), (4, 5), where="here")


GOOD = encode_mask(np.pad(np.ones((20, 30), dtype=bool), 10))["counts"]


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (GOOD[:-1], "off|runs"),
        (GOOD[:5], "off|runs"),
        ("", "damaged"),
        ("no RLE\n", "damaged"),
        ("P" * 40, "damaged"),
        ("\x7f", "damaged"),
        ("é", "damaged"),
        ([10, 20], "30,.*2000"),
        ([10, -5, 1995], "numbers"),
        ([10.0, 1990.0], "numbers"),
        ([10, 10**30], "numbers"),
        ([], "numbers"),
        (None, "NoneType"),
    ],
)
def test_check_rle_damaged_counts_are_refused(counts: object, text: str):
    with pytest.raises(MaskError, match=text):
        check_rle({"size": [40, 50], "counts": counts}, (40, 50), where="test")


def coco_string(runs: list[int]) -> str:
    """Encode runs of any length as COCO's string; pycocotools writes 32 bits."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            symbol, value = value & 31, value >> 5
            more = value != (-1 if symbol & 16 else 0)
            text += chr(48 + symbol + 32 * more)
            if not more:
                break
    return text


def test_check_rle_runs_overflowing_64_bits_are_refused():
    step, num_steps = 1 << 36, 1024
    ramp = [step * (index // 2 + 1) for index in range(2 * num_steps)]
    runs = [step, *ramp]
    missing = (1 << 64) + 6 * 4 - sum(runs) - sum(ramp)
    runs += [step * num_steps] * (missing // (step * num_steps))
    runs += ramp[::-1]
    missing = (1 << 64) + 6 * 4 - sum(runs)
    runs += [step] * (missing // step) + [missing % step]
    text = coco_string(runs)
    assert sum(runs) == (1 << 64) + 24
    assert len(text) < 400_000
    assert (
        coco_string([4, 6, 10, 4])
        == coco_mask.frPyObjects({"size": [6, 4], "counts": [4, 6, 10, 4]}, 6, 4)["counts"].decode()
    )
    with pytest.raises(MaskError, match=f"{sum(runs)}.* 24 pixels"):
        check_rle({"size": [6, 4], "counts": text}, (6, 4), where="a")


def test_check_rle_truncated_strings_are_refused():
    for length in range(len(GOOD)):
        with pytest.raises(MaskError):
            check_rle({"size": [40, 50], "counts": GOOD[:length]}, (40, 50), where="test")


@pytest.mark.parametrize("segmentation", [[[1, 2, 3, 4, 5, 6]], {"counts": "x"}, {"size": 5, "counts": "x"}, "x"])
def test_check_rle_polygon_or_other_json_is_refused(segmentation: object):
    with pytest.raises(MaskError, match="RLE"):
        check_rle(segmentation, (4, 5), where="test")  # type: ignore[arg-type]


def test_check_rles_equals_check_rle_per_mask():
    """Mixed forms, and more masks than one decode batch holds."""
    rng = np.random.default_rng(5)
    masks = [rng.random((13, 17)) < rng.uniform(0.1, 0.9) for _ in range(40)]
    forms = [
        lambda mask: encode_mask(mask)["counts"],
        lambda mask: encode_mask(mask)["counts"].encode(),
        runs_of,
    ]
    rles = [{"size": [13, 17], "counts": forms[rng.integers(3)](mask)} for mask in masks]
    where = [f"mask {number}" for number in range(40)]
    expected = [encode_mask(mask) for mask in masks]
    assert check_rles(rles, (13, 17), where=where) == expected
    assert [check_rle(rle, (13, 17), where="one") for rle in rles] == expected
    assert check_rles([], (13, 17), where=[]) == []


@pytest.mark.parametrize("damage", [lambda text: text[:-1], lambda _: "P" * 40, lambda _: "", lambda _: "n" * 20 + "0"])
def test_check_rles_names_the_damaged_mask(damage):
    rles = [{"size": [40, 50], "counts": GOOD} for _ in range(20)]
    where = [f"mask {number}" for number in range(20)]
    for wrong in (0, 7, 8, 19):
        some = [dict(rle) for rle in rles]
        some[wrong]["counts"] = damage(GOOD)
        with pytest.raises(MaskError, match=f"^mask {wrong} .*RLE"):
            check_rles(some, (40, 50), where=where)


def test_iou_matrix_equals_the_dense_one():
    rng = np.random.default_rng(2)
    masks = [rng.random((9, 11)) < share for share in (0, 0.1, 0.4, 0.7, 1)]
    rles = [encode_mask(mask) for mask in masks]
    for i, a in enumerate(masks):
        for j, b in enumerate(masks):
            assert iou_matrix(rles)[i, j] == ((a & b).sum() / (a | b).sum() if (a | b).any() else 0)
    assert iou_matrix([]).shape == (0, 0)


def test_box_to_rle_covers_the_pixels_it_touches():
    rng = np.random.default_rng(3)
    for _ in range(300):
        height, width = rng.integers(1, 12, 2)
        left, right = sorted(rng.uniform(-3, width + 3, 2))
        top, bottom = sorted(rng.uniform(-3, height + 3, 2))
        expected = np.zeros((height, width), dtype=bool)
        for y in range(height):
            for x in range(width):
                expected[y, x] = left < x + 1 and right > x and top < y + 1 and bottom > y
        if expected.any():
            rle = box_to_rle((left, top, right, bottom), (height, width))
            np.testing.assert_array_equal(decode_rle(rle), expected)
            assert check_rle(rle, (height, width), where="box") == rle


@pytest.mark.parametrize("box", [(5, 5, 5, 8), (20, 0, 30, 5), (8, 0, 2, 5), (-9, -9, 0, 0)])
def test_box_to_rle_without_pixels_is_refused(box: tuple[float, ...]):
    with pytest.raises(MaskError, match=r"\[10, 20\]"):
        box_to_rle(box, (10, 20))


@pytest.mark.parametrize("box", [(1, 2, 3), (0, 0, float("nan"), 5), "abcd", None, (0, 0, float("inf"), 1)])
def test_box_to_rle_without_four_numbers_is_refused(box: object):
    with pytest.raises(MaskError, match="numbers"):
        box_to_rle(box, (10, 20))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "polygon",
    [
        [2, 1, 8, 1, 8, 5, 2, 5],
        [[2, 1], [8, 1], [8, 5], [2, 5]],
        [[2, 1, 5, 1, 5, 5, 2, 5], [5, 1, 8, 1, 8, 5, 5, 5]],
    ],
)
def test_polygon_forms_fill_the_same_rectangle(polygon: list):
    expected = np.zeros((10, 20), dtype=bool)
    expected[1:5, 2:8] = True
    np.testing.assert_array_equal(decode_rle(polygon_to_rle(polygon, (10, 20))), expected)


def test_polygon_is_clipped_to_the_image():
    mask = decode_rle(polygon_to_rle([-5, -5, 4, -5, 4, 4, -5, 4], (10, 20)))
    assert mask[:4, :4].all()
    assert mask.sum() == 16


@pytest.mark.parametrize(
    ("polygon", "text"),
    [
        ([], "points"),
        ([1, 2, 3, 4], "points"),
        ([1, 2, 3, 4, 5, 6, 7], "points"),
        ([1, 2, 3, 4, 5, float("nan")], "points"),
        ([0, 0, 1e9, 0, 0, 1e9], "reaches"),
        ([-8, -8, -6, -8, -6, -6], "covers"),
    ],
)
def test_polygon_without_a_mask_is_refused(polygon: list, text: str):
    with pytest.raises(MaskError, match=text):
        polygon_to_rle(polygon, (10, 20))


def test_encode_mask_with_channel_axis_is_refused():
    with pytest.raises(MaskError, match=r"\(4, 5, 1\)"):
        encode_mask(np.ones((4, 5, 1), dtype=bool))
