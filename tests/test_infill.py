"""Canvases of given tokens and masks: infilling, and constraints on an answer."""

import pytest
import torch

import cases
import dllm
from dllm import DllmError, Trace, generate, infill

M = 39
TEXTS = [[3, M, 4, M, M, 5], [M, 8], [7, 7, M], [1, M, M, M, M, M, 2, M]]
every_pair = pytest.mark.parametrize(("sampler", "cache"), cases.ALL_PAIRS)


@pytest.mark.parametrize(("sampler", "cache", "shift"), cases.rotated(cases.ALL_PAIRS, 2))
def test_masks_are_filled_and_all_else_stays(tiny, sampler, cache, shift):
    model, alone = tiny(logits_shift=shift, **cases.served(cache)), cases.some_rows(sampler, cache)
    sampler = "prophet" if "answer_start" in sampler else sampler
    batch = infill(model, TEXTS, sampler, cache, seed=0, batch_size=3)
    for row, text in enumerate(TEXTS):
        got = batch.tokens[row, : len(text)].tolist()
        assert all(g == t if t != M else g != M for g, t in zip(got, text, strict=True))
        assert batch.answer_tokens[row] == text.count(M) >= batch.nfe[row]
        assert row not in alone or infill(model, text, sampler, cache, seed=0).tokens[0].tolist() == got


def test_an_answer_behind_a_prompt_is_a_special_case(model):
    for prompt in cases.PROMPTS:
        filled = infill(model, [*prompt, *[M] * 10], "static", block_length=4)
        assert filled.completions == generate(model, prompt, "static", **cases.SHAPE).completions


def test_blocks_are_counted_from_the_first_mask(model):
    run = {"observers": [trace := Trace()]}
    infill(model, [5, M, M, 1, M, M, M], "static", block_length=3, **run)
    assert [(change["column"] - 1) // 3 for change in trace.changes] == [0, 0, 1, 1, 1]


class Words:
    """A tokenizer whose tokens are words."""

    words = ("the", "cat", "sat", "on", "a", "mat", "dog", "ran")
    chat_template = None

    def __len__(self):
        return 38

    def __call__(self, text, add_special_tokens=True):
        start = [37] if add_special_tokens else []
        return {"input_ids": start + [self.words.index(word.lower()) for word in text.split()]}

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(self.words[i] if i < 8 else f"<{i}>" for i in ids if i != 37 or not skip_special_tokens)


def test_text_is_filled_where_it_says_so(tiny):
    model = tiny(tokenizer=Words())
    done = infill(model, ["The [MASK] sat", "[MASK][MASK] on a [MASK]"], "static")
    first, second = done.texts
    assert first.startswith("the ") and first.endswith(" sat") and " on a " in second
    assert done.answer_tokens.tolist() == [1, 3] and done.tokens[0, 0] == 37


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("texts", "more", "message"),
    [
        ([3, 4], {}, r"\[3, 4\] has no \[MASK\] \(token id 39\) to fill"),
        ([], {}, "no texts were given; give at least one"),
        ([[]], {}, "the text is empty; give at least one token id"),
        ([3, 40, M], {}, "token id 40 in a text is outside the vocabulary"),
        ("the [MASK]", {}, "no tokenizer, so a text must be token ids"),
        ([3, M], {"gen_length": 8}, "gen_length=8: the masks of a text say how long it is"),
        (3, {}, "3 is neither text nor token ids"),
        ([None], {}, "None is neither text nor token ids"),
        ([3, M], {"chat": False}, "unknown argument 'chat'"),
        ([3, M], {"stpes": 8}, "unknown argument 'stpes'; did you mean 'steps'"),
        ([M] * 129, {}, "the model's context is 128"),
    ],
    ids=str,
)
def test_texts_that_cannot_be_are_named(model, texts, more, message):
    with pytest.raises(DllmError, match=message):
        infill(model, texts, **more)


@every_pair
def test_constraints_stand_in_every_answer(tiny, sampler, cache):
    model, ask = tiny(**cases.served(cache)), {**cases.SHAPE, "seed": 0, "constraints": {2: [5, 6], 9: 7}}
    batch = generate(model, cases.PROMPTS, sampler, cache, **ask)
    for row, prompt in enumerate(cases.PROMPTS):
        answer = batch.completions[row]
        assert (answer[2:4], answer[9]) == ([5, 6], 7) and M not in answer
        if row in cases.some_rows(sampler, cache):
            assert generate(model, prompt, sampler, cache, **ask).completions[0] == answer
    assert (batch.answer_tokens <= 7).all() and (batch.nfe <= 7).all()


def test_constraints_may_be_text(tiny):
    made = generate(tiny(tokenizer=Words()), "the dog", "static", gen_length=6, constraints={1: " cat sat"})
    assert made.completions[0][1:3] == [1, 2]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ({9: [1, 2]}, r"the constraint \[1, 2\] has 2 tokens from column 9 on; the answer has the columns 0 to 9"),
        ({-1: 3}, "the constraint 3 has 1 tokens from column -1 on"),
        ({2: [1, 2], 3: [4]}, r"the constraint \[4\] at column 3, of 1 tokens, overlaps another one"),
        ({2: [M]}, "at column 2 holds the mask, token id 39"),
        ([1], r"constraints=\[1\] must map columns to text or ids"),
        ({1: None}, "the constraint None at column 1 is neither text nor token ids"),
        ({1: 3.5}, "the constraint 3.5 at column 1 is neither"),
        ({2: []}, "the constraint is empty"),
        ({2: [41]}, "token id 41 in a constraint is outside"),
        ({2: "cat"}, "no tokenizer, so constraints must be token ids"),
        ({0: [1] * 10}, "the constraints give every column of the answer; leave something to decode"),
    ],
    ids=str,
)
def test_constraints_that_cannot_be_are_named(model, constraints, message):
    with pytest.raises(DllmError, match=message):
        generate(model, [3], constraints=constraints, **cases.SHAPE)


@pytest.mark.parametrize(("sampler", "cache", "early"), cases.rotated(cases.ALL_PAIRS, 2))
def test_an_end_of_text_ends_a_row_only_behind_what_is_given(tiny, sampler, cache, early):
    """A model that loves its end of text, with one or both of the ways to stop there on."""
    eotp = 0.2 if early else None
    sampler = "prophet" if "answer_start" in sampler else sampler
    model = tiny(eos_ids=(5, 38), **({**cases.BLOCKS, "block_length": 8} if cases.served(cache) else {}))
    ask = {"gen_length": 24, "block_length": 8, "seed": 0, "constraints": {16: [7, 8]}, "eotp": eotp}
    made = generate(model, cases.PROMPTS, sampler, cache, **ask)
    assert all(answer[16:18] == [7, 8] and M not in answer for answer in made.completions)
    text = [3, 1, *[M] * 12, 7, 8, 9, M]
    done = infill(model, [text, text[:6]], sampler, cache, seed=0, eotp=eotp, eos_early_stop=True)
    assert done.tokens[0, 14:17].tolist() == [7, 8, 9] and M not in done.completions[0]


def test_decoded_tokens_are_counted_around_a_given_end_of_text(tiny):
    assert infill(tiny(eos_ids=(38,)), [3, M, 38, M, M], "static").answer_tokens[0] == 3


def test_a_row_that_is_all_masks_behind_its_start_draws_its_own_noise(model):
    texts, ask = [[3, M], [3, M, M, M]], {"temperature": 2.0, "seed": 0}
    assert infill(model, texts, **ask).completions[1] == infill(model, texts[1], **ask).completions[0]


def test_text_keeps_its_beginning_of_text_and_is_cut_at_stop(tiny):
    model = tiny(tokenizer=Words())
    assert infill(model, "[MASK] sat").tokens[0, 0] == 37
    assert infill(model, "the [MASK] sat", stop=" sat").texts[0].count("sat") == 0


@pytest.mark.parametrize("sampler", ["static", "wino"])
def test_guidance_is_against_a_row_that_is_given_nothing(model, sampler):
    """Its unconditional twin has masks everywhere, so that two rows of the same shape have the same one."""
    seen = []

    class Watched:
        spec, tokenizer, device, dtype = model.spec, None, model.device, model.dtype

        def __call__(self, tokens, view, span):
            seen.append(tokens.clone())
            return model(tokens, view, span)

    infill(Watched(), [3, M, 7, M, 9], sampler, "none", cfg_scale=1.0)
    blind = seen[1::2]
    assert blind and (blind[0] == M).all() and ((seen[0] == M) != (blind[0] == M)).any()


def test_shadows_are_counted_as_if_the_row_were_alone(model):
    batch = infill(model, TEXTS, "wino", "none", seed=0)
    for row, text in enumerate(TEXTS):
        assert infill(model, text, "wino", "none", seed=0).rows[0] == batch.rows[row]


def test_constraints_may_be_single_tensors(model):
    made = generate(model, [3], "static", constraints={2: torch.tensor(5)}, **cases.SHAPE)
    assert made.completions[0][2] == 5


def test_infill_is_exported():
    assert dllm.infill is infill and torch.is_tensor(infill(dllm.models.tiny.tiny(), TEXTS).tokens)
