"""The door for `deepspeed scale/train.py --ds_config FILE`; the program is scaling/train.py."""

import sys
from pathlib import Path

# A launcher runs this file by path: the folder above is the checkout, and this one has nothing to import.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scaling.train import main  # noqa: E402

main()
