"""The first signal asks to stop, the second one ends the process."""

import signal

import pytest

from pipelines.running.stopping import StopRequest
from tests.pipelines.running._workshop import until


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_heard_and_the_second_is_the_systems(number, code):
    before = signal.getsignal(number)
    stop, heard = StopRequest(), []
    with stop.installed():
        with stop.heard_by(heard.append):
            assert not stop
            assert stop.exit_code == 0
            signal.raise_signal(number)
            until(lambda: bool(heard))
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert stop
        assert (stop.exit_code, heard) == (code, [number])
    assert signal.getsignal(number) is before


def test_who_comes_after_the_signal_hears_of_it():
    stop, heard = StopRequest(), []
    with stop.installed():
        signal.raise_signal(signal.SIGTERM)
        until(lambda: bool(stop))
        with stop.heard_by(heard.append):
            assert heard == [signal.SIGTERM]
