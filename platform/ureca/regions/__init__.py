"""Regions of one image: run-length encoded masks, their tree, their tiles. numpy and pycocotools only."""
