"""Modes leave torch's stack as it was, whatever an interrupt did to it."""

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode

from normscope.core.modes import Mode


class Counting(Mode):
    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_it_sees_calls_inside_alone():
    with Counting() as mode:
        torch.ones(2) + 1
        with mode:  # again
            pass
        seen = mode.calls
        torch.ones(2)
    torch.ones(2)
    assert seen >= 2
    assert mode.calls > seen
    assert _get_current_function_mode_stack() == []


def interrupted(pops):
    with Counting():
        for _ in range(pops):  # as where it comes between torch's own pop and its push
            _pop_mode()
        raise KeyboardInterrupt


@pytest.mark.parametrize("pops", [1, 2])
def test_what_an_interrupt_took_off_the_stack_is_put_back(pops):
    with Counting() as outer:
        with pytest.raises(KeyboardInterrupt):
            interrupted(pops)
        assert _get_current_function_mode_stack() == [outer]
    assert _get_current_function_mode_stack() == []


def test_what_is_left_on_top_goes_too():
    with Counting():
        _push_mode(Counting())
    assert _get_current_function_mode_stack() == []
