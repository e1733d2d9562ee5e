"""The sampler with a filter: what its strictest and loosest thresholds are, and that it is one sampler among others."""

import json
from pathlib import Path
from pickle import dumps, loads

import pytest
import torch
from rich.console import Console

import cases
import checkpoints
import dllm
from dllm import DllmError, compare, generate
from dllm.evaluate import tasks
from dllm.evaluate.answers import method_of
from dllm.filters.train import write
from dllm.fingerprint import fingerprint
from dllm.options import parts
from dllm.samplers import SAMPLERS, Learn2PD, make
from dllm.samplers.base import Fitted
from dllm.samplers.features import Sight
from dllm.samplers.filter import Filter, find, make_net, read
from dllm.verify import finished

ASK = {"gen_length": 6, "block_length": 4, "eos_early_stop": False, "seed": 0}


@pytest.fixture
def at(trained):
    folder, _ = trained
    return lambda threshold: f"learned:filter={folder},threshold={threshold}"


def same(model, one, other, **ask):
    first, second = (generate(model, cases.PROMPTS, sampler, **{**ASK, **ask}) for sampler in (one, other))
    assert first.completions == second.completions and torch.equal(first.nfe, second.nfe)


def test_a_threshold_of_1_is_one_token_a_step(model, at):
    same(model, at(1), "static", cache="none")
    same(model, at(1), "static", cache="dual")


def test_a_threshold_of_0_reveals_the_block(model, at):
    assert (generate(model, cases.PROMPTS, at(0), **ASK).nfe == 2).all()


def test_a_higher_threshold_takes_no_fewer_forwards(model, at):
    nfe = [generate(model, cases.PROMPTS, at(t), "none", **ASK).nfe.sum() for t in (0, 0.5, 0.9, 1)]
    assert nfe == sorted(nfe) and nfe[0] < nfe[-1]


def test_it_reveals_what_the_filter_believes_and_the_most_confident(trained):
    _, made = trained
    p = cases.example([0.3, 0.9, 0.2, 0.6], decided=[])
    believed = made.logits(Sight(p, 4)).sigmoid()[0]
    threshold = float(believed.sort().values[1:3].mean())
    after = Learn2PD(made, threshold)(p)
    want = {int(i) for i in (believed >= threshold).nonzero()} | {1}
    assert {int(i) for i in (after != p.current)[0].nonzero()} == want


@pytest.mark.parametrize("cache", ["none", "dual", "prefix", "elastic:window_length=4,gamma=0.8"])
def test_a_row_alone_is_the_row_in_a_batch(model, at, cache):
    together = generate(model, cases.PROMPTS, at(0.6), cache, **ASK)
    for i, prompt in enumerate(cases.PROMPTS):
        alone = generate(model, prompt, at(0.6), cache, **ASK)
        assert alone.completions[0] == together.completions[i] and alone.nfe[0] == together.nfe[i]


@pytest.mark.parametrize("cache", [cache for cache in cases.ALWAYS.values() if cases.legal("threshold", cache)])
def test_a_cache_that_computes_everything_changes_nothing(model, at, cache):
    plain, cached = (generate(model, cases.PROMPTS, at(0.6), c, **ASK) for c in ("none", cache))
    assert plain.completions == cached.completions


@pytest.mark.parametrize(("cache", "eager"), [("none", False), ("none", True), ("dual", False)])
def test_drafts_change_forwards_but_not_tokens(model, at, cache, eager):
    plain = generate(model, cases.PROMPTS, at(0.6), cache, **ASK)
    drafted = generate(model, cases.PROMPTS, at(0.6), cache, **ASK, drafts=3, eager=eager)
    assert plain.completions == drafted.completions and (drafted.nfe <= plain.nfe).all()
    assert torch.equal(plain.steps, drafted.steps)


def test_a_filter_that_remembers_runs_without_drafts_alone(model, trained):
    net = make_net("shared").build(1, 4).requires_grad_(False)
    ageing = Learn2PD(Filter(net, "shared", ("age",), trained[1].made_for, 0.5))
    assert (generate(model, cases.PROMPTS, ageing, **ASK).nfe > 0).all()
    with pytest.raises(DllmError, match="remembers its steps, so that none can be drafted"):
        generate(model, cases.PROMPTS, ageing, **ASK, drafts=2)


def test_the_threshold_is_the_calibrated_one_unless_it_is_given(trained):
    folder, made = trained
    assert make(f"learned:filter={folder}").threshold == made.threshold < 1
    assert make("learned", filter=str(folder / "filter.safetensors"), threshold=0.3).threshold == 0.3
    with pytest.raises(DllmError, match=r"threshold=1.5 is not a probability"):
        make(f"learned:filter={folder},threshold=1.5")


def test_it_can_be_sent_to_another_process(model, trained):
    sampler = loads(dumps(make(f"learned:filter={trained[0]}")))
    same(model, sampler, Learn2PD(trained[1]), cache="none")


def test_a_filter_decodes_its_own_model_alone(tiny, at):
    with pytest.raises(DllmError, match=r"was fitted on tiny \(weights \w+\), and this model has others"):
        generate(tiny(seed=1), cases.PROMPTS, at(0.6), **ASK)
    with pytest.raises(DllmError, match=r"on tiny-llada \(weights \w+\), and tiny-dream has others"):
        generate(dllm.load("tiny-dream"), "Copy this list: sea", "learned:filter=tiny-llada", gen_length=32)


@pytest.mark.parametrize("sampler", ["", "sliding"])
def test_a_filter_decodes_blocks_of_its_own_length_alone(model, trained, sampler):
    learned = make(f"learned:filter={trained[0]}")
    ask = ASK | {"block_length": 6}
    if sampler:
        learned, ask = make(sampler, base=learned), ASK | {"block_length": None}
    with pytest.raises(DllmError, match="with block_length 4, and this model decodes with block_length 6"):
        generate(model, cases.PROMPTS, learned, **ask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_decodes_its_model_in_every_dtype(tiny, at, dtype):
    assert (generate(tiny(dtype=dtype), cases.PROMPTS, at(0.6), **ASK).nfe > 0).all()


# Files


def test_a_file_gives_the_filter_back(trained):
    folder, made = trained
    again = read(str(folder))
    assert all(torch.equal(again.net.state_dict()[name], value) for name, value in made.net.state_dict().items())
    assert (again.kind, again.features, again.threshold) == (made.kind, made.features, made.threshold)
    assert again.made_for.block_length == 4 and again.facts == made.facts
    assert isinstance(again, Filter) and find(str(folder)) == folder / "filter.safetensors"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A model from a folder with a filter beside its weights."""
    folder = checkpoints.save(tmp_path_factory.mktemp("model"))
    made = dllm.load(folder)
    net = make_net("shared").build(1, 4).requires_grad_(False)
    made_for = Fitted("", made.name, fingerprint(made), 4)
    write(
        Filter(net, "shared", ("confidence",), made_for, 0.5, {"from": "nowhere"}), Path(folder) / "filter.safetensors"
    )
    return made


def test_the_filter_that_comes_with_a_model_is_taken_where_none_is_named(opened):
    ask = {"gen_length": 8, "block_length": 4, "seed": 0}
    for name in ("learned", "prophet:base=learned", "learned:threshold=0.7"):
        run = dllm.stream(opened, "a", name, "none", **ask)
        assert run.needs.fitted.method == str(Path(opened.name) / "filter.safetensors")
        assert all(len(row) == 8 for row in finished(run).completions)
    assert make("learned").for_model("tiny-llada").made.made_for.model == "tiny-llada"
    assert make("learned", threshold=0.3).for_model("tiny-llada").threshold == 0.3
    assert make("static").for_model("nothing") == make("static")


def test_a_model_without_a_filter_is_told_how_one_is_made(model, tmp_path):
    with pytest.raises(
        DllmError, match=r"this model comes without a filter .* make one with dllm train-filter --model"
    ):
        generate(model, cases.PROMPTS, "learned", **ASK)
    with pytest.raises(DllmError, match=f"--model {tmp_path} --output FOLDER, and give filter=FOLDER"):
        make("sliding:base=learned").for_model(str(tmp_path))
    with pytest.raises(DllmError, match="learned has no filter yet"):
        make("learned")(cases.example())


def test_records_name_the_filter_that_was_used(opened, trained):
    file = str(Path(opened.name) / "filter.safetensors")
    told = method_of(opened.spec, tasks.make("drill"), opened.name, sampler="learned", block_length=4).facts()[
        "sampler"
    ]
    assert told["filter"] == opened.name and told["fitted"]["method"] == file and told["threshold"] == 0.5
    chosen, _ = compare.legal(opened, [("learned", "none")], gen_length=8, block_length=4)
    [cell] = compare.run(
        opened, compare.questions(["drill"], 1, 0), chosen, Console(quiet=True), gen_length=8, block_length=4
    )
    assert cell.record()["fitted"] == f"{file} {told['fitted']['digest']}"
    assert json.loads(json.dumps(parts(Learn2PD(trained[1]), SAMPLERS)))["filter"].startswith("Filter(kind='shared")


def test_a_filter_that_is_not_there_is_told_with_those_that_are(tmp_path):
    for name in ("nothing", str(tmp_path)):
        with pytest.raises(DllmError, match=r"there is no filter .* a bundled model that has one: .*tiny-llada"):
            make("learned", filter=name)


def test_a_file_cut_short_is_refused(trained, tmp_path):
    whole = (trained[0] / "filter.safetensors").read_bytes()
    for n in (4, len(whole) // 2, len(whole) - 1):
        (tmp_path / "filter.safetensors").write_bytes(whole[:n])
        with pytest.raises(DllmError, match=r"cannot be read .* is the file cut short"):
            read(str(tmp_path))


def test_other_tensors_are_no_filter(tmp_path):
    from safetensors.torch import save_file

    for metadata in (None, {"filter": "{}"}, {"filter": "no json"}):
        save_file({"a": torch.zeros(2)}, tmp_path / "filter.safetensors", metadata=metadata)
        with pytest.raises(DllmError, match="is not a filter as dllm train-filter writes them"):
            read(str(tmp_path))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'\\"border\\"', b'\\"colour\\"'),  # a feature that is not known
        (b'\\"border\\"', b'\\"margin\\"'),  # one twice
        (b"shared:hidden=8", b"shared:hidden=9"),  # another network than its weights
        (b"shared:hidden=8", b"sharks:hidden=8"),
    ],
)
def test_other_features_or_another_network_are_refused(trained, tmp_path, old, new):
    whole = (trained[0] / "filter.safetensors").read_bytes()
    assert old in whole
    (tmp_path / "filter.safetensors").write_bytes(whole.replace(old, new))
    with pytest.raises(DllmError, match="has other features or another network than are known here"):
        read(str(tmp_path))


def test_networks_are_checked():
    with pytest.raises(DllmError, match="hidden=0 of a network must be at least 1"):
        make_net("mlp:hidden=0")
    assert sum(p.numel() for p in make_net("mlp").build(1, 32).parameters()) == 2112  # the paper's
    assert make_net("shared:layers=3").build(9, 4)(torch.zeros(2, 4, 9)).shape == (2, 4)
