"""The command line: `zoo VERB`. A mistake is one line on standard error and its exit code.

Exit codes: 0, 2 usage, 3 not found, 4 access, 5 integrity, 6 incompatible, 130 interrupted, 1 anything else. A
traceback comes only with --debug. Nothing here imports click, because `zoo list` does without (see listing.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from zoo_core.cli import listing
from zoo_core.errors import ZooError

__all__ = ["main"]

INTERRUPTED = {
    "bench": "interrupted; what is done is stored, and the same command runs the rest",
    "distill": "interrupted; the same command goes on after the last epoch that was stored",
    "fit": "interrupted; the same command goes on after the last epoch that was stored",
    "rank": "interrupted; the features of finished backbones are stored, and the same command reads them",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    arguments: the words after the program's name; None means those that this process was started with.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if debug:
        words.remove("--debug")
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has closed, as in `zoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail(INTERRUPTED.get(words[0] if words else "", "interrupted"), 130)
    except ZooError as error:
        _trace(debug)
        return _fail(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last resort: a line and an exit code, and a traceback with --debug
        if _trace(debug):
            return _fail("that was a mistake of zoo's own; report what is printed above", 1)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(f"a mistake of zoo's own, {text}; run it again with --debug and report what it prints", 1)


def _run(words: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):  # the terminal may not be able to show every character
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    wanted = listing.plain_arguments(words)
    if wanted is not None:
        listing.run(wanted.words, as_json=wanted.as_json)
        return 0
    # The Hub client prints a warning before each retry, which users need not see.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    from zoo_core.cli.group import run  # imports click, and later what the command itself needs

    return run(words)


def _trace(wanted: bool) -> bool:
    """Prints the traceback of the current error if it is wanted, and returns whether it is."""
    if wanted:
        import traceback  # imported here, so that only a failing command pays for it

        traceback.print_exc()
    return wanted


def _fail(message: str, code: int) -> int:
    print(f"zoo: {message}", file=sys.stderr)  # noqa: T201 - the command line
    return code
