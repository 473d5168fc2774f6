"""Drawn scenes: pictures of simple things whose masks, tree and attributes are known exactly."""

from ureca.scenes.draw import Scene, SceneConfig, SceneRegion, draw_scene
from ureca.scenes.files import read_truth, write_scenes

__all__ = ["Scene", "SceneConfig", "SceneRegion", "draw_scene", "read_truth", "write_scenes"]
