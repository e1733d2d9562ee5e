"""Make a filter for the sampler learned: python scripts/train_learn2pd.py --model FOLDER, and any option of
dllm train-filter."""

import sys

from dllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-filter", *sys.argv[1:]]))
