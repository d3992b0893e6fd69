"""Who may call what is the admin's: a key first, and then not too often."""

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving import metrics
from unlearn_serve.serving.admin_key import ADMIN_HEADER, ADMIN_KEY_VARIABLE, AdminKeys

logger = logging.getLogger("vllm.unlearn_serve")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a call is not let in, as an answer."""

    status: int
    message: str
    retry_after: int | None = None
    """Seconds until it may be tried again."""


class AdminDoor:
    """Lets a call in that has an admin key, and refuses the others.

    Two limits, in memory: of calls with a key, over all keys; and of wrong keys from one address, which is then
    refused whatever it has, for a limit that a right key goes around would not slow down whoever guesses.
    """

    def __init__(self, keys: AdminKeys, *, rate: str, failure_rate: str) -> None:
        """Limits are written as by the library `limits`: `10/minute`."""
        self._keys = keys
        self._rate = parse(rate)
        self._failure_rate = parse(failure_rate)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._one_at_a_time = asyncio.Lock()

    async def refusal(self, headers: Mapping[str, str], address: str) -> Refusal | None:
        """Return why the call is refused, None where it is let in; counts it either way.

        Args:
            headers: of the request, names in any case.
            address: whom wrong keys are counted for.
        """
        async with self._one_at_a_time:  # else as many keys can be tried as requests are sent before the first answer
            refusal, outcome = await self._decide(headers.get(ADMIN_HEADER), address)
        metrics.ADMIN_REQUESTS.labels(outcome).inc()
        return refusal

    async def _decide(self, key: str | None, address: str) -> tuple[Refusal | None, metrics.AdminOutcome]:
        if not self._keys.on:
            why = f"admin endpoints are off: start the server with {ADMIN_KEY_VARIABLE} set"
            return Refusal(status=403, message=why), "off"
        if not await self._limiter.test(self._failure_rate, "failures", address):
            return await self._too_many(self._failure_rate, "wrong admin keys", "failures", address), "limited"
        if key is None:
            why = f"expected the admin key in the header {ADMIN_HEADER}, got none"
            return Refusal(status=401, message=why), "no-key"
        try:
            right = await asyncio.to_thread(self._keys.accept, key)
        except NotEnforced as error:
            logger.error("unlearn-serve: nobody is let in: %s", error)
            why = "admin endpoints are off: the admin keys cannot be read, the server's log says why"
            return Refusal(status=403, message=why), "off"
        if not right:
            await self._limiter.hit(self._failure_rate, "failures", address)
            return Refusal(status=401, message=f"the key in the header {ADMIN_HEADER} is not an admin key"), "wrong-key"
        if not await self._limiter.hit(self._rate, "calls"):
            return await self._too_many(self._rate, "calls of admin endpoints", "calls"), "limited"
        return None, "admitted"

    async def _too_many(self, limit: RateLimitItem, what: str, *identifiers: str) -> Refusal:
        reset = (await self._limiter.get_window_stats(limit, *identifiers)).reset_time
        seconds = max(1, math.ceil(reset - time.time()))
        why = f"expected at most {limit} {what}, got more; try again in {seconds} s"
        return Refusal(status=429, message=why, retry_after=seconds)
