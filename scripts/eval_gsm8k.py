"""Measure a model on GSM8K: python scripts/eval_gsm8k.py --model FOLDER --protocol P1, and any option of dllm eval."""

import sys

from dllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "--task", "gsm8k", *sys.argv[1:]]))
