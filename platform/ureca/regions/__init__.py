"""Regions of one image: run-length encoded masks, mask tree, tiles. numpy and pycocotools only."""
