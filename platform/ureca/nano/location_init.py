"""Initialize a small language model so that location tokens attend to their place in the image.

With random initialization, that lookup is not learned for a long time (docs/nano.md); two settings computed from the
image tokens provide it from the start.

1. Each location token's embedding becomes the mean image token of its place (over synthetic scenes, minus the mean of
   all places), a mark in the direction that image tokens use least, and another for the token's cell;
   at the norm of the other embeddings.
2. The first heads of the first layer get queries and keys that read the place of a token and little else: the
   directions in which the places' means differ most relative to the variation of image content (Fisher's linear
   discriminant), on the rotary pairs that rotate least over a few hundred tokens; and values that pass on what the
   vision phase learned to read, each head a part of it. `LOOK_SCORES` are the resulting attention scores of a location
   token for its place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerBase

from ureca.model.processor import GRID
from ureca.nano.architecture import IMAGE_TOKENS, LOCATIONS

LOOK_SCORES = (16.0, 16.0, 8.0, 8.0)
MARK, CELL_MARK = 1.0, 0.7
"""Lengths of the two marks of a location token, relative to a place code of length 1."""


@torch.no_grad()
def look_up_by_place(
    model: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, features: Tensor, read: Tensor
) -> None:
    """Set location tokens and the first heads, in place.

    Args:
        features: `(images, 256, D)` image tokens of some images.
        read: `(directions, D)` that the heads pass on, most important first (`DenseHead.directions`).
    """
    x = features / features.square().mean(-1, keepdim=True).sqrt()
    flat = x.flatten(0, 1)
    quiet = torch.linalg.eigh(flat.T @ flat / len(flat)).eigenvectors.T
    marked = _location_codes(x, quiet)
    embeddings: Any = model.get_input_embeddings()
    weight = embeddings.weight
    typical = weight.norm(dim=1).mean()
    weight[tokenizer.convert_tokens_to_ids(list(LOCATIONS))] = marked * typical

    attention: Any = model.model.language_model.layers[0].self_attn
    size = attention.head_dim
    half = size // 2
    slow = [*range(half // 2, half), *range(half + half // 2, size)]
    directions = discriminant(x, len(slow) - 1)
    asking = marked * math.sqrt(x.shape[-1])  # a normed token's length
    own = (asking @ directions.T) * (x.mean(0)[_token_of_cell()] @ directions.T)
    own_score = float(own.sum(-1).mean())
    unit = math.sqrt(size)  # attention divides scores by this
    heads = min(len(LOOK_SCORES), attention.q_proj.weight.shape[0] // size - 1)
    for head in range(heads):
        score = LOOK_SCORES[head]
        first = head * size
        rows = [first + dim for dim in slow]
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[first : first + size] = 0.0
            projection.weight[rows[:-1]] = directions * math.sqrt(score * unit / own_score)
        # A location token would attend most to itself, so marked tokens get a low score.
        attention.k_proj.weight[rows[-1]] = -quiet[0]
        attention.q_proj.weight[rows[-1]] = 0.0
        attention.q_proj.bias[rows[-1]] = 2 * score * unit / float((asking @ quiet[0]).mean())
        passed = read[head * size : (head + 1) * size]
        attention.v_proj.weight[first : first + len(passed)] = passed
        attention.o_proj.weight[:, first : first + size] *= 2


def _token_of_cell() -> Tensor:
    """Return `(GRID * GRID,)`: the image token that each cell of the location tokens' grid belongs to."""
    side = int(IMAGE_TOKENS**0.5)
    line = torch.arange(GRID) * side // GRID
    return (line[:, None] * side + line).flatten()


def _location_codes(x: Tensor, quiet: Tensor) -> Tensor:
    """Return `(GRID * GRID, D)` of length 1: place, mark, and cell of the image token. `quiet`: quietest first."""
    places = x.mean(0) - x.mean((0, 1))
    places = places / places.norm(dim=1, keepdim=True)
    cells = GRID // int(IMAGE_TOKENS**0.5)
    line = torch.arange(GRID) % cells
    which = (line[:, None] * cells + line).flatten()
    codes = places[_token_of_cell()] + MARK * quiet[0] + CELL_MARK * quiet[1 + which]
    return codes / codes.norm(dim=1, keepdim=True)


def discriminant(x: Tensor, count: int) -> Tensor:
    """Compute Fisher's discriminant of places: normed image tokens `(images, 256, D)` -> `(count, D)`, best first.

    Text embeddings, which vary by about one in every direction when normed, count as within-class variation, because
    the heads must not read them either.
    """
    means = x.mean(0)
    within = torch.einsum("icd,ice->de", x - means, x - means) / (x.shape[0] * x.shape[1]) + torch.eye(x.shape[-1])
    centered = means - means.mean(0)
    between = centered.T @ centered / len(centered)
    whiten = torch.linalg.inv(torch.linalg.cholesky(within))
    values, vectors = torch.linalg.eigh(whiten @ between @ whiten.T)
    return (whiten.T @ vectors[:, values.argsort(descending=True)[:count]]).T
