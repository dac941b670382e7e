"""Runs the programs of pages, one after the other; started by ``test_docs_programs.py``.

For each page the Python blocks run in order in one namespace and in a folder of their own. A line
of JSON for each page says what went wrong, an empty text where nothing did.
"""

import contextlib
import doctest
import io
import json
import logging
import os
import sys
import traceback
import types
import warnings
from collections.abc import Sequence
from pathlib import Path

from docs_pages import OUTPUT, Block, page_blocks

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run_blocks(blocks: Sequence[Block], name: str) -> str:
    """Returns why the blocks of a page do not run as they stand, or an empty text."""
    module, printed = types.ModuleType("__main__"), io.StringIO()
    before, sys.modules["__main__"] = sys.modules["__main__"], module
    try:
        for block in blocks:
            if block.language == "python":
                code = compile("\n" * (block.line - 1) + block.text, name, "exec")
                with contextlib.redirect_stdout(printed):
                    exec(code, module.__dict__)
            elif block.rest == OUTPUT:
                if not doctest.OutputChecker().check_output(block.text, printed.getvalue(), FLAGS):
                    return f"{name}, line {block.line}: it prints\n{printed.getvalue()}"
                printed.seek(0)
                printed.truncate()
    except BaseException:
        return traceback.format_exc()
    finally:
        sys.modules["__main__"] = before
    return ""


def run_page(name: str, folder: Path) -> str:
    """Returns what is wrong with the programs of a page, run in an empty folder."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    package, before = logging.getLogger("xtrainer"), dict(os.environ)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        fault = run_blocks(page_blocks(name), name)
    package.setLevel(logging.NOTSET)
    os.environ.clear()
    os.environ.update(before)
    return fault


if __name__ == "__main__":
    work = Path(sys.argv[1])
    results = sys.stdout
    for page in sys.argv[2:]:
        fault = run_page(page, work / page.removesuffix(".md"))
        print(json.dumps([page, fault]), file=results, flush=True)
