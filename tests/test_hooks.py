import pytest
import torch

import cases
from dllm import DllmError, generate

ASK = {**cases.SHAPE, "seed": 0}


def test_hooks_see_whole_rows_one_at_a_time(model):
    seen, tokens = [], []

    def logits_hook(step, x, logits):
        seen.append((step, x.shape, logits.shape))
        return logits

    def tokens_hook(step, x, logits):
        tokens.append((step, int((x == 39).sum()), None if logits is None else logits.shape))
        return x

    for names in (("logits_hook", "tokens_hook"), ("generation_logits_hook_func", "generation_tokens_hook_func")):
        seen.clear(), tokens.clear()
        made = generate(model, [3, 1, 4], "static", **ASK, **dict(zip(names, (logits_hook, tokens_hook), strict=True)))
        assert seen == [(step, (1, 13), (1, 13, 40)) for step in range(10)]
        assert tokens == [(None, 10, None), *((step, 9 - step, (1, 13, 40)) for step in range(10))]
        assert made.completions == generate(model, [3, 1, 4], "static", "none", **ASK).completions


@pytest.mark.parametrize(("sampler", "shift"), [(sampler, i % 2) for i, sampler in enumerate(cases.SAMPLER_NAMES)])
def test_hooks_that_change_nothing_change_nothing(tiny, sampler, shift):
    model = tiny(logits_shift=shift)
    ask = {**ASK, "batch_size": 3, "temperature": 0.5}
    plain = generate(model, cases.PROMPTS, sampler, "none", **ask)
    hooked = generate(model, cases.PROMPTS, sampler, **ask, tokens_hook=lambda *_: None, logits_hook=lambda *_: None)
    assert hooked.completions == plain.completions and torch.equal(hooked.nfe, plain.nfe)


def test_logits_of_a_column_predict_that_column(tiny):
    """The shift is the model's; a hook that forbids a token forbids it everywhere."""
    for shift in (0, 1):
        usual = generate(tiny(logits_shift=shift), [3, 1], "static", "none", **ASK).completions[0]
        forbidden = usual[0]

        def hook(_step, _x, logits, token=forbidden):
            logits[..., token] = -torch.inf
            return logits

        assert (
            forbidden
            not in generate(tiny(logits_shift=shift), [3, 1], "static", **ASK, logits_hook=hook).completions[0]
        )


def test_a_hook_may_decide_tokens_and_mask_them_again(model):
    def once(step, x, _logits):
        if step is None:
            x[0, 4] = 7
        elif step == 3:
            x[0, 5:] = 39
        return x

    made = generate(model, [3, 1, 4], "static", **ASK, tokens_hook=once)
    assert made.completions[0][1] == 7 and 39 not in made.completions[0] and made.nfe[0] > 9


def test_the_first_call_comes_once_for_every_row(model):
    firsts = []

    def hook(step, x, _logits):
        if step is None:
            firsts.append(x.shape[1])
            if x.shape[1] == 5:
                return x.masked_fill(x == 39, 7)  # this row is done before its first step
        return x

    prompts = [[3], [3, 1], [3, 1, 4], [1, 1, 1, 1]]
    made = generate(model, prompts, "static", gen_length=4, tokens_hook=hook, batch_size=3, eos_early_stop=False)
    assert sorted(firsts) == [5, 6, 7, 8] and made.nfe.tolist() == [0, 4, 4, 4]


def test_a_hook_that_masks_for_ever_is_stopped(model):
    with pytest.raises(DllmError, match="prompt 0 is not decided after 41 forwards; a hook seems to mask all again"):
        generate(model, [3], "static", gen_length=4, tokens_hook=lambda _s, x, _z: x.masked_fill(x != 3, 39))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"tokens_hook": lambda *_: 3}, r"the tokens hook returned int; return a tensor of shape \[1, 12\], or None"),
        ({"logits_hook": lambda _s, _x, z: z[0]}, r"the logits hook returned \[12, 40\]; return a tensor of shape"),
        ({"logits_hook": 3}, "logits_hook=3 is not a function of"),
        (
            {"tokens_hook": lambda _s, x, _z: x + 100},
            "the tokens hook returned what is no token id of a vocabul",
        ),
        (
            {"tokens_hook": lambda _s, x, _z: x.masked_fill(x == 5, 39), "constraints": {2: [5]}},
            "the tokens hook masks a given column",
        ),
        ({"tokens_hook": lambda _s, x, _z: x.double()}, "the tokens hook returned what is no token id"),
        ({"logits_hook": lambda _s, _x, z: z * float("nan")}, "the logits hook returned NaN or inf"),
        ({"logits_hook": print, "generation_logits_hook_func": print}, "logits_hook and generation_.* say the same"),
        (
            {"logits_hook": print, "cache": "dual"},
            r"hooks see and change whole rows, which DualCache.*give cache='none'",
        ),
    ],
    ids=["type", "shape", "function", "ids", "given", "floats", "nan", "twice", "cache"],
)
def test_hooks_that_cannot_be_are_named(model, ask, message):
    with pytest.raises(DllmError, match=message):
        generate(model, [3, 1], gen_length=10, **ask)
