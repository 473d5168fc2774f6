"""Region proposals from colors alone: no model, no download, the same on every machine.

    photo ──Felzenszwalb──> superpixels ──merge the most similar neighbors repeatedly──> a binary tree of segments
          ──keep the most persistent──> nested masks at the photo's size

Neighbors are merged by Ward's criterion: the increase of the squared error of mean color, weighted by the contrast
along their common border. A segment that merges late, compared with its creation, stands out from its surroundings.
Segments have uniform color and are not objects: a striped shirt may be split. Use a SAM-class model for masks of
objects. Sources: superpixels, Felzenszwalb and Huttenlocher 2004; the criterion, Ward 1963.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

import numpy as np
from skimage.color import rgb2lab
from skimage.measure import label
from skimage.segmentation import felzenszwalb
from skimage.transform import resize

from ureca.proposals.choose import choose_masks
from ureca.proposals.config import ProposalConfig
from ureca.regions.rle import Rle, encode_mask
from ureca.regions.tree import Mask

_LONGEST_PX = 320  # the photo is shrunk to this for segmenting; takes a third of a second per photo
_GRAIN, _SMALLEST_PX = 20.0, 16  # superpixel scale and minimum size: a few hundred of them at that size
_MIN_PROMINENCE = 0.5
_NOISE = 2.0  # a just noticeable difference of color, in Lab


def propose_segments(image: np.ndarray, config: ProposalConfig | None = None) -> list[Mask]:
    """Return nested masks of an image, uint8 (H, W, 3) RGB, largest first; ids count from "1". Deterministic.

    An image of one color has none.
    """
    config = config or ProposalConfig()
    lab = rgb2lab(_shrunk(image))
    superpixels = felzenszwalb(lab, scale=_GRAIN, sigma=0.5, min_size=_SMALLEST_PX, channel_axis=-1)
    return choose_masks(_best_first(superpixels, lab, (image.shape[0], image.shape[1]), config), config)


def _best_first(
    superpixels: np.ndarray, lab: np.ndarray, size: tuple[int, int], config: ProposalConfig
) -> Iterator[Rle]:
    """Return segments within the size limits, most prominent first, as masks of `size` (height, width)."""
    tree = _MergeTree(superpixels, lab)
    total = superpixels.size
    scores = {
        # Of two equally prominent segments, the larger is preferred.
        node: tree.prominence(node) + 0.5 * math.log(tree.area[node] / total)
        for node in range(tree.num_nodes)
        if config.min_area_share <= tree.area[node] / total <= config.max_area_share
        and tree.prominence(node) >= _MIN_PROMINENCE
    }
    rows = np.arange(size[0]) * superpixels.shape[0] // size[0]
    columns = np.arange(size[1]) * superpixels.shape[1] // size[1]
    for node in sorted(scores, key=lambda each: (-scores[each], each)):
        mask = _filled(np.isin(superpixels, tree.leaves(node)))
        yield encode_mask(mask[np.ix_(rows, columns)])


def _shrunk(image: np.ndarray) -> np.ndarray:
    """Return float (h, w, 3) in 0..1, longest side at most `_LONGEST_PX`."""
    height, width = image.shape[:2]
    scale = _LONGEST_PX / max(height, width)
    if scale >= 1:
        return image / 255.0
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return resize(image, size, order=1, anti_aliasing=True)


class _MergeTree:
    """Binary tree over superpixels: nodes 0..n-1 are superpixels, each further one joins two earlier ones."""

    def __init__(self, superpixels: np.ndarray, lab: np.ndarray) -> None:
        num_leaves = int(superpixels.max()) + 1
        flat = superpixels.ravel()
        self.area = np.bincount(flat, minlength=num_leaves).astype(float).tolist()
        sums = np.stack([np.bincount(flat, channel, num_leaves) for channel in lab.reshape(-1, 3).T], axis=1)
        self._means: list[np.ndarray] = list(sums / np.asarray(self.area)[:, None])
        self._children: list[tuple[int, int] | None] = [None] * num_leaves
        self._made_at = [0.0] * num_leaves
        self._merged_at = [math.inf] * num_leaves
        self._borders = _borders(superpixels, lab)
        self._merge_all()

    @property
    def num_nodes(self) -> int:
        return len(self.area)

    def prominence(self, node: int) -> float:
        """Return how much later the node merges than it was created, on a logarithmic scale."""
        if math.isinf(self._merged_at[node]):
            return -math.inf
        # A superpixel has no creation cost: use Ward's measure for two halves that differ just noticeably.
        noise = _NOISE**2 * self.area[node] / 4
        return math.log((self._merged_at[node] + noise) / (self._made_at[node] + noise))

    def leaves(self, node: int) -> list[int]:
        """Return the superpixels of a node."""
        found, open_nodes = [], [node]
        while open_nodes:
            children = self._children[current := open_nodes.pop()]
            if children is None:
                found.append(current)
            else:
                open_nodes += children
        return found

    def _merge_all(self) -> None:
        heap = [(self._cost(a, b), a, b) for a, b in self._pairs()]
        heapq.heapify(heap)
        while heap:
            cost, a, b = heapq.heappop(heap)
            if not (math.isinf(self._merged_at[a]) and math.isinf(self._merged_at[b])):
                continue  # one of them is already part of a larger one
            node = self._join(a, b, cost)
            for neighbor in self._borders[node]:
                heapq.heappush(heap, (self._cost(neighbor, node), neighbor, node))

    def _pairs(self) -> Iterator[tuple[int, int]]:
        for a, neighbors in enumerate(self._borders):
            for b in neighbors:
                if a < b:
                    yield a, b

    def _cost(self, a: int, b: int) -> float:
        difference = self._means[a] - self._means[b]
        ward = self.area[a] * self.area[b] / (self.area[a] + self.area[b]) * float(difference @ difference)
        contrast, length = self._borders[a][b]
        return ward * (0.2 + contrast / length / 10.0)  # a faint border of a slow gradation counts a fifth

    def _join(self, a: int, b: int, cost: float) -> int:
        node = len(self.area)
        area = self.area[a] + self.area[b]
        self._means.append((self._means[a] * self.area[a] + self._means[b] * self.area[b]) / area)
        self.area.append(area)
        self._children.append((a, b))
        # A merge can make the next one cheaper; the tree's scale must only grow.
        cost = max(cost, self._made_at[a], self._made_at[b])
        self._made_at.append(cost)
        self._merged_at[a] = self._merged_at[b] = cost
        self._merged_at.append(math.inf)
        joined: dict[int, tuple[float, float]] = {}
        for old in (a, b):
            for neighbor, (contrast, length) in self._borders[old].items():
                if neighbor not in (a, b):
                    before = joined.get(neighbor, (0.0, 0.0))
                    joined[neighbor] = (before[0] + contrast, before[1] + length)
                    del self._borders[neighbor][old]
        self._borders.append(joined)
        for neighbor, border in joined.items():
            self._borders[neighbor][node] = border
        return node


def _filled(mask: np.ndarray) -> np.ndarray:
    """Fill the mask's holes: what lies inside a region becomes a part of it."""
    ground = label(np.pad(~mask, 1, constant_values=True), connectivity=1)
    return (ground != ground[0, 0])[1:-1, 1:-1]


def _borders(superpixels: np.ndarray, lab: np.ndarray) -> list[dict[int, tuple[float, float]]]:
    """Return for each superpixel its neighbors: (summed color difference across the border, length), in pixels."""
    borders: list[dict[int, tuple[float, float]]] = [{} for _ in range(int(superpixels.max()) + 1)]
    for first, second in (
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
    ):
        a, b = superpixels[first], superpixels[second]
        across = a != b
        contrast = np.linalg.norm(lab[first] - lab[second], axis=-1)[across]
        for one, other, value in zip(a[across].tolist(), b[across].tolist(), contrast.tolist(), strict=True):
            summed, length = borders[one].get(other, (0.0, 0.0))
            borders[one][other] = borders[other][one] = (summed + value, length + 1.0)
    return borders
