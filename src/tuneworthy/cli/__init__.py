"""The command line: a thin layer over the workflows, one file a verb."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

import typer

from tuneworthy.cli import (
    check,
    decide,
    doctor,
    evaluate,
    example,
    export,
    init,
    keys,
    models,
    plan,
    promote,
    report,
    retune,
    serve,
    traffic,
    train,
)

app = typer.Typer(
    name="tuneworthy",
    help="Should you fine-tune? An answer by measurement: prompting, examples in context, "
    "retrieval and training on one sealed test set.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
VERBS: dict[str, Callable[..., None]] = {
    "init": init.init,
    "example": example.example,
    "check": check.check,
    "plan": plan.plan,
    "decide": decide.decide,
    "train": train.train,
    "eval": evaluate.evaluate,
    "report": report.report,
    "retune": retune.retune,
    "export": export.export,
    "serve": serve.serve,
    "promote": promote.promote,
    "rollback": promote.rollback,
    "keys": keys.keys,
    "traffic": traffic.traffic,
    "models": models.models,
    "doctor": doctor.doctor,
}
for _name, _verb in VERBS.items():
    app.command(_name)(_verb)


INTERRUPTED = 130


def main() -> None:
    """Run the command line. Exit codes as in the contract, section 4."""
    from tuneworthy.errors import TuneworthyError

    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows fewer characters than the texts have is no reason to stop.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Set before torch or tokenizers are imported: no phone calls, no thread warnings.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("TQDM_DISABLE", "1")  # our own lines say what is going on
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except TuneworthyError as error:
        _complain(str(error), error.hint)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        without = " without --fresh" if "--fresh" in sys.argv else ""
        print(f"interrupted; the same command{without} continues from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe has left: nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        # Nobody on the way had more to say about it.
        place = f"{error.filename}: " if error.filename else ""
        _complain(
            f"{place}{error.strerror or error}",
            "df -h . ; ls -ld . (is there room, and may you write here?)",
        )
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # a usage error
            error.show()
            sys.exit(2)
        raise


def _complain(what: str, hint: str | None) -> None:
    """One line each: what quotes from files may hold line ends."""
    print(f"error: {' '.join(what.splitlines())}", file=sys.stderr)
    if hint:
        print(f"hint: {' '.join(hint.splitlines())}", file=sys.stderr)
