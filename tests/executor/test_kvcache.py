"""The memory of generations stays under its bound, and the caches hold what transformers' own would."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from orbitmesh.errors import CapacityError, InvalidInputError
from services.executor.kvcache import CachePool, CacheShare, FullLayer, SlidingLayer

STEPS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(steps=STEPS, window=st.none() | st.integers(2, 12))
@settings(max_examples=150, deadline=None)
def test_preallocated_layers_return_what_theirs_return(steps: list[int], window: int | None) -> None:
    """The same keys, values, lengths and mask sizes after any steps, with and without a window."""
    ours = FullLayer(sum(steps)) if window is None else SlidingLayer(sum(steps), window)
    theirs = DynamicLayer() if window is None else DynamicSlidingWindowLayer(sliding_window=window)
    for count in steps:
        assert ours.get_mask_sizes(count) == theirs.get_mask_sizes(count)
        keys, values = (
            torch.randn(1, 3, count, 5),
            torch.randn(1, 1, count, 2),
        )  # unlike, as latent attention has
        for got, expected in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(got, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()


@given(
    actions=st.lists(st.tuples(st.sampled_from("oc"), st.integers(0, 5), st.integers(1, 40)), max_size=40),
    budget=st.integers(0, 1000),
)
def test_the_pool_never_gives_more_than_its_budget(actions: list[tuple[str, int, int]], budget: int) -> None:
    """Whatever is opened and closed, the bytes add up, and arithmetic confirms every refusal."""
    pool = CachePool(budget, bytes_per_token=7, generations_max=4)
    held: dict[str, int] = {}
    for action, number, tokens in actions:
        name = f"g{number}"
        if action == "c":
            pool.close(name)
            held.pop(name, None)
        elif name in held:
            with pytest.raises(InvalidInputError):
                pool.open(name, tokens)
        elif tokens * 7 > budget - sum(held.values()) or len(held) == 4:
            with pytest.raises(CapacityError):
                pool.open(name, tokens)
        else:
            held[name] = pool.open(name, tokens).reserved_bytes
        assert pool.free_bytes == budget - sum(held.values())
        assert pool.free_bytes >= 0
        assert len(pool) == len(held)


def test_a_full_pool_says_what_is_needed_and_what_is_free() -> None:
    """The refusal carries needed, free and budget bytes, in its text and for machines, and may be retried."""
    pool = CachePool(budget_bytes=1000, bytes_per_token=10)
    pool.open("a", 60)
    with pytest.raises(
        CapacityError, match=r"41 tokens need 410 bytes of cache; 400 of 1000 are free"
    ) as caught:
        pool.open("b", 41)
    assert caught.value.reason == "KV_MEMORY_EXHAUSTED"
    assert caught.value.retryable
    assert caught.value.metadata == {
        "needed_bytes": "410",
        "free_bytes": "400",
        "budget_bytes": "1000",
        "open_generations": "1",
    }
    pool.open("b", 40)


def test_closing_frees_the_memory_once() -> None:
    """Closing twice, or what was never open, gives nothing back a second time."""
    pool = CachePool(budget_bytes=100, bytes_per_token=1)
    cache = pool.open("a", 100)
    pool.close("a")
    pool.close("a")
    pool.close("never")
    assert pool.free_bytes == 100
    assert cache.closed
    with pytest.raises(InvalidInputError) as caught:
        pool.get("a")
    assert caught.value.reason == "NOT_FOUND"


def test_the_count_of_generations_is_bounded_too() -> None:
    """Generations that reserve next to nothing still cannot pile up without end."""
    pool = CachePool(budget_bytes=1 << 30, bytes_per_token=1, generations_max=3)
    for number in range(3):
        pool.open(f"g{number}", 1)
    with pytest.raises(CapacityError, match="3 generations are open"):
        pool.open("one more", 1)


@pytest.mark.parametrize("tokens", [0, -1, 1 << 30])
def test_a_reservation_out_of_range_is_refused(tokens: int) -> None:
    """No tokens, or more than any context has."""
    with pytest.raises(InvalidInputError, match="a generation reserves"):
        CachePool(1 << 60, 1).open("g", tokens)


def test_threads_that_race_for_the_last_bytes_share_them_out_exactly() -> None:
    """Of 16 threads that ask for a quarter of the memory at once, four get it."""
    pool = CachePool(budget_bytes=400, bytes_per_token=1)
    gate = threading.Barrier(16)
    granted: list[str] = []

    def ask(name: str) -> None:
        gate.wait()
        try:
            pool.open(name, 100)
        except CapacityError:
            return
        granted.append(name)

    threads = [threading.Thread(target=ask, args=(f"g{number}",)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 4
    assert pool.free_bytes == 0


def test_a_cache_cannot_be_rolled_forward() -> None:
    """Truncating to more tokens than are held is refused."""
    cache = CachePool(100, 1).open("g", 10)
    with pytest.raises(InvalidInputError, match="cannot roll back to 1 tokens: 0 are held"):
        cache.truncate(1)


SLICES = st.sampled_from(["a", "b", "unknown", ""])


@given(
    actions=st.lists(st.tuples(st.sampled_from("ooc"), st.integers(0, 7), st.integers(1, 40), SLICES), max_size=50),
    parts=st.tuples(st.integers(0, 50), st.integers(50, 100), st.integers(0, 50), st.integers(50, 100)),
    budget=st.integers(0, 1000),
)
def test_what_is_guaranteed_to_a_slice_is_always_free_for_it(
    actions: list[tuple[str, int, int, str]], parts: tuple[int, int, int, int], budget: int
) -> None:
    """Whatever others open and close: no slice has more than its most, the rest of every guarantee is free, and a
    reservation within the rest of a guarantee is never refused."""
    pool = CachePool(budget, bytes_per_token=1)
    shares = {"a": CacheShare(parts[0] / 100, parts[1] / 100), "b": CacheShare(parts[2] / 100, parts[3] / 100)}
    pool.set_shares(shares)
    held: dict[str, tuple[str, int]] = {}
    for action, number, tokens, name in actions:
        if action == "c":
            pool.close(str(number))
            held.pop(str(number), None)
            continue
        if str(number) in held:
            continue
        used = sum(size for owner, size in held.values() if owner == name)
        try:
            pool.open(str(number), tokens, name)
        except CapacityError as error:
            share = shares.get(name)
            assert share is None or used + tokens > int(share.guaranteed * budget)
            assert error.reason == "KV_MEMORY_EXHAUSTED"
        else:
            held[str(number)] = name, tokens
        rest = 0
        for other, share in shares.items():
            used = sum(size for owner, size in held.values() if owner == other)
            assert pool.used_bytes(other) == used <= share.most * budget
            rest += max(0, int(share.guaranteed * budget) - used)
        assert pool.free_bytes >= rest


def test_a_full_slice_says_which_it_is_what_it_uses_and_what_it_may() -> None:
    """The error of a slice that is at its most names it, what it uses and what it is allowed; others go on."""
    pool = CachePool(1000, bytes_per_token=10)
    pool.set_shares({"embb": CacheShare(0.2, 0.5), "urllc": CacheShare(0.3)})
    pool.open("g1", 40, "embb")
    with pytest.raises(CapacityError, match=r"slice 'embb'.*400 of 1000 are used by it, and it may use 500") as caught:
        pool.open("g2", 11, "embb")
    assert caught.value.reason == "KV_MEMORY_EXHAUSTED"
    assert caught.value.metadata["slice"] == "embb"
    assert (caught.value.metadata["used_bytes"], caught.value.metadata["allowed_bytes"]) == ("400", "500")
    with pytest.raises(CapacityError, match="300 are kept free for other slices"):
        pool.open("g3", 31)
    pool.open("g3", 30)
    pool.open("g4", 30, "urllc")
    assert pool.free_bytes == 0


def test_new_shares_take_nothing_from_what_is_open_and_nothing_is_asked_of_what_was_let_in() -> None:
    """A generation that is open stays open above its slice's new most; one that comes back from disk is let in."""
    pool = CachePool(1000, bytes_per_token=10)
    pool.open("g1", 60, "embb")
    pool.set_shares({"embb": CacheShare(0.1, 0.2)})
    assert pool.get("g1").reserved_bytes == 600
    with pytest.raises(CapacityError):
        pool.open("g2", 1, "embb")
    pool.open("g2", 1, "embb", admitted=True)
    pool.set_shares({})
    pool.open("g3", 39, "embb")
