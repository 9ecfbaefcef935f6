"""A shell in a pseudo-terminal, as a person has one."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time


class Terminal:
    """Run a shell; type into it, and wait for what it shows."""

    def __init__(self, command, cwd, **environment):
        master, slave = pty.openpty()
        self._master = master
        self._shown = ""
        self._process = subprocess.Popen(
            command, cwd=cwd, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "dumb", "COLUMNS": "200", "LINES": "50", **environment},
        )  # fmt: skip
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._master)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def type(self, text):
        self._shown = ""
        os.write(self._master, text.encode())

    def expect(self, *wanted, seconds=30):
        """Wait until all of `wanted` has been shown since the last typing."""
        end = time.monotonic() + seconds
        while not all(text in self._shown for text in wanted):
            assert time.monotonic() < end, f"{wanted} not in {self._shown!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self._shown += os.read(self._master, 65536).decode(errors="replace")
        return self._shown
