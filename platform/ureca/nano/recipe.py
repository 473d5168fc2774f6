"""Train nano: stages 1 and 2 and both controls, for several seeds, on one corpus.

    OUTPUT/seed0/stage1/model        the mask encoder trained
                 stage2/model        and LoRA: the captioner
                 tuned_none/model    the same LoRA training without a region cue
                 tuned_box/model     the same, the region's box in words
           seed1/...

Stage 2 and the two controls of a seed share settings, steps and order of images and differ only in the region cue.
Stage 1 has separate settings.

A step of stage 2 is one image, too little for two workers, so several seeds use several cores: each in a separate
process with a separate Ray (or all on the cluster that RAY_ADDRESS names).
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from ureca.config import config_from_dict, find_config, read_config
from ureca.corpus.read import photos_directory
from ureca.errors import ConfigError
from ureca.nano.corpus import scene_seeds
from ureca.nano.scenes.files import image_id_of
from ureca.training.config import Stage1Config, Stage2Config
from ureca.training.launch import fit

if TYPE_CHECKING:
    from ureca.training.launch import TrainingResult

    Trained = dict[str, TrainingResult]  # for one seed: stage1, stage2, tuned_none, tuned_box


HELDOUT_PHOTOS = ("astronaut", "coffee")
"""Photos of the package that the captioner was not trained on: those that the demo holds out."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class NanoRecipeConfig:
    output: str = "runs/nano_recipe"
    """Folder of all results; running again with the same folder resumes."""
    scenes: int = 3000
    """Synthetic training scenes. Four of the package's six photos are added."""
    corpus_seed: int = 21
    """Seed of the synthetic scenes."""
    table: str = ""
    """Region table to train on instead of synthetic scenes."""
    base: str = ""
    """Folder of a base, as written by pretrain_nano (…/base); empty: the base in the package."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One complete training per seed: initialization, order of images, all sampling."""
    seeds_at_once: int = 1
    """Seeds to train in parallel, each in a separate process; about one per core."""
    stage1: str = "nano_stage1"
    """Settings of stage 1: a YAML file, or the name of one in jobs/configs."""
    stage2: str = "nano_stage2"
    """Settings of stage 2 and of the two controls."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds={list(self.seeds)}: give one seed or more, each once.")
        if self.scenes < 1:
            raise ConfigError(f"scenes={self.scenes}: must be at least 1.")
        if self.seeds_at_once < 1:
            raise ConfigError(f"seeds_at_once={self.seeds_at_once}: must be at least 1.")
        # check before the corpus is drawn and labeled
        if self.base and not (Path(self.base) / "config.json").is_file():
            raise ConfigError(
                f"base={self.base}: no config.json in it. Give the folder that jobs/pretrain_nano.py wrote, "
                "runs/pretrain_nano/base."
            )


def learned_images() -> set[str]:
    """Return the ids of the images that the captioner in the package was trained on."""
    recipe = NanoRecipeConfig()
    scenes = {image_id_of(seed) for seed in scene_seeds(recipe.scenes, recipe.corpus_seed)}
    return scenes | {photo.stem for photo in photos_directory().glob("*.jpg")} - set(HELDOUT_PHOTOS)


def train_seeds(
    config: NanoRecipeConfig, *, table: str, output: Path
) -> tuple[dict[int, Trained], dict[int, Exception]]:
    """Train every seed of the recipe below OUTPUT/seed<N>, `seeds_at_once` at a time.

    Returns:
        Results by seed, and the exceptions (as raised by `train_seed`) of failed seeds: a failure does
        not end the others.
    """
    trained: dict[int, Trained] = {}
    failed: dict[int, Exception] = {}
    for seed, result in _in_turn(config, table, output):
        try:
            trained[seed] = result()
        except Exception as error:
            failed[seed] = error
            print(f"nano-recipe  seed{seed} failed: {error}", file=sys.stderr, flush=True)
        else:
            print(f"nano-recipe  seed{seed} is trained", file=sys.stderr, flush=True)
    return {seed: trained[seed] for seed in config.seeds if seed in trained}, failed


def _in_turn(config: NanoRecipeConfig, table: str, output: Path) -> Iterator[tuple[int, Callable[[], Trained]]]:
    """Yield seeds as they finish, each with a function that returns its result or raises."""
    at_once = min(config.seeds_at_once, len(config.seeds))
    if at_once == 1:
        for seed in config.seeds:
            yield seed, partial(train_seed, config, seed, table=table, output=output / f"seed{seed}")
        return
    others = multiprocessing.active_children()
    # A fork would copy torch's and Ray's threads in a broken state. One process per seed: its Ray ends with it.
    pool = ProcessPoolExecutor(
        at_once,
        mp_context=multiprocessing.get_context("spawn"),
        max_tasks_per_child=1,
        initializer=_start_process,
    )
    try:
        futures = {pool.submit(_train_in_process, config, seed, table, output): seed for seed in config.seeds}
        for future in as_completed(futures):
            yield futures[future], future.result
    except BaseException:  # Ctrl-C. The processes would continue to the end; checkpoints tolerate termination
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    """Initialize a process that trains a seed: leave Ctrl-C to the job, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = multiprocessing.parent_process()
    assert job is not None

    def end_with_job() -> None:
        job.join()
        os._exit(1)

    threading.Thread(target=end_with_job, name="end-with-job", daemon=True).start()


def _train_in_process(config: NanoRecipeConfig, seed: int, table: str, output: Path) -> Trained:
    sys.stderr = Prefixed(sys.stderr, f"seed{seed}  ")  # type: ignore[assignment]  # what it has of a file is enough
    try:
        return train_seed(config, seed, table=table, output=output / f"seed{seed}")
    except Exception as error:
        sent = sendable(error)
        if sent is error:
            raise
        raise sent from error


class Prefixed:
    """A text stream that starts every line with `prefix`: several seeds report their training concurrently."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream, self._prefix = stream, prefix
        self._begun = ""

    def write(self, text: str) -> int:
        """Write complete lines, each atomically, so that lines of two processes do not mix."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._stream.write(f"{self._prefix}{line}\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def sendable(error: Exception) -> Exception:
    """Return `error` if it can be pickled, else an equivalent one: some of Ray's do not unpickle."""
    try:
        same = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        same = False
    return error if same else RuntimeError(f"{type(error).__name__}: {error}")


def train_seed(config: NanoRecipeConfig, seed: int, *, table: str, output: Path) -> Trained:
    """Train the four models of a seed below `output`; existing ones are kept.

    Raises:
        ConfigError: a stage's configuration can't be loaded.
        TrainingError, CheckpointError, InputError: as `ureca.training.fit`.
    """
    common: dict[str, Any] = {"table": table, "heldout": 0.0, "seed": seed}
    if config.base:
        common["base"] = config.base
    stage1 = stage_config(Stage1Config, config.stage1, **common)
    trained = {"stage1": fit(stage1, output / "stage1")}
    cues: dict[str, dict[str, Any]] = {
        "stage2": {"init": trained["stage1"].model},
        "tuned_none": {"init": "", "cue": "none"},
        "tuned_box": {"init": "", "cue": "box"},
    }
    for name, given in cues.items():
        trained[name] = fit(stage_config(Stage2Config, config.stage2, **common, **given), output / name)
    return trained


def stage_config(cls: type[T], recipe: str, *, epochs: float | None = None, **given: Any) -> T:
    """Load a configuration (a YAML file, or the name of one) with some of its settings replaced."""
    path = find_config(recipe)
    settings = {**read_config(path), **given}
    if epochs is not None:
        settings["optimizer"] = {**settings["optimizer"], "epochs": epochs}
    return config_from_dict(cls, settings, where=path)
