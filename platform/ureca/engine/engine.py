"""Captions for all regions of an image from one vLLM engine.

The first region of an image goes alone until its first token is there: by then the image prefix lies in the
KV cache, and the other regions follow together and find it. (Sent at once they would all miss, and each would
compute the image anew.)
The engine is vLLM's `AsyncLLM`: it batches over everything that is asked at one time, so callers call
concurrently and nothing here queues. Cancelling a call, or closing its stream, aborts its requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ureca.engine.process import EngineDiedError, check_dtype, end_llm, start_llm
from ureca.engine.prompts import ImagePrompt, PromptBuilder, RegionPrompt
from ureca.engine.results import Caption, Event, RegionFault, collect_captions
from ureca.engine.utilization import Load
from ureca.errors import InputError
from ureca.regions.rle import Rle


class CaptionEngine:
    """One vLLM engine with the mask encoder beside it. `await start()` first, `close()` last."""

    def __init__(
        self,
        export_dir: str | Path,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        prefix_caching: bool = True,
        name: str | None = None,
        stat_loggers: Sequence[Any] = (),
        on_masks_encoded: Callable[[float], None] | None = None,
    ) -> None:
        """Read the export; no process is started yet.

        Args:
            export_dir: what `ureca.model.exporting.export` wrote.
            dtype: "float32", "bfloat16", or "auto": float32 on a CPU (captions then equal transformers'),
                bfloat16 on a GPU.
            max_model_len: most tokens of prompt and caption; None: what the image prefix, the mask and a
                caption of 256 tokens can need at the export's tile limit.
            max_num_seqs: most regions in one step of the engine.
            tensor_parallel_size: GPUs that share the model.
            gpu_memory_utilization: share of each GPU's memory that the engine may take.
            prefix_caching: keep the image's KV blocks for its other regions; False only to measure what that saves.
            name: of the model in vLLM's metrics; None: the folder.
            stat_loggers: classes that vLLM makes and tells its metrics (`vllm.v1.metrics`); none: it keeps none.
            on_masks_encoded: called with the seconds that the masks of an image took, from another thread.

        Raises:
            CheckpointError: the folder is no export, or its parts don't fit each other.
        """
        check_dtype(dtype)
        self.export_dir = Path(export_dir)
        self.prompts = PromptBuilder(export_dir)
        self.max_model_len = max_model_len or self._longest_sequence()
        self._options: dict[str, Any] = {
            "dtype": dtype,
            "max_num_seqs": max_num_seqs,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enable_prefix_caching": prefix_caching,
            "served_model_name": name,
            "stat_loggers": stat_loggers,
        }
        self.load = Load(max_num_seqs)
        """The regions that vLLM generates captions for, from when it was ready."""
        self._on_masks_encoded = on_masks_encoded
        self._llm: Any = None

    async def start(self) -> None:
        """Start vLLM's processes and load the weights: 20 to 60 s on two cores.

        A script that calls this needs `if __name__ == "__main__":` around what it runs: vLLM's processes
        import it.
        """
        self._llm = start_llm(
            model=str(self.export_dir),
            max_model_len=self.max_model_len,
            enable_prompt_embeds=True,
            limit_mm_per_prompt={"image": 1, "video": 0},
            **self._options,
        )
        self.load.begin()

    def close(self) -> None:
        """End vLLM's processes. The engine can be started again.

        Call it inside the event loop that the engine was started in, and let that loop go on for a moment: vLLM closes
        its sockets there, and a process whose sockets stay open hangs when it ends.
        """
        if self._llm is not None:
            end_llm(self._llm)
            self._llm = None

    async def check_health(self) -> None:
        """Ask the engine, without making it generate. Raises if it was not started or its process died."""
        if self._llm is None:
            raise RuntimeError("the caption engine was not started")
        await self._llm.check_health()

    async def caption(
        self,
        image: np.ndarray | Image.Image,
        segmentations: Sequence[Rle | None],
        queries: Sequence[str],
        **options: Any,
    ) -> list[Caption]:
        """Caption regions of one image; arguments and errors as in `stream`."""
        captions = await collect_captions(self.stream(image, segmentations, queries, **options))
        return [each for each in captions if isinstance(each, Caption)]

    async def stream(
        self,
        image: np.ndarray | Image.Image,
        segmentations: Sequence[Rle | None],
        queries: Sequence[str],
        *,
        max_tokens: int = 96,
        min_tokens: int = 0,
        temperature: float = 0.0,
        top_p: float = 1.0,
        logprobs: bool = False,
        cache_salt: str | None = None,
        faults_in_place: bool = False,
    ) -> AsyncGenerator[tuple[int, Event]]:
        """Caption regions of one image and tell of each piece of text as it comes.

        Args:
            image: (H, W, 3) uint8 RGB, or a PIL image.
            segmentations: a COCO RLE of the image's size for each region; None asks without a region.
            queries: one for each region, as `CaptionerProcessor.query` makes them.
            max_tokens: most tokens of one caption.
            min_tokens: no caption ends before so many.
            temperature: 0 takes the likeliest token each time.
            top_p: share of the probability, the likeliest tokens first, that is drawn from.
            logprobs: tell each token's log-probability in the `Caption`.
            cache_salt: calls find only what calls with the same salt left: prefixes, and processed images.
            faults_in_place: yield a `RegionFault` of a region whose query is at fault; otherwise that is an InputError.

        Yields:
            (number of the region, next piece of its caption), and once for each region, last,
            (number of the region, its whole `Caption`).

        Raises:
            InputError: no prompt fits `max_model_len`; or, without `faults_in_place`, one does not, or a query holds a
                control token.
            CheckpointError: the mask encoder gave rows that the language model can't take.
            EngineDiedError: vLLM's processes are gone.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        image_prompt, regions = await asyncio.to_thread(self._prepare, image, segmentations, queries, max_tokens)
        for index, region in enumerate(regions):
            if isinstance(region, RegionFault):
                if not faults_in_place:
                    raise InputError(region.message)
                yield index, region
        asked = {index: region for index, region in enumerate(regions) if isinstance(region, RegionPrompt)}
        first = next(iter(asked), None)
        params = SamplingParams(
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            stop_token_ids=[self.prompts.processor.end_token_id],
            logprobs=0 if logprobs else None,  # 0 beside the token that was taken
            output_kind=RequestOutputKind.DELTA,
        )
        events: asyncio.Queue[tuple[int, str | Caption | None]] = asyncio.Queue()
        prefix_ready = asyncio.Event()

        async def run(index: int, region: RegionPrompt) -> None:
            try:
                if index != first:
                    await prefix_ready.wait()
                async for event in self._generate(image_prompt, region, params, cache_salt):
                    prefix_ready.set()
                    events.put_nowait((index, event))
            finally:
                prefix_ready.set()
                events.put_nowait((index, None))

        tasks = {index: asyncio.create_task(run(index, region)) for index, region in asked.items()}
        try:
            running = len(tasks)
            while running:
                index, event = await events.get()
                if event is None:
                    running -= 1
                    await tasks[index]  # raises what the region's request raised
                else:
                    yield index, event
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _generate(
        self, image: ImagePrompt, region: RegionPrompt, params: Any, cache_salt: str | None
    ) -> AsyncGenerator[str | Caption]:
        prompt = await self._vllm_prompt(image, region, cache_salt)
        pieces: list[str] = []
        token_ids: list[int] = []
        logprobs: list[tuple[str, float]] = []
        async with contextlib.aclosing(self._outputs(prompt, params)) as outputs:
            async for output in outputs:
                [piece] = output.outputs
                token_ids += piece.token_ids
                for token_id, of_token in zip(piece.token_ids, piece.logprobs or (), strict=False):
                    logprobs.append((of_token[token_id].decoded_token or "", of_token[token_id].logprob))
                if piece.text:
                    pieces.append(piece.text)
                    yield piece.text
                if output.finished:
                    yield Caption(
                        text=" ".join("".join(pieces).split()),
                        finish_reason=piece.finish_reason or "stop",
                        token_ids=tuple(token_ids),
                        prompt_tokens=len(output.prompt_token_ids),
                        cached_tokens=output.num_cached_tokens or 0,
                        completion_tokens=len(token_ids),
                        logprobs=None if params.logprobs is None else tuple(logprobs),
                    )

    async def _outputs(self, prompt: Any, params: Any) -> AsyncGenerator[Any]:
        from vllm.v1.engine.exceptions import EngineDeadError

        with self.load.regions():
            try:
                async with contextlib.aclosing(self._llm.generate(prompt, params, uuid.uuid4().hex)) as outputs:
                    async for output in outputs:
                        yield output
            except EngineDeadError as error:
                raise EngineDiedError(f"vLLM's engine with {self.export_dir} died") from error

    async def _vllm_prompt(self, image: ImagePrompt, region: RegionPrompt, cache_salt: str | None) -> Any:
        """vLLM's own input for one region. Raises RuntimeError where its ids are not those of training."""
        prompt: dict[str, Any] = {
            "prompt_token_ids": self.prompts.sent_ids(image, region),
            "multi_modal_data": {"image": image.image},
            "multi_modal_uuids": {"image": [image.digest]},
        }
        if cache_salt is not None:
            prompt["cache_salt"] = cache_salt
            # vLLM salts its KV blocks, but not what it keeps of a processed image under this name.
            prompt["multi_modal_uuids"] = {
                "image": [hashlib.sha256(f"{cache_salt} {image.digest}".encode()).hexdigest()]
            }
        if region.rows is not None:
            # The one name here that vLLM does not document: what its chat route hands to the same function.
            prompt["_prompt_embeds"] = ([region.rows], self.prompts.placeholder_id)
        engine_input = await self._llm.renderer.process_for_engine_async(prompt, time.time())
        if list(engine_input["prompt_token_ids"]) != self.prompts.token_ids(image, region):
            raise RuntimeError("vLLM expanded the prompt to other token ids than the captioner was trained on")
        return engine_input

    def _prepare(
        self,
        image: np.ndarray | Image.Image,
        segmentations: Sequence[Rle | None],
        queries: Sequence[str],
        max_tokens: int,
    ) -> tuple[ImagePrompt, list[RegionPrompt | RegionFault]]:
        image_prompt = self.prompts.image(image)
        faults = [self.prompts.fault(query) for query in queries]
        sound = [index for index, fault in enumerate(faults) if fault is None]
        began = time.perf_counter()
        made = self.prompts.regions([segmentations[index] for index in sound], [queries[index] for index in sound])
        if self._on_masks_encoded is not None:
            self._on_masks_encoded(time.perf_counter() - began)
        regions: list[RegionPrompt | RegionFault] = [RegionFault(fault or "") for fault in faults]
        for index, region in zip(sound, made, strict=True):
            needed = len(self.prompts.token_ids(image_prompt, region)) + max_tokens
            fits = needed <= self.max_model_len
            regions[index] = (
                region
                if fits
                else RegionFault(
                    f"a prompt of {needed - max_tokens} tokens and a caption of {max_tokens} do not fit the "
                    f"engine's max_model_len={self.max_model_len}; ask for fewer tokens or start it with more"
                )
            )
        unfit = [each for index in sound if isinstance(each := regions[index], RegionFault)]
        if unfit and len(unfit) == len(sound):  # no question's fault: the call asks for too much
            raise InputError(unfit[0].message)
        return image_prompt, regions

    def _longest_sequence(self) -> int:
        tiles = self.prompts.config.tile_limit
        tiles += tiles > 1  # the thumbnail
        mask = self.prompts.config.mask.tokens_per_tile * tiles + 2
        query_and_caption = 64 + 256
        return len(self.prompts.processor.prefix_ids(tiles)) + mask + query_and_caption
