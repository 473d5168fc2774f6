"""Regions from models of the SAM family: the real classes of transformers, tiny, with random weights."""

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
    """Random weights are sure of nothing, so nothing is asked of quality unless said; nor of size and likeness."""
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
"""Pixels out of a mask's 15,000."""


def asked_directly(model: str, image: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Each point's masks, bool (H, W), and the quality expected of them, from the model itself."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForMaskGeneration

    processor = AutoImageProcessor.from_pretrained(model)
    network = AutoModelForMaskGeneration.from_pretrained(model).eval()
    inputs = processor(Image.fromarray(image), return_tensors="pt")
    height, width = (inputs.get("reshaped_input_sizes", torch.tensor([[64, 64]]))[0]).tolist()
    grid = (np.arange(SIDE) + 0.5) / SIDE
    points = [[[x * width, y * height]] for y in grid for x in grid]  # where the model sees each part of the photo
    with torch.inference_mode():
        outputs = network(
            pixel_values=inputs["pixel_values"],
            input_points=torch.tensor([points], dtype=torch.float32),
            input_labels=torch.ones((1, SIDE * SIDE, 1), dtype=torch.int64),
        )
    sizes = {name: inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs}
    masks = processor.post_process_masks(outputs.pred_masks, mask_threshold=0.0, binarize=True, **sizes)[0]
    return list(masks.flatten(0, 1).numpy()), outputs.iou_scores.flatten().numpy()


def test_masks_are_those_of_the_model_asked_at_each_point(model, photo):
    masks, _ = asked_directly(model, photo)
    distinct = {mask.tobytes() for mask in masks if mask.any()}
    proposed = make_proposer(config(model, max_regions=10_000))(photo)
    assert len(proposed) > 30
    found = {decode_rle(mask.segmentation).tobytes() for mask in proposed}
    # All points at once, as here, are summed in another order than batches of them: on some CPUs a pixel of a random
    # model's logits, which are near 0 everywhere, falls on the other side.
    for some, others in ((found, distinct), (distinct, found)):
        assert max(fewest_pixels_apart(mask, others) for mask in some) <= ROUNDED_PIXELS


def fewest_pixels_apart(mask: bytes, others: set[bytes]) -> int:
    """In how many pixels a mask differs from the one that is nearest to it."""
    pixels = np.frombuffer(mask, bool)
    return min(int((pixels != np.frombuffer(other, bool)).sum()) for other in others)


def test_masks_of_another_model_are_noticed(model, photo):
    masks, _ = asked_directly(model, np.ascontiguousarray(photo[:, ::-1]))
    mirrored = {mask.tobytes() for mask in masks if mask.any()}
    proposed = make_proposer(config(model, max_regions=10_000))(photo)
    found = {decode_rle(mask.segmentation).tobytes() for mask in proposed}
    assert max(fewest_pixels_apart(mask, mirrored) for mask in found) > ROUNDED_PIXELS


def test_the_points_of_a_batch_do_not_matter(model, photo):
    few, many = (make_proposer(config(model, points_per_batch=size, max_regions=10_000))(photo) for size in (4, 64))
    assert {mask.segmentation["counts"] for mask in few} == {mask.segmentation["counts"] for mask in many}


def test_masks_below_the_expected_quality_are_left_out(model, photo):
    _, scores = asked_directly(model, photo)
    middle = float(np.median(scores))
    assert middle > 0, "a threshold of 0 asks for nothing: seed the weights otherwise"
    count = len(make_proposer(config(model, max_regions=10_000))(photo))
    assert 0 < len(make_proposer(config(model, max_regions=10_000, min_iou=middle))(photo)) < 0.8 * count


def test_proposals_make_a_mask_tree(model, photo):
    limits = {"max_regions": 12, "min_area_share": 0.05, "max_area_share": 0.6, "max_iou": 0.75}
    masks = make_proposer(config(model, **limits))(photo)
    assert 1 <= len(masks) <= 12
    shares = [rle_area(mask.segmentation) / (100 * 150) for mask in masks]
    assert shares == sorted(shares, reverse=True)
    assert 0.05 <= min(shares) <= max(shares) <= 0.6
    tree = build_mask_tree(masks, (100, 150))
    assert {each.region_id for each in tree.regions} <= {mask.region_id for mask in masks}


def test_threads_get_what_one_alone_gets(model, photo):
    proposer = make_proposer(config(model, max_regions=20))
    mirrored = np.ascontiguousarray(photo[:, ::-1])
    alone = [proposer(photo), proposer(mirrored)]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(proposer, [photo, mirrored] * 2)) == alone * 2


@pytest.mark.parametrize("what", ["nothing", "another"])
def test_a_model_that_can_not_propose_is_refused(tmp_path, what):
    if what == "another":
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="facebook/sam2") as raised:
        make_proposer(config(str(tmp_path)))
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
