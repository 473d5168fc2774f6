"""Caption worker against the API over real HTTP, without Ray."""

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
    async def work_all() -> list[ImageRow]:
        try:
            return await asyncio.gather(*map(worker.work, rows))
        finally:
            await worker.close()

    return asyncio.run(work_all())


@pytest.fixture
def scene(corpus: Path, tmp_path: Path) -> ManifestRow:
    return manifest(corpus, tmp_path)["scene_000000"]


def manifest(source: Path, folder: Path) -> dict[str, ManifestRow]:
    write_manifest([str(source)], folder / "manifest.parquet")
    return {row.image_id: row for row in iter_manifest(folder / "manifest.parquet")}


def test_work_styles_fill_separate_fields(service, backend, corpus, scene):
    worker = worker_of(service, corpus, styles=("brief", "unique"))
    [row] = work(worker, scene)
    for region in row.regions:
        assert (region.short_caption, region.caption) == (f"brief {region.area}", f"unique {region.area}")
        assert region.long_caption is None
    [call] = backend.calls
    assert call.tenant == "tests", "the token was not sent"
    assert len(call.regions) == 2 * len(row.regions)
    assert row.provenance.requests == {"brief": len(row.regions), "unique": len(row.regions)}
    assert row.provenance.prompt_tokens == 300 * len(call.regions)
    counts = worker.counts()
    assert counts["engine:cached_tokens"] == 256 * (len(call.regions) - 1)
    assert 10 <= counts["engine:busy_milliseconds"] <= counts["engine:milliseconds"]


def test_work_equal_captions_are_flagged(service, backend, corpus, scene):
    backend.caption_of = "the same"
    [row] = work(worker_of(service, corpus), scene)
    assert {region.flags for region in row.regions} == {("not_unique",)}


def test_work_region_table_keeps_tree_and_replaces_captions(service, corpus, scene, tmp_path):
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
    quarantined = ImageRow.quarantined("gone", "/gone.jpg", "read", InputError("gone.jpg: no such file"))
    write_regions(table, [replace(first, regions=(first.regions[0], labeled, *first.regions[2:])), quarantined])
    rows = manifest(table, tmp_path)
    recaptioned, gone = work(worker_of(service, table, styles=("brief",)), rows["scene_000000"], rows["gone"])
    assert [region.region_id for region in recaptioned.regions] == [region.region_id for region in first.regions]
    assert recaptioned.regions[1] == replace(labeled.without_captions(), short_caption=f"brief {labeled.area}"), (
        "only captions are replaced"
    )
    assert recaptioned.regions[1].distractors == (Distractor(index=0, similarity=0.5),)
    assert gone.error.message.startswith(f"{table}: ")
    assert "InputError: gone.jpg: no such file" in gone.error.message


def test_work_exif_rotated_photo_is_sent_as_pixels(service, backend, corpus, tmp_path):
    """Send a photo with EXIF rotation as pixels, because the service ignores EXIF in files."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "red").save(tmp_path / "rotated.jpg", exif=exif.tobytes())
    (tmp_path / "rotated.json").write_text(
        '{"image": {"height": 60, "width": 40}, "annotations": [{"id": 1, "segmentation": [[2, 2, 30, 2, 30, 50]]}]}'
    )
    row = manifest(tmp_path, tmp_path)["rotated"]
    [rotated] = work(worker_of(service, corpus), row)
    assert rotated.error is None, rotated.error
    assert backend.calls[0].image.shape == (60, 40, 3)


def test_work_refused_image_is_quarantined_lost_service_stops(service, backend, corpus, scene):
    backend.failure = InputError("a prompt of 900 tokens does not fit")
    [row] = work(worker_of(service, corpus), scene)
    assert (row.error.step, row.error.kind) == ("caption", "InputError")
    assert "a prompt of 900 tokens does not fit" in row.error.message
    backend.failure = ZeroDivisionError()
    [row] = work(worker_of(service, corpus), scene)
    assert (row.error.step, row.error.kind) == ("caption", "InputError")
    assert f"{service} fails on the image" in row.error.message
    backend.is_healthy = False
    with pytest.raises(EndpointLost, match="log"):
        work(worker_of(service, corpus), scene)
    backend.failure = OverloadedError()
    with pytest.raises(EndpointLost, match="requests"):
        work(worker_of(service, corpus), scene)


def test_recipe_read_unusable_service_raises(service, corpus, monkeypatch):
    config = CaptionConfig(sources=(str(corpus),), endpoint=EndpointConfig(url=service, model="other"))
    with pytest.raises(ConfigError, match="endpoint.model=other"):
        CaptionRecipe.read(config)
    monkeypatch.setenv("URECA_TOKEN", "wrong")
    with pytest.raises(ConfigError, match="URECA_TOKEN"):
        worker_of(service, corpus)
    with pytest.raises(ConfigError, match=r"endpoint\.url=http://127\.0\.0\.1:9: .*ConnectError"):
        worker_of("http://127.0.0.1:9", corpus)


def test_recipe_hides_token_in_settings_and_repr(service, corpus):
    config = CaptionConfig(sources=(str(corpus),), endpoint=EndpointConfig(url=service))
    recipe = CaptionRecipe.read(config)
    assert recipe.token == "let me in"
    assert "let me in" not in f"{recipe} {recipe.settings()}"
