"""Who is in a process with whom."""

import asyncio

from ureca.pipeline.admission import AdmissionLimiter


async def run(
    admission: AdmissionLimiter, limits: list[int], *, cancel: int | None = None
) -> list[tuple[int, tuple[int, ...]]]:
    """Everyone comes at once and stays a moment; returns (who entered, who was inside then), in order."""
    inside: list[int] = []
    entered: list[tuple[int, tuple[int, ...]]] = []

    async def visit(who: int) -> None:
        async with admission.admit(limits[who]):
            inside.append(who)
            entered.append((who, tuple(inside)))
            await asyncio.sleep(0.001)
            inside.remove(who)

    tasks = [asyncio.create_task(visit(who)) for who in range(len(limits))]
    await asyncio.sleep(0)
    if cancel is not None:
        tasks[cancel].cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    return entered


def test_no_more_than_its_most_are_inside():
    entered = asyncio.run(run(AdmissionLimiter(3), [3] * 10))
    assert [who for who, _ in entered] == list(range(10))
    assert max(len(inside) for _, inside in entered) == 3


def test_one_that_must_be_alone_is_alone_and_not_overtaken():
    entered = asyncio.run(run(AdmissionLimiter(4), [4, 4, 1, 4, 4]))
    assert [who for who, _ in entered] == list(range(5))
    assert dict(entered)[2] == (2,)
    assert all(2 not in inside for who, inside in entered if who != 2)


def test_the_smallest_limit_of_those_inside_holds():
    entered = asyncio.run(run(AdmissionLimiter(8), [2, 8, 8, 8]))
    assert all(len(inside) <= 2 for _, inside in entered if 0 in inside)
    assert {who for who, _ in entered} == {0, 1, 2, 3}


def test_one_that_gives_up_leaves_no_gap():
    for canceled in range(3):  # inside, waiting, behind one that waits
        entered = asyncio.run(run(AdmissionLimiter(1), [1, 1, 1, 1], cancel=canceled))
        assert [who for who, _ in entered if who != canceled] == [who for who in range(4) if who != canceled]
