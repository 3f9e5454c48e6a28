"""What the commands share: settings such as --transformer.n_layer=4, and errors in one sentence, not a traceback."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable

from tqdm import tqdm


def parse_with_settings(parser: argparse.ArgumentParser, argv: list[str] | None) -> tuple[argparse.Namespace, dict]:
    """(the parsed arguments, settings such as {"transformer.n_layer": "4"}); exits with code 2 on anything else."""
    args, rest = parser.parse_known_args(argv)
    settings = {}
    for item in rest:
        key, equals, value = item.removeprefix("--").partition("=")
        if not item.startswith("--") or "." not in key or not equals:
            parser.error(
                f"unknown argument {item!r}: --help lists the options, and settings are written as --transformer.n_layer=4"
            )
        settings[key] = value
    return args, settings


def positive(kind: Callable):
    """An argparse type: a number of this kind that is greater than 0."""

    def convert(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be greater than 0, got {text}")
        return value

    convert.__name__ = f"positive {kind.__name__}"
    return convert


def run_command(command: Callable[[], None], after_failure: str = ""):
    """Call `command`; exit with 2 and one sentence on bad input (ValueError), with 1 on failure or Ctrl-C.

    after_failure: how to go on, said after a failure.

    With MINIDALLE_TRACEBACK set in the environment, errors are raised as they are, for those who look for a bug.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # for a file's name, which need not be valid text
    warnings.showwarning = lambda message, *_: tqdm.write(f"warning: {message}", file=sys.stderr)  # above a bar
    if os.environ.get("MINIDALLE_TRACEBACK"):
        return command()
    try:
        with terminable():
            command()
    except ValueError as error:
        leave(f"error: {error}", 2)
    except KeyboardInterrupt as stop:
        leave(f"{stop if stop.args else 'stopped'}{after_failure}", 1)
    except (OSError, ImportError) as error:
        leave(f"error: {error}{after_failure}", 1)
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0] or "out of memory"
        leave(f"error: {reason} (MINIDALLE_TRACEBACK=1 shows where){after_failure}", 1)


@contextlib.contextmanager
def terminable():
    """Inside the `with` block SIGTERM is taken as Ctrl-C is, so that it ends in a sentence, too."""

    def stop(*_):
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(message: str, code: int):
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(code)
