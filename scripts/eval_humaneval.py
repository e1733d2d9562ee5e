"""Measure a model on HumanEval, which runs the code that it writes, in a sandbox.

python scripts/eval_humaneval.py --model FOLDER --allow_code_execution, and any option of dllm eval
"""

import sys

from dllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "--task", "humaneval", *sys.argv[1:]]))
