import numpy as np
from support.labeled_scenes import scene_row

from ureca.evaluation.aggregate import masks_by_stratum, restricted, strata_of
from ureca.evaluation.bootstrap import mean_statistics


def test_a_region_belongs_to_its_size_depth_and_crowd():
    row = scene_row(2)
    for index, region in enumerate(row.regions):
        found = strata_of(row, index, region.attributes, {"covered": "no"})
        assert found["size"] == region.attributes["size"]
        assert found["depth"] == (str(region.depth) if region.depth < 2 else "2 or deeper")
        count = len(row.regions)
        assert found["crowding"] == ("under 12" if count < 12 else "12 to 23" if count < 24 else "24 or more")
        assert found["covered"] == "no"
    assert "size" not in strata_of(row, 0, None), "nobody knows it of a photo"


def test_masks_are_in_the_order_of_the_words():
    masks = masks_by_stratum([{"size": "large"}, {"size": "tiny"}, {}, {"size": "tiny", "kind": "b"}, {"kind": "a"}])
    assert list(masks["size"]) == ["tiny", "large"]
    assert list(masks["kind"]) == ["a", "b"]
    assert masks["size"]["tiny"].tolist() == [False, True, False, True, False]


def test_items_outside_a_stratum_take_no_part():
    statistics = mean_statistics([1.0, 0.0, 0.5])
    assert restricted(statistics, np.array([True, False, True])).total() == 0.75
