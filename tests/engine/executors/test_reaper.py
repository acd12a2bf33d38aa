import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.engine.executors.reaper import MARK, _marked, reaped
from tests.waiting import FAR, until

DRIVER = f"""
import os, subprocess, sys, time
from autocompress.engine.executors.reaper import reaped
with reaped(sys.argv[1], sys.argv[2]):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(999)"], start_new_session=True,
                     env=os.environ | {{"{MARK}": sys.argv[1]}})
    print("up", flush=True)
    time.sleep(999)
"""

linux = pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs the process table of Linux")


def gone(token):
    return until(lambda: not _marked(token))


@linux
def test_what_a_killed_driver_started_is_ended(tmp_path):
    token, folder = tmp_path.name, tmp_path / "of the driver"
    folder.mkdir()
    (folder / "something").touch()
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, token, folder], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout.readline() == "up\n"
    assert len(_marked(token)) == 1
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    assert gone(token)
    assert until(lambda: not folder.exists())


@linux
def test_what_is_left_after_a_block_is_ended_and_nothing_else(tmp_path):
    token, other = tmp_path.name, tmp_path.name + "-other"
    sleep = [sys.executable, "-c", "import time; time.sleep(999)"]
    with reaped(token):
        mine = subprocess.Popen(sleep, env=os.environ | {MARK: token})
        theirs = subprocess.Popen(sleep, env=os.environ | {"SOMETHING": other})
    assert mine.wait(FAR) == -signal.SIGKILL
    assert theirs.poll() is None
    theirs.kill()
    theirs.wait()
