"""HTML of the report page. All text from data is escaped with `escape`."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ureca.evaluation.labels import METRIC_LABELS, VARIANT_LABELS
from ureca.viewer.draw import draw_regions, nested_list, outline, region_color, to_css, to_size
from ureca.viewer.plots import Curve, loss_curves, score_bars
from ureca.viewer.report_data import (
    ReportData,
    ReportImage,
    ReportRegion,
    ScoreDifference,
    Scores,
)

ROWS_SHOWN = 12
"""Regions of an image that are drawn and listed at first; the others are collapsed."""
_OURS = ("shipped", "mask_stage2")
"""The captioner that the page is about: the first of these that is present."""
_PLOTTED = ("rouge_l", "meteor", "cider", "attribute_accuracy", "uniqueness")
_BAR_COLORS = {
    "none": "#c3c8cf",
    "box": "#a3aab5",
    "tuned_none": "#d9a566",
    "tuned_box": "#b98a4e",
    "mask_stage1": "#7fbdb5",
    "mask_stage2": "#2f9389",
    "shipped": "#0f766e",
}
_HOW_TO_READ = (
    "All from 0 to 1, higher is better; below each its 95% interval from 1,000 resamples of the images. Attribute "
    "accuracy: of the label's statements on color, texture, shape, size and place, the fraction that the caption "
    "makes too and that are true of the scene. Uniqueness: the fraction of captions that fit their own region better "
    "than every other region of the image. A dashed line marks the score of the labels themselves."
)
_PICTURE_PX, _OUTLINE_PX = {"photo": 800, "drawn": 512}, 400


def report_page(data: ReportData) -> str:
    """Return the complete page."""
    files = resources.files("ureca.viewer")
    style, script = (files.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    images = _image_sections(data.images)
    facts = "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for name, value in data.facts)
    sections = [
        f"<header><h1>{escape(data.title)}</h1>",
        f'<p class="intro">{escape(data.intro)}</p>' if data.intro else "",
        f'<ul class="facts">{facts}</ul>' if facts else "",
        "</header>",
        images.get("photo", ""),
        _notes_section(data.notes),
        _scores_section(data),
        _curves_section(data.curves),
        images.get("drawn", ""),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(data.title)}</title><style>{style}</style></head>\n'
        f"<body><main>{''.join(sections)}</main>\n<script>{script}</script></body></html>\n"
    )


# ---- scores and curves


def _scores_section(data: ReportData) -> str:
    if not data.scores:
        return ""
    metrics = _in_order(METRIC_LABELS, [metric for scores in data.scores.values() for metric in scores])
    variants = _in_order(VARIANT_LABELS, list(data.scores))
    head = "".join(f'<th scope="col">{escape(_metric(metric))}</th>' for metric in metrics)
    ours = next((name for name in _OURS if name in variants), None)
    rows = [_score_row(_variant(name), data.scores[name], metrics, "ours" if name == ours else "") for name in variants]
    if data.ceiling:
        rows.append(_score_row("the labels themselves", data.ceiling, metrics, "ceiling"))
    plots = []
    for metric in (metric for metric in _PLOTTED if metric in metrics):
        ceiling = (data.ceiling or {}).get(metric)
        svg = score_bars(
            _metric(metric),
            {_variant(name): data.scores[name][metric] for name in variants if metric in data.scores[name]},
            colors={_variant(name): color for name, color in _BAR_COLORS.items()},
            ceiling=ceiling["value"] if ceiling else None,
        )
        plots.append(f"<figure>{_img(svg, 'svg+xml', f'{_metric(metric)} of each variant as bars')}</figure>")
    return (
        "<section><h2>Scores on held-out images</h2>"
        f'<div class="scroll"><table class="scores"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="hint">{_HOW_TO_READ}</p>'
        f"{_accuracy(data.accuracy or {})}{_strata(data.strata or {})}{_differences(data.differences)}"
        f'<div class="plots">{"".join(plots)}</div></section>'
    )


def _score_row(label: str, scores: Scores, metrics: Sequence[str], css: str) -> str:
    cells = []
    for metric in metrics:
        score = scores.get(metric)
        if score is None:
            cells.append("<td>–</td>")
        else:
            interval = f"{score['low']:.3f} – {score['high']:.3f}"
            cells.append(f"<td>{score['value']:.3f}<small>{interval}</small></td>")
    return f'<tr class="{css}"><th scope="row">{escape(label)}</th>{"".join(cells)}</tr>'


def _accuracy(accuracy: Mapping[str, Mapping[str, float]]) -> str:
    """Return attribute accuracy by attribute (columns) and size of the region (rows)."""
    if not accuracy:
        return ""
    names = _in_order({"all": ""}, [name for of in accuracy.values() for name in of])
    rows = {size: [_figure(of.get(name)) for name in names] for size, of in accuracy.items()}
    heads = [name.replace("_", " ") for name in names]
    return f"<h3>Attribute accuracy by region size</h3>{_table(heads, rows)}"


def _strata(strata: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the captioner's scores by kind of region, one row each."""
    values = {f"{name}: {value}": of for name, each in strata.items() for value, of in each.items()}
    if not values:
        return ""
    metrics = _in_order(METRIC_LABELS, [name for of in values.values() for name in of if name != "regions"])
    rows = {
        name: [f"{of['regions']:,.0f}", *(_figure(of.get(metric)) for metric in metrics)] for name, of in values.items()
    }
    return f"<h3>Scores by kind of region</h3>{_table(['regions', *map(_metric, metrics)], rows)}"


def _differences(differences: Sequence[ScoreDifference]) -> str:
    """Return one row per pair, in the metrics that are plotted."""
    shown = [each for each in differences if each.metric in _PLOTTED]
    if not shown:
        return ""
    metrics = _in_order(METRIC_LABELS, [each.metric for each in shown])
    rows: dict[str, list[str]] = {}
    for each in shown:
        cells = rows.setdefault(f"{_variant(each.better)} against {_variant(each.worse)}", ["–"] * len(metrics))
        cells[metrics.index(each.metric)] = f"{each.value:+.3f}<small>{each.low:+.3f} to {each.high:+.3f}</small>"
    return f"<h3>Differences, image by image</h3>{_table([_metric(metric) for metric in metrics], rows)}"


def _table(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Return a table. Row names and heads are escaped here, cells are HTML."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows.items()
    )
    return (
        '<div class="scroll"><table class="scores"><thead><tr><td></td>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _curves_section(curves: Sequence[Curve]) -> str:
    if not curves:
        return ""
    picture = _img(loss_curves(curves), "svg+xml", "Training loss against step")
    return f'<section><h2>Training</h2><div class="curves">{picture}</div></section>'


def _notes_section(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section><h2>What nano does not know</h2><ul class="notes">{items}</ul></section>' if items else ""


# ---- images


def _image_sections(images: Sequence[ReportImage]) -> dict[str, str]:
    """Return the section of each kind of image that is present."""
    headings = {"photo": "Real photos", "drawn": "Drawn scenes"}
    ordered = sorted(images, key=lambda image: list(headings).index(image.kind))  # stable within a kind
    sections, number = {}, 0
    for kind, group in groupby(ordered, key=lambda image: image.kind):
        articles = []
        for image in group:
            articles.append(_article(image, number))
            number += 1
        sections[kind] = f'<section id="{kind}"><h2>{headings[kind]}</h2>{"".join(articles)}</section>'
    return sections


def _article(image: ReportImage, number: int) -> str:
    size = image.image.shape[:2]
    shown = {index + 1: region.segmentation for index, region in enumerate(image.regions[:ROWS_SHOWN])}
    picture = draw_regions(image.image, shown, longest_px=_PICTURE_PX[image.kind])
    height, width = to_size(size, _OUTLINE_PX)
    paths = "".join(_path(region, index, number) for index, region in enumerate(image.regions))
    title, count = image.title or image.image_id, len(image.regions)
    caption = f"{count} {'region' if count == 1 else 'regions'}" + (f" · {image.credit}" if image.credit else "")
    return (
        f'<article id="image-{number}"><h3>{escape(title)}</h3><div class="pair"><figure class="picture">'
        f'<div class="stage" style="max-width:calc(84vh*{width / height:.3f})">'
        f"{_img(_jpeg(picture), 'jpeg', f'{title} with numbered regions')}"
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{paths}</svg>'
        "</div>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        f'<div class="regions">{_region_lists(image, number)}</div></div></article>'
    )


def _path(region: ReportRegion, index: int, number: int) -> str:
    """Return the region's outline over the picture, hidden until it is highlighted."""
    d = outline(region.segmentation, longest_px=_OUTLINE_PX)
    return (
        f'<path id="r{number}-{index + 1}" data-region="{index + 1}" fill-rule="evenodd" '
        f'style="--c:{to_css(region_color(index + 1))}" d="{d}"/>'
    )


def _region_lists(image: ReportImage, number: int) -> str:
    """Return the mask tree as a nested list; parents come first, so the shown part is a tree too."""
    regions = image.regions
    first = nested_list(
        [region.parent for region in regions[:ROWS_SHOWN]],
        [_row(region, index, number) for index, region in enumerate(regions[:ROWS_SHOWN])],
    )
    rest = regions[ROWS_SHOWN:]
    if not rest:
        return first
    parents = [max(region.parent - ROWS_SHOWN, -1) for region in rest]
    rows = [
        _row(region, index, number, inside=region.parent + 1 if 0 <= region.parent < ROWS_SHOWN else None)
        for index, region in enumerate(rest, start=ROWS_SHOWN)
    ]
    folded = f"<summary>{len(rest)} more, smaller regions</summary>{nested_list(parents, rows)}"
    return f'{first}<details class="more">{folded}</details>'


def _row(region: ReportRegion, index: int, number: int, *, inside: int | None = None) -> str:
    lines = [f'<p class="unique"><span class="kind">label</span>{_words(region.caption)}</p>']
    if inside is not None:
        lines.append(f'<p class="other"><span class="kind">part of {inside}</span></p>')
    captions = region.captions or {}
    main = next((name for name in (*_OURS, *captions) if name in captions), None)
    if main is not None:
        lines.append(
            f'<p class="captioner"><span class="kind">captioner</span>{_words(captions[main])} '
            f"{_mark((region.picks_own or {}).get(main))}</p>"
        )
    for kind, text in (("before", region.long_caption), ("short", region.short_caption)):
        if text:
            lines.append(f'<p class="other"><span class="kind">{kind}</span>{_words(text)}</p>')
    if region.flags:
        lines.append(f'<p class="flag">{escape(", ".join(region.flags))}</p>')
    others = [name for name in _in_order(VARIANT_LABELS, list(captions)) if name != main]
    if others:
        said = "".join(
            f'<p class="other"><span class="kind">{escape(_variant(name))}</span>{_words(captions[name])} '
            f"{_mark((region.picks_own or {}).get(name))}</p>"
            for name in others
        )
        lines.append(f"<details><summary>other captioners</summary>{said}</details>")
    return (
        f'<div class="region" data-region="{index + 1}"><a class="badge" href="#r{number}-{index + 1}" '
        f'style="--c:{to_css(region_color(index + 1))}">{index + 1}</a><div>{"".join(lines)}</div></div>'
    )


def _words(text: str | None) -> str:
    return escape(text) if text and text.strip() else "<i>no words</i>"


def _mark(picks_own: bool | None) -> str:
    if picks_own is None:
        return ""
    return (
        '<span class="mark yes">✓ fits only this</span>'
        if picks_own
        else '<span class="mark no">fits another as well or better</span>'
    )


# ---- small parts


def _metric(name: str) -> str:
    return METRIC_LABELS.get(name, name)


def _variant(name: str) -> str:
    return VARIANT_LABELS.get(name, name)


def _in_order(known: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Return `names` without repeats, the known ones first and in their order."""
    given = list(dict.fromkeys(names))
    return [name for name in known if name in given] + [name for name in given if name not in known]


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=82, optimize=True, progressive=True)
    return buffer.getvalue()


def _img(data: bytes, kind: str, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
