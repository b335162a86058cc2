"""`python -m training.oracle`: the supervised upper bound (training/loop/supervised_bound.py)."""

import sys

from training.loop.supervised_bound import main

if __name__ == "__main__":
    sys.exit(main())
