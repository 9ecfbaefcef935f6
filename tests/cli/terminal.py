"""A program in a pseudo-terminal, as a person has one."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

_SIZE = (50, 200)


class Terminal:
    """Run a program; type into it, and read what it shows.

    Parameters
    ----------
    size : (lines, columns)
    """

    def __init__(self, command, cwd, *, size=_SIZE, **environment):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        self._master = master
        self._shown = ""
        self._process = subprocess.Popen(
            command, cwd=cwd, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**inherited, "TERM": "dumb", **environment},
        )  # fmt: skip
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._master)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def type(self, text):
        self._shown = ""
        os.write(self._master, text.encode())

    def expect(self, *wanted, seconds=120):
        """Wait until all of `wanted` has been shown since the last typing."""
        end = time.monotonic() + seconds
        while not all(text in self._shown for text in wanted):
            assert time.monotonic() < end, f"{wanted} not in {self._shown!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self._shown += os.read(self._master, 65536).decode(errors="replace")
        return self._shown

    def rest(self):
        """Return what stands in the lines when the program has ended."""
        shown = bytearray()
        while True:
            try:
                shown += os.read(self._master, 65536)
            except OSError:  # Linux's way of saying that nobody writes any more
                break
        lines = shown.decode().replace("\r\n", "\n").split("\n")
        return "\n".join(line.rpartition("\r")[2] for line in lines)  # a bar is written over
