import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cases
import checkpoints
from dllm import doctor, loading
from dllm.cli import main
from dllm.errors import DllmError

SIZES = {"batch_size": 3, "prompt_length": 20, "gen_length": 16, "block_length": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.save(tmp_path_factory.mktemp("model"), tokenizer=False)


def test_the_weights_are_those_of_the_model(folder):
    model = loading.load(folder)
    need = doctor.need(model.spec, torch.float32, **SIZES)
    assert need["weights"] == sum(p.nbytes for p in model.parameters())
    assert doctor.need(model.spec, torch.bfloat16, **SIZES)["weights"] == need["weights"] // 2


def test_keys_and_values_are_those_of_a_generation(tiny):
    model = tiny(dtype=torch.float32)
    from dllm.cache import DualCache

    tokens = torch.zeros(3, 36, dtype=torch.long)
    lengths = torch.full((3,), 36)
    state = DualCache().start(model.spec, cases.canvas(tokens, lengths - 16, lengths, 39), torch.float32)
    stored = sum(t.nbytes for t in [*state.keys, *state.values])
    assert doctor.need(model.spec, torch.float32, **SIZES)["keys and values"] == stored


@pytest.mark.parametrize("part", ["keys and values", "logits", "activations of a layer"])
def test_a_batch_of_twice_the_size_needs_twice_the_room(tiny, part):
    once, twice = (doctor.need(tiny().spec, torch.float16, **SIZES | {"batch_size": b})[part] for b in (2, 4))
    assert twice == 2 * once > 0


def test_a_canvas_longer_than_the_context_is_refused(tiny):
    with pytest.raises(
        DllmError, match="prompt_length=120 and gen_length=16 make 136 tokens; the model's context is 128"
    ):
        doctor.need(tiny().spec, torch.float32, **SIZES | {"prompt_length": 120})


def test_the_report_names_versions_devices_and_kernels(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for fact in (
        torch.__version__,
        "triton",
        "threads",
        "cpu",
        "free",
        "scaled_dot_product_attention",
        "bundled models",
    ):
        assert fact in out


def test_a_model_that_fits(folder, capsys):
    arguments = ["--model", folder, "--batch-size", "2", "--gen_length=64", "--device", "cpu", "--prompt_length", "128"]
    assert main(["doctor", *arguments]) == 0
    out = capsys.readouterr().out
    assert "fits" in out and " yes" in out and "batch 2, prompt 128, answer 64 tokens" in out
    assert main(["doctor", *arguments, "--json", "--dtype", "bf16"]) == 0
    report = json.loads(capsys.readouterr().out)
    told = report["model"]
    assert told["dtype"] == "bfloat16" and told["prompt_length"] == 128 and told["fits"]
    assert told["total"] == sum(told["need"].values()) <= told["free"]
    assert report["versions"]["torch"] == torch.__version__


def test_a_model_that_does_not_fit_is_told_by_the_exit_code(folder, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda _device: 1000)
    assert main(["doctor", "--model", folder, "--gen_length", "16", "--prompt_length", "16"]) == 1
    assert "no; try a smaller --batch_size" in capsys.readouterr().out


def test_only_the_config_is_read(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((Path(folder) / "config.json").read_bytes())
    assert main(["doctor", "--model", str(tmp_path), "--prompt_length", "64", "--gen_length", "64"]) == 0


def test_of_a_model_on_the_hub_only_the_config_is_fetched(folder, monkeypatch):
    asked = []

    def fetch(name, file):
        asked.append((name, file))
        return str(Path(folder) / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    spec, _ = doctor.config_of("some/model")
    assert asked == [("some/model", "config.json")] and spec.n_layers == checkpoints.CONFIG["n_layers"]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch, capsys):
    def fetch(*_names):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert main(["doctor", "--model", "some/model"]) == 2
    assert capsys.readouterr().err == (
        "dllm: error: 'some/model' is no folder here, and its config could not be fetched (no route).\n"
    )


def test_another_package_of_the_same_name_is_noticed(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "packages_distributions", lambda: {"dllm": ["dllm-decode", "dllm", "dllm"]})
    assert doctor.others() == ["dllm"]
    main(["doctor"])
    assert "dllm also installs a package named dllm" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "packages_distributions", lambda: {"dllm": ["dllm-decode"]})
    main(["doctor"])
    assert "also installs" not in capsys.readouterr().out


def test_free_memory_minds_the_limit_of_the_control_group(monkeypatch):
    free, read = doctor.free_memory(torch.device("cpu")), Path.read_text
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4000 kB\n", "/sys/fs/cgroup/memory.max": "max\n"}
    files["/sys/fs/cgroup/memory.current"] = "1000\n"
    monkeypatch.setattr(Path, "read_text", lambda path: files.get(str(path)) or read(path))
    assert free > 1 << 20 and doctor.free_memory(torch.device("cpu")) == 4000 * 1024
    files["/sys/fs/cgroup/memory.max"] = "5000\n"
    assert doctor.free_memory(torch.device("cpu")) == 4000

    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert doctor.free_memory(torch.device("cpu")) > 1 << 30


def test_the_dtype_on_a_gpu_is_the_configs(monkeypatch):
    monkeypatch.setattr(loading, "device_of", lambda _name: torch.device("cuda"))
    monkeypatch.setattr(doctor, "free_memory", lambda _device: 1 << 30)
    config = checkpoints.CONFIG | {"vocab_size": 40}
    spec = loading.FAMILIES["LLaDAModelLM"].spec(config)
    for named, dtype in ((None, "bfloat16"), ("float16", "float16")):
        monkeypatch.setattr(doctor, "config_of", lambda _name, named=named: (spec, config | {"torch_dtype": named}))
        assert (
            doctor.examine("m", None, None, 16, batch_size=1, gen_length=16, block_length=8)["model"]["dtype"] == dtype
        )


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3072.0 GiB")]
)
def test_sizes_are_readable(n_bytes, text):
    assert doctor.size(n_bytes) == text


def test_what_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "surely-no-such-package"))
    assert doctor.versions()["surely-no-such-package"] == "not installed"


def test_wider_heads_for_keys_need_more(tiny):
    spec = tiny().spec
    more = doctor.need(replace(spec, n_kv_heads=4), torch.float32, **SIZES)["keys and values"]
    assert more == 2 * doctor.need(spec, torch.float32, **SIZES)["keys and values"]


def test_options_behind_a_models_name_are_of_its_spec():
    spec, _ = doctor.config_of("tiny-ar:block_length=8,logits_shift=1")
    assert (spec.attention, spec.block_length) == ("block", 8)
    with pytest.raises(DllmError, match="block_length=8 is of block-causal models"):
        doctor.config_of("tiny-llada:block_length=8")
