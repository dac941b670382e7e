"""How does text get into a page so that nothing of it is taken for markup?"""

import html
import json
from collections.abc import Iterable, Sequence

from xtrainer.types import JSON

_EMPTY = ("meta", "br")


class Markup(str):
    """Text that is HTML; any other text is escaped where it gets into some.

    Example:
        >>> element("p", "1 < 2 ", Markup("<b>!</b>"))
        '<p>1 &lt; 2 <b>!</b></p>'
    """


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """Returns an element of HTML.

    Args:
        tag: Its name.
        children: Texts, which are escaped, and markup; None is left out.
        attributes: By name, ``class_`` for ``class``, ``data_x`` for ``data-x``; where the value is
            None they are left out.
    """
    said = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY:
        return Markup(f"<{tag}{said}>")
    return Markup(f"<{tag}{said}>{joined(children)}</{tag}>")


def joined(children: Iterable[object]) -> Markup:
    """Returns texts and markup as one piece of markup."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else html.escape(str(child))
            for child in children
            if child is not None
        )
    )


def table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()
) -> Markup:
    """Returns a table.

    Args:
        heads: Of the columns.
        rows: Texts and markup.
        numbers: The columns that are aligned to the right.
    """
    kind = lambda index: "num" if index in numbers else None  # noqa: E731
    head = [element("th", text, class_=kind(i)) for i, text in enumerate(heads)]
    body = [
        element("tr", *(element("td", cell, class_=kind(i)) for i, cell in enumerate(row)))
        for row in rows
    ]
    inner = element("thead", element("tr", *head)), element("tbody", *body)
    return element("div", element("table", *inner), class_="scroll")


def script_json(value: JSON) -> Markup:
    """Returns JSON that may stand in a ``script`` element, which no text in it can end.

    Example:
        >>> script_json({"name": "</script>"})
        '{"name":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)
