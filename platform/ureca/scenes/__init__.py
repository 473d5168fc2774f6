"""Drawn scenes: pictures of simple things whose masks, tree and attributes are known exactly."""

from ureca.scenes.draw import SCENES_VERSION, Scene, SceneConfig, SceneRegion, draw_scene
from ureca.scenes.files import read_truth, write_scenes
from ureca.scenes.kinds import KIND_WORDS

__all__ = [
    "KIND_WORDS",
    "SCENES_VERSION",
    "Scene",
    "SceneConfig",
    "SceneRegion",
    "draw_scene",
    "read_truth",
    "write_scenes",
]
