"""Become a program that ends with its owner. Run as a script, and needs nothing but Python.

Usage: python -I launch.py OWNER COMMAND... The owner is the process that starts it; when the thread that did so ends,
the program gets SIGTERM. `preexec_fn` of subprocess would do this in a fork, which can stop for ever: gRPC's threads
hold locks that a forked child waits for.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process by the program, unless the owner is gone already."""
    owner, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    if os.getppid() == owner:
        os.execv(command[0], command)


if __name__ == "__main__":
    main()
