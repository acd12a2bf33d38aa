"""Every registered task keeps the same contract."""

import numpy as np
import pytest
import torch

from autocompress.errors import TaskError
from autocompress.tasks import TASKS


@pytest.fixture(scope="module", params=sorted(TASKS))
def task(request):
    try:
        return TASKS[request.param]()
    except TaskError as error:
        pytest.skip(f"{request.param}'s data or weights are not here: {error}")


def predict_with(task):
    def predict(*arrays):
        with torch.no_grad():
            return task.model(*(torch.from_numpy(a) for a in arrays)).numpy()

    return predict


def test_evaluate_beats_chance_by_far_and_is_deterministic(task):
    scores = np.asarray(task.evaluate(predict_with(task)))
    assert scores.ndim == 1
    assert scores.mean() > 0.85
    assert np.array_equal(scores, task.evaluate(predict_with(task)))


def test_validation_and_test_differ(task):
    seen = []

    def predict(x):
        seen.append(x)
        return predict_with(task)(x)

    task.evaluate(predict)
    validation = {row.tobytes() for batch in seen for row in batch}
    seen.clear()
    task.test(predict)
    test = {row.tobytes() for batch in seen for row in batch}
    train = {row.numpy().tobytes() for batch in task.train() for row in batch[0]}
    calibration = {row.numpy().tobytes() for batch in task.calibration for row in batch[0]}
    assert len(validation) >= 300
    assert len(test) >= 300
    # Disjoint as indices by construction; a source may hold a few equal images twice.
    assert len(validation & test) <= 0.002 * len(test)
    assert len(train & test) <= 0.002 * len(test)
    assert len(train & validation) <= 0.002 * len(validation)
    assert not calibration & test or len(calibration & test) <= 1


def test_name_and_fingerprint(task):
    assert TASKS[task.name]
    assert len(task.fingerprint) == 64
