"""Turn a GGUF file into a folder that `dllm.load` opens: `python scripts/convert_gguf.py MODEL.gguf FOLDER`.

transformers reads the file (it needs the packages gguf and accelerate) and undoes its quantization; what is written is
config.json, the tokenizer, and safetensors in bfloat16.
"""

import argparse
from pathlib import Path

import torch
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    source = {"pretrained_model_name_or_path": options.gguf.parent, "gguf_file": options.gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    # Newer versions would keep the weights quantized, which nothing else can read.
    whole = transformers.GgufConfig(dequantize=True) if hasattr(transformers, "GgufConfig") else None
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, quantization_config=whole)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"{options.out}: {model.num_parameters():,} parameters of {type(model).__name__}")


if __name__ == "__main__":
    main()
