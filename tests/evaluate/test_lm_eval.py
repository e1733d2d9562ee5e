"""The model of lm-evaluation-harness, through the harness itself, on made-up tasks."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

import dllm
from dllm.cli import main
from dllm.errors import DllmError
from dllm.zoo.tasks import problems

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.tasks import TaskManager  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the harness and of what it imports

from dllm.evaluate import lm_eval as adapter  # noqa: E402  # only where the harness is installed
from dllm.evaluate.jobs import Reply, speed  # noqa: E402

TWO = """
import json, sys
sys.path.insert(0, sys.argv[1])
import test_lm_eval as tests
found = tests.run(tests.lists(), args="gen_length=48,show_speed=True")
if found:
    print(json.dumps(tests.answers(found)))
"""

ASKED = problems("lists", 6)


def lists(**more):
    """A task that generates: copy, reverse and change lists of words."""
    docs = [{"question": problem.question, "answer": problem.answer} for problem in ASKED]
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    generation = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 48}
    return {
        "task": "made_up_lists",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": generation | more,
        "metric_list": [metric],
    }


def choices():
    """A task of likelihoods: the right list, or words that answer nothing."""
    docs = [{"question": p.question, "choices": ["no answer at all", p.answer]} for p in ASKED]
    return {
        "task": "made_up_choices",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 1,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def run(task, name="dllm", args="gen_length=48", chat=True, **more):
    return lm_eval.simple_evaluate(
        model=name,
        model_args=f"pretrained=tiny-llada,{args}",
        tasks=[task],
        apply_chat_template=chat,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),  # thousands of files, which no test asks for
        **{"batch_size": 4, "device": "cpu"} | more,
    )


def answers(results):
    samples = sorted(results["samples"]["made_up_lists"], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] for sample in samples]


def test_a_task_that_generates_gets_what_generate_gives():
    results = run(lists())
    model = dllm.load("tiny-llada")
    direct = dllm.generate(model, [problem.question for problem in ASKED], gen_length=48, batch_size=4)
    assert answers(results) == [text.strip() for text in direct.texts] or answers(results) == direct.texts
    right = sum(text == problem.answer for text, problem in zip(direct.texts, ASKED, strict=True))
    assert results["results"]["made_up_lists"]["exact_match,none"] == pytest.approx(right / len(ASKED)) and right >= 3


def test_a_task_of_likelihoods_prefers_the_right_answer():
    results = run(choices(), args="mc_num=8,is_check_greedy=False")
    assert results["results"]["made_up_choices"]["acc,none"] == 1.0


def test_the_batch_changes_no_answer():
    args = "gen_length=48,temperature=1.5,dtype=float64,threshold=0.7,seed=3"
    alone, together = (answers(run(lists(), args=args, batch_size=size)) for size in (1, "auto"))
    assert alone == together != answers(run(lists(), args=args.replace("seed=3", "seed=4")))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("llada_dist", "gen_length=48,steps=48,block_length=16,use_cache=True,dual_cache=True,threshold=0.9"),
        ("dream", "max_new_tokens=48,diffusion_steps=48,add_bos_token=true,escape_until=true,alg=entropy"),
        (
            "diffllm",
            "trust_remote_code=True,max_new_tokens=48,diffusion_steps=48,dtype=float32,temperature=0.1,top_p=0.9",
        ),
    ],
)
def test_the_names_of_published_command_lines_run(name, args):
    results = run(lists(), name, args, limit=2)
    assert len(answers(results)) == 2 and results["config"]["dllm"]["settings"]["gen_length"] == 48


def test_the_text_is_cut_at_the_first_stop_string():
    whole = answers(run(lists(until=[])))
    assert answers(run(lists(until=[", ", " "]))) == [text.partition(", ")[0].partition(" ")[0] for text in whole]
    assert answers(run(lists(until=[", "]), args="gen_length=48,escape_until=True")) == whole


def test_a_prompt_that_the_harness_left_plain_becomes_a_turn_if_asked():
    assert answers(run(lists(), chat=False, args="gen_length=48,chat=True")) == answers(run(lists()))
    assert answers(run(lists(), chat=False)) != answers(run(lists()))


class Killed(BaseException):
    """Stops a run where a kill would."""


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    args = f"gen_length=48,temperature=0.6,save_dir={tmp_path}"
    whole = answers(run(lists(), args=args.rpartition(",")[0]))
    add, n = adapter.Finished.add, iter(range(3))

    def add_three(self, key, value):
        if next(n, None) is None:
            raise Killed
        add(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(adapter.Finished, "add", add_three)
        with pytest.raises(Killed):
            run(lists(), args=args, batch_size=2)
    assert len((tmp_path / "rank_0.jsonl").read_text().splitlines()) == 3
    asked = []
    stream = dllm.stream
    monkeypatch.setattr(
        dllm, "stream", lambda model, prompts, **more: asked.extend(prompts) or stream(model, prompts, **more)
    )
    assert answers(run(lists(), args=args)) == whole and len(asked) == len(ASKED) - 3
    assert answers(run(lists(), args=args)) == whole and len(asked) == len(ASKED) - 3, "nothing is left to do"
    assert answers(run(lists(), args=args + ",threshold=0.5")) and len(asked) == 2 * len(ASKED) - 3, "other settings"


def test_finished_likelihoods_are_kept_too(tmp_path, monkeypatch):
    args = f"mc_num=4,save_dir={tmp_path}"
    first = run(choices(), args=args)
    monkeypatch.setattr(adapter, "log_likelihoods", lambda _model, pairs, **_: iter([0.0] * len(pairs)))
    again = run(choices(), args=args)
    values = [[s["resps"] for s in results["samples"]["made_up_choices"]] for results in (first, again)]
    assert values[0] == values[1]


def test_killed_likelihoods_go_on_after_the_last_chunk(tmp_path, monkeypatch):
    args, asked = f"mc_num=2,save_dir={tmp_path}", {"greedy": [], "log_likelihoods": []}
    whole = run(choices(), args="mc_num=2", batch_size=1, limit=3)

    def spied(name, plain, most):
        def call(model, pairs, **more):
            if len(asked[name]) >= most:
                raise Killed
            asked[name].extend(pairs)
            return plain(model, pairs, **more)

        return call

    plain = {name: getattr(adapter, name) for name in asked}
    with monkeypatch.context() as patch:
        for name, most in (("greedy", 2 * adapter.CHUNK), ("log_likelihoods", adapter.CHUNK)):
            patch.setattr(adapter, name, spied(name, plain[name], most))
        with pytest.raises(Killed):
            run(choices(), args=args, batch_size=1, limit=3)
    assert len((tmp_path / "rank_0.jsonl").read_text().splitlines()) == adapter.CHUNK
    for name in asked:
        asked[name].clear()
        monkeypatch.setattr(adapter, name, spied(name, plain[name], 100))
    again = run(choices(), args=args, batch_size=1, limit=3)
    assert [len(pairs) for pairs in asked.values()] == [6 - adapter.CHUNK] * 2
    values = [[s["resps"] for s in results["samples"]["made_up_choices"]] for results in (whole, again)]
    assert values[0] == values[1]


def test_speed_is_over_the_time_of_the_engine_alone(monkeypatch, tmp_path):
    runs, told, stream = [], [], dllm.stream
    monkeypatch.setattr(dllm, "stream", lambda *given, **more: runs.append(stream(*given, **more)) or runs[-1])
    monkeypatch.setattr(adapter, "speed", lambda *given: told.append(given) or [])
    args = f"gen_length=48,show_speed=True,save_dir={tmp_path}"
    run(lists(), args=args, limit=2)
    run(lists(), args=args, limit=4)
    assert [(len(new), seconds, kept) for new, seconds, kept in told] == [
        (2, runs[0].accounts.seconds, 0),
        (2, runs[1].accounts.seconds, 2),
    ]


def test_show_speed_prints_the_words_that_people_look_for(capsys):
    results = run(lists(), args="gen_length=48,show_speed=True")
    out = capsys.readouterr().out
    for words in ("Total number of tokens generated: ", "Tokens per second: ", "Total NFE is ", "Tokens per forward: "):
        assert words in out
    model = dllm.load("tiny-llada")
    direct = dllm.generate(model, [problem.question for problem in ASKED], gen_length=48)
    assert f"Total NFE is {int(direct.nfe.sum())}\n" in out and len(answers(results)) == len(ASKED)
    assert f"tokens generated: {int(direct.answer_tokens.sum())}\n" in out and "Canvas tokens: 288\n" in out


def test_processes_share_the_requests_and_add_up_what_they_took(tmp_path):
    """As under torchrun and accelerate launch."""
    script, here = tmp_path / "two.py", Path(__file__).parent
    script.write_text(TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    made = subprocess.run([*launch, str(here)], capture_output=True, text=True, env=env, check=False, timeout=300)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout.splitlines()[-1]) == answers(run(lists()))
    assert "Answers decoded: 6," in made.stdout and made.stdout.count("Total NFE is") == 1


def test_speed_without_a_new_answer_divides_by_nothing():
    assert "Tokens per second: 0.00" in speed([], 0.0, 5) and "Tokens per forward: 0.00" in speed([], 0.0, 5)
    assert any("of which empty: 1;" in line for line in speed([Reply(" ", 0, 8, 2)], 1.0, 0))


def test_a_pair_is_split_where_the_context_ends():
    llada, dream = (adapter.DiffusionLM(pretrained=name) for name in ("tiny-llada", "tiny-dream"))
    pair = llada.pair("Copy this list: ", "moon, star")
    context, ids = (llada.tokenizer(text)["input_ids"] for text in ("Copy this list:", "Copy this list: moon, star"))
    assert pair.context == context and pair.target == ids[len(context) :], "as the harness splits for other models"
    assert llada.pair("", "moon").context == [] and len(dream.pair("", "moon").context) == 1


def test_prompts_get_a_beginning_of_text_and_are_cut_on_the_left_if_asked(caplog):
    plain, long = (adapter.DiffusionLM(pretrained="tiny-dream", **more) for more in ({}, {"add_bos_token": True}))
    begin = plain.tokenizer.bos_token_id
    assert long.encode("moon, star") == [begin, *plain.encode("moon, star")]
    with caplog.at_level(logging.WARNING):
        cut = adapter.DiffusionLM(pretrained="tiny-dream", max_prompt_len=2).encode("moon, star")
    assert cut == plain.encode("moon, star")[-2:] and "is cut to its last 2" in caplog.text


def test_what_the_field_does_not_define_is_refused(monkeypatch):
    model = adapter.DiffusionLM(pretrained="tiny-llada")
    with pytest.raises(DllmError, match="not defined for masked diffusion"):
        model.loglikelihood_rolling([])
    monkeypatch.setattr(model.tokenizer, "chat_template", None)
    with pytest.raises(DllmError, match="has no chat template"):
        model.apply_chat_template([{"role": "user", "content": "a"}])
    assert model.tokenizer_name == "tiny-llada" and model.chat_template(True) == ""


def test_a_name_that_the_harness_knows_stays_what_it_is(caplog):
    before = adapter.MODEL_REGISTRY.get("dllm")
    with caplog.at_level(logging.WARNING):
        adapter.register()
    assert adapter.MODEL_REGISTRY.get("dllm") is before and "'llada_dist' already" in caplog.text


def test_the_command_line_of_the_harness_knows_our_names(tmp_path, monkeypatch, capsys):
    """python -m dllm.evaluate.lm_eval, with a task file of the user's."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", lambda *a, **more: made(*a, **more | {"include_defaults": False}))
    data = tmp_path / "docs.json"
    data.write_text("".join(json.dumps({"q": p.question, "a": p.answer}) + "\n" for p in ASKED[:2]))
    task = {k: v for k, v in lists().items() if k != "custom_dataset"} | {
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
    }
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path)}}
    (tmp_path / "made_up_lists.yaml").write_text(json.dumps(task | source))
    line = "--model llada_dist --model_args model_path=tiny-llada,gen_length=48,steps=48,block_length=16 --log_samples"
    line += f" --tasks made_up_lists --include_path {tmp_path} --output_path {tmp_path / 'out'} --device cpu"
    assert main(["lm_eval", *line.split()]) == 0
    [samples] = (tmp_path / "out").rglob("samples_made_up_lists_*.jsonl")
    assert len(samples.read_text().splitlines()) == 2 and list((tmp_path / "out").rglob("results_*.json"))
    assert adapter.main(line.replace("steps=", "stepps=").split()) == 2
    assert "dllm: error: unknown argument 'stepps'; did you mean 'steps'" in capsys.readouterr().err


def test_the_harness_is_asked_for_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "dllm.evaluate.lm_eval")
    monkeypatch.delattr("dllm.evaluate.lm_eval")
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    assert main(["lm_eval", "--help"]) == 2 and "pip install 'dllm-decode[eval]'" in capsys.readouterr().err


def test_a_model_with_blocks_of_its_own_is_asked_in_these():
    """The name alone would say 1024."""
    named = type("Named", (adapter.DiffusionLM,), {"name": "llada_dist"})
    model = dllm.load("tiny-ar:block_length=8,logits_shift=1", device="cpu")
    assert named(pretrained=model).args.settings["block_length"] == 8
    assert named(pretrained=model, block_size=4).args.settings["block_length"] == 4
    assert named(pretrained="tiny-llada").args.settings["block_length"] == 1024
