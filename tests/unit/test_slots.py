from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from producer.jobs.model.errors import WorkerError
from worker.chunks.slots import Slot, Slots

if TYPE_CHECKING:
    from producer.jobs.table.claims import Claim


@dataclass
class World:
    """What slots are told from outside."""

    drained: bool = False
    hungry: bool = True
    count: int = 3
    slots: Slots = field(init=False)

    def __post_init__(self) -> None:
        self.slots = Slots(self.count, drained=lambda: self.drained, hungry=lambda: self.hungry)

    def room(self) -> bool:
        return self.slots.wait_for_room(0)

    def take(self, *, dispatched: bool = True) -> Slot:
        slot = self.slots.take("me/1")
        if dispatched:
            self.slots.all_dispatched(slot)
        return slot


@pytest.fixture
def world() -> World:
    return World()


def claim(suspects: dict[int, int] | None = None) -> Claim:
    @dataclass
    class _Claim:
        suspects: dict[int, int]

    return cast("Claim", _Claim(suspects or {}))


def test_a_second_chunk_is_taken_when_the_first_is_all_on_its_way(world: World) -> None:
    slot = world.take(dispatched=False)
    assert not world.room()
    world.slots.all_dispatched(slot)
    assert world.room()


def test_a_third_chunk_is_taken_only_when_the_device_is_hungry(world: World) -> None:
    world.take()
    world.take()
    assert world.room()
    world.hungry = False
    assert not world.room()


def test_no_more_chunks_are_taken_than_there_are_places(world: World) -> None:
    slots = [world.take() for _ in range(3)]
    assert not world.room()
    world.slots.free(slots[1])
    assert world.room()
    assert world.slots.take("me/1").number == slots[1].number


def test_places_are_ordered_by_the_time_they_are_taken_and_claim_ids_never_repeat(world: World) -> None:
    first = world.take()
    world.slots.free(first)
    second = world.take()
    assert first.number == second.number
    assert first.order < second.order
    assert first.claim_id != second.claim_id


def test_nothing_is_begun_beside_a_chunk_with_suspects(world: World) -> None:
    slot = world.take()
    world.slots.claimed(slot, claim({3: 1}))
    assert not world.room()
    world.slots.free(slot)
    assert world.room()


@pytest.mark.parametrize("why", ["drained", "retired", "worn out", "paused"])
def test_a_process_that_ends_or_pauses_takes_nothing(world: World, why: str) -> None:
    assert world.room()
    if why == "drained":
        world.drained = True
    elif why == "retired":
        world.slots.retire("It hangs")
    elif why == "worn out":
        world.slots.wear_out("It has tried")
    else:
        world.slots.pause(60)
    assert not world.room()
    assert world.slots.stopping() == (why in {"drained", "retired"})
    assert world.slots.paused() == (why == "paused")


def test_the_first_reason_to_end_is_the_one_that_is_told(world: World) -> None:
    assert world.slots.why_it_ends() is None
    world.slots.wear_out("worn out")
    world.slots.retire("first")
    world.slots.retire("second")
    assert world.slots.why_it_ends() == "first"


def test_a_short_pause_does_not_shorten_a_long_one(world: World) -> None:
    world.slots.pause(60)
    world.slots.pause(0)
    assert world.slots.paused()


def test_who_wants_to_be_alone_waits_for_chunks_and_for_what_broken_off_ones_left_running(world: World) -> None:
    other, mine = world.take(), world.take()
    alone = threading.Event()

    def wait() -> None:
        world.slots.wait_until_exclusive(mine, lambda: None, limit_s=60)
        alone.set()

    thread = threading.Thread(target=wait, daemon=True)
    with world.slots.running():
        thread.start()
        world.slots.free(other)
        assert not alone.wait(0.4)
    assert alone.wait(5)


def test_a_thread_that_hangs_is_not_waited_for(world: World) -> None:
    mine = world.take()
    world.slots.hangs()
    with world.slots.running():
        world.slots.wait_until_exclusive(mine, lambda: pytest.fail("it waited"), limit_s=60)
    assert world.slots.hanging() == 1


def test_who_waits_to_be_alone_is_asked_whether_its_chunk_is_still_its_own(world: World) -> None:
    world.take()
    mine = world.take()

    def lost() -> None:
        raise RuntimeError("not ours any more")

    with pytest.raises(RuntimeError, match="not ours"):
        world.slots.wait_until_exclusive(mine, lost, limit_s=60)


def test_what_a_chunk_that_broke_off_left_hanging_ends_the_process_and_not_its_work(world: World) -> None:
    """Its image is nobody's any more, so nobody else finds out that it hangs."""
    mine = world.take()
    with world.slots.running():
        with pytest.raises(WorkerError, match="starts anew"):
            world.slots.wait_until_exclusive(mine, lambda: None, limit_s=0.3)
        assert world.slots.hanging() == 1


def test_a_process_that_was_told_to_stop_stops_though_the_word_is_tidied_away(world: World) -> None:
    world.drained = True
    assert world.slots.stopping()
    world.drained = False
    assert world.slots.stopping()


def test_room_that_comes_ends_the_waiting_for_it(world: World) -> None:
    slot = world.take(dispatched=False)
    threading.Timer(0.1, world.slots.all_dispatched, [slot]).start()
    began = time.monotonic()
    assert world.slots.wait_for_room(30)
    assert time.monotonic() - began < 10


def test_claims_in_flight_are_known_for_the_last_moment(world: World) -> None:
    slot, found = world.take(), claim()
    world.take()
    world.slots.claimed(slot, found)
    assert world.slots.claims() == [found]
    assert not world.slots.empty()


# --- fetching weights -------------------------------------------------------------------------------------------------


def of(job: str, queue: str = "default", suspects: dict[int, int] | None = None) -> Claim:
    @dataclass
    class _Spec:
        queue: str

    @dataclass
    class _Claim:
        job: str
        spec: _Spec
        suspects: dict[int, int]

    return cast("Claim", _Claim(job, _Spec(queue), suspects or {}))


def fetching(world: World, job: str, queue: str = "default", **options: dict[int, int]) -> Slot:
    slot = world.take(dispatched=False)
    world.slots.claimed(slot, of(job, queue, **options))
    assert world.slots.begin_fetch(slot)
    return slot


def long_ago(slot: Slot) -> None:
    slot.fetching_since = time.monotonic() - 60


def test_a_chunk_is_begun_beside_one_whose_weights_take_long(world: World) -> None:
    """Not beside one whose weights are here in a moment: it is about to have images for the device itself."""
    slot = fetching(world, "a")
    assert not world.room()
    long_ago(slot)
    assert world.room()
    other = world.take(dispatched=False)
    assert not world.room()
    world.slots.all_dispatched(other)
    assert world.room()


def test_of_a_job_whose_weights_are_fetched_no_second_chunk_is_taken(world: World) -> None:
    slot = fetching(world, "a")
    assert world.slots.passed_over() == ["a"]
    world.slots.end_fetch(slot, lambda: None)
    assert world.slots.passed_over() == []


def test_four_fetch_at_a_time_and_a_fifth_waits_for_one_of_them() -> None:
    world = World(count=8)
    slots = [fetching(world, job) for job in "abcd"]
    fifth = world.take(dispatched=False)
    world.slots.claimed(fifth, of("e"))
    assert not world.slots.begin_fetch(fifth)
    world.slots.free(fifth)
    assert world.slots.passed_over() == list("abcde")
    world.slots.free(slots[1])
    assert world.slots.passed_over() == list("acd")


def test_of_four_fetches_the_least_urgent_gives_way_to_a_higher_priority() -> None:
    world = World(count=8)
    slots = [fetching(world, job, queue) for job, queue in zip("abcd", ("default", "low", "low", "high"), strict=True)]
    urgent = fetching(world, "e", "high")
    assert [world.slots.gives_way(slot) for slot in slots] == [False, False, True, False]
    world.slots.free(slots[2])
    # It is not taken again at once: its place is the urgent one's now.
    assert world.slots.passed_over() == list("abcde")
    world.slots.end_fetch(urgent, lambda: None)
    assert world.slots.passed_over() == list("abd")


def test_what_must_run_alone_does_not_wait_for_weights(world: World) -> None:
    long_ago(fetching(world, "a"))
    alone = world.take()
    world.slots.claimed(alone, of("b", suspects={0: 1}))
    world.slots.wait_until_exclusive(alone, lambda: pytest.fail("it waited"), limit_s=60)


def test_a_chunk_whose_weights_are_there_waits_for_one_that_runs_alone(world: World) -> None:
    slot = fetching(world, "a")
    alone = world.take()
    world.slots.claimed(alone, of("b", suspects={0: 1}))
    waited: list[None] = []

    def meanwhile() -> None:
        waited.append(None)
        if len(waited) == 2:
            world.slots.free(alone)

    world.slots.end_fetch(slot, meanwhile)
    assert len(waited) == 2
    assert not slot.fetching


def test_two_that_must_run_alone_never_wait_for_each_other(world: World) -> None:
    """One whose weights were fetched and one that was taken meanwhile: the first taken goes first."""
    first, second = world.take(), world.take()
    for slot, job in ((first, "a"), (second, "b")):
        world.slots.claimed(slot, of(job, suspects={0: 1}))
    went: list[str] = []

    def run(slot: Slot, name: str) -> None:
        world.slots.wait_until_exclusive(slot, lambda: None, limit_s=60)
        went.append(name)
        world.slots.free(slot)

    threads = [threading.Thread(target=run, args=each) for each in ((second, "second"), (first, "first"))]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(10)
    assert went == ["first", "second"]
