"""Labeling of a photo without masks: one model proposes its regions, another compares them."""

import asyncio
from pathlib import Path

from support.tiny_vision import save_dinov2, save_sam2

from ureca.corpus.read import photos_directory
from ureca.corpus.schema import ImageRow
from ureca.corpus.sources.manifest import ManifestRow
from ureca.labeling.config import LabelSettings
from ureca.labeling.describers.attributes import AttributesDescriber
from ureca.labeling.distractors import DistractorConfig
from ureca.labeling.features import FeatureConfig
from ureca.labeling.image_labeler import ImageLabeler
from ureca.proposals.config import ProposalConfig, SamConfig


def labeled(config: LabelSettings) -> ImageRow:
    row = ManifestRow(
        image_id="coffee", image_path=str(photos_directory() / "coffee.jpg"), masks_path=None, masks_kind=None
    )
    labeled_row = asyncio.run(ImageLabeler(AttributesDescriber(), config).label(row))
    assert labeled_row.status == "labeled", labeled_row.error
    return labeled_row


def test_label_photo_without_masks_uses_sam_and_dinov2(tmp_path: Path):
    save_sam2(tmp_path / "sam2")
    save_dinov2(tmp_path / "dinov2", 42)
    # random weights give low scores: accept all of them
    sam = SamConfig(model=str(tmp_path / "sam2"), device="cpu", points_per_side=4, min_iou=0.0, min_stability=0.0)
    config = LabelSettings(
        proposals=ProposalConfig(kind="sam", sam=sam, max_regions=8, max_area_share=0.95, max_iou=0.88),
        features=FeatureConfig(kind="dinov2", model=str(tmp_path / "dinov2"), device="cpu"),
        distractors=DistractorConfig(min_similarity=-1.0, max_count=3),
    )
    row = labeled(config)
    assert row.size == (400, 600)
    assert 2 <= len(row.regions) <= 8
    assert row.notes is not None
    assert row.notes["proposed"] >= len(row.regions)
    assert all(region.caption for region in row.regions)
    assert any(region.distractors for region in row.regions)
    assert labeled(config).regions == row.regions, "not reproducible"


def test_label_photo_without_masks_uses_segments():
    row = labeled(LabelSettings(proposals=ProposalConfig()))
    assert len(row.regions) >= 12
    assert max(region.depth for region in row.regions) >= 1
