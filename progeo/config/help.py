"""The help pages of a command: examples, then its settings in groups, each in one line or with its whole text."""

import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path

from progeo.config.examples import EXAMPLES
from progeo.config.settings import NEEDED, Setting, shown

COMMON = {
    "--config FILE": "File of settings in YAML, or the name of one that progeo has, such as toy/tiny_resnet. Settings "
    "have the names above; later arguments override them.",
    "--plugin FILE": "Python file that is imported before the settings are read, and adds rows to tables, such as a "
    "loss term or an encoder. Give the option once for each file.",
    "--max_pixels NUMBER": "Maximum pixels of an image file; images with more count as unreadable. The environment "
    "variable PROGEO_MAX_PIXELS sets it, too (default: 178956970, the limit of Pillow).",
    "--json": "Print the result as JSON; of several results, each on its own line.",
    "--quiet": "Log only warnings, and show no bars.",
    "--verbose": "Log the traceback of an error too.",
    "--log_format {text,json}": "Format of the log on stderr: text, with bars on a terminal, or one JSON object a "
    "line, also for progress. The environment variable PROGEO_LOG_FORMAT sets it, too (default: text).",
}
"""Options of every command, with their texts."""
_INDENT, _MAX_WIDTH = 6, 120
_MAX_COLUMN, _MIN_ROOM = 34, 30
"""On the page with one line for each option, the maximum width of their column and the minimum width of a text."""


def help_page(
    name: str,
    summary: str,
    example: str,
    words: tuple[str, ...],
    settings: Mapping[str, Setting],
    *,
    brief: bool = False,
) -> str:
    """Write the help page of a command.

    Args:
        name: the command, without `progeo`.
        summary: what it does.
        example: a command line.
        words: names of the settings that plain words give, see `parse_arguments`.
        settings: all of its settings.
        brief: show the beginning of each text, in one line, instead of the whole text.
    """
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    plain = [word.removesuffix("...") for word in words]
    needed = [setting for setting in settings.values() if setting.default is NEEDED and setting.name not in plain]
    usage = ["progeo", name, *map(_plain_word, words), *(f"--{each.name} {_value(each)}" for each in needed)]
    lines = [_sentence(summary), "", f"  {example}"]
    for purpose, command in EXAMPLES.get(name, {}).items():
        lines += [f"  # {purpose}", f"  {command}"]
    lines += ["", f"usage: {' '.join(usage)} [OPTIONS]"]
    sections: dict[str, dict[str, str]] = {}
    for setting in settings.values():
        option = f"--{setting.name} {_value(setting)}".rstrip()
        sections.setdefault(setting.section.removesuffix(".") or "Options", {})[option] = _text(setting)
    sections["Options of every command"] = COMMON
    column = min(_MAX_COLUMN, max(len(option) for options in sections.values() for option in options))
    for section, options in sections.items():
        lines += ["", f"{section}:"]
        for option, text in options.items():
            lines += [_line(option, text, column, width)] if brief else [f"  {option}", *_wrapped(text, width)]
    if brief:
        lines += ["", f"progeo {name} --help shows the whole texts."]
    return "\n".join(lines)


def _line(option: str, text: str, column: int, width: int) -> str:
    """Show an option and the beginning of its text: its first sentence, or as many words as there is room for."""
    room = max(width - max(column, len(option)) - 4, _MIN_ROOM)
    sentence = text.partition(". ")[0].removesuffix(".")
    return f"  {option:{column}}  {textwrap.shorten(sentence, room, placeholder=' ...')}"


def _plain_word(word: str) -> str:
    name = word.removesuffix("...").rpartition(".")[2].upper()
    return f"{name.removesuffix('S')} [{name.removesuffix('S')} ...]" if word.endswith("...") else name


def _value(setting: Setting) -> str:
    """Show the kind of value that a flag takes."""
    if setting.is_mapping:
        return "NAME=VALUE ..."
    if setting.choices and setting.takes_numbers:
        return f"{{NUMBER,{','.join(setting.choices)}}}"
    if setting.choices and len(setting.choices) <= 4 and not setting.may_be_list:
        return f"{{{','.join(setting.choices)}}}"
    if setting.is_switch:
        return "{true,false}" if setting.default is not False else ""
    is_path = Path in setting.kinds
    kind = "PATH" if is_path else "TEXT" if setting.is_text else "NUMBER"
    return f"{kind} ..." if setting.may_be_list else kind


def _text(setting: Setting) -> str:
    if setting.default is NEEDED:
        return f"{setting.text} (required)"
    is_plain = setting.default is None or setting.default is False or setting.default in ((), {})  # as the text says
    return setting.text if is_plain else f"{setting.text} (default: {shown(setting.default)})"


def _wrapped(text: str, width: int) -> list[str]:
    space = " " * _INDENT
    return textwrap.wrap(text, width, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
