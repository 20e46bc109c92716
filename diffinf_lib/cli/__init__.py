"""The command line: `diffinf COMMAND …`. Bad input is one line on standard error and exit code 2."""

import argparse
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffinf_lib.cli.experiments import add_template_commands
from diffinf_lib.cli.parser import Commands, Parser
from diffinf_lib.cli.stages import add_attribute, add_presets, add_stage_commands, attribute
from diffinf_lib.errors import DiffinfError, room_needed
from diffinf_lib.limited import LIMITED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, or 2 for bad input, or 130 when interrupted."""
    _print_in_any_encoding()
    try:
        options = _parsed(arguments)
        with _short_warnings(), room_needed("output"):
            options.command(options)
            sys.stdout.flush()
    except DiffinfError as error:
        print(f"diffinf: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("diffinf: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _print_in_any_encoding() -> None:
    """A terminal that lacks a λ or a letter of a file's name shows `?` instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; files to explain may stand after options too, where argparse would leave them over."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (options.command is not attribute or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.queries = [*options.queries, *rest]
    if getattr(options, "limit", False):
        options.preset = options.preset.removesuffix(LIMITED) + LIMITED
    return options


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Print a warning as one line, without the place in the code that gave it."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _parser() -> Parser:
    parser = Parser(prog="diffinf", description="Data attribution for diffusion models.")
    commands = Commands(parser)
    add_attribute(commands)
    add_presets(commands)
    add_stage_commands(commands)
    add_template_commands(commands)
    return parser
