"""Caption all regions of an image with one vLLM engine.

The first region of an image runs alone until its first token. By then the image prefix is in the KV cache, and the
other regions are sent together and reuse it. Sent at once, they would all miss and each would compute the image. The
engine is vLLM's `AsyncLLM`, which batches over all concurrent requests: callers call concurrently, and there is no
queue here. Cancelling a call, or closing its stream, aborts its requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ureca.devices import check_dtype
from ureca.engine.process import EngineDiedError, end_llm, start_llm
from ureca.engine.prompts import ImagePrompt, PromptBuilder, RegionPrompt
from ureca.engine.results import Caption, Event, RegionFault, collect_captions
from ureca.engine.utilization import LoadMeter
from ureca.errors import InputError
from ureca.regions.rle import Rle
from ureca.regions.tiles import with_thumbnail


class CaptionEngine:
    """One vLLM engine and its mask encoder. Call `await start()` first and `close()` last."""

    def __init__(
        self,
        export_dir: str | Path,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        vllm_args: Mapping[str, Any] | None = None,
        prefix_caching: bool = True,
        name: str | None = None,
        stat_loggers: Sequence[Any] = (),
        on_masks_encoded: Callable[[float], None] | None = None,
    ) -> None:
        """Read the export; no process is started yet.

        Args:
            export_dir: export written by `ureca.model.exporting.export`.
            dtype: "float32", "bfloat16", or "auto": float32 on a CPU (captions then equal transformers'),
                bfloat16 on a GPU.
            max_model_len: maximum tokens of prompt and caption; None: enough for the image prefix, the mask and a
                caption of 256 tokens at the export's tile limit.
            max_num_seqs: maximum regions per engine step.
            tensor_parallel_size: number of GPUs that share the model.
            gpu_memory_utilization: fraction of each GPU's memory that the engine may use.
            vllm_args: further engine arguments of vLLM by name.
            prefix_caching: keep the image's KV blocks for its other regions; False only to measure the saving.
            name: model name in vLLM's metrics; None: the folder name.
            stat_loggers: classes of `vllm.v1.metrics` that receive vLLM's metrics; None: no metrics.
            on_masks_encoded: called from another thread with the seconds spent on an image's masks.

        Raises:
            CheckpointError: the folder is not an export, or its parts do not match.
        """
        check_dtype(dtype, name="engine dtype")
        self.export_dir = Path(export_dir)
        self.prompts = PromptBuilder(export_dir)
        self.max_model_len = max_model_len or self._longest_sequence()
        self._options: dict[str, Any] = {
            "dtype": dtype,
            "max_num_seqs": max_num_seqs,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "vllm_args": vllm_args,
            "longest_image": self._longest_prefix(),
            "enable_prefix_caching": prefix_caching,
            "served_model_name": name,
            "stat_loggers": stat_loggers,
        }
        self.load = LoadMeter(max_num_seqs)
        """Utilization of the engine since it became ready."""
        self._on_masks_encoded = on_masks_encoded
        self._llm: Any = None

    async def start(self) -> None:
        """Start vLLM's processes and load the weights: 20 to 60 s on two cores.

        Scripts that call this need `if __name__ == "__main__":`, because vLLM's processes import them.
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

        Call it in the event loop in which the engine was started, and keep that loop running for a moment: vLLM closes
        its sockets in it, and a process with open sockets hangs at exit.
        """
        if self._llm is not None:
            end_llm(self._llm)
            self._llm = None

    async def check_health(self) -> None:
        """Check the engine without generating. Raises if it was not started or its process died."""
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
        """Caption regions of one image, yielding each piece of text as it arrives.

        Args:
            image: (H, W, 3) uint8 RGB, or a PIL image.
            segmentations: per region a COCO RLE of the image's size; None: without a region cue.
            queries: one per region, from `CaptionerProcessor.query`.
            max_tokens: maximum tokens per caption.
            min_tokens: minimum tokens per caption.
            temperature: 0 decodes greedily.
            top_p: nucleus sampling: probability mass of the likeliest tokens to sample from.
            logprobs: include each token's log-probability in the `Caption`.
            cache_salt: calls share cached prefixes and processed images only with calls of the same salt.
            faults_in_place: yield a `RegionFault` for a region with a faulty query instead of raising InputError.

        Yields:
            (region index, next piece of its caption), and finally once per region (region index, its `Caption`).

        Raises:
            InputError: no prompt fits `max_model_len`; or, without `faults_in_place`, one does not, or a query holds a
                control token.
            CheckpointError: the mask encoder produced rows that the language model can't take.
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
            logprobs=0 if logprobs else None,  # 0 alternatives to the sampled token
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
                    await tasks[index]  # raises the error of the region's request
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
        """Build vLLM's input for one region. Raises RuntimeError if its ids differ from training."""
        prompt: dict[str, Any] = {
            "prompt_token_ids": self.prompts.sent_ids(image, region),
            "multi_modal_data": {"image": image.image},
            "multi_modal_uuids": {"image": [image.digest]},
        }
        if cache_salt is not None:
            prompt["cache_salt"] = cache_salt
            # vLLM salts its KV blocks, but not its cache of processed images, which uses this name.
            prompt["multi_modal_uuids"] = {
                "image": [hashlib.sha256(f"{cache_salt} {image.digest}".encode()).hexdigest()]
            }
        if region.rows is not None:
            # The only undocumented name of vLLM used here: its chat route passes it to the same function.
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
                    f"a prompt of {needed - max_tokens} tokens and a caption of {max_tokens} exceed the engine's "
                    f"max_model_len={self.max_model_len}; request fewer tokens, or raise max_model_len"
                )
            )
        unfit = [each for index in sound if isinstance(each := regions[index], RegionFault)]
        if unfit and len(unfit) == len(sound):  # not a single query's fault: the call asks for too much
            raise InputError(unfit[0].message)
        return image_prompt, regions

    def _most_tiles(self) -> int:
        return with_thumbnail(self.prompts.config.tile_limit)

    def _longest_prefix(self) -> int:
        return len(self.prompts.processor.prefix_ids(self._most_tiles()))

    def _longest_sequence(self) -> int:
        mask = self.prompts.config.mask.tokens_per_tile * self._most_tiles() + 2
        query_and_caption = 64 + 256
        return self._longest_prefix() + mask + query_and_caption
