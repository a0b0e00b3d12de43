"""Writes the section of one benchmark into ``benchmarks/README.md``; the others stay."""

import pathlib
import re

_HEAD = "# Benchmarks\n\nEach section is written by the script that it names.\n"


def write_section(name, text, path=None):
    """Replaces, or adds at the end, what stands between the markers of that name.

    Args:
        name: Of the script, such as "attacks".
        text: Markdown.
        path: The file; ``benchmarks/README.md`` by default.
    """
    path = pathlib.Path(__file__).with_name("README.md") if path is None else pathlib.Path(path)
    old = path.read_text() if path.exists() else _HEAD
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(old):
        path.write_text(pattern.sub(lambda _: section, old))
    else:
        path.write_text(f"{old.rstrip()}\n\n{section}\n")
