"""Drawn scenes: images of simple objects whose masks, tree and attributes are known exactly."""
