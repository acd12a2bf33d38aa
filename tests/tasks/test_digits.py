import pytest
import torch

from autocompress.errors import TaskError
from autocompress.tasks.digits import digits, load


def test_splits_are_disjoint_by_construction_and_follow_the_seed():
    one, two, other = load(), load(), load(seed=1)
    assert [len(part[1]) for part in (one.train, one.validation, one.test)] == [997, 400, 400]
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_training_is_reproducible_at_any_thread_count():
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    one = digits(epochs=1)
    torch.set_num_threads(2)
    try:
        two = digits(epochs=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("options", [{"network": "resnet200"}, {"epochs": 0}, {"epochs": "3"}])
def test_options_are_checked(options):
    with pytest.raises(TaskError):
        digits(**options)
