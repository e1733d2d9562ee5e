"""A LoRA folder of peft changes the weights by scale · B A, and what cannot be merged is refused by its name."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dllm
import twins
from dllm import lora
from dllm.models import FAMILIES

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
R = 4
CONFIG = {
    "alpha_pattern": {},
    "auto_mapping": {"base_model_class": "Model", "parent_library": "transformers_modules.somewhere.modeling"},
    "base_model_name_or_path": "somewhere",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 6,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": R,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}


def save(folder: Path, network: torch.nn.Module, modules: str, rank: int = R, **config: object) -> dict[str, Tensor]:
    """Write an adapter for the modules that a pattern finds, as peft does; returns what B A is for each."""
    draw, tensors, products = torch.Generator().manual_seed(1), {}, {}
    for name, weight in network.state_dict().items():
        if weight.ndim == 2 and re.search(modules, name):
            a, b = (
                torch.randn(shape, generator=draw) * 0.2 for shape in ((rank, weight.shape[1]), (len(weight), rank))
            )
            module = name.removesuffix(".weight")
            tensors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
            products[name] = b @ a
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return products


def merged(network: torch.nn.Module, folder: Path) -> dict[str, Tensor]:
    """The weights of our network, under transformers' names, after an adapter was merged into them."""
    architecture = type(network).__name__
    model, family = twins.ours(network, architecture), FAMILIES[architecture]
    lora.merge(model, family, folder)
    return family.checkpoint(model, model.spec)


@pytest.fixture(scope="module")
def network():
    return twins.theirs("Qwen2")


def refused(network: torch.nn.Module, folder: Path, *parts: str) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model, family = twins.ours(network, "Qwen2ForCausalLM"), FAMILIES["Qwen2ForCausalLM"]
    with pytest.raises(dllm.DllmError) as caught:
        lora.merge(model, family, folder)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
    for name, value in family.checkpoint(model, model.spec).items():
        assert torch.equal(value, before[name])  # nothing was half merged


@pytest.mark.parametrize(
    ("modules", "config", "scale"),
    [
        ("q_proj|v_proj", {}, 6 / R),
        ("_proj", {"target_modules": ALL}, 6 / R),
        ("k_proj", {"target_modules": ["k_proj"], "use_rslora": True}, 6 / math.sqrt(R)),
        ("down_proj|lm_head", {"target_modules": ["down_proj", "lm_head"], "lora_alpha": 3.5}, 3.5 / R),
        ("1.self_attn.o_proj", {"target_modules": ["model.layers.1.self_attn.o_proj"]}, 6 / R),
        ("mlp", {"target_modules": r".*\.mlp\.(gate|up|down)_proj"}, 6 / R),
        (r"[02]\.self_attn.[qv]_proj", {"layers_to_transform": [0, 2]}, 6 / R),
        (r"1\.self_attn.[qv]_proj", {"layers_to_transform": 1}, 6 / R),
        (r"[12]\.self_attn.[qv]_proj", {"exclude_modules": r"model\.layers\.0\..*"}, 6 / R),
        ("q_proj", {"exclude_modules": ["v_proj"]}, 6 / R),
        ("q_proj|v_proj", {"peft_version": "0.21.2", "init_lora_weights": "gaussian", "runtime_config": {"x": 1}}, 1.5),
    ],
)
def test_weights_change_by_the_scaled_product_and_others_not_at_all(network, tmp_path, modules, config, scale):
    products = save(tmp_path, network, modules, **config)
    got = merged(network, tmp_path)
    assert products and got.keys() == network.state_dict().keys()
    for name, before in network.state_dict().items():
        torch.testing.assert_close(got[name], before + scale * products[name] if name in products else before)


def test_a_rank_and_an_alpha_of_its_own(network, tmp_path):
    save(tmp_path, network, "q_proj|v_proj")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.1.self_attn.v_proj.lora_"
    tensors[stem + "A.weight"], tensors[stem + "B.weight"] = torch.ones(1, 48), torch.ones(24, 1)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    patterns = {"rank_pattern": {"1.self_attn.v_proj": 1}, "alpha_pattern": {r"layers\.1\..*": 5, "v_proj": 7}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | patterns))
    got, before = merged(network, tmp_path), network.state_dict()
    name = "model.layers.{}.self_attn.{}_proj.weight"
    torch.testing.assert_close(got[name.format(1, "v")], before[name.format(1, "v")] + 5)
    for layer, part, alpha in ((0, "q", 6), (0, "v", 7), (1, "q", 5)):
        key = f"base_model.model.{name.format(layer, part).removesuffix('.weight')}.lora_"
        want = before[name.format(layer, part)] + alpha / R * tensors[key + "B.weight"] @ tensors[key + "A.weight"]
        torch.testing.assert_close(got[name.format(layer, part)], want)


def test_bfloat16_weights_are_rounded_once(network, tmp_path):
    products = save(tmp_path, network, "q_proj|v_proj")
    model, family = twins.ours(network, "Qwen2ForCausalLM").bfloat16(), FAMILIES["Qwen2ForCausalLM"]
    lora.merge(model, family, tmp_path)
    got = family.checkpoint(model, model.spec)
    for name, product in products.items():
        want = network.state_dict()[name].bfloat16().float() + 1.5 * product
        assert (got[name] == want.bfloat16()).float().mean() > 0.99  # but where the sum lies between two of its numbers


def test_code_in_the_folder_is_not_run(network, tmp_path):
    save(tmp_path, network, "q_proj|v_proj")
    for name in ("__init__.py", "modeling.py", "adapter.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    merged(network, tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA'; only LORA can be"),
        ({"peft_type": None}, "has no peft_type"),
        ({"use_dora": True}, "use_dora=True; an adapter with it cannot be merged"),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"bias": "all"}, "bias='all'; only none can be"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
        ({"layer_replication": [[0, 2]]}, "layer_replication=[[0, 2]]"),
        ({"layers_pattern": "blocks"}, "layers_pattern='blocks'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'; only True, False, gaussian"),
        ({"something_new": {"a": 1}}, "something_new={'a': 1}; an adapter with it cannot be merged"),
        ({"target_modules": ["c_attn"]}, "targets ['c_attn'], of which this model has none; it has down_proj,"),
        ({"target_modules": None}, "targets None, of which this model has none"),
        ({"target_modules": ["q_proj", 3]}, "target_modules=['q_proj', 3]; it must be a list of names or a pattern"),
        ({"target_modules": "q_proj("}, "the pattern 'q_proj(', which cannot be read"),
        ({"r": 0}, "the rank 0 for model.layers.0.self_attn.q_proj; it must be a whole number of at least 1"),
        ({"rank_pattern": {"v_proj": 2.5}}, "the rank 2.5 for model.layers.0.self_attn.v_proj"),
        ({"rank_pattern": [1]}, "rank_pattern=[1]; it must be an object of patterns and numbers"),
        ({"r": 3}, "model.layers.0.self_attn.q_proj.lora_A.weight' has the shape [4, 48]; this model and the rank ask"),
        (
            {"target_modules": ["q_proj"]},
            "v_proj.lora_A.weight' is of no matrix of this model that target_modules names",
        ),
        ({"target_modules": ["q_proj", "v_proj", "up_proj"]}, "layers.0.mlp.up_proj.lora_A.weight' is missing"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(network, tmp_path, changes, message):
    save(tmp_path, network, "q_proj|v_proj", **changes)
    refused(network, tmp_path, message)


@pytest.mark.parametrize("value", ["16", True])
def test_an_alpha_that_is_no_number(network, tmp_path, value):
    save(tmp_path, network, "q_proj|v_proj", lora_alpha=value)
    refused(network, tmp_path, f"the alpha {value!r} for model.layers.0.self_attn.q_proj; it must be a number")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_hidden_layers": 4}, "layers.3.self_attn.q_proj.lora_A.weight' is of no matrix of this model"),
        (
            {"num_hidden_layers": 2},
            "layers.2.self_attn.q_proj.lora_A.weight' is missing; is the adapter of another model?",
        ),
        ({"hidden_size": 32}, "q_proj.lora_A.weight' has the shape [4, 32]; this model and the rank ask for [4, 48]"),
        (
            {"num_key_value_heads": 4},
            "v_proj.lora_B.weight' has the shape [48, 4]; this model and the rank ask for [24, 4]",
        ),
    ],
)
def test_an_adapter_of_another_model_is_refused_by_the_tensor(network, tmp_path, sizes, message):
    save(tmp_path, twins.theirs("Qwen2", **sizes), "q_proj|v_proj")
    refused(network, tmp_path, message)


def test_a_quantized_factor_is_refused(network, tmp_path):
    save(tmp_path, network, "q_proj|v_proj")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, tmp_path / "adapter_model.safetensors")
    refused(network, tmp_path, f"{name!r} is quantized")


def test_files_that_are_missing_or_pickled(network, tmp_path):
    refused(network, tmp_path / "nowhere", "has no adapter_config.json; give a folder that peft saved")
    save(tmp_path, network, "q_proj|v_proj")
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    refused(network, tmp_path, "holds adapter_model.bin, a pickle, which can run code when opened and is refused")
    (tmp_path / "adapter_model.bin").unlink()
    refused(network, tmp_path, "has no adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut")
    refused(network, tmp_path, "adapter_model.safetensors cannot be read")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls what transformers is about to rename
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True, "lora_alpha": 3}, {"alpha_pattern": {"0.mlp.up_proj": 1}}]
)
def test_an_adapter_that_peft_saved_does_what_peft_does_with_it(tmp_path, options):
    peft = pytest.importorskip("peft")
    network = twins.theirs("Qwen3")
    wrapped = peft.get_peft_model(network, peft.LoraConfig(r=3, target_modules=ALL, **options))
    for name, value in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value.data, std=0.3)
    wrapped.save_pretrained(tmp_path)
    theirs = wrapped.merge_and_unload()
    got = merged(twins.theirs("Qwen3"), tmp_path)
    for name, want in theirs.state_dict().items():
        torch.testing.assert_close(got[name], want)
