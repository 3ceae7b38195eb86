"""Errors that are the user's to mend: one line that names the file, the line, the value and the
way out.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable


class UserError(ValueError):
    """Bad input, a bad setting or a missing file: shown as one message, without a traceback.

    `exit_code` is what the process returns: 1 for data and files, 2 for settings and flags.
    """

    exit_code = 1


_FIRST_WORD_S = 2.0


class SettingsError(UserError):
    """An unknown name, a wrong type or a value out of range in a constant, a preset or a flag."""

    exit_code = 2


def run_script(main: Callable[[], object]) -> None:
    """Call `main` and end the process: a `UserError` becomes its message on stderr and its exit
    code.

    `main` may return an exit code; None counts as 0. Ctrl-C ends in code 130. Any other exception
    keeps its traceback, because it is a fault of the program.
    """
    try:
        code = main()
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_FIRST_WORD_S)  # torchrun ends this process if the first says the same
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # Ctrl-C: nothing is lost, there is nothing to trace
        print("\nstopped; give the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
