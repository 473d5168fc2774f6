"""Admission control: concurrent images per process, suspects with few others or alone."""

import asyncio

from ureca.pipeline.admission import AdmissionLimiter


async def run(
    admission: AdmissionLimiter, limits: list[int], *, cancel: int | None = None
) -> list[tuple[int, tuple[int, ...]]]:
    """Admit all images at once, each for a moment; return (admitted image, images inside then), in order."""
    inside: list[int] = []
    admitted: list[tuple[int, tuple[int, ...]]] = []

    async def process(image: int) -> None:
        async with admission.admit(limits[image]):
            inside.append(image)
            admitted.append((image, tuple(inside)))
            await asyncio.sleep(0.001)
            inside.remove(image)

    tasks = [asyncio.create_task(process(image)) for image in range(len(limits))]
    await asyncio.sleep(0)
    if cancel is not None:
        tasks[cancel].cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    return admitted


def test_admission_never_exceeds_max_images():
    admitted = asyncio.run(run(AdmissionLimiter(3), [3] * 10))
    assert [image for image, _ in admitted] == list(range(10))
    assert max(len(inside) for _, inside in admitted) == 3


def test_admission_limit_1_runs_alone_and_in_turn():
    admitted = asyncio.run(run(AdmissionLimiter(4), [4, 4, 1, 4, 4]))
    assert [image for image, _ in admitted] == list(range(5))
    assert dict(admitted)[2] == (2,)
    assert all(2 not in inside for image, inside in admitted if image != 2)


def test_admission_smallest_limit_inside_applies():
    admitted = asyncio.run(run(AdmissionLimiter(8), [2, 8, 8, 8]))
    assert all(len(inside) <= 2 for _, inside in admitted if 0 in inside)
    assert {image for image, _ in admitted} == {0, 1, 2, 3}


def test_admission_canceled_image_frees_its_slot():
    for canceled in range(3):  # inside, waiting first, waiting second
        admitted = asyncio.run(run(AdmissionLimiter(1), [1, 1, 1, 1], cancel=canceled))
        assert [image for image, _ in admitted if image != canceled] == [
            image for image in range(4) if image != canceled
        ]
