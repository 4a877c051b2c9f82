"""A Ctrl-C while something is imported comes after it, and is never told as another error."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from zoo_core._process.interrupts import held_back, raise_interrupt


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def hold(*steps: Callable[[], object]) -> None:
    with held_back():
        for step in steps:
            step()


def fail() -> None:
    raise ImportError


def test_an_interrupt_comes_when_the_block_has_ended() -> None:
    reached: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        hold(press, lambda: reached.append(True))
    assert reached == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_ends_the_block() -> None:
    reached: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        hold(press, press, lambda: reached.append(True))
    assert reached == []


def test_an_interrupt_goes_before_the_error_of_the_block_it_came_in() -> None:
    with pytest.raises(KeyboardInterrupt):
        hold(press, fail)


def test_without_an_interrupt_nothing_changes() -> None:
    hold()
    with pytest.raises(ImportError):
        hold(fail)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_ones_own_is_left_alone() -> None:
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        with held_back():
            press()
            assert pressed == [True]
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_hold_nothing_back() -> None:
    found = []

    def work() -> None:
        with held_back():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_an_error_that_an_interrupt_caused_is_an_interrupt() -> None:
    for error in (OSError("x"), RuntimeError("y")):
        raise_interrupt(error)
        error.__context__ = ValueError()
        error.__context__.__cause__ = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            raise_interrupt(error)


def test_a_ring_of_causes_has_an_end() -> None:
    one, other = OSError("one"), OSError("other")
    one.__context__, other.__context__ = other, one
    raise_interrupt(one)
