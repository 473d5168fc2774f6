"""Regions of one image: run-length encoded masks, their tree, their tiles. numpy and pycocotools only."""

from ureca.regions.rle import (
    Rle,
    box_to_rle,
    check_rle,
    check_rles,
    decode_rle,
    encode_mask,
    iou_matrix,
    polygon_to_rle,
    rle_area,
    rle_bbox,
)
from ureca.regions.tiles import mask_tiles, tile_grid
from ureca.regions.tree import Dropped, Mask, MaskTree, Region, TreeConfig, build_mask_tree

__all__ = [
    "Dropped",
    "Mask",
    "MaskTree",
    "Region",
    "Rle",
    "TreeConfig",
    "box_to_rle",
    "build_mask_tree",
    "check_rle",
    "check_rles",
    "decode_rle",
    "encode_mask",
    "iou_matrix",
    "mask_tiles",
    "polygon_to_rle",
    "rle_area",
    "rle_bbox",
    "tile_grid",
]
