"""How do docstrings become pages? Roles become links, synopses become code."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|exc):`~?([\w.]+)`")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_SYNOPSIS = re.compile(r"^(?:Synopsis)::?\n+((?:[ ]{4}.*\n?|\n)+)", re.MULTILINE)
_PACKAGE = "xtrainer"


class Docstrings(griffe.Extension):
    """Rewrites what Markdown would show as it stands."""

    def __init__(self) -> None:
        self._homes: dict[str, str] = {}

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrites every docstring of the package once its names are known."""
        if pkg.path != _PACKAGE:
            return
        for room in pkg.modules.values():
            for name in room.exports or ():
                self._homes.setdefault(str(name), f"{room.path}.{name}")
        for word in ("errors", "hooks", "registry", "state"):
            for name, member in pkg[word].members.items():
                if not member.is_alias and member.is_public:
                    self._homes.setdefault(name, member.path)
        self._visit(pkg)

    def _visit(self, thing: Any) -> None:
        if thing.is_alias:
            return
        if thing.is_module and thing.is_init_module:
            thing.docstring = None  # the page says it
        elif thing.docstring is not None:
            thing.docstring.value = self._rewritten(thing.docstring.value)
        for member in thing.members.values():
            self._visit(member)

    def _rewritten(self, text: str) -> str:
        text = _EXAMPLE.sub("Examples:", text)
        text = _SYNOPSIS.sub(lambda found: _code(found[1]), text)
        return _ROLE.sub(self._linked, text)

    def _linked(self, role: re.Match[str]) -> str:
        path = role[1]
        last = path.rpartition(".")[2]
        home = self._homes.get(last)
        if home is None:
            return f"`{path}`"
        return f'<autoref identifier="{home}" optional><code>{last}</code></autoref>'


def _code(block: str) -> str:
    lines = [line.removeprefix("    ") for line in block.rstrip().splitlines()]
    return "\n".join(["```python", *lines, "```", ""])
