"""Verbs are imported one by one: what is broken or missing for one of them leaves the others usable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from importlib.metadata import EntryPoint
from typing import Any, NoReturn

import typer
from typer.main import get_group

from cirrus_client.errors import PluginError


class Verbs(MutableMapping[str, Any]):
    """Click commands by name. A command's module is imported when the command is first looked up."""

    def __init__(self, entry_points: Iterable[EntryPoint]) -> None:
        self._commands: dict[str, Any] = {}
        self._references: dict[str, list[EntryPoint]] = {}
        for reference in entry_points:
            self._references.setdefault(reference.name, []).append(reference)

    def __getitem__(self, name: str) -> Any:
        if name not in self._commands:
            self._commands[name] = _command(name, self._references[name])
        return self._commands[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._commands[name] = command
        self._references.setdefault(name, [])

    def __delitem__(self, name: str) -> None:
        del self._references[name]
        self._commands.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._references)

    def __len__(self) -> int:
        return len(self._references)


def _command(name: str, references: list[EntryPoint]) -> Any:
    """Import a verb: a function with typer's annotations, or a Typer of several verbs."""
    shelf = typer.Typer(add_completion=False)
    try:
        if len(references) > 1:
            raise PluginError(
                f"verb '{name}' is defined more than once: {', '.join(one.value for one in references)}; uninstall "
                "the packages that you don't need",
                name=name,
            )
        verb = references[0].load()
    except Exception as error:  # raised when the verb is run: `cirrus --help` and `cirrus doctor` must start
        shelf.command(
            name,
            help="(can't start here; run it to see why)",
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
        )(_raises(error))
    else:
        if isinstance(verb, typer.Typer):
            shelf.add_typer(verb, name=name)
        else:
            shelf.command(name)(verb)
    return get_group(shelf).commands[name]


def _raises(error: Exception) -> Callable[[], NoReturn]:
    def broken_verb() -> NoReturn:
        raise error

    return broken_verb
