"""Features of regions: measured, and from tiny random DINOv2 models of transformers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny_vision import save_dinov2

from ureca.attributes.measure import measure_tree
from ureca.corpus.schema import Distractor
from ureca.errors import CheckpointError, ConfigError
from ureca.labeling.distractors import DistractorConfig, find_distractors
from ureca.labeling.features import DinoFeatures, FeatureConfig, make_features
from ureca.nano.scenes.draw import draw_scene
from ureca.regions.rle import encode_mask

SIDE = 42


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dinov2")
    save_dinov2(folder, SIDE)
    return str(folder)


def dino(model: str, **settings) -> DinoFeatures:
    return DinoFeatures(FeatureConfig(kind="dinov2", model=model, device="cpu", **settings))


@pytest.fixture(scope="module")
def twins() -> tuple[np.ndarray, list]:
    """Return an image of two equal striped boxes and a plain one of another color and shape, with masks."""
    image = np.full((120, 300, 3), 128, np.uint8)
    masks = np.zeros((3, 120, 300), bool)
    masks[0, 30:70, 20:80] = masks[1, 30:70, 120:180] = masks[2, 20:110, 250:280] = True
    stripes = np.where((np.arange(60) // 6 % 2)[None, :, None], (220, 30, 30), (250, 240, 60))
    image[30:70, 20:80] = image[30:70, 120:180] = stripes
    image[masks[2]] = (30, 60, 200)
    return image, [encode_mask(mask) for mask in masks]


@pytest.mark.parametrize("kind", ["measured", "dinov2"])
def test_features_equal_regions_are_distractors(model, twins, kind):
    image, segmentations = twins
    features = make_features(FeatureConfig(kind=kind, model=model, device="cpu"))
    rows = features(image, segmentations, measure_tree(image, segmentations, [-1] * 3))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    first, second, third = find_distractors(rows, [-1] * 3, DistractorConfig(min_similarity=0.98))
    assert [distractor.index for distractor in first] == [1]
    assert [distractor.index for distractor in second] == [0]
    assert third == ()
    assert isinstance(first[0], Distractor)
    assert first[0].similarity == pytest.approx(1, abs=0.01)


def test_dino_features_independent_of_batch_size(model):
    scene = draw_scene(3)
    segmentations = [region.segmentation for region in scene.regions]
    one_by_one = dino(model, batch_size=1)(scene.image, segmentations, ())
    assert one_by_one.shape == (len(segmentations), 32)
    for size in (4, 64):
        np.testing.assert_allclose(dino(model, batch_size=size)(scene.image, segmentations, ()), one_by_one, atol=1e-5)


def test_dino_features_square_region_equals_transformers(model):
    import torch
    from transformers import AutoImageProcessor, AutoModel

    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    ours = dino(model)(image, [encode_mask(np.ones((SIDE, SIDE), bool))], ())[0]
    processor, network = AutoImageProcessor.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    # passed unchanged to the model: only scaling and normalizing remain
    pixels = processor(Image.fromarray(image), do_resize=False, do_center_crop=False, return_tensors="pt")
    with torch.inference_mode():
        token = network(**pixels).pooler_output[0].numpy()
    np.testing.assert_allclose(ours, token / np.linalg.norm(token), atol=1e-4)


def test_dino_features_depend_on_ends_of_long_region(model):
    image = np.full((100, 400, 3), 90, np.uint8)
    mask = np.zeros((100, 400), bool)
    mask[40:60, 10:390] = True
    marked = image.copy()
    marked[40:60, 10:60] = (255, 0, 0)
    features = dino(model)
    plain, ended = (features(picture, [encode_mask(mask)], ())[0] for picture in (image, marked))
    assert plain @ ended < 0.99


def test_dino_features_background_matters_less_than_region(model, twins):
    image, segmentations = twins
    features = dino(model)
    mask = np.zeros((120, 300), bool)
    mask[30:110, 20:180] = np.tri(80, 160, k=20, dtype=bool)  # half of its box is background
    changed_outside = image.copy()
    changed_outside[30:110, 20:180][~np.tri(80, 160, k=20, dtype=bool)] = np.random.default_rng(0).integers(0, 255, 3)
    rle = encode_mask(mask)
    changed_inside = image.copy()
    changed_inside[mask] = 255 - changed_inside[mask]
    before, around, within = (features(picture, [rle], ())[0] for picture in (image, changed_outside, changed_inside))
    assert before @ around > before @ within


def test_features_no_regions_returns_no_rows(model, twins):
    assert dino(model)(twins[0], [], ()).shape == (0, 32)
    assert len(make_features(FeatureConfig())(twins[0], [], [])) == 0


@pytest.mark.parametrize("folder_holds", ["nothing", "bert"])
def test_dino_features_unusable_model_raises(tmp_path: Path, folder_holds):
    if folder_holds == "bert":
        from transformers import BertConfig, BertModel, BitImageProcessor

        tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
        BertModel(tiny).save_pretrained(tmp_path)
        BitImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"features\.kind=measured") as raised:
        dino(str(tmp_path))
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_feature_config_batch_size_zero_raises():
    with pytest.raises(ConfigError, match="features.batch_size=0:.*1"):
        FeatureConfig(batch_size=0)
