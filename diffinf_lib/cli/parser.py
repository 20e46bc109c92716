"""The parser of the command line, and the options that several commands take."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.options import Device, NonNegativeFloat, PositiveInt, checked, read_text


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are those of the library: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see `{self.prog} --help`")

    def add_value(self, flag: str, kind: Any = str, **settings: Any) -> None:
        """An option whose text is read, and refused, as a configuration's field of that kind."""
        name = flag.lstrip("-").replace("-", "_")
        self.add_argument(flag, type=lambda text: checked(name, read_text(name, text, kind), kind), **settings)


class Commands:
    """The subcommands of the parser, each with its function and its one-line summary."""

    def __init__(self, parser: Parser):
        self._added = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(self, name: str, function: Callable[[argparse.Namespace], None], summary: str) -> Parser:
        added = self._added.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.set_defaults(command=function)
        return added


def add_preset(parser: Parser) -> None:
    parser.add_argument("preset", help="a preset's name; `diffinf presets` lists them")
    parser.add_argument("--limit", action="store_true", help="the preset at the size of a trial: few images, steps, draws "
                        "and subsets, a narrow network; short for PRESET:limited")  # fmt: skip


def add_preset_options(parser: Parser) -> None:
    add_preset(parser)
    parser.add_argument("--dataset", help="another dataset for the preset, e.g. folder:PATH")
    add_set_option(parser)
    add_machine_options(parser)


def add_machine_options(parser: Parser) -> None:
    parser.add_value("--device", Device, help="cpu or cuda; default: cuda where there is one")
    parser.add_value("--threads", PositiveInt, help="CPU threads; default: all cores")


def add_damping(parser: Parser, help: str) -> None:
    parser.add_value("--damping", NonNegativeFloat, action="append", help=help)


def add_set_option(parser: Parser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", dest="options",
                        help="replace a preset's option, e.g. training.steps=300 or unet.block_out_channels=32,64")  # fmt: skip


def add_run_options(parser: Parser) -> None:
    add_preset_options(parser)
    parser.add_argument("--run", type=Path, help="run folder; default: runs/PRESET")
    parser.add_value("--seed", int, default=0)
    parser.add_argument("--force", action="store_true", help="redo this stage, whatever is there")
    parser.add_argument("--quiet", action="store_true", help="no progress bars; a log file gets none anyway")


def pairs_of(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, _) in zip(texts, pairs, strict=True):
        require(bool(name and equals), f"option {text!r}: give OPTION=VALUE")
    return {name: value for name, _, value in pairs}


def set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def preset_of(options: argparse.Namespace) -> Any:
    import diffinf_lib as di

    preset = di.with_options(di.get_preset(options.preset), pairs_of(options.options))
    if options.dataset is not None:
        preset = replace(preset, dataset=replace(preset.dataset, name=options.dataset, classes=None))
    _ = preset.dataset.folder  # refused here if it is not there
    set_threads(options.threads)
    return preset
