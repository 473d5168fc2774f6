"""Proposals from the SAM family: transformers' own classes, tiny, with random weights."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from support.tiny_vision import save_sam, save_sam2

from ureca.corpus.read import photos_directory
from ureca.errors import CheckpointError
from ureca.proposals.config import ProposalConfig, SamConfig
from ureca.proposals.proposer import make_proposer
from ureca.regions.rle import decode_rle, rle_area
from ureca.regions.tree import build_mask_tree

SIDE = 5
"""Points along each side of the grid."""


@pytest.fixture(scope="module", params=[save_sam, save_sam2], ids=["sam", "sam2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("weights")
    request.param(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(photos_directory() / "coffee.jpg").convert("RGB").resize((150, 100)))


def config(model: str, *, min_iou: float = 0.0, points_per_batch: int = 64, **settings) -> ProposalConfig:
    """Return settings without filters by default: random weights predict low quality everywhere."""
    sam = SamConfig(
        model=model,
        device="cpu",
        points_per_side=SIDE,
        points_per_batch=points_per_batch,
        min_iou=min_iou,
        min_stability=0.0,
    )
    return ProposalConfig(
        kind="sam", sam=sam, **{"min_area_share": 0.0, "max_area_share": 1.0, "max_iou": 1.0} | settings
    )


ROUNDED_PIXELS = 5
"""Maximum different pixels, of a mask's 15,000, that rounding explains."""


def model_masks(model: str, image: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the model's masks, bool (H, W), and predicted IoUs, of all points of the grid."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForMaskGeneration

    processor = AutoImageProcessor.from_pretrained(model)
    network = AutoModelForMaskGeneration.from_pretrained(model).eval()
    inputs = processor(Image.fromarray(image), return_tensors="pt")
    height, width = (inputs.get("reshaped_input_sizes", torch.tensor([[64, 64]]))[0]).tolist()
    grid = (np.arange(SIDE) + 0.5) / SIDE
    points = [[[x * width, y * height]] for y in grid for x in grid]  # in the model's coordinates
    with torch.inference_mode():
        outputs = network(
            pixel_values=inputs["pixel_values"],
            input_points=torch.tensor([points], dtype=torch.float32),
            input_labels=torch.ones((1, SIDE * SIDE, 1), dtype=torch.int64),
        )
    sizes = {name: inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs}
    masks = processor.post_process_masks(outputs.pred_masks, mask_threshold=0.0, binarize=True, **sizes)[0]
    return list(masks.flatten(0, 1).numpy()), outputs.iou_scores.flatten().numpy()


def test_proposals_equal_the_model_s_masks_per_point(model, photo):
    masks, _ = model_masks(model, photo)
    distinct = {mask.tobytes() for mask in masks if mask.any()}
    proposed = make_proposer(config(model, max_regions=10_000))(photo)
    assert len(proposed) > 30
    found = {decode_rle(mask.segmentation).tobytes() for mask in proposed}
    # `model_masks` evaluates all points at once, which sums in another order than batches do. A random model's logits
    # are near 0 everywhere, so on some CPUs a pixel changes its sign.
    for some, others in ((found, distinct), (distinct, found)):
        assert max(min_pixel_difference(mask, others) for mask in some) <= ROUNDED_PIXELS


def min_pixel_difference(mask: bytes, others: set[bytes]) -> int:
    """Return the number of pixels in which a mask differs from the nearest other."""
    pixels = np.frombuffer(mask, bool)
    return min(int((pixels != np.frombuffer(other, bool)).sum()) for other in others)


def test_comparison_detects_masks_of_a_mirrored_image(model, photo):
    masks, _ = model_masks(model, np.ascontiguousarray(photo[:, ::-1]))
    mirrored = {mask.tobytes() for mask in masks if mask.any()}
    proposed = make_proposer(config(model, max_regions=10_000))(photo)
    found = {decode_rle(mask.segmentation).tobytes() for mask in proposed}
    assert max(min_pixel_difference(mask, mirrored) for mask in found) > ROUNDED_PIXELS


def test_proposals_are_independent_of_the_batch_size(model, photo):
    few, many = (make_proposer(config(model, points_per_batch=size, max_regions=10_000))(photo) for size in (4, 64))
    assert {mask.segmentation["counts"] for mask in few} == {mask.segmentation["counts"] for mask in many}


def test_proposals_below_min_iou_are_dropped(model, photo):
    _, scores = model_masks(model, photo)
    middle = float(np.median(scores))
    assert middle > 0, "a threshold of 0 filters nothing: change the weights' seed"
    count = len(make_proposer(config(model, max_regions=10_000))(photo))
    assert 0 < len(make_proposer(config(model, max_regions=10_000, min_iou=middle))(photo)) < 0.8 * count


def test_proposals_form_a_mask_tree(model, photo):
    limits = {"max_regions": 12, "min_area_share": 0.05, "max_area_share": 0.6, "max_iou": 0.75}
    masks = make_proposer(config(model, **limits))(photo)
    assert 1 <= len(masks) <= 12
    shares = [rle_area(mask.segmentation) / (100 * 150) for mask in masks]
    assert shares == sorted(shares, reverse=True)
    assert 0.05 <= min(shares) <= max(shares) <= 0.6
    tree = build_mask_tree(masks, (100, 150))
    assert {each.region_id for each in tree.regions} <= {mask.region_id for mask in masks}


def test_proposals_in_threads_equal_sequential_ones(model, photo):
    proposer = make_proposer(config(model, max_regions=20))
    mirrored = np.ascontiguousarray(photo[:, ::-1])
    alone = [proposer(photo), proposer(mirrored)]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(proposer, [photo, mirrored] * 2)) == alone * 2


@pytest.mark.parametrize("content", ["nothing", "another model"])
def test_unusable_model_is_refused(tmp_path, content):
    if content == "another model":
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="facebook/sam2") as raised:
        make_proposer(config(str(tmp_path)))
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
