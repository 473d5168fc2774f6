"""Chat engine for any multimodal model of vLLM: text and images in, schema-constrained text out.

The engine is vLLM's `AsyncLLM`, which batches over all concurrent requests. The model's own chat template builds the
prompt. Canceling a call aborts its request.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ureca.devices import check_dtype
from ureca.engine.process import EngineDiedError, end_llm, start_llm
from ureca.errors import InputError
from ureca.regions.tiles import with_thumbnail

_PROCESSOR_CACHE_GB = 1.0
"""Views repeat only within one image; vLLM's default of 4 GiB would be held by every engine of a machine."""


@dataclass(frozen=True)
class ChatReply:
    """One answer."""

    text: str
    finish_reason: str
    """`stop` (the model ended it) or `length` (truncated at `max_tokens`)."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class ChatEngine:
    """One vLLM engine for chats with images. Call `await start()` first and `close()` last."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        max_pictures: int = 3,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        vllm_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Configure the engine; nothing is started yet.

        Args:
            model: folder or hub name of a model that vLLM supports.
            dtype: "float32", "bfloat16", or "auto": float32 on CPUs, bfloat16 on GPUs.
            max_model_len: maximum tokens of prompt and answer; None: the model's limit.
            max_num_seqs: maximum requests per engine step.
            max_pictures: maximum images per request.
            tensor_parallel_size: GPUs that share the model.
            gpu_memory_utilization: share of each GPU's memory for the engine.
            vllm_args: further engine arguments of vLLM by name.

        Raises:
            ConfigError: unknown dtype.
        """
        check_dtype(dtype, name="engine dtype")
        self.model = model
        self._options: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "limit_mm_per_prompt": {"image": max_pictures, "video": 0},
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "vllm_args": vllm_args,
        }
        self._llm: Any = None

    async def start(self) -> None:
        """Start vLLM's processes and load the weights (see `start_llm`)."""
        from vllm.config import StructuredOutputsConfig

        self._llm = start_llm(
            model=self.model,
            mm_processor_cache_gb=_PROCESSOR_CACHE_GB,
            # If a schema allows white space, a confused model emits only white space until it is truncated.
            structured_outputs_config=StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
            **_tiling(self.model),
            **self._options,
        )

    def close(self) -> None:
        """End vLLM's processes. Call it in the event loop in which the engine was started."""
        if self._llm is not None:
            end_llm(self._llm)
            self._llm = None

    async def chat(
        self,
        system: str,
        content: Sequence[str | Image.Image],
        *,
        max_tokens: int,
        schema: dict[str, object] | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> ChatReply:
        """Answer one message.

        Args:
            system: system message.
            content: texts and RGB images, in order.
            max_tokens: maximum tokens of the answer.
            schema: JSON schema to enforce; None: free text.
            temperature: 0 decodes greedily.
            seed: sampling seed. Omitted on CPUs: vLLM 0.32 rewinds the request's generator when a prompt is prefilled
                in
                chunks, which torch's CPU generator can't do, and the engine would die.

        Raises:
            InputError: the request exceeds the model's length.
            EngineDiedError: vLLM's processes are gone.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.platforms import current_platform
        from vllm.renderers.params import ChatParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError

        parts: list[dict[str, Any]] = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image_pil", "image_pil": part}
            for part in content
        ]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": parts}]
        chat = ChatParams(chat_template_kwargs={"add_generation_prompt": True, "tokenize": True})
        params = SamplingParams(
            temperature=temperature,
            seed=None if current_platform.is_cpu() else seed,
            max_tokens=max_tokens,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
        )
        try:
            _, (prompt,) = await self._llm.renderer.render_chat_async([messages], chat)
            async with contextlib.aclosing(self._llm.generate(prompt, params, uuid.uuid4().hex)) as outputs:
                async for output in outputs:
                    last = output
        except EngineDeadError as error:
            raise EngineDiedError(f"vLLM's engine with {self.model} died") from error
        except VLLMClientError as error:
            raise InputError(f"{self.model} does not accept the request ({error})") from error
        [answer] = last.outputs
        return ChatReply(
            text=answer.text,
            finish_reason=answer.finish_reason or "stop",
            prompt_tokens=len(last.prompt_token_ids),
            cached_tokens=last.num_cached_tokens or 0,
            completion_tokens=len(answer.token_ids),
        )


def _tiling(model: str) -> dict[str, Any]:
    """Return the engine arguments that a model needs for images of several tiles; empty for other models than InternVL.

    The hub's InternVLs have crop_to_patches=false. vLLM then counts one tile per image, but the processor's call cuts
    up to 12 and a thumbnail.
    """
    from transformers import AutoProcessor, InternVLConfig, PretrainedConfig

    # Only InternVL's processor is loaded here: others may need code or options that only vLLM is given.
    record, _ = PretrainedConfig.get_config_dict(model)
    if record.get("model_type") != InternVLConfig.model_type:
        return {}
    processor: Any = AutoProcessor.from_pretrained(model)
    tiles = with_thumbnail(processor.image_processor.max_patches)
    return {
        "longest_image": tiles * processor.image_seq_length + 2,  # with the tokens around the image
        "mm_processor_kwargs": {"crop_to_patches": True},
    }
