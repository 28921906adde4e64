"""Shell completion of all commands and their options."""

from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import shtab

from progeo.config.help import COMMON
from progeo.config.parsing import UsageError
from progeo.config.settings import settings_of


class _Command(Protocol):
    summary: str

    def load(self) -> Callable[..., Any]: ...


def completion(words: Sequence[str], commands: Mapping[str, _Command]) -> str:
    """Write the completion script of a shell, for `eval "$(progeo --print_completion bash)"`.

    Raises:
        UsageError: `words` is not one of the supported shells.
    """
    shell = " ".join(words)
    if shell not in shtab.SUPPORTED_SHELLS:
        raise UsageError(f"--print_completion takes {', '.join(shtab.SUPPORTED_SHELLS)}, got {shell or 'nothing'}.")
    root = ArgumentParser("progeo")
    groups = {"": root.add_subparsers()}
    for name, command in commands.items():
        group, _, last = name.rpartition(" ")
        if group not in groups:
            names = ", ".join(each for each in commands if each.startswith(f"{group} "))
            groups[group] = groups[""].add_parser(group, help=names).add_subparsers()  # shtab shows none without help
        parser = groups[group].add_parser(last, help=command.summary)
        if any(other.startswith(f"{name} ") for other in commands):
            groups[name] = parser.add_subparsers()
        for setting in settings_of(command.load()).values():
            action = parser.add_argument(f"--{setting.name}", choices=setting.choices or None)
            if Path in setting.kinds:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        for option, _, value in (each.partition(" ") for each in COMMON):
            action = parser.add_argument(option, action="store" if value else "store_true")
            if value == "FILE":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(root, shell)
