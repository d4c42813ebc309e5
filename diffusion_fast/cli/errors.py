"""Exit codes, and errors as one line on standard error.

0: done. 1: a failure while running (no memory, disk full, a loss that is no number). 2: bad input or usage,
found before anything is written. 130: interrupted, 143: terminated. DIFFUSION_FAST_DEBUG=1 shows the
traceback as well.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NoReturn

import click
from click.core import ParameterSource

FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT: what was begun is tidied up on the way out."""


class Command(click.Command):
    """A command whose arguments may be refused by the library: its errors then name the option as typed."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            tell("")  # ends the line of a bar; click does so too, and fails where nobody reads it
            raise click.Abort from None
        except (ValueError, TypeError) as error:
            message = " ".join(str(error).split())
            if not re.match(r"[\w.\-]+(\[\d+\])*: (got|not given).*; accepted: ", message):
                raise  # no refusal but a fault
            raise click.UsageError(_with_option_name(ctx, message)) from error


class Program(click.Group):
    """The group of commands, with this module's exit codes and error lines in place of click's."""

    def main(self, *args: Any, standalone_mode: bool = True, **options: Any) -> Any:
        run = partial(super().main, *args, **(options | {"standalone_mode": False}))
        if not standalone_mode:
            return run()
        code = _exit_code(run)
        if code in (INTERRUPTED, TERMINATED):  # at once: tearing torch down takes up to seconds
            for stream in filter(None, (sys.stdout, sys.stderr)):  # None where its descriptor is closed
                with suppress(OSError):
                    stream.flush()
            os._exit(code)
        try:
            if sys.stderr is not None:
                sys.stderr.flush()
        except OSError:  # at the end Python flushes it once more, and where that fails its own code is 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        sys.exit(code)


def tell(line: str) -> None:
    """A line on standard error; where it cannot be written, the exit code alone says what happened."""
    with suppress(OSError):
        click.echo(line, err=True)


@contextmanager
def naming(argument: str, typed: str) -> Iterator[None]:
    """Errors about an argument of the library say what was typed for it instead, such as --data."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        message = str(error)
        if re.match(rf"{argument}(\[\d+\])?: ", message) is None:
            raise
        raise ValueError(f"{typed}{message.removeprefix(argument)}") from error


def refuse_unused(names: Iterable[str], mode: str) -> None:
    """Refuse options on the command line that the command does not use in this mode."""
    ctx = click.get_current_context()
    for param in ctx.command.params:
        given = ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        if param.name in names and given:
            value = ctx.params[param.name]
            raise click.UsageError(f"{_typed_name(ctx, param)}: got {value!r}; accepted: nothing with {mode}")


@contextmanager
def _termination_raises() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # handlers are the main thread's
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _terminate(*signal_and_frame: Any) -> NoReturn:
    raise Terminated


def _exit_code(run: Callable[[], Any]) -> int:
    try:
        with _termination_raises(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return run() or 0  # click returns the code of an Exit
    except click.Abort:
        tell("interrupted")
        return INTERRUPTED
    except Terminated:
        tell("terminated")
        return TERMINATED
    except Exception as error:
        if os.environ.get("DIFFUSION_FAST_DEBUG"):
            traceback.print_exception(error)
        code, message = _outcome(error)
        tell(f"error: {message}")
        return code


def _outcome(error: Exception) -> tuple[int, str]:
    """The exit code and the line for an error."""
    message = " ".join(str(error).split())
    if isinstance(error, click.ClickException):
        return BAD_INPUT, _usage_message(error)
    if isinstance(error, MemoryError):
        return FAILED, f"out of memory: {message or 'fewer samples may fit'}"
    if isinstance(error, OSError):
        reason = error.strerror or message
        return FAILED, reason if error.filename is None else f"{error.filename}: {reason}"
    if isinstance(error, FloatingPointError):
        return FAILED, message
    return FAILED, f"{type(error).__name__}: {message} (DIFFUSION_FAST_DEBUG=1 shows where)"


def _usage_message(error: click.ClickException) -> str:
    """The message of click with the parameter first, as the library's messages have it."""
    if isinstance(error, click.MissingParameter):
        return f"{_typed_name(error.ctx, error.param)}: not given; accepted: {_accepted(error.param)}"
    if isinstance(error, click.BadParameter):
        return f"{error.param_hint or _typed_name(error.ctx, error.param)}: {error.message}"
    return " ".join(error.format_message().split())


def _with_option_name(ctx: click.Context, message: str) -> str:
    """ "n_steps: got ..." becomes "--n-steps: got ..." where the command has such an option."""
    match = re.match(r"(\w+)(?:\[\d+\])?: got ", message)
    for param in ctx.command.params:
        if match and param.name == match.group(1):
            return _typed_name(ctx, param) + message.removeprefix(param.name)
    return message


def _typed_name(ctx: click.Context | None, param: click.Parameter | None) -> str:
    """--n-steps, CHECKPOINT, or the key of the file where the value comes from one."""
    if param is None:
        return "arguments"
    if ctx is not None and ctx.get_parameter_source(param.name or "") is ParameterSource.DEFAULT_MAP:
        return f"{param.name} in {ctx.meta['config']}"
    return param.opts[0] if isinstance(param, click.Option) else param.human_readable_name


def _accepted(param: click.Parameter | None) -> str:
    return getattr(param.type, "accepted", "a value") if param is not None else "a value"


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    tell(f"warning: {' '.join(str(message).split())}")
