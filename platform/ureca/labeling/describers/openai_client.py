"""Resilient client for OpenAI-compatible endpoints: retries, back-off, rate limits, budget.

    429, 5xx, time-out, no connection    retried with growing delays and jitter; all requests obey Retry-After
    unknown parameter                    omitted from then on (no schema: answers are read from plain text)
    one request fails, others succeed    InputError: the image is quarantined
    no answer for a long time            EndpointLost: the job stops, resumably
    key or model refused, no quota       EndpointLost at once: waiting would not help
    job budget spent                     BudgetSpent, from the budget

The official client's own retries are disabled: it does not know the other requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import os
import random
import time
from dataclasses import dataclass
from typing import Any

from ureca.errors import ConfigError, InputError
from ureca.labeling.describers.answers import Reply
from ureca.labeling.describers.base import Pass
from ureca.pipeline.budget import Budget
from ureca.pipeline.errors import EndpointLost

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_SECONDS_BETWEEN_PROBES = 2.0
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0
_LONGEST_RETRY_AFTER_SECONDS = 300.0
_MAY_PASS = (403, 408, 409, 425)
"""Retried besides 5xx. Some endpoints answer 403 to single requests they object to, others to all once a key
expired."""
_TOO_BUSY = (429, 503, 529)
"""The endpoint is overloaded; never the request's fault."""
_TOKENS_OF_A_PICTURE = 1800
"""Estimate before the first answer: InternVL's six tiles and thumbnail."""

_OPTIONAL = {
    # parameter -> words of a refusal that mean it, because endpoints name it differently
    "response_format": ("response_format", "json_schema", "schema", "structured", "guided", "grammar"),
    "seed": ("seed",),
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
}


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """An OpenAI-compatible endpoint and its usage limits. Limits hold for the entire job."""

    base_url: str = ""
    """Base URL of the endpoint, including /v1."""
    model: str = ""
    """Model name at the endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the API key; may be unset if the endpoint needs none."""
    concurrency: int = 32
    """Maximum concurrent requests."""
    requests_per_minute: int = 0
    """Request rate limit. 0: none."""
    tokens_per_minute: int = 0
    """Token rate limit, prompts and completions. 0: none."""
    max_total_tokens: int = 0
    """Token budget of the job, prompts and completions. When it is spent the job stops and can be resumed with a higher
    one. 0: none."""
    timeout_s: float = 120.0
    """Timeout of one request, in seconds."""
    retries: int = 6
    """Failures of one request, while others succeed, before its image is quarantined."""
    give_up_after_s: float = 900.0
    """Seconds without any answer before the job stops; the same command resumes it."""

    def __post_init__(self) -> None:
        counts = ("requests_per_minute", "tokens_per_minute", "max_total_tokens", "retries")
        for name, minimum in {"concurrency": 1, **dict.fromkeys(counts, 0)}.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"chat.{name}={getattr(self, name)}: must be at least {minimum}")
        for name in ("timeout_s", "give_up_after_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"chat.{name}={getattr(self, name)}: must be above 0 seconds")

    def api_key(self) -> str:
        """Return the key from this process's environment; empty if unset."""
        return os.environ.get(self.api_key_env, "")


@dataclass(frozen=True, kw_only=True)
class ChatQuery:
    """One request, in the form the client sends."""

    pass_name: Pass
    system: str
    pictures: tuple[tuple[str, str], ...]
    """Caption and data URL of each image."""
    text: str
    plain_text: str
    """Text to send if the endpoint can't enforce the schema."""
    schema: dict[str, object]
    temperature: float
    max_tokens: int
    seed: int | None


class ChatEndpoint:
    """One process's share of an endpoint."""

    def __init__(self, config: ChatConfig, *, api_key: str, slots: int, share: float, budget: Budget | None) -> None:
        """Create the client; arguments as in `ChatDescriber`. `slots` limits concurrent requests."""
        import openai

        self._config, self._budget = config, budget
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=api_key or "none",  # the client requires a key
            max_retries=0,
            timeout=openai.Timeout(config.timeout_s, connect=_CONNECT_SECONDS),
        )
        self._slots = asyncio.Semaphore(slots)
        self._requests = RateLimiter(config.requests_per_minute * share)
        self._tokens = RateLimiter(config.tokens_per_minute * share)
        self._most_prompt_tokens: dict[Pass, int] = {}
        self._left_out: set[str] = set()
        self._last_answer = 0.0
        self._last_hello = 0.0
        self._not_before = 0.0

    async def close(self) -> None:
        await self._client.close()

    async def check(self) -> None:
        """Check that the endpoint answers, accepts the key and has the model.

        Raises:
            ConfigError: it does not; names the address.
        """
        address, model, openai = self._config.base_url, self._config.model, self._openai
        models: list[str] = []
        try:
            try:
                models = [each.id async for each in self._client.models.list()]
            except openai.APIStatusError as error:
                if error.status_code not in (404, 405, 501):
                    raise
                await self._probe()  # an endpoint need not list its models
        except openai.APIConnectionError as error:
            raise ConfigError(
                f"{address}: no answer ({_reason(error)}); start the endpoint or correct chat.base_url"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ConfigError(f"{address}: {self._key_error(error)}") from error
        except openai.NotFoundError as error:
            raise ConfigError(
                f"{address}: has no model {model!r}, or is not an OpenAI API ({_reason(error)}); correct chat.model, "
                "or chat.base_url, which usually ends in /v1"
            ) from error
        except openai.APIStatusError as error:
            if error.status_code >= 500:
                raise ConfigError(
                    f"{address}: answers {error.status_code} ({_reason(error)}); check the endpoint, or wait until it "
                    "is up"
                ) from error
        except (openai.OpenAIError, ValueError, AttributeError) as error:
            raise ConfigError(f"{address}: is not an OpenAI API; chat.base_url usually ends in /v1") from error
        if models and model not in models:
            raise ConfigError(f"{address}: has no model {model!r}; it has {', '.join(sorted(models)[:10])}")

    async def ask(self, question: ChatQuery) -> Reply:
        """Send a request, retrying as needed, and return the endpoint's answer.

        Raises:
            InputError: this request fails while others succeed, or is refused.
            EndpointLost: no request is answered any more.
            BudgetSpent: the job's tokens are spent.
        """
        first_failure, last_failure, failures, waits = 0.0, 0.0, 0, 0
        openai = self._openai
        while True:
            left_out = frozenset(self._left_out)
            try:
                async with self._slots:
                    return await self._try(question)
            except openai.AuthenticationError as error:
                raise EndpointLost(f"{self._config.base_url}: {self._key_error(error)}") from error
            except openai.NotFoundError as error:
                raise EndpointLost(
                    f"{self._config.base_url}: no longer has model {self._config.model!r} ({_reason(error)})"
                ) from error
            except openai.RateLimitError as error:
                if error.code == "insufficient_quota":
                    raise EndpointLost(self._quota_error(error)) from error
                failed: Exception = error
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if self._leave_out(error, left_out):
                    continue
                raise InputError(f"{self._config.base_url}: refuses the request ({_reason(error)})") from error
            except (openai.APIConnectionError, openai.InternalServerError, _NoCompletionError) as error:
                failed = error
            except openai.APIStatusError as error:
                if error.status_code == 402:
                    raise EndpointLost(self._quota_error(error)) from error
                if error.status_code not in _MAY_PASS:
                    raise InputError(
                        f"{self._config.base_url}: answers {error.status_code} to this request ({_reason(error)})"
                    ) from error
                failed = error
            now = time.monotonic()
            first_failure = first_failure or now
            if getattr(failed, "status_code", 0) not in _TOO_BUSY:
                if last_failure and self._last_answer < last_failure:
                    await self._probe_until_alive()
                if self._last_answer > last_failure:
                    failures += 1  # another request succeeded since the last failure, so this request is at fault
            last_failure = now
            if failures > self._config.retries:
                raise InputError(
                    f"{self._config.base_url}: failed {failures} times on this request while answering others "
                    f"({_reason(failed)})"
                ) from failed
            silent = now - max(first_failure, self._last_answer)
            if silent > self._config.give_up_after_s:
                raise EndpointLost(
                    f"{self._config.base_url}: no answer for {silent:.0f} s ({_reason(failed)}); restore it and run "
                    "the same command to resume"
                ) from failed
            await asyncio.sleep(self._wait(failed, waits))
            waits += 1

    async def _probe(self) -> Any:
        """Send the shortest possible request."""
        return await self._client.chat.completions.create(
            model=self._config.model, messages=[{"role": "user", "content": "Hi"}], timeout=_CONNECT_SECONDS
        )

    async def _probe_until_alive(self) -> None:
        """Probe the endpoint with a harmless request, unless another request is being answered."""
        if time.monotonic() - self._last_hello < _SECONDS_BETWEEN_PROBES:
            return
        self._last_hello = time.monotonic()
        with contextlib.suppress(self._openai.OpenAIError, ValueError):
            if getattr(await self._probe(), "choices", None):
                self._last_answer = time.monotonic()

    async def _try(self, question: ChatQuery) -> Reply:
        most = self._max_tokens(question)
        await self._requests.wait(1)
        await self._tokens.wait(most)
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)
        if self._budget:
            await self._budget.reserve(most)
        spent = 0
        try:
            reply = await self._send(question)
            spent = reply.prompt_tokens + reply.completion_tokens
            return reply
        except self._openai.APITimeoutError:
            spent = most  # unknown whether the endpoint processed and billed it
            raise
        finally:
            self._tokens.correct(spent - most)
            if self._budget:
                self._budget.commit(most, spent)

    async def _send(self, question: ChatQuery) -> Reply:
        structured = "response_format" not in self._left_out
        started = time.monotonic()
        messages: Any = _messages(question, structured=structured)
        try:
            completion: Any = await self._client.chat.completions.create(
                model=self._config.model, messages=messages, **self._parameters(question)
            )
        except (self._openai.APIResponseValidationError, ValueError) as error:  # truncated, or not JSON
            raise _NoCompletionError(f"not a chat completion ({error})") from error
        if not getattr(completion, "choices", None):  # a proxy's error page is text with status 200
            raise _NoCompletionError(f"not a chat completion: {str(completion)[:80]!r}")
        self._last_answer = now = time.monotonic()
        [choice, *_] = completion.choices
        refusal = getattr(choice.message, "refusal", None)
        usage = completion.usage
        prompt_tokens = usage.prompt_tokens if usage else 0
        most = max(prompt_tokens, self._most_prompt_tokens.get(question.pass_name, 0))
        self._most_prompt_tokens[question.pass_name] = most
        return Reply(
            text=refusal or choice.message.content or "",
            finish_reason="content_filter" if refusal else choice.finish_reason or "stop",
            structured=structured,
            prompt_tokens=prompt_tokens,
            completion_tokens=usage.completion_tokens if usage else 0,
            seconds=now - started,
        )

    def _parameters(self, question: ChatQuery) -> dict[str, Any]:
        limit = "max_completion_tokens" if "max_tokens" in self._left_out else "max_tokens"
        parameters: dict[str, Any] = {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": question.pass_name, "schema": question.schema, "strict": True},
            },
            "temperature": question.temperature,
            limit: question.max_tokens,
        }
        if question.seed is not None:
            parameters["seed"] = question.seed
        return {name: value for name, value in parameters.items() if name not in self._left_out}

    def _leave_out(self, error: Exception, left_out: frozenset[str]) -> bool:
        """Return whether an error refuses a parameter of the request; that parameter is omitted from later requests."""
        text = _reason(error).lower()
        for name, words in _OPTIONAL.items():
            if name not in left_out and any(word in text for word in words):
                if name not in self._left_out:
                    logger.warning("%s does not support %s (%s)", self._config.base_url, name, _reason(error))
                self._left_out.add(name)
                return True
        return False

    def _max_tokens(self, question: ChatQuery) -> int:
        """Estimate the maximum tokens of a request from earlier ones."""
        known = self._most_prompt_tokens.get(question.pass_name)
        if known is None:
            known = len(question.system + question.text) // 3 + _TOKENS_OF_A_PICTURE * len(question.pictures)
        return known + question.max_tokens

    def _wait(self, error: Exception, waits: int) -> float:
        """Return the seconds until the next attempt: the endpoint's Retry-After, or growing delays with jitter."""
        response = getattr(error, "response", None)
        asked_seconds = _retry_after(response.headers) if response is not None else None
        if asked_seconds is not None:
            asked_seconds = min(asked_seconds, _LONGEST_RETRY_AFTER_SECONDS)
            self._not_before = max(
                self._not_before, time.monotonic() + asked_seconds
            )  # applies to the other requests too
            return asked_seconds * random.uniform(1.0, 1.1)
        return min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** min(waits, 10)) * random.uniform(0.5, 1.0)

    def _quota_error(self, error: Exception) -> str:
        return (
            f"{self._config.base_url}: the quota of this key is spent ({_reason(error)}); raise it at the provider "
            "and run the same command again"
        )

    def _key_error(self, error: Exception) -> str:
        return (
            f"refuses the key in environment variable {self._config.api_key_env} ({_reason(error)}); set it, or name "
            "another variable with chat.api_key_env"
        )


class RateLimiter:
    """Limits a rate per minute, evenly spaced; 0: no limit."""

    def __init__(self, per_minute: float) -> None:
        self._seconds_each = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self, amount: int) -> None:
        """Wait until `amount` units are available, in the order of the calls."""
        turn = max(self._next, time.monotonic())
        self._next = turn + amount * self._seconds_each
        await asyncio.sleep(max(0.0, turn - time.monotonic()))

    def correct(self, amount: int) -> None:
        """Account for `amount` more units than waited for (fewer, if negative)."""
        self._next += amount * self._seconds_each


class _NoCompletionError(Exception):
    """HTTP 200 without a usable completion."""


def _messages(question: ChatQuery, *, structured: bool) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for label, url in question.pictures:
        content += [{"type": "text", "text": label}, {"type": "image_url", "image_url": {"url": url}}]
    content.append({"type": "text", "text": question.text if structured else question.plain_text})
    return [{"role": "system", "content": question.system}, {"role": "user", "content": content}]


def _retry_after(headers: Any) -> float | None:
    """Return the seconds of a Retry-After header, which holds seconds or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _reason(error: Exception) -> str:
    """Summarize an error in one short line, with the endpoint's own message if it has one."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else None
    text = str(message or cause or error) or type(error).__name__
    return " ".join(text.split())[:200]
