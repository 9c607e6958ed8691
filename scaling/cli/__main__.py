"""`python -m scaling.cli`, the same as `scale`."""

from scaling.cli import main

main()
