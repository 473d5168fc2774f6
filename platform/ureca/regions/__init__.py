"""Regions of one image: run-length encoded masks, mask tree, tiles. Needs only numpy and pycocotools."""
