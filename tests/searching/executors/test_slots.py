import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from autocompress.searching.executors.slots import share_of, slots

HOLDER = """
import sys, time
from autocompress.searching.executors.slots import slots
with slots(sys.argv[1], int(sys.argv[2]), 2) as count:
    print(count, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def key():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder).name


def test_a_rung_takes_what_the_machine_has_at_most(key):
    assert [share_of(rung).cpus for rung in (0, 1, 2, 9)] == [1, 2, 4, 4]
    assert share_of(0).gpu == 0.0 < share_of(1).gpu <= 1.0
    with slots(key, 4, 3) as count:
        assert count == 3


def test_slots_are_shared_and_waited_for(key):
    order = []

    def work(name, wanted):
        with slots(key, wanted, 2) as count:
            order.append(("begin", name, count))
            time.sleep(0.3)
            order.append(("end", name, count))

    threads = [threading.Thread(target=work, args=pair) for pair in (("a", 1), ("b", 1))]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert {(what, name) for what, name, _ in order} == {("begin", "a"), ("begin", "b")}
    late = [threading.Thread(target=work, args=pair) for pair in (("c", 2), ("d", 1))]
    for thread in late:
        thread.start()
        time.sleep(0.05)
    for thread in (*threads, *late):
        thread.join()
    begun = [name for what, name, _ in order if what == "begin"]
    assert begun[2:] == ["c", "d"]  # whoever came first, though one slot was free before
    place = order.index(("begin", "c", 2))
    assert {name for what, name, _ in order[:place] if what == "end"} == {"a", "b"}
    assert order.index(("begin", "d", 1)) > order.index(("end", "c", 2))


def test_the_dead_hold_none(key):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, key, "2"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "2\n"
    os.kill(process.pid, 9)
    process.wait()
    process.stdout.close()
    start = time.monotonic()
    with slots(key, 2, 2) as count:
        assert count == 2
    assert time.monotonic() - start < 30
