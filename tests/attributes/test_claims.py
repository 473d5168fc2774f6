"""Parsing of claims, and retrieval of the region that they fit."""

import pytest

from ureca.attributes.claims import (
    Claims,
    Order,
    attribute_accuracy,
    attribute_hits,
    match_score,
    parse_claims,
    picked_region,
    picks_own_region,
    untrue_claims,
)


def test_parse_claims_full_caption():
    claims = parse_claims(
        "the small dark blue and white striped round part in the lower left, at the top of the large red "
        "object, the second from the left of three alike"
    )
    assert claims == Claims(
        noun="part",
        size="small",
        color="dark blue",
        color2="white",
        texture="striped",
        shape="round",
        place="lower left",
        place_in_parent="top",
        order=Order(2, "left", 3),
        parent=Claims(noun="object", size="large", color="red"),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("small blue round", Claims(size="small", color="blue", shape="round")),
        ("small small blue part at at top of red object red",
         Claims(size="small", color="blue", noun="part", place_in_parent="top",
                parent=Claims(color="red", noun="object"))),
        ("A Big Grey Circular thing in the top left.",
         Claims(size="large", color="gray", shape="round", noun="object", place="upper left")),
        ("a red object in the middle of the image", Claims(color="red", noun="object", place="middle")),
        ("the largest of two alike", Claims(order=Order(1, "size", 2))),
        ("the third largest of four alike", Claims(order=Order(3, "size", 4))),
        ("a part in column three, row nine", Claims(noun="part", cell=(3, 9))),
        ("a dark orange part", Claims(noun="part", color="orange")),
        ("two black round parts", Claims(color="black", shape="round", noun="part")),
        ("nothing that is known", Claims()),
        ("", Claims()),
    ],
)  # fmt: skip
def test_parse_claims_incomplete_sentences(text, expected):
    assert parse_claims(text) == expected


def test_parse_claims_ignores_description_of_parts():
    claims = parse_claims("a large red object in the middle of the picture; it has two black round parts on its left")
    assert claims == Claims(size="large", color="red", noun="object", place="middle")


def test_parse_claims_ignores_words_inside_words():
    assert parse_claims("a bright leftover stopper") == Claims()


def test_match_score_is_the_fraction_of_true_claims(region):
    regions = [region(color="dark red", place="top")]
    assert match_score(parse_claims("a small dark red object at the top"), 0, regions) == 1
    assert match_score(parse_claims("a blue object at the bottom"), 0, regions) == pytest.approx(1 / 3)
    assert match_score(parse_claims("a red object"), 0, regions) == pytest.approx(1.5 / 2)
    assert match_score(parse_claims("a medium object"), 0, regions) == pytest.approx(1.5 / 2)
    assert match_score(parse_claims("well"), 0, regions) == 0


def test_picked_region_checks_the_parent(region):
    regions = [
        region(color="red"),
        region(color="blue"),
        region(parent=0, noun="part", color="black", place_in_parent="top"),
        region(parent=1, noun="part", color="black", place_in_parent="top"),
    ]
    text = "the black part at the top of the blue object"
    assert picked_region(text, regions) == 3
    assert picks_own_region(text, 3, regions)
    assert not picks_own_region(text, 2, regions)
    assert untrue_claims(parse_claims(text), 2, regions) == ["parent's color"]


def test_picked_region_of_a_tie_is_none(region):
    assert picked_region("a red round object", [region(), region()]) is None


def test_picked_region_without_claims_is_none(region):
    assert picked_region("something", [region()]) is None


def test_picked_region_order_selects_among_the_best(region):
    regions = [region(cx=0.8), region(cx=0.2), region(cx=0.5), region(cx=0.1, color="blue")]
    assert picked_region("a red object, the first from the left of three alike", regions) == 1
    assert picked_region("a red object, the third from the left of three alike", regions) == 0
    assert picked_region("a red object, the second from the left", regions) == 2


def test_picked_region_order_of_wrong_count_is_ignored(region):
    regions = [region(cx=0.8), region(cx=0.2)]
    assert picked_region("a red object, the first from the left of three alike", regions) is None


def test_picked_region_size_order_counts_from_the_largest(region):
    regions = [region(share=0.02), region(share=0.028)]
    assert picked_region("the small red object, the largest of two alike", regions) == 1
    assert picked_region("the small red object, the second largest of two alike", regions) == 0


def test_attribute_hits_judge_only_stated_and_known_attributes():
    truth = {"color": "dark blue", "shape": "round", "size": "small", "place": "top", "texture": "smooth"}
    reference = "a small dark blue round object"
    caption = "a large blue object at the top"
    assert attribute_hits(caption, reference, truth) == {"color": True, "shape": False, "size": False}
    assert attribute_accuracy(caption, reference, truth) == pytest.approx(1 / 3)
    assert attribute_accuracy(reference, reference, truth) == 1
    assert attribute_accuracy(caption, "an object", truth) is None
