import os
import signal
import subprocess
import sys

import pytest

from petface.training.stopping import StopRequest
from tests import scripts


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_only_asks_and_the_old_handler_comes_back(number, code):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.asked() and stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.asked() and stop.exit_code == code
    assert signal.getsignal(number) is before


def test_a_second_signal_leaves_at_once():
    program = (
        "import os, signal\n"
        "from petface.training.stopping import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('asked', stop.asked(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=scripts.REPOSITORY
    )
    assert done.returncode == 130
    assert done.stdout == "asked True\n"
    assert "once more to leave at once" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_nothing_must_end_first_the_first_signal_leaves(number):
    with StopRequest() as stop, pytest.raises(SystemExit) as left:
        stop.leave_at_once()
        os.kill(os.getpid(), number)
    assert left.value.code == 128 + number
    with StopRequest() as stop, pytest.raises(SystemExit) as left:
        os.kill(os.getpid(), number)
        stop.leave_at_once()
    assert left.value.code == 128 + number
