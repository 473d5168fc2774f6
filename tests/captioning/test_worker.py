"""One image at a time, against the API over real HTTP, without Ray."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ureca.captioning.config import CaptionConfig, EndpointConfig
from ureca.captioning.recipe import CaptionRecipe
from ureca.captioning.worker import CaptionWorker
from ureca.corpus.schema import Distractor, ImageRow
from ureca.corpus.sources.manifest import ManifestRow, iter_manifest
from ureca.corpus.sources.parse import write_manifest
from ureca.corpus.table import write_regions
from ureca.errors import ConfigError, InputError
from ureca.pipeline.errors import EndpointLost
from ureca.serving.api.backend import OverloadedError


def worker_of(service: str, *sources: Path, retries: int = 0, **settings) -> CaptionWorker:
    config = CaptionConfig(
        sources=tuple(map(str, sources)), endpoint=EndpointConfig(url=service, retries=retries), **settings
    )
    return CaptionWorker(CaptionRecipe.read(config), None, 1.0)


def work(worker: CaptionWorker, *rows: ManifestRow) -> list[ImageRow]:
    async def all_of_them() -> list[ImageRow]:
        try:
            return await asyncio.gather(*map(worker.work, rows))
        finally:
            await worker.close()

    return asyncio.run(all_of_them())


@pytest.fixture
def scene(corpus: Path, tmp_path: Path) -> ManifestRow:
    return manifest(corpus, tmp_path)["scene_000000"]


def manifest(source: Path, folder: Path) -> dict[str, ManifestRow]:
    write_manifest([str(source)], folder / "manifest.parquet")
    return {row.image_id: row for row in iter_manifest(folder / "manifest.parquet")}


def test_styles_go_into_fields_of_their_own(service, backend, corpus, scene):
    worker = worker_of(service, corpus, styles=("brief", "unique"))
    [row] = work(worker, scene)
    for region in row.regions:
        assert (region.short_caption, region.caption) == (f"brief {region.area}", f"unique {region.area}")
        assert region.long_caption is None
    [call] = backend.calls
    assert call.tenant == "tests", "the token was sent"
    assert len(call.regions) == 2 * len(row.regions)
    assert row.provenance.requests == {"brief": len(row.regions), "unique": len(row.regions)}
    assert row.provenance.prompt_tokens == 300 * len(call.regions)
    counts = worker.counts()
    assert counts["engine:cached_tokens"] == 256 * (len(call.regions) - 1)
    assert 10 <= counts["engine:busy_milliseconds"] <= counts["engine:milliseconds"]


def test_regions_with_one_caption_are_flagged(service, backend, corpus, scene):
    backend.caption_of = "the same"
    [row] = work(worker_of(service, corpus), scene)
    assert {region.flags for region in row.regions} == {("not_unique",)}


def test_an_image_of_a_region_table_keeps_its_tree_and_loses_its_captions(service, corpus, scene, tmp_path):
    [first] = work(worker_of(service, corpus), scene)
    labeled = replace(
        first.regions[1],
        long_caption="long",
        uniqueness=0.5,
        flags=("refusal",),
        merged_ids=("x",),
        distractors=(Distractor(index=0, similarity=0.5, told_apart_by="blue"),),
        attributes={"color": "red"},
    )
    table = tmp_path / "labels.parquet"
    aside = ImageRow.quarantined("gone", "/gone.jpg", "read", InputError("gone.jpg: no such file"))
    write_regions(table, [replace(first, regions=(first.regions[0], labeled, *first.regions[2:])), aside])
    rows = manifest(table, tmp_path)
    again, gone = work(worker_of(service, table, styles=("brief",)), rows["scene_000000"], rows["gone"])
    assert [each.region_id for each in again.regions] == [each.region_id for each in first.regions]
    assert again.regions[1] == replace(labeled.without_captions(), short_caption=f"brief {labeled.area}"), (
        "what is known of the region stays"
    )
    assert again.regions[1].distractors == (Distractor(index=0, similarity=0.5),)
    assert gone.error.message.startswith(f"{table}: ")
    assert "InputError: gone.jpg: no such file" in gone.error.message


def test_the_service_sees_the_pixels_that_the_masks_were_made_on(service, backend, corpus, tmp_path):
    """A photo that EXIF turns goes as pixels, for the service reads files as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "red").save(tmp_path / "turned.jpg", exif=exif.tobytes())
    (tmp_path / "turned.json").write_text(
        '{"image": {"height": 60, "width": 40}, "annotations": [{"id": 1, "segmentation": [[2, 2, 30, 2, 30, 50]]}]}'
    )
    row = manifest(tmp_path, tmp_path)["turned"]
    [turned] = work(worker_of(service, corpus), row)
    assert turned.error is None, turned.error
    assert backend.calls[0].image.shape == (60, 40, 3)


def test_what_the_service_refuses_is_set_aside_and_what_it_cannot_do_stops(service, backend, corpus, scene):
    backend.failure = InputError("a prompt of 900 tokens does not fit")
    [row] = work(worker_of(service, corpus), scene)
    assert (row.error.step, row.error.kind) == ("caption", "InputError")
    assert "refuses the image: a prompt of 900 tokens" in row.error.message
    backend.failure = ZeroDivisionError()
    [row] = work(worker_of(service, corpus), scene)
    assert "fails on the image: captioning failed" in row.error.message
    backend.is_healthy = False
    with pytest.raises(EndpointLost, match="log"):
        work(worker_of(service, corpus), scene)
    backend.failure = OverloadedError()
    with pytest.raises(EndpointLost, match="requests"):
        work(worker_of(service, corpus), scene)


def test_a_service_that_cannot_caption_is_refused_before_the_job_starts(service, corpus, monkeypatch):
    config = CaptionConfig(sources=(str(corpus),), endpoint=EndpointConfig(url=service, model="other"))
    with pytest.raises(ConfigError, match="endpoint.model=other"):
        CaptionRecipe.read(config)
    monkeypatch.setenv("URECA_TOKEN", "wrong")
    with pytest.raises(ConfigError, match="URECA_TOKEN"):
        worker_of(service, corpus)
    with pytest.raises(ConfigError, match=r"endpoint\.url=http://127\.0\.0\.1:9: .*ConnectError"):
        worker_of("http://127.0.0.1:9", corpus)


def test_the_token_stands_in_no_settings_and_no_text(service, corpus):
    config = CaptionConfig(sources=(str(corpus),), endpoint=EndpointConfig(url=service))
    recipe = CaptionRecipe.read(config)
    assert recipe.token == "let me in"
    assert "let me in" not in f"{recipe} {recipe.settings()}"
