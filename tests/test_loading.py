"""Checkpoints open as what they are, in little memory, and whatever is wrong with one is said in one line."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

import dllm
import twins
from dllm import doctor, loading, weights
from dllm.cache import full_view
from dllm.canvas import Span
from dllm.models import FAMILIES
from dllm.models.transformer import Transformer

CONFIG = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "mlp_hidden_size": 48,
    "max_sequence_length": 64,
    "vocab_size": 40,
    "mask_token_id": 39,
    "eos_token_id": 38,
    "torch_dtype": "bfloat16",
}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BLOCK = "model.transformer.blocks.1."


def save(folder: Path, *, dtype: torch.dtype = torch.float32, shards: int = 1, **changes: object) -> Transformer:
    """Write a random LLaDA checkpoint and return its network."""
    config = CONFIG | changes
    family = FAMILIES["LLaDAModelLM"]
    model = Transformer(family.spec(config)).requires_grad_(False)
    for value in model.parameters():
        torch.nn.init.normal_(value, mean=float(value.ndim == 1), std=0.2)
    tensors = {n: t.to(dtype) for n, t in family.checkpoint(model, model.spec).items()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / SINGLE)
        return model
    places = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": places}))
    return model


def change(folder: Path, **changes: object) -> None:
    """Give tensors of a single-file checkpoint other values (a None removes one); "." is written as "__"."""
    tensors = load_file(folder / SINGLE) | {name.replace("__", "."): value for name, value in changes.items()}
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / SINGLE)


def save_tokenizer(folder: Path, *, turn_end: str = "<|eot_id|>", **config: object) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [f"w{i}" for i in range(37)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*words, turn_end, "<end>", "<mask>"])}, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([turn_end, "<end>", "<mask>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | config))


def load(folder: Path, **arguments: object) -> Transformer:
    return dllm.load(folder, device="cpu", **arguments)


def refused(folder: Path | str, *parts: object, **arguments: object) -> None:
    """Loading fails with one line that holds all of these."""
    with pytest.raises(dllm.DllmError) as caught:
        load(folder, **arguments)
    message = str(caught.value)
    assert "\n" not in message and all(str(part) in message for part in parts), message


def assert_same_weights(got: Transformer, want: Transformer, dtype: torch.dtype = torch.float32) -> None:
    got, want = dict(got.named_parameters()), dict(want.named_parameters())
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value.to(dtype), rtol=0, atol=0)


# What opens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path, shards, tied):
    want = save(tmp_path, shards=shards, weight_tying=tied, include_qkv_bias=True)
    got = load(tmp_path)
    assert got.spec == want.spec and got.tokenizer is None and not got.training
    assert_same_weights(got, want)
    assert (got.head.weight is got.embed.weight) is tied
    assert not any(p.requires_grad or p.is_meta for p in got.parameters()) and not list(got.buffers())
    view, span = full_view(got.spec, [9]), Span.between(torch.tensor([2]), torch.tensor([7]), 5)
    tokens = torch.randint(0, 38, (1, 9))
    torch.testing.assert_close(got(tokens, view, span), want(tokens, view, span), rtol=0, atol=0)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("wanted", ["fp32", torch.bfloat16, "float16", None])
def test_weights_are_converted_from_the_files_dtype_to_the_wanted_one(tmp_path, stored, wanted):
    want = save(tmp_path, dtype=getattr(torch, stored))
    target = loading.dtype_of(wanted) or torch.float32
    got = load(tmp_path, dtype=wanted)
    assert got.dtype == target
    assert_same_weights(got, want.to(getattr(torch, stored)), target)


def test_the_dtype_on_a_gpu_is_the_configs_and_else_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "fill", lambda *_: None)
    monkeypatch.setattr(loading, "fill", lambda *_: None)
    monkeypatch.setattr(loading, "device_of", lambda _: torch.device("cuda"))
    save(tmp_path, dtype=torch.float16)
    assert dllm.load(tmp_path).dtype == torch.bfloat16  # as the config says
    save(tmp_path, dtype=torch.float16, torch_dtype=None)
    assert dllm.load(tmp_path).dtype == torch.float16
    assert dllm.load(tmp_path, dtype="float32").dtype == torch.float32


def test_a_tensor_is_read_in_several_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", 1000)
    want = save(tmp_path)
    assert_same_weights(load(tmp_path), want)


def test_a_single_file_goes_before_an_index(tmp_path):
    save(tmp_path, shards=2)
    want = save(tmp_path)
    assert_same_weights(load(tmp_path), want)


def test_a_tokenizer_comes_along_and_its_end_of_turn_ends_answers(tmp_path):
    save(tmp_path)
    save_tokenizer(tmp_path)
    model = load(tmp_path)
    assert model.tokenizer("w3 w5")["input_ids"] == [3, 5]
    assert model.spec.eos_ids == (38, 37)


def test_a_dream_checkpoint_without_tokenizer_json_is_read_as_qwen2s(tmp_path):
    """Dream's hub files: vocab.json, merges.txt, and a tokenizer class that is code, which is not run."""
    from tokenizers import pre_tokenizers

    from dllm.models.tiny import tiny

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    (tmp_path / "vocab.json").write_text(json.dumps(letters | {"ab": 256}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    added = {"257": "<|endoftext|>", "258": "<|im_start|>", "259": "<|im_end|>", "260": "<|mask|>"}
    tokens = {
        i: {"content": t, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
        for i, t in added.items()
    }
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    about = {
        "added_tokens_decoder": tokens,
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "tokenizer_class": "DreamTokenizer",
        "chat_template": template,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    (tmp_path / "tokenization_dream.py").write_text("raise SystemExit('run')")
    sizes = {"vocab_size": 300, "mask_id": 260, "eos_ids": (257,), "logits_shift": 1, "qkv_bias": True}
    model = tiny(rope_fp32=False, **sizes, dtype=torch.float32)
    config = {
        "architectures": ["DreamModel"],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "vocab_size": 300,
        "mask_token_id": 260,
        "eos_token_id": 257,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = dllm.models.FAMILIES["DreamModel"].checkpoint(model, model.spec)
    save_file({name: t.contiguous() for name, t in stored.items()}, tmp_path / "model.safetensors")
    opened = load(tmp_path)
    assert opened.tokenizer("ab a")["input_ids"] == [256, letters["Ġ"], letters["a"]]
    assert opened.spec.eos_ids == (257, 259) and len(opened.tokenizer) == 261
    made = dllm.generate(opened, "ab", gen_length=8, block_length=4, eos_early_stop=False)
    assert max(made.completions[0]) < 261 and 260 not in made.completions[0]
    assert made.tokens[0, :3].tolist() == [258, *opened.tokenizer("user")["input_ids"][:2]]


def test_an_end_of_turn_that_the_tokenizer_lacks_or_the_config_has_is_not_added(tmp_path):
    save(tmp_path)
    save_tokenizer(tmp_path, turn_end="<stop>")
    assert load(tmp_path).spec.eos_ids == (38,)
    save(tmp_path, eos_token_id=[37, 38])
    save_tokenizer(tmp_path)
    assert load(tmp_path).spec.eos_ids == (37, 38)


def test_code_in_the_folder_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    classes = {name: f"evil.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")}
    save(tmp_path, auto_map=classes)
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    save_tokenizer(tmp_path, auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]})
    assert load(tmp_path).tokenizer("w3")["input_ids"] == [3]
    assert not marker.exists()
    # Where only its code could make the tokenizer, that is said.
    save_tokenizer(tmp_path, auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}, tokenizer_class="Tokenizer")
    (tmp_path / "tokenizer.json").unlink()
    refused(tmp_path, "the tokenizer in", "cannot be read")
    assert not marker.exists()


@pytest.mark.parametrize("tied", [False, True])
def test_tables_of_frequencies_and_the_copy_of_a_tied_head_are_passed_over(tmp_path, tied):
    want = save(tmp_path, weight_tying=tied)
    change(tmp_path, **{BLOCK + "rotary_emb.inv_freq": torch.ones(4)})
    if tied:
        change(tmp_path, model__transformer__ff_out__weight=torch.ones(40, 32))
    assert_same_weights(load(tmp_path), want)


def test_a_bar_shows_the_bytes_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(weights, "CHUNK", 1000)
    save(tmp_path, dtype=torch.bfloat16)
    load(tmp_path)
    assert capsys.readouterr().err == ""
    load(tmp_path, progress=True)
    shown = capsys.readouterr()
    assert "reading weights" in shown.err and "36.2/36.2 kB" in shown.err
    assert shown.out == ""


# Where it is found ------------------------------------------------------------------------------------------------


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A folder of bundled models with one in it, and an empty working folder."""
    save(tmp_path / "tiny-llada")
    (tmp_path / "cwd").mkdir()
    monkeypatch.setattr(loading, "ZOO", tmp_path)
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


@pytest.mark.usefixtures("zoo")
def test_a_bundled_model_opens_by_its_name():
    assert load("tiny-llada").spec.vocab_size == 40


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("name", ["tiny-lada", "tinyllada"])
def test_a_bundled_name_with_a_slip_is_met_with_the_right_one(name):
    refused(name, f"unknown model '{name}'", "did you mean 'tiny-llada'?")


def test_a_folder_opens_by_a_relative_path(zoo):
    save(zoo / "cwd" / "mine")
    assert load("mine").spec.vocab_size == 40
    assert load("./mine").spec.vocab_size == 40


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("name", ["./nowhere", "~/no-such-folder", "/no/such", "a/b/c", ".."])
def test_a_path_that_is_no_folder_of_a_model_is_not_looked_up_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    refused(name, "no config.json" if name == ".." else f"{name!r} is no folder here")


def test_a_file_is_not_a_folder(zoo):
    refused(zoo / "tiny-llada" / SINGLE, "is a file; give the folder")


def test_a_hub_id_is_downloaded_without_code_and_pickles(zoo, monkeypatch):
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision, sorted(allow_patterns)))
        return str(zoo / "tiny-llada")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load("someone/model", revision="abc").spec.vocab_size == 40
    small = ["*.jinja", "*.json", "*.model", "*.txt"]  # first, so that an unknown family costs no gigabytes
    assert asked == [("someone/model", "abc", wanted) for wanted in (small, sorted([*small, "*.safetensors"]))]


def test_a_hub_id_of_an_unknown_family_is_refused_before_its_weights_are_fetched(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"architectures": ["Strange"]}')
    asked = []

    def snapshot_download(*_, allow_patterns, **__):
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    refused("someone/strange", "Strange", "not known here")
    assert "*.safetensors" not in asked


def test_a_hub_id_with_pickles_alone_is_refused_with_the_reason(zoo, monkeypatch):
    (zoo / "tiny-llada" / SINGLE).unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(zoo / "tiny-llada"))
    refused("someone/pickled", "'someone/pickled' has no safetensors files", "can run code when opened")


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no connection\nand much more"),
        HFValidationError("bad id"),
        ConnectionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_that_fails_says_so_in_one_line(monkeypatch, error):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    refused("some/model", "'some/model' is no folder here and could not be fetched", type(error).__name__)


# Options behind a name ---------------------------------------------------------------------------------------------


def in_blocks(folder, architecture="SDARForCausalLM"):
    """A checkpoint in the format of SDAR; returns its name as a path with a folder before it."""
    folder.mkdir()
    twins.save(twins.theirs("Qwen3"), folder, architecture, mask_token_id=60)
    return f"./{folder.name}"


def test_options_of_a_model_stand_behind_its_name(zoo):
    name = in_blocks(zoo / "cwd" / "mine")
    assert load(name).spec.block_length == 4
    assert load(f"{name}:block_length=16").spec.block_length == 16
    config, _ = doctor.config_of(f"{name}:block_length=16")
    assert config.n_layers == 3


def test_a_causal_model_is_adapted_by_the_options_behind_its_name(zoo):
    name = in_blocks(zoo / "cwd" / "mine", "Qwen3ForCausalLM")
    spec = load(f"{name}:block_length=8,mask_id=7,logits_shift=0").spec
    assert (spec.attention, spec.block_length, spec.mask_id, spec.logits_shift) == ("block", 8, 7, 0)
    refused(f"{name}:block_length=8", "the attention of this one is causal", "dllm.adapt opens a causal model")
    refused(f"{name}:mask_id=8", "a causal model has no blocks; give block_length=")
    refused(f"{name}:block_length=8,mask_id=8,adapter=./none", "none has no adapter_config.json")


def test_a_folder_whose_name_has_a_colon_is_itself(zoo):
    in_blocks(zoo / "cwd" / "a:b")
    assert load("./a:b").spec.block_length == load("a:b").spec.block_length == 4


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tiny-llada:block_lenght=4", ["unknown option of model tiny-llada", "did you mean 'block_length'?"]),
        ("tiny-llada:block_length", ["'block_length' in tiny-llada:block_length is not option=value"]),
        ("tiny-llada:block_length=x", ["tiny-llada:block_length=x is not of type int"]),
        ("tiny-llada:block_length=4", ["block_length=4 is of block-causal models"]),
        ("tiny-lada:block_length=4", ["did you mean 'tiny-llada'?"]),
    ],
)
def test_a_wrong_option_behind_a_name_is_named(name, parts):
    refused(name, *parts)


@pytest.mark.usefixtures("zoo")
def test_a_block_length_is_given_once():
    refused("tiny-llada:block_length=4", "block_length of model tiny-llada is given twice", block_length=8)


# What is refused --------------------------------------------------------------------------------------------------


def test_a_folder_without_a_config(tmp_path):
    refused(tmp_path, tmp_path, "has no config.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"d_model": 32,', "is not JSON"), (b"\xff\xfe", "is not JSON"), ("[1]", "holds a list, not an object")],
)
def test_a_broken_config(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(tmp_path, "config.json", message)


@pytest.mark.parametrize(
    ("names", "shown"), [(["BertModel"], "BertModel"), ([], "none given"), (None, "none given"), ("LLaDA", "LLaDA")]
)
def test_an_unknown_architecture_lists_the_known(tmp_path, names, shown):
    save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"architectures": names}))
    refused(tmp_path, f"of the architecture {shown}" if names else shown, *FAMILIES)


def test_a_config_without_a_needed_key(tmp_path):
    save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "n_layers"}))
    refused(tmp_path, "config.json has no 'n_layers'")


def test_a_missing_tensor_is_named_with_its_shape(tmp_path):
    save(tmp_path)
    change(tmp_path, **{BLOCK + "k_proj.weight": None})
    refused(tmp_path, f"lack the tensor '{BLOCK}k_proj.weight' of shape [16, 32].")


def test_a_misnamed_tensor_is_suggested(tmp_path):
    save(tmp_path)
    change(tmp_path, model__transformer__ln_f__weight=None, transformer__ln_f__weight=torch.ones(32))
    refused(
        tmp_path, "lack the tensor 'model.transformer.ln_f.weight' of shape [32] (is it 'transformer.ln_f.weight'?)"
    )


def test_a_head_that_the_config_says_is_not_tied_must_be_there(tmp_path):
    save(tmp_path, weight_tying=True)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"weight_tying": False}))
    refused(tmp_path, "lack the tensor 'model.transformer.ff_out.weight' of shape [40, 32]")


@pytest.mark.parametrize("shape", [(32, 16), (512,), (17, 32), (1, 16, 32)], ids=str)
def test_a_tensor_of_another_shape_is_named_with_both(tmp_path, shape):
    save(tmp_path)
    change(tmp_path, **{BLOCK + "k_proj.weight": torch.zeros(shape)})
    refused(tmp_path, f"'{BLOCK}k_proj.weight' has the shape {list(shape)}; config.json asks for [16, 32]")


def test_a_tensor_of_integers_is_refused(tmp_path):
    save(tmp_path)
    change(tmp_path, **{BLOCK + "k_proj.weight": torch.zeros(16, 32, dtype=torch.int8)})
    refused(tmp_path, f"'{BLOCK}k_proj.weight' is quantized")


def test_tensors_of_another_network_are_refused(tmp_path):
    save(tmp_path, n_layers=3)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    refused(tmp_path, "have 9 tensors that config.json does not account for", "blocks.2.")
    save(tmp_path)
    change(tmp_path, **{BLOCK + "q_norm.weight": torch.ones(8)})
    refused(tmp_path, "have 1 tensors", f"'{BLOCK}q_norm.weight'")


@pytest.mark.parametrize("keep", [0.0, 4, 0.05, 0.5, 0.999], ids=str)
def test_a_file_that_is_cut_short(tmp_path, keep):
    save(tmp_path)
    content = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    refused(tmp_path, SINGLE, "cannot be read", "cut short?")


def test_a_missing_shard_is_named(tmp_path):
    save(tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    refused(tmp_path, "model-00002-of-00003.safetensors is missing, though the index names it")


def test_a_shard_that_lacks_what_the_index_places_there(tmp_path):
    save(tmp_path, shards=2)
    places = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    name = "model.transformer.wte.weight"
    other = next(shard for shard in places.values() if shard != places[name])
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places | {name: other}}))
    refused(tmp_path, other, f"lacks the tensor '{name}', which the index places there")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "has no 'weight_map'"),
        ('{"weight_map": []}', "has no 'weight_map'"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "'../other/model.safetensors'; shards must be files"),
        ('{"weight_map": {"a": 3}}', "names the file 3"),
    ],
)
def test_a_broken_index(tmp_path, index, message):
    save(tmp_path)
    (tmp_path / SINGLE).unlink()
    (tmp_path / INDEX).write_text(index)
    refused(tmp_path, INDEX, message)


def test_no_weights(tmp_path):
    save(tmp_path)
    (tmp_path / SINGLE).unlink()
    refused(tmp_path, "has no model.safetensors", "where are the weights?")


def test_a_pickle_is_refused_with_the_reason(tmp_path):
    save(tmp_path)
    (tmp_path / SINGLE).rename(tmp_path / "pytorch_model.bin")
    refused(tmp_path, "holds only pytorch_model.bin, a pickle, which can run code when opened", "convert it")


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "Nothing"}}'])
def test_a_broken_tokenizer(tmp_path, content):
    save(tmp_path)
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(tmp_path, "the tokenizer in", "cannot be read")


@pytest.mark.parametrize(
    ("dtype", "parts"),
    [("bf61", ["unknown dtype 'bf61'", "did you mean 'bf16'?"]), (torch.int8, ["unknown dtype 'int8'"])],
)
def test_an_unknown_dtype(tmp_path, dtype, parts):
    refused(tmp_path, *parts, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_a_device_that_is_not_there(tmp_path, device):
    with pytest.raises(dllm.DllmError, match=f"device='{device}' cannot be used"):
        dllm.load(tmp_path, device=device)


# Memory -----------------------------------------------------------------------------------------------------------

PEAK = """
import json, re, sys
from pathlib import Path
import torch
import dllm

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

dllm.load(sys.argv[1], device="cpu")  # whatever is imported or allocated once
before = memory("VmRSS")
for folder, dtype in json.loads(sys.argv[2]):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    model = dllm.load(folder, device="cpu", dtype=dtype)
    size = sum(p.nbytes for p in model.parameters())
    print(json.dumps([size, memory("VmHWM") - before]), flush=True)
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_loading_peaks_at_the_model_and_a_tenth(tmp_path):
    """Resident memory of a process of its own, pages of mapped files included, against that before the call."""
    save(tmp_path / "warm")
    runs = []
    for stored, layers in (("bfloat16", 12), ("float32", 6)):
        config = CONFIG | {"d_model": 1024, "n_heads": 8, "n_kv_heads": 8, "n_layers": layers}
        config |= {"mlp_hidden_size": 1280, "embedding_size": 4096}
        folder = tmp_path / stored
        folder.mkdir()
        family = FAMILIES["LLaDAModelLM"]
        with torch.device("meta"):
            model = Transformer(family.spec(config))
        shapes = family.checkpoint(model, model.spec)
        save_file({n: torch.zeros(t.shape, dtype=getattr(torch, stored)) for n, t in shapes.items()}, folder / SINGLE)
        (folder / "config.json").write_text(json.dumps(config))
        runs.append((str(folder), stored))
    runs.append((runs[0][0], "float32"))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "warm"), json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(dllm.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 3
    for size, growth in found:
        assert size > 190e6
        assert 0.9 * size < growth < 1.1 * size, found
