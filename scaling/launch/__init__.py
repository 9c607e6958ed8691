"""Starting a plan: hostfiles and the command line."""

from scaling.launch.command import command
from scaling.launch.hostfile import parse_hostfile

__all__ = ["command", "parse_hostfile"]
