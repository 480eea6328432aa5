"""Ctrl-C, ``kill`` and a terminal that goes end a command with nothing left, however often they come."""

import os
import signal
import subprocess
import sys
import threading
from functools import partial

import pytest

from coupled_sampling.cli import generate, main, stopping
from coupled_sampling.cli.stopping import Stopped, stopped_by_signals
from standins import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
USUAL = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}

SLOW = """
import sys, time
from pathlib import Path
from coupled_sampling.bundles import files
from coupled_sampling.cli import generate, main

def run(arguments):
    with files.whole_folder(arguments.out) as folder:
        (folder / "half").write_text("half")
        print("began", flush=True)
        time.sleep(60)

remove = files.shutil.rmtree
def slowly(*arguments, **settings):  # the more signals come while it works
    time.sleep(0.3)
    remove(*arguments, **settings)

files.shutil.rmtree = slowly
generate.run = run
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def usual():
    """What signals do before a program says otherwise; a job in the background ignores Ctrl-C."""
    before = {number: signal.signal(number, USUAL[number]) for number in CODES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers():
    return {number: signal.getsignal(number) for number in CODES}


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 20), (signal.SIGHUP, 20)])
def test_a_signal_leaves_nothing_and_no_traceback(tmp_path, number, times):
    # A job in the background of a shell ignores SIGINT, and would hand that down.
    listen = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "generate", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=listen,
    )
    assert process.stdout.readline() == "began\n"
    for _ in range(times):
        process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == CODES[number]
    assert error.startswith("coupled-sampling: ")
    assert error.endswith("; nothing half-written is left\n")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", CODES)
def test_the_exit_code_says_which_signal_it_was(command, monkeypatch, number):
    monkeypatch.setattr(stopping, "_GRACE", 0.0)
    monkeypatch.setattr(generate, "run", lambda _: signal.raise_signal(number))
    code, out, error = command("generate")
    assert (code, out) == (CODES[number], "")
    assert error.count("\n") == 1


def stops(work):
    """The exit code with which ``work`` ends, None if it goes on; an interrupt would end the tests."""
    try:
        with stopped_by_signals():
            work()
    except Stopped as stopped:
        return stopped.exit_code
    return None


def test_one_more_signal_changes_nothing_for_a_while(monkeypatch):
    seen = []

    def work():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            seen.append("removed")

    assert stops(work) == 143
    assert seen == ["removed"]
    signal.raise_signal(signal.SIGTERM)  # while the program ends
    monkeypatch.setattr(stopping, "_GRACE", 0.0)
    with pytest.raises(KeyboardInterrupt):  # a program that goes on has its Ctrl-C again
        signal.raise_signal(signal.SIGINT)


def test_after_a_command_that_ended_by_itself_all_is_as_before(command):
    assert command("inspect")[0] == 0
    assert handlers() == USUAL


def test_a_stop_that_was_swallowed_does_not_make_the_command_deaf(monkeypatch):
    monkeypatch.setattr(stopping, "_GRACE", 0.0)

    def work():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    assert stops(work) == 143


def test_signals_that_are_ignored_or_handled_stay_so():
    seen = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    mine = handlers()

    def work():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)

    assert stops(work) is None
    assert seen == [signal.SIGTERM]
    assert handlers() == mine


def test_a_command_runs_in_a_thread(capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["inspect"])))
    thread.start()
    thread.join()
    assert codes == [0]
    assert "Fashion-MNIST" in capsys.readouterr().out
