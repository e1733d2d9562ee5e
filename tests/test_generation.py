"""What goes into a run, and what comes out."""

import pytest
import torch

import cases
from dllm import DllmError, Generation, generate
from dllm.generation import Request, cut, listed, requests
from dllm.metrics import Watch


class Letters:
    """A tokenizer of 26 letters and a turn's mark: "b" is 1, "{" opens a user's turn."""

    chat_template = "{"

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [26] * add_special_tokens + [ord(c) - 97 for c in text]}

    def __len__(self):
        return 28

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        assert add_generation_prompt and not tokenize
        return "{" + "{".join(m["content"] for m in messages)

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(chr(97 + i) for i in ids)


class Plain(Letters):
    chat_template = None


@pytest.fixture(scope="module")
def speaking(tiny):
    return tiny(tokenizer=Letters(), eos_ids=(27,))


def prompts_of(model, prompts, chat=True):
    return [r.prompt for r in requests(model, prompts, [0], chat=chat, repeats=1, request_ids=None)]


def test_a_prompt_may_be_ids_text_or_messages_one_or_many(model, speaking):
    ids = [[3, 1, 4], [2]]
    for one in ([3, 1, 4], (3, 1, 4), torch.tensor([3, 1, 4])):
        assert prompts_of(model, one) == ids[:1]
    for many in (ids, tuple(ids), [torch.tensor(i) for i in ids]):
        assert prompts_of(model, many) == ids
    assert prompts_of(model, torch.tensor([[3, 1], [4, 1]])) == [[3, 1], [4, 1]]
    turn = [{"role": "user", "content": "ba"}]
    assert prompts_of(speaking, "ba") == prompts_of(speaking, turn) == prompts_of(speaking, [turn]) == [[26, 1, 0]]
    assert prompts_of(speaking, ["ba", turn, [5]]) == [[26, 1, 0], [26, 1, 0], [5]]
    assert prompts_of(speaking, [*turn, {"role": "assistant", "content": "c"}]) == [[26, 1, 0, 26, 2]]


def test_text_is_left_as_it_is_without_chat_or_without_a_template(tiny, speaking):
    assert prompts_of(speaking, "ba", chat=False) == prompts_of(tiny(tokenizer=Plain()), "ba") == [[26, 1, 0]]
    assert Letters()("{ba", add_special_tokens=False)["input_ids"] == [26, 1, 0]  # so here both end up the same


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts were given"),
        ([[]], "the prompt is empty; give at least one token id"),
        ([[1], []], "the prompt is empty"),
        ([1, 40], "token id 40 in a prompt is outside the vocabulary of 40 tokens"),
        ([[1], [-1]], "token id -1 in a prompt"),
        ("hello", "no tokenizer, so a prompt must be token ids"),
        ([{"role": "user", "content": "hello"}], "no tokenizer"),
    ],
    ids=str,
)
def test_prompts_that_cannot_be_are_refused(model, prompts, message):
    with pytest.raises(DllmError, match=message):
        generate(model, prompts, gen_length=4)


@pytest.mark.parametrize("prompts", ["", "  \n", ["ab", ""]])
def test_empty_text_is_refused(speaking, prompts):
    with pytest.raises(DllmError, match="the prompt is empty; give some text"):
        generate(speaking, prompts, gen_length=4)


def test_request_ids_go_one_to_a_prompt(model):
    with pytest.raises(DllmError, match="1 request_ids for 2 prompts; give one for each"):
        generate(model, [[1], [2]], gen_length=4, request_ids=[5])


def test_noise_is_named_by_prompt_repeat_and_id(model):
    def keys(prompts, repeats=1, request_ids=None):
        asked = requests(model, prompts, [39] * 4, chat=True, repeats=repeats, request_ids=request_ids)
        return [r.key for r in asked]

    assert keys([[1], [2], [1]]) == [*keys([[1], [2]]), keys([[1]], 2)[1]]
    assert keys([[1], [2]], request_ids=[8, 9]) == [*keys([[3]], request_ids=[8]), *keys([[4]], request_ids=[9])]
    assert len(set(keys([[1], [2]], 3, [0, 1]))) == 6


def test_a_generation_unpacks_as_tokens_and_nfe(model):
    made = generate(model, cases.PROMPTS, "static", **cases.SHAPE)
    tokens, nfe = made
    assert tokens is made.tokens and nfe is made.nfe and nfe.tolist() == [10] * 4
    for row, prompt in enumerate(cases.PROMPTS):
        end = len(prompt) + 10
        assert tokens[row, :end].tolist() == prompt + made.completions[row]
        assert (tokens[row, end:] == 38).all()
    assert tokens.shape == (4, 17) and made.texts is None


def test_a_generation_tells_what_it_cost(model):
    made = generate(model, cases.PROMPTS, "static", "none", **{**cases.SHAPE, "eos_early_stop": True}, seed=9)
    assert made.answer_tokens.tolist() == [(c.index(38) if 38 in c else 10) for c in made.completions]
    assert made.generated_tokens.tolist() == [min(10, n + 1) for n in made.answer_tokens.tolist()]
    assert made.tokens_per_forward == made.generated_tokens.sum() / made.nfe.sum() <= 1.1 and made.seed == 9
    assert 0 < made.forward_seconds < made.seconds
    assert made.tokens_per_second == pytest.approx(int(made.generated_tokens.sum()) / made.seconds)


def test_texts_end_before_the_end_of_text_and_the_stop_strings(speaking):
    ask = {"gen_length": 12, "block_length": 6}
    made = generate(speaking, ["ab", "zzz"], "static", **ask)
    ends = [c.index(27) if 27 in c else 12 for c in made.completions]
    assert made.texts == [Letters().decode(c[:e], True) for c, e in zip(made.completions, ends, strict=True)]
    assert all(t < 28 for c in made.completions for t in c)  # ids that the tokenizer does not name are never proposed
    letter = max(made.texts, key=len)[-1]
    stopped = generate(speaking, ["ab", "zzz"], "static", **ask, stop=(letter, ""))
    assert stopped.texts == [text.split(letter)[0] for text in made.texts] and stopped.completions == made.completions


def test_texts_are_cut_before_the_first_stop_string():
    assert cut("one two three", ()) == cut("one two three", ("four", "")) == "one two three"
    assert cut("one two three", ("three", "two")) == "one "


def test_rows_without_an_end_of_text_are_filled_with_zeros(tiny):
    made = Generation.of(
        [Request([7], [39, 39], 0), Request([7, 8], [39, 4], 1)],
        [[1, 2], [3, 4]],
        model=tiny(eos_ids=()),
        mask_id=39,
        stop=(),
        counts={
            "nfe": [1, 2],
            "rows": [3, 4],
            "columns": [6, 8],
            "refreshes": [1, 1],
            "steps": [1, 2],
            "drafted": [0, 0],
            "prefills": [0, 0],
            "committed": [2, 1],
            "flops": [0, 0],
        },
        watch=Watch(2),
        kv_bytes=0,
        peak_bytes=0,
        draft_forwards=0,
        draft_rows=0,
        draft_flops=0,
        draft_seconds=0.0,
        lossless="no",
        forwards=2,
        seconds=1.0,
        forward_seconds=0.5,
        seed=0,
    )
    assert made.tokens.tolist() == [[7, 1, 2, 0], [7, 8, 3, 4]] and made.tokens_per_second == 3.0
    assert made.reused == 0.5 and made.nfe.tolist() == [1, 2]
    assert generate(tiny(eos_ids=()), [[7], [7, 8]], gen_length=4).tokens[0, -1] == 0


def test_listed_knows_one_prompt_from_many():
    assert listed("a") == ["a"] and listed(["a", "b"]) == ["a", "b"] and listed([1, 2]) == [[1, 2]]
