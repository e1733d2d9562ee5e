"""What a model is given and what becomes of its answers."""

from dataclasses import dataclass, replace

import pytest

import checkpoints
import dllm
from dllm.errors import DllmError
from dllm.evaluate.answers import Method, answers, method_of
from dllm.evaluate.tasks import Question, Task
from dllm.generation import token_ids
from dllm.models.tiny import SIZES
from dllm.spec import ModelSpec

PROMPTS = ["Copy this list: sun, moon", "Reverse this list: cat, dog, owl", "Sort this list: pear, apple"]


@dataclass(frozen=True)
class Asks(Task):
    """Prompts, and nothing right or wrong."""

    prompts: tuple = ()
    prefix: str = ""

    def questions(self):
        return [Question(str(i), prompt, {}, self.prefix) for i, prompt in enumerate(self.prompts)]


def asks(*prompts, **options):
    return Asks("asks", ("none",), prompts=prompts or tuple(PROMPTS), **{"settings": {"gen_length": 12}} | options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return dllm.load(checkpoints.save(tmp_path_factory.mktemp("model")), dtype="float64")


@pytest.fixture(scope="module")
def trained():
    return dllm.load("tiny-llada", dtype="float64", device="cpu")


def told(model, task, which=None, **options):
    """The answers by their index."""
    questions = dict(enumerate(task.questions()))
    chosen = {i: questions[i] for i in which} if which else questions
    return {answer.index: answer for answer in answers(model, chosen, Method.of(task, **options))}


def test_answers_are_those_of_generate(trained):
    got = told(trained, asks(), sampler="static", cache="prefix", batch_size=2)
    done = dllm.generate(trained, PROMPTS, "static", "prefix", gen_length=12)
    assert [got[i].texts for i in range(3)] == [(text,) for text in done.texts]
    assert [got[i].nfe for i in range(3)] == done.nfe.tolist()
    assert [got[i].rows for i in range(3)] == done.rows.tolist()
    assert [got[i].answer_tokens for i in range(3)] == done.answer_tokens.tolist()
    assert [got[i].canvas_tokens for i in range(3)] == [12] * 3


def test_an_answer_does_not_depend_on_the_others(model):
    task = asks(settings={"gen_length": 12, "temperature": 1.0})
    together, alone = told(model, task, num_samples=2, batch_size=4), told(model, task, [1], num_samples=2)
    facts = ("texts", "prompt", "nfe", "rows", "answer_tokens", "canvas_tokens")
    assert [getattr(together[1], name) for name in facts] == [getattr(alone[1], name) for name in facts]
    assert len(set(together[1].texts)) == 2 and together[1].canvas_tokens == 24


def test_the_prefix_opens_the_models_turn(model):
    conversation = [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "x"},
                    {"role": "user", "content": "Again"}]  # fmt: skip
    prefix = "Sure: "
    for prompt, chat in (("Copy", True), ("Copy", False), (conversation, True)):
        plain, opened = (token_ids(model, prompt, chat, text) for text in ("", prefix))
        decode = model.tokenizer.decode
        assert decode(opened, skip_special_tokens=False) == decode(plain, skip_special_tokens=False) + prefix
        [answer] = told(model, asks(prompt, chat=chat, prefix=prefix)).values()
        assert answer.prompt.endswith(prefix) and token_ids(model, prompt, chat) == plain
        begun = model.tokenizer(answer.prompt, add_special_tokens=prompt == "Copy" and not chat)["input_ids"]
        assert begun == opened


@pytest.mark.parametrize("place", [0, 3, 9])
def test_a_stop_string_ends_text_and_tokens(trained, place):
    [whole] = told(trained, asks(PROMPTS[1])).values()
    stop = whole.texts[0][place : place + 3]
    [answer] = told(trained, asks(PROMPTS[1], stop=("never", stop))).values()
    assert answer.texts == (whole.texts[0].partition(stop)[0],)
    ids = trained.tokenizer(answer.texts[0], add_special_tokens=False)["input_ids"]
    assert len(ids) <= answer.answer_tokens <= len(ids) + 1 and answer.answer_tokens < whole.answer_tokens
    assert answer.nfe == whole.nfe and answer.canvas_tokens == whole.canvas_tokens


def test_time_runs_and_steps_that_meet_a_prompt_are_told_apart(model):
    got = list(answers(model, dict(enumerate(asks().questions())), Method.of(asks(), sampler="static", batch_size=1)))
    for name in ("seconds", "decode_seconds", "forwards"):
        totals = [getattr(answer, name) for answer in got]
        assert totals == sorted(totals) and totals[0] > 0
    assert all(answer.decode_seconds < answer.seconds and answer.first_seconds > 0 for answer in got)
    assert got[-1].forwards == sum(answer.nfe for answer in got)
    # One token a step: only the one of the first step may be missing.
    assert all(answer.generated_tokens - answer.decode_tokens in (0, 1) for answer in got)
    [one] = told(model, asks(PROMPTS[0]), threshold=0.0).values()
    assert one.nfe == 1 and one.decode_tokens == 0 == one.decode_seconds


FULL = ModelSpec(**SIZES)
CAUSAL, BLOCKS = replace(FULL, attention="causal"), replace(FULL, attention="block", block_length=8)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return dllm.load(checkpoints.save(tmp_path_factory.mktemp("causal"), config=checkpoints.CAUSAL), dtype="float64")


def said(model, task, **options):
    """The answers of a causal model by their index."""
    method = method_of(CAUSAL, task, **options)
    return {answer.index: answer for answer in answers(model, dict(enumerate(task.questions())), method)}


def test_a_causal_model_answers_as_generate_causal_does(causal):
    task = asks(settings={"gen_length": 12, "block_length": 4, "steps": 3})  # what is about masks is left out
    got, drafted = said(causal, task), said(causal, task, draft="ngram:k=3", batch_size=2)
    done = dllm.generate_causal(causal, PROMPTS, gen_length=12)
    for i in range(3):
        assert got[i].texts == drafted[i].texts == (done.texts[i],) and got[i].nfe == done.nfe[i]
        assert got[i].generated_tokens == drafted[i].generated_tokens == got[i].nfe >= drafted[i].nfe
        assert got[i].prefills == 1 and got[i].decode_tokens == got[i].generated_tokens - 1
    assert all(answer.draft_seconds > 0 for answer in drafted.values())


def test_a_stop_string_ends_a_causal_answer_with_the_token_that_completes_it(causal):
    whole = said(causal, asks(PROMPTS[1]))[0]
    stop = whole.texts[0][4:6]
    cut = said(causal, asks(PROMPTS[1], stop=(stop,)))[0]
    assert cut.texts == (whole.texts[0].partition(stop)[0],) and cut.nfe < whole.nfe
    assert cut.generated_tokens == cut.nfe > cut.answer_tokens


def test_what_is_meant_for_the_other_kind_of_model_is_refused(model, causal):
    for options in ({"sampler": "static"}, {"cache": "dual"}, {"remasking": "random"}):
        with pytest.raises(DllmError, match="does not apply to this model, which decodes token by token"):
            method_of(CAUSAL, asks(), **options)
    with pytest.raises(DllmError, match="draft='ngram' does not apply to this model, which fills masks"):
        method_of(FULL, asks(), draft="ngram")
    with pytest.raises(DllmError, match="steps=4 is about filling masks"):
        method_of(CAUSAL, asks(), steps=4)
    with pytest.raises(DllmError, match="this model fills masks"):
        said(model, asks())
    with pytest.raises(DllmError, match="it cannot fill masks"):
        told(causal, asks())


def test_the_facts_of_a_causal_method_tell_drafter_and_rule():
    facts = method_of(CAUSAL, asks(), draft="ngram:k=3", verify="ratio", temperature=0.5).facts()
    assert (facts["draft"]["name"], facts["draft"]["k"], facts["verify"]) == ("ngram", 3, {"name": "ratio"})
    assert facts["temperature"] == 0.5 and facts["seed"] == 0 and "steps" not in facts and facts["chat"]
    assert method_of(CAUSAL, asks()).facts()["draft"] is None


def test_a_models_own_blocks_stand_over_the_tasks_and_the_callers_over_both():
    task = asks(settings={"gen_length": 12, "block_length": 32})
    assert method_of(BLOCKS, task).facts()["block_length"] == 8
    assert method_of(BLOCKS, task, block_size=4).facts()["block_length"] == 4
    assert method_of(FULL, task).facts()["block_length"] == 32


def test_a_models_own_sampler_answers_where_none_is_named():
    spec = replace(FULL, sampler="factor:factor=2.0")
    assert method_of(spec, asks()).facts()["sampler"] == {"name": "factor", "factor": 2.0}
    assert method_of(spec, asks(), sampler="static").facts()["sampler"]["name"] == "static"
    assert method_of(FULL, asks()).facts()["sampler"]["name"] == "threshold"


def test_the_callers_settings_stand_over_the_tasks():
    task = asks(settings={"gen_length": 12, "temperature": 0.5, "block_length": 4}, stop=("a",))
    got = Method.of(task, max_new_tokens=8, stop="b", alg="factor", factor=2.0, use_cache=True)
    assert (got.settings.gen_length, got.settings.temperature, got.settings.block_length) == (8, 0.5, 4)
    assert got.settings.stop == ("a", "b") and got.settings.seed == 0
    assert got.facts()["sampler"] == {"name": "factor", "factor": 2.0} and got.facts()["cache"]["name"] == "prefix"
    assert Method.of(task).facts()["cache"] is None and Method.of(task, seed=5).settings.seed == 5
    with pytest.raises(DllmError, match="unknown argument 'gen_lenght'; did you mean 'gen_length'"):
        Method.of(task, gen_lenght=3)


def test_what_cannot_be_asked_is_one_line(model, tmp_path):
    plain = dllm.load(checkpoints.save(tmp_path, tokenizer=False))
    with pytest.raises(DllmError, match="this model has no tokenizer"):
        told(plain, asks())
    with pytest.raises(DllmError, match=r"make .*; the model's context is 256"):
        told(model, asks(settings={"gen_length": 256}))
    template, model.tokenizer.chat_template = model.tokenizer.chat_template, None
    try:
        with pytest.raises(DllmError, match="this model's tokenizer has none; take an instruct model"):
            told(model, asks())
        assert len(told(model, asks(chat=False))) == 3
    finally:
        model.tokenizer.chat_template = template


def test_no_questions_take_no_forward(model):
    assert list(answers(model, {}, Method.of(asks()))) == []
