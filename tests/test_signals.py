"""How the process ends, in real processes: one line, the exit code of a shell, and no traceback."""

import os
import signal
import subprocess
import sys

import pytest
from processes import HANGING

BEGIN = """
import atexit, ctypes, os, signal, sys, threading, time
from bottleneck import signals
signals.end_quietly()
number = int(sys.argv[1])
"""

# Each sends itself the signal in a tender place, and would go on for ever or end otherwise.
SWALLOWED = """
try:
    os.kill(os.getpid(), number)
    for _ in range(10**9):
        pass
except BaseException:
    time.sleep(60)
"""
# A mutex of C that is locked twice: no signal brings such a call back.
IN_C = """
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
libc.pthread_mutex_lock(mutex)
"""
AT_EXIT = """
atexit.register(time.sleep, 60)
atexit.register(os.kill, os.getpid(), number)
signals.set_exit_code(0)
"""
A_THREAD_IS_LEFT = """
threading.Thread(target=time.sleep, args=(60,)).start()
threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
"""
PLACES = {
    "swallowed": SWALLOWED,
    "in C": IN_C,
    "at exit": AT_EXIT,
    "a thread is left": A_THREAD_IS_LEFT,
}
ENDS = [(signal.SIGINT, 130, "stopped by Ctrl-C\n"), (signal.SIGTERM, 143, "stopped by SIGTERM\n")]
both = pytest.mark.parametrize(("number", "code", "line"), ENDS, ids=["SIGINT", "SIGTERM"])


def run(program, number=signal.SIGTERM, *arguments, before=()):
    command = [*before, sys.executable, "-c", BEGIN + program, str(int(number)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGING)
    return done.returncode, done.stdout, done.stderr


@both
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_ends_the_program_whatever_it_is_at(place, number, code, line):
    assert run(PLACES[place], number) == (code, "", line)


def test_a_signal_that_the_program_was_started_to_ignore_stays_ignored():
    program = "os.kill(os.getpid(), number); time.sleep(0.1); signals.leave(0)"
    shell = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    assert run(program, signal.SIGINT, before=shell) == (0, "", "")
    assert run(program, signal.SIGINT)[0] == 130


def test_a_listener_hears_every_signal_and_then_they_end_the_program_again():
    program = """
heard = []
with signals.Listener(heard.append):
    for _ in range(3):
        os.kill(os.getpid(), number)
        time.sleep(0.1)  # two that wait to be delivered are one
print(heard == [number] * 3, flush=True)
os.kill(os.getpid(), number)
time.sleep(60)
"""
    assert run(program) == (143, "True\n", "stopped by SIGTERM\n")


def test_what_a_listener_does_not_take_ends_the_program():
    program = """
with signals.Listener(print, [signal.SIGINT]):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    assert run(program) == (143, "", "stopped by SIGTERM\n")


def test_scratch_is_removed_when_a_signal_comes(tmp_path):
    program = """
folder = sys.argv[2]
with signals.removed(folder):
    os.mkdir(folder)
    open(os.path.join(folder, "file"), "w").close()
    os.kill(os.getpid(), number)
    time.sleep(60)
"""
    code, _, error = run(program, signal.SIGINT, str(tmp_path / "scratch"))
    assert (code, error) == (130, "stopped by Ctrl-C\n")
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_ends_as_any_program_and_its_parent_goes_on():
    program = """
receiver, sender = os.pipe()
child = os.fork()
if child == 0:
    os.write(sender, b"ready")
    time.sleep(60)
os.read(receiver, 5)
os.kill(child, number)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number)
signals.leave(0)
"""
    assert run(program) == (0, "True\n", "")


def test_no_more_is_imported_before_signals_are_taken():
    program = "import sys, bottleneck.__main__; print(*(m for m in sys.modules if 'bottle' in m))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    ours = {name for name in done.stdout.split() if not name.startswith("__editable__")}
    assert ours == {"bottleneck", "bottleneck.__main__", "bottleneck.signals"}


@pytest.mark.parametrize(
    "program",
    [
        "sys.argv[1:] = []; from bottleneck.__main__ import run; run()",
        "from bottleneck import __main__; __main__.main = lambda: print('x' * 10**6); "
        "__main__.run()",
        "from bottleneck import __main__; from bottleneck.terminal import PlainConsole; "
        "__main__.main = lambda: PlainConsole().print('x'); __main__.run()",
    ],
    ids=["at the end", "in the middle", "by rich"],
)
def test_a_reader_that_goes_away_ends_the_program_quietly(program):
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; {program}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=HANGING)) == (b"", 141)
    process.stderr.close()


def test_an_error_in_another_pipe_is_an_error_of_ours():
    program = """
from bottleneck import __main__
def main():
    raise BrokenPipeError("of a socket")
__main__.main = main
__main__.run()
"""
    code, _, error = run(program)
    assert code == 1
    assert error.endswith("BrokenPipeError: of a socket\n")


def test_a_full_disk_under_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + "print('x')\nsignals.set_exit_code(0)", "15"],
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot write <stdout>: No space left on device\n"
