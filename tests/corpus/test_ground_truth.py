"""Ground truth of a corpus: true attributes next to the images."""

import json
from pathlib import Path

import pytest

from ureca.corpus.ground_truth import has_ground_truth, read_ground_truth
from ureca.errors import InputError

LINE = {"image_id": "a", "regions": {"7": {"attributes": {"color": "red"}}}}


def test_read_ground_truth_returns_regions_by_image(tmp_path: Path):
    assert not has_ground_truth(tmp_path)
    (tmp_path / "ground_truth.jsonl").write_text(json.dumps(LINE) + "\n")
    assert has_ground_truth(tmp_path)
    assert read_ground_truth(tmp_path) == {"a": {"7": {"attributes": {"color": "red"}}}}


def test_read_ground_truth_missing_file_raises(tmp_path: Path):
    with pytest.raises(InputError, match=r"ground_truth\.jsonl"):
        read_ground_truth(tmp_path)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"image_id": "b"}', "regions"),
        ('{"image_id": "b", "regions": {"1": {}}}', "attributes"),
        ('{"image_id": "b", "regions": {"1": {"attributes": {"size": 3}}}}', "size is 3"),
    ],
)
def test_read_ground_truth_malformed_line_raises(tmp_path: Path, line: str, named: str):
    (tmp_path / "ground_truth.jsonl").write_text(f"{json.dumps(LINE)}\n{line}\n")
    with pytest.raises(InputError, match=rf"ground_truth\.jsonl: line 2 .*{named}"):
        read_ground_truth(tmp_path)
