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
    "fit": "interrupted; the same command goes on after the last epoch that was stored",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code. arguments: without the program's name, None: the process's own."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if debug:
        words.remove("--debug")
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has gone, as in `zoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail(INTERRUPTED.get(words[0] if words else "", "interrupted"), 130)
    except ZooError as error:
        _trace(debug)
        return _fail(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last resort: a line and an exit code, or a traceback if asked for
        if _trace(debug):
            return _fail("that was a mistake of zoo's own; report what is printed above", 1)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(f"a mistake of zoo's own, {text}; run it again with --debug and report what it prints", 1)


def _run(words: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):  # a summary or a path may hold what the terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    wanted = listing.plain_arguments(words)
    if wanted is not None:
        listing.run(wanted.words, as_json=wanted.as_json)
        return 0
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # what the client warns of before it tries again is no news
    from zoo_core.cli.group import run  # click, and then the command's own imports

    return run(words)


def _trace(wanted: bool) -> bool:
    """Prints the error's traceback if that is wanted; the line and the exit code stay the same."""
    if wanted:
        import traceback  # an error alone pays for it

        traceback.print_exc()
    return wanted


def _fail(message: str, code: int) -> int:
    print(f"zoo: {message}", file=sys.stderr)  # noqa: T201 - the command line
    return code
