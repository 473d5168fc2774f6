"""Held-out images with labels, and captioners whose answers are known."""

import io
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
from PIL import Image

from ureca.corpus.schema import ImageRow, RegionRow
from ureca.nano.scenes.draw import Scene, draw_scene
from ureca.regions.rle import Rle, rle_area, rle_bbox

SENTENCE = "the {size} {color}, {texture}, {shape} part in the {place}"


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def scene_row(seed: int, *, known: bool = True) -> ImageRow:
    """A drawn scene labeled by its true attributes in one sentence; `known`: they are in the table too."""
    scene = draw_scene(seed)
    captions = [SENTENCE.format(**region.attributes) for region in scene.regions]
    return labeled_row(scene, captions, known=known)


def labeled_row(scene: Scene, captions: Sequence[str], *, known: bool = False) -> ImageRow:
    """A scene as a labeled row with these captions; `known`: with its true attributes."""
    regions = tuple(
        RegionRow(
            region_id=region.region_id,
            parent=region.parent,
            depth=region.depth,
            segmentation=region.segmentation,
            area=rle_area(region.segmentation),
            bbox=rle_bbox(region.segmentation),
            caption=caption,
            attributes=dict(region.attributes) if known else None,
        )
        for region, caption in zip(scene.regions, captions, strict=True)
    )
    height, width = scene.image.shape[:2]
    return ImageRow(
        image_id=f"scene_{scene.seed}",
        image_bytes=png(scene.image),
        height=height,
        width=width,
        status="labeled",
        regions=regions,
    )


class KnownCaptioner:
    """Answers by the mask, or by the query where there is none; counts what it was asked.

    Stands where a model would: the tests of scores need captions whose scores are known beforehand.
    """

    def __init__(self, answers: dict[str, str], otherwise: str = "a picture") -> None:
        self.answers, self.otherwise = answers, otherwise
        self.asked: list[tuple[int, list[str]]] = []
        self.processor = SimpleNamespace(query=self._query)

    def _query(self, style: str, *, cue: str, box: Sequence[float] = (), size: Sequence[int] = ()) -> str:
        return f"{style} {cue} {list(box)} {list(size)}"

    def generate(
        self,
        image: np.ndarray,  # noqa: ARG002
        segmentations: Sequence[Rle | None],
        queries: Sequence[str],
        *,
        max_new_tokens: int,  # noqa: ARG002
    ) -> list[str]:
        self.asked.append((len(segmentations), list(queries)))
        return [self.answers.get(each["counts"], "") if each else self.otherwise for each in segmentations]
