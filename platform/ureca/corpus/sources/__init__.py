"""Image sources: folders, tars, COCO files and region tables become one manifest."""
