"""DeepSpeed's hostfile, read strictly.

DeepSpeed 0.19.8 itself accepts `slots=0`, `slots=8x` and host names such as `-oProxyCommand=...`, which ssh would
execute (launcher/runner.py:229); here a host is a name or an address and slots a number.
"""

import re
from pathlib import Path

from scaling.errors import FileProblems, InputError
from scaling.files import read_text

_LINE = re.compile(r"(?P<host>[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?)\s+slots=(?P<slots>[1-9][0-9]{0,2})")


def parse_hostfile(path: str | Path) -> list[tuple[str, int]]:
    """[(host, slots)] in the file's order. Raises FileProblems naming every bad line."""
    hosts: dict[str, int] = {}
    problems = []
    for number, raw in enumerate(read_text(path, "hostfile").splitlines(), start=1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if not match:
            problems.append(f"line {number}: {line!r} is not `HOST slots=N`")
        elif match["host"] in hosts:
            problems.append(f"line {number}: host {match['host']!r} is listed twice")
        else:
            hosts[match["host"]] = int(match["slots"])
    if problems:
        raise FileProblems(str(path), problems, hint="see hostfile.example")
    if not hosts:
        raise InputError("hostfile", str(path), "lists no hosts", hint="see hostfile.example")
    return list(hosts.items())
