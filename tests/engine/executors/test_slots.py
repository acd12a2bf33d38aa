import os
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from pathlib import Path

import pytest

from autocompress.engine.executors import slots as module
from autocompress.engine.executors.slots import share_of, slots
from tests.waiting import FAR

HOLDER = """
import sys, time
from autocompress.engine.executors.slots import slots
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


def test_slots_are_shared_and_waited_for(key, monkeypatch):
    order, threads = [], []
    events = defaultdict(threading.Event)  # by what a thread has come to, and its name

    class Told(module.FileLock):
        def acquire(self, *given, **named):
            name, gate = threading.current_thread().name, self.lock_file.endswith("gate")
            if gate:
                events["comes", name].set()
            taken = super().acquire(*given, **named)
            if gate:
                events["gathers", name].set()
            return taken

    def work(wanted):
        name = threading.current_thread().name
        with slots(key, wanted, 2) as count:
            order.append(("begin", name, count))
            events["begins", name].set()
            assert events["may end", name].wait(FAR)
            order.append(("end", name, count))
            events["ends", name].set()

    def start(name, wanted, what):
        threads.append(threading.Thread(target=work, args=(wanted,), name=name))
        threads[-1].start()
        assert events[what, name].wait(FAR)

    monkeypatch.setattr(module, "FileLock", Told)
    start("a", 1, "begins")
    start("b", 1, "begins")
    start("c", 2, "gathers")
    start("d", 1, "comes")
    for name, follower in (("a", ""), ("b", "c"), ("c", "d"), ("d", "")):
        events["may end", name].set()
        assert events["ends", name].wait(FAR)
        assert not follower or events["begins", follower].wait(FAR)
    for thread in threads:
        thread.join()
    assert order == [
        ("begin", "a", 1), ("begin", "b", 1), ("end", "a", 1), ("end", "b", 1),
        ("begin", "c", 2), ("end", "c", 2),  # came first, though one slot was free before
        ("begin", "d", 1), ("end", "d", 1),
    ]  # fmt: skip


def test_the_dead_hold_none(key, monkeypatch):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, key, "2"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "2\n"
    os.kill(process.pid, 9)
    process.wait()
    process.stdout.close()

    def waits(seconds):
        raise AssertionError("nobody is to be waited for")

    monkeypatch.setattr(module.time, "sleep", waits)
    with slots(key, 2, 2) as count:
        assert count == 2
