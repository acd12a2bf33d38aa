import pytest

from autocompress.core.execution import Execution
from autocompress.errors import InputError

CLUSTER = Execution(workers=0, ray_address="head:6379", trial_seconds=5.0)


def test_a_limit_is_changed_and_taken_off():
    assert CLUSTER.limited
    assert CLUSTER.changed({"trial_seconds": 7}).trial_seconds == 7
    without = CLUSTER.changed({"trial_seconds": None})
    assert not without.limited
    assert without.ray_address == "head:6379"
    assert CLUSTER.changed({}) == CLUSTER


def test_workers_without_an_address_are_of_this_machine():
    here = CLUSTER.changed({"workers": 3})
    assert (here.workers, here.ray_address) == (3, "")
    there = CLUSTER.changed({"workers": 3, "ray_address": "other:1"})
    assert (there.workers, there.ray_address) == (3, "other:1")
    assert CLUSTER.changed({"ray_address": ""}) == Execution(trial_seconds=5.0)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"foo": 1}, "foo"),
        ({"trials": 9}, "trials"),
        ({"workers": None}, "workers must be an integer of at least 1, not None"),
        ({1: 2}, "1"),
        ([("workers", 2)], "values by name"),
        ("workers", "values by name"),
        (5, "values by name"),
    ],
)
def test_what_is_no_change_is_a_sentence(given, text):
    with pytest.raises(InputError, match=text):
        Execution().changed(given)
