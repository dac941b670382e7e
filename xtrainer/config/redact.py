"""What of a config may be written down? All of it but secrets, which become ``***``.

A config goes to files that others read: ``config.json``, checkpoints, loggers. Secrets belong into
environment variables, which are never written; this is for those that got into a config.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

from xtrainer.config.encode import CLASS_KEY, PAIRS
from xtrainer.types import JSON

HIDDEN = "***"
"""Stands where a secret was."""

_SECRET = re.compile(
    r"secret|passw(or)?d|api_?key|wb_key|credential|(private|access)_?key"
    r"|token(_value|_str|_string)?$"
)
# Not a secret but a word of a vocabulary: {"eos_token": "</s>"} is needed to load the model.
_VOCABULARY = re.compile(r"(^|_)(bos|cls|end|eos|image|mask|pad|sep|special|start|unk)_token$")
_USER_INFO = re.compile(r"(?<=://)[^/\s?#]*@")
_SETTING = re.compile(r"""(?<![\w.-])([\w.-]+)=('[^']*'|"[^"]*"|[^\s&;#'",]+)""")

JSONT = TypeVar("JSONT", bound=JSON)


def redact(value: JSONT) -> JSONT:
    """Returns JSON without the secrets in it; of what holds none, an equal value.

    Hidden are texts under a key that says secret (``hf_token``, ``password``, ``api_key``, ...),
    also those deeper below it, and within any text the user information of a URL and what is set
    to such a name: ``?token=...`` in a URL, ``--config.api_key=...`` of a command line.

    Args:
        value: Nothing of it is changed.

    Example:
        >>> redact({"hf_token": "abc", "max_tokens": 8, "at": "https://me:pw@host/?api_key=1&n=2"})
        {'hf_token': '***', 'max_tokens': 8, 'at': 'https://***@host/?api_key=***&n=2'}
    """
    return _redact(value, False)


def is_secret(name: str) -> bool:
    """Says whether what bears a name is to be hidden.

    Example:
        >>> is_secret("model.HF-Token"), is_secret("eos_token"), is_secret("num_tokens")
        (True, False, False)
    """
    name = name.lower().replace("-", "_")
    return bool(_SECRET.search(name)) and not _VOCABULARY.search(name)


def _redact(value: JSON, hidden: bool) -> JSON:
    if isinstance(value, str):
        return HIDDEN if hidden else _redact_text(value)
    if isinstance(value, list):
        return [_redact(item, hidden) for item in value]
    if not isinstance(value, Mapping):
        return value
    pairs = value.get(PAIRS) if len(value) == 1 else None
    if isinstance(pairs, list):  # how a mapping is written that has other keys than texts
        return {PAIRS: [_redact_pair(pair, hidden) for pair in pairs]}
    return {
        name: item if name == CLASS_KEY else _redact(item, hidden or is_secret(str(name)))
        for name, item in value.items()
    }


def _redact_pair(pair: JSON, hidden: bool) -> JSON:
    is_named = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
    if not is_named:
        return _redact(pair, hidden)
    key, item = pair
    return [key, _redact(item, hidden or is_secret(key))]


def _redact_text(text: str) -> str:
    if "=" in text:
        text = _SETTING.sub(_hide, text)
    return _USER_INFO.sub(f"{HIDDEN}@", text) if "://" in text else text


def _hide(found: re.Match) -> str:
    return f"{found[1]}={HIDDEN}" if is_secret(found[1]) else found[0]
