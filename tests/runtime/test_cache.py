"""The cache: each value loaded once, the budget kept, what is in use never evicted."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lora_export.core.errors import AdapterError, UsageError
from lora_export.runtime.cache import ByteCache


class Loads:
    """Counts the loads of each key; values are their keys."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __call__(self, cache: ByteCache[str], key: str, nbytes: int = 10) -> str:
        def load() -> str:
            self.keys.append(key)
            return key

        with cache.hold(key, nbytes, load) as value:
            return value


def test_a_value_is_loaded_once_and_the_least_recently_used_goes_first():
    cache, get = ByteCache[str](20), Loads()
    for key in "abacab":  # c evicts b, the last b evicts c
        assert get(cache, key) == key
    assert get.keys == ["a", "b", "c", "b"]
    assert cache.used_bytes == 20


def test_without_a_limit_everything_stays():
    cache, get = ByteCache[str](None), Loads()
    for key in "abcabc":
        get(cache, key, 1 << 40)
    assert get.keys == ["a", "b", "c"]


def test_a_large_value_evicts_as_many_small_ones_as_it_has_to():
    cache, get = ByteCache[str](30), Loads()
    for key in "abc":
        get(cache, key)
    get(cache, "d", 15)
    assert cache.used_bytes == 25
    assert get(cache, "c") == "c"
    assert get.keys == ["a", "b", "c", "d"]


def test_a_value_larger_than_the_budget_is_refused_and_evicts_nothing():
    cache, get = ByteCache[str](20), Loads()
    get(cache, "a")
    with pytest.raises(UsageError, match="takes 21 bytes") as caught:
        get(cache, "b", 21)
    assert "21" in (caught.value.hint or "")
    assert cache.used_bytes == 10


def test_a_failed_load_leaves_nothing_and_the_next_one_tries_again():
    cache, get = ByteCache[str](10), Loads()

    def fail() -> str:
        msg = "damaged"
        raise AdapterError(msg)

    for _ in range(2):
        with pytest.raises(AdapterError, match="damaged"), cache.hold("a", 10, fail):
            pass
        assert cache.used_bytes == 0
    assert get(cache, "a") == "a"


def test_threads_that_want_one_value_load_it_once():
    cache, loads, everybody = ByteCache[str](10), [], threading.Barrier(8)

    def load() -> str:
        loads.append(1)
        time.sleep(0.05)
        return "a"

    def get() -> str:
        everybody.wait()
        with cache.hold("a", 10, load) as value:
            return value

    with ThreadPoolExecutor(8) as pool:
        assert [each.result() for each in [pool.submit(get) for _ in range(8)]] == ["a"] * 8
    assert loads == [1]


def test_who_waits_for_a_load_that_fails_loads_it_himself():
    cache, tries, first_loads = ByteCache[str](10), [], threading.Event()

    def load() -> str:
        tries.append(1)
        if len(tries) == 1:
            first_loads.set()
            time.sleep(0.05)
            msg = "damaged"
            raise AdapterError(msg)
        return "a"

    def get() -> str:
        with cache.hold("a", 10, load) as value:
            return value

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(get)
        first_loads.wait()
        second = pool.submit(get)
        assert second.result() == "a"
        with pytest.raises(AdapterError):
            first.result()


def test_a_value_in_use_is_waited_for_and_the_budget_is_never_passed():
    cache = ByteCache[str](10)
    held, go = threading.Event(), threading.Event()

    def hold_first() -> None:
        with cache.hold("a", 10, lambda: "a"):
            held.set()
            go.wait()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(hold_first)
        held.wait()
        second = pool.submit(Loads(), cache, "b")
        time.sleep(0.05)
        assert not second.done()
        assert cache.used_bytes == 10
        go.set()
        first.result()
        assert second.result() == "b"
    assert cache.used_bytes == 10


def test_a_closed_cache_refuses_and_lets_those_in_use_finish():
    cache = ByteCache[str](None)
    with cache.hold("a", 10, lambda: "a") as value:
        cache.close()
        assert value == "a"
        assert cache.used_bytes == 0
    with pytest.raises(UsageError, match="closed"), cache.hold("b", 1, lambda: "b"):
        pass


def test_a_value_that_is_loaded_while_the_cache_closes_is_not_kept():
    cache = ByteCache[str](None)

    def load() -> str:
        cache.close()
        return "a"

    with cache.hold("a", 10, load) as value:
        assert value == "a"
    assert cache.used_bytes == 0
