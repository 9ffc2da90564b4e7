"""The command line: see ``vqfast --help``."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vqfast.cli.parser import make_parser
from vqfast.ops.registry import NoBackendError
from vqfast.sampling.memory import out_of_memory

EXTRAS = {"safetensors", "PIL", "tqdm", "matplotlib", "sklearn", "tomli"}


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: its words; by default those that the process was started with.

    Returns:
        The exit status: 0; 1 where nobody reads the output; 2 for bad input; 130 when interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder may have any name
    with _interrupts() as interrupts, _log():
        try:
            arguments = vars(make_parser().parse_args(argv))
            arguments.pop("command")(**arguments)
            sys.stdout.flush()  # raises here if nobody reads the pipe any more
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
            return 1
        except BaseException as error:
            if interrupts or isinstance(error, KeyboardInterrupt):
                sys.unraisablehook = lambda unraisable: None  # half-made objects complain as they go
                line, status = "interrupted; the same command goes on from here", 130
            else:
                _record(error)
                line, status = f"error: {_explained(error)}", 2
            sys.stderr.write(f"vqfast: {line}\n")  # at once: print's two writes mix with another process's
            return status
    return 0


class _Lines(logging.Handler):
    """Writes what is logged to standard error as it is, each line at once."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")
        sys.stderr.flush()


@contextmanager
def _log() -> Iterator[None]:
    """Shows all that the library logs."""
    logger, handler = logging.getLogger("vqfast"), _Lines()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Notes every Ctrl-C: an import or native code that is interrupted may raise an error of its own."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if _imports(frame) and hasattr(signal, "setitimer"):  # C++ that is interrupted there ends the process
            signal.signal(signal.SIGALRM, note)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        else:
            raise KeyboardInterrupt

    noted = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not ignored, as by nohup
    noted = noted and threading.current_thread() is threading.main_thread()
    if noted:
        signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        if noted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if received and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def _imports(frame: FrameType | None) -> bool:
    """Whether an import is going on in ``main``."""
    while frame is not None and frame.f_code is not main.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _record(error: BaseException) -> None:
    """Leaves an error to torchrun's report, unless it is only that another process has failed."""
    from vqfast.pipeline.failures import record_failure

    if not isinstance(error, ConnectionError):
        record_failure(error)


def _explained(error: BaseException) -> str:
    """One line about an error that the user can mend; raises any other error again."""
    if isinstance(error, ModuleNotFoundError) and error.name == "tensorboard":
        return "tensorboard is missing: pip install tensorboard"
    if isinstance(error, ModuleNotFoundError) and error.name is None:  # it says what to install
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return f"{error.name} is missing: pip install 'vqfast[demo]'"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile: {str(error).strip().partition(chr(10))[0]}"
    if out_of_memory(error):
        return "out of memory: use smaller sizes or batches"
    if isinstance(error, (ValueError, TypeError, OverflowError, OSError, NoBackendError)):
        return " ".join(str(error).split())
    raise error
