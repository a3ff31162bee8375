"""What crashed how often."""

from cache.crashes import Crash, Crashes
from cache.keys import Address

ONE, TWO = (Address("0" * 32, digit * 64) for digit in "12")


def test_two_processes_that_died_of_one_thing_are_enough() -> None:
    """Whatever was run by one of them alone is not set apart, and counts for itself."""
    crashes = Crashes()
    crashes.add(Crash(1.0, ONE, "a"))
    crashes.add(Crash(2.0, TWO, "a"))
    assert crashes.set_apart(since=0.0) == []
    crashes.add(Crash(3.0, ONE, "b"))
    assert crashes.set_apart(since=0.0) == [ONE]


def test_a_crash_that_several_have_seen_counts_once() -> None:
    """Each gateway that followed the run tells it; the first word stays."""
    crashes = Crashes()
    for at in (1.0, 1.1, 1.2):
        crashes.add(Crash(at, ONE, "a"))
    assert crashes.enough(ONE, since=0.0) is None
    crashes.add(Crash(2.0, ONE, "b"))
    assert crashes.enough(ONE, since=0.0) == 1.0


def test_crashes_are_held_against_it_for_a_time() -> None:
    """It is set apart until the older one of the last two is over; a third one makes it longer."""
    crashes = Crashes()
    for at, process in ((1.0, "a"), (5.0, "b")):
        crashes.add(Crash(at, ONE, process))
    assert crashes.enough(ONE, since=0.9) == 1.0
    assert crashes.enough(ONE, since=1.0) is None
    crashes.add(Crash(8.0, ONE, "c"))
    assert crashes.enough(ONE, since=1.0) == 5.0


def test_old_crashes_are_forgotten() -> None:
    crashes = Crashes()
    for at, process in ((1.0, "a"), (5.0, "b"), (9.0, "c")):
        crashes.add(Crash(at, ONE, process))
    crashes.forget(5.0)
    assert crashes.enough(ONE, since=0.0) == 5.0
    crashes.forget(6.0)
    assert crashes.set_apart(since=0.0) == []
