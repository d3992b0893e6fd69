"""Who is let in to what is the admin's, and how often; by a clock that the test turns."""

import asyncio
import time
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from starlette.datastructures import Headers

from unlearn_serve.serving.admin_door import AdminDoor, Refusal
from unlearn_serve.serving.admin_key import AdminKeys

KEY = "admin-key-of-the-tests"


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of day, for the door and for the library behind it."""
    clock = Clock()
    monkeypatch.setattr("time.time", clock)
    return clock


class Caller:
    """Calls a door from one address after the other, and remembers nothing."""

    def __init__(self, *, rate: str = "1000/second", failure_rate: str = "3/minute", value: str = KEY) -> None:
        self._runner = asyncio.Runner()
        self._door = AdminDoor(AdminKeys({"UNLEARN_ADMIN_KEY": value}), rate=rate, failure_rate=failure_rate)

    def __call__(self, key: str | None, address: str = "10.0.0.1") -> int:
        """The status that refuses the call, 200 where it is let in."""
        refusal = self.refusal(key, address)
        return refusal.status if refusal else 200

    def refusal(self, key: str | None, address: str = "10.0.0.1") -> Refusal | None:
        headers = Headers({} if key is None else {"x-unlearn-admin-key": key})
        return self._runner.run(self._door.refusal(headers, address))

    def at_once(self, keys: list[str]) -> list[int]:
        async def all_of_them() -> list[Refusal | None]:
            calls = [self._door.refusal(Headers({"x-unlearn-admin-key": key}), "10.0.0.1") for key in keys]
            return list(await asyncio.gather(*calls))

        return [refusal.status if refusal else 200 for refusal in self._runner.run(all_of_them())]


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("unlearn_admin_requests_total", {"outcome": outcome}) or 0


def test_only_a_key_lets_in() -> None:
    call = Caller()
    before = {outcome: counted(outcome) for outcome in ("admitted", "no-key", "wrong-key")}

    assert [call(KEY), call(None), call("wrong"), call("")] == [200, 401, 401, 401]
    assert {outcome: counted(outcome) - before[outcome] for outcome in before} == {
        "admitted": 1,
        "no-key": 1,
        "wrong-key": 2,
    }


@pytest.mark.parametrize("key", [None, "", "wrong", KEY])
def test_without_keys_it_is_shut(key: str | None) -> None:
    refusal = Caller(value="").refusal(key)

    assert refusal is not None
    assert refusal.status == 403
    assert "UNLEARN_ADMIN_KEY" in refusal.message


def test_whoever_guesses_is_refused_even_with_the_right_key_until_the_window_is_over(clock: Clock) -> None:
    """A limit that the right key goes around would slow down nobody who tries one key after the other."""
    call = Caller(failure_rate="3/minute")

    assert [call(f"guess-{number}") for number in range(5)] == [401, 401, 401, 429, 429]
    refusal = call.refusal(KEY)
    assert refusal is not None
    assert (refusal.status, refusal.retry_after) == (429, 60)
    assert "expected at most 3 per 1 minute wrong admin keys, got more; try again in 60 s" in refusal.message

    clock.now += 59
    assert call(KEY) == 429
    clock.now += 2
    assert call(KEY) == 200


def test_wrong_keys_of_one_address_do_not_lock_out_another() -> None:
    call = Caller(failure_rate="1/minute")

    assert [call("wrong", "10.0.0.1"), call(KEY, "10.0.0.1"), call(KEY, "10.0.0.2")] == [401, 429, 200]


def test_calls_without_a_key_lock_out_nobody() -> None:
    """They try no key; a watcher that has none, behind the same proxy as the admin, must not shut the door."""
    call = Caller(failure_rate="1/minute")

    assert [call(None), call(None), call(None), call(KEY)] == [401, 401, 401, 200]


def test_guesses_at_the_same_moment_are_counted_one_by_one() -> None:
    """Else as many keys are tried as requests are sent before the first answer."""
    call = Caller(failure_rate="3/minute")

    assert sorted(call.at_once([f"guess-{number}" for number in range(20)])) == [401] * 3 + [429] * 17


def test_calls_with_a_key_are_limited_over_all_addresses(clock: Clock) -> None:
    call = Caller(rate="2/second")
    before = counted("limited")

    assert [call(KEY, f"10.0.0.{number}") for number in range(4)] == [200, 200, 429, 429]
    assert counted("limited") == before + 2
    assert call(None) == 401, "refused for what it lacks, and not counted"
    clock.now += 2
    assert call(KEY) == 200


def test_keys_that_can_no_longer_be_read_let_nobody_in_and_tell_clients_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    door = AdminDoor(AdminKeys({"UNLEARN_ADMIN_KEY_FILE": str(file)}), rate="9/second", failure_rate="9/second")
    file.write_text("short")

    refusal = asyncio.run(door.refusal(Headers({"x-unlearn-admin-key": KEY}), "10.0.0.1"))

    assert refusal is not None
    assert refusal.status == 403
    assert str(file) not in refusal.message
    assert "characters" not in refusal.message
