"""Streamers of transformers are fed as transformers feeds them: the prompt, drafts, what is final, the end."""

import io
from contextlib import redirect_stdout
from itertools import chain

import pytest
import torch
import transformers

import cases
from dllm import DllmError, Streamed, generate

PROMPT = cases.PROMPTS[1]
OPTIONS = ["threshold:threshold=0.6", "wino:threshold=0.3,threshold_back=0.3", "static", "origin"]


class Recorded:
    """Keeps what it is given, as lists."""

    def __init__(self):
        self.given = []

    def put(self, value):
        assert value.device.type == "cpu" and value.shape[0] == 1
        self.given.append(("put", value[0].tolist()))

    def end(self):
        self.given.append(("end", []))

    def ids(self, kind="put"):
        return [ids for name, ids in self.given if name == kind]


class Drafted(Recorded):
    def put_draft(self, value):
        self.given.append(("draft", value[0].tolist()))


class Words:
    """A tokenizer that writes numbers as words."""

    def decode(self, ids, **_):
        return "".join(f"{int(i)} " for i in ids)


@pytest.mark.parametrize("asked", [{}, {"tokens_hook": lambda *_: None, "cache": "none"}], ids=len)
@pytest.mark.parametrize("sampler", OPTIONS)
def test_it_is_given_the_prompt_then_the_answer_as_it_becomes_final_then_the_end(model, sampler, asked):
    made = generate(model, PROMPT, sampler, **cases.SHAPE, **asked, observers=[Streamed(to := Recorded())])
    first, *rest = to.ids()
    assert first == PROMPT and [*chain(*rest)] == made.completions[0]
    assert all(rest) and [name for name, _ in to.given].index("end") == len(to.given) - 1


def test_tokens_are_given_as_soon_as_all_before_them_are_decided(model):
    made = generate(model, PROMPT, "static", **cases.SHAPE, observers=[Streamed(to := Recorded())])
    assert 2 < len(to.ids()) <= made.forwards + 1


@pytest.mark.parametrize("early", [True, False])
def test_the_end_of_text_is_the_last_token_unless_the_answer_goes_on(tiny, early):
    model = tiny(eos_ids=(*range(15),))
    asked = cases.SHAPE | {"eos_early_stop": early}
    made = generate(model, PROMPT, "threshold:threshold=0.6", **asked, observers=[Streamed(to := Recorded())])
    answer, given = made.completions[0], [*chain(*to.ids()[1:])]
    end = next(i for i, token in enumerate(answer) if token < 15)
    assert given == (answer[: end + 1] if early else answer)


def test_a_draft_is_what_stands_and_what_is_proposed_behind_what_is_final(model):
    seen = []
    generate(model, PROMPT, "static", **cases.SHAPE, observers=[Streamed(to := Drafted()), seen.append])
    final, drafts = 0, []
    for step in seen:
        tokens = torch.where(step.before == step.mask_id, step.proposed, step.before)[0]
        place = step.span.columns[0] - len(PROMPT)
        drafts.append(tokens[step.span.valid[0] & (place >= final)].tolist())
        masked = (place[(step.after[0] == step.mask_id) & step.span.valid[0]]).tolist()
        final = min(masked) if masked else int(place[step.span.valid[0]].max()) + 1
    assert to.ids("draft") == drafts
    assert to.given[1][0] == "draft" and to.given[-2][0] == "put"  # the draft comes first in every step


def test_one_that_takes_no_drafts_is_given_the_same_final_tokens(model):
    plain, drafted = Recorded(), Drafted()
    for to in (plain, drafted):
        generate(model, PROMPT, **cases.SHAPE, observers=[Streamed(to)])
    assert plain.given == [it for it in drafted.given if it[0] != "draft"]


def test_an_iterator_of_text_yields_the_answer(model):
    words = transformers.TextIteratorStreamer(Words(), skip_prompt=True, timeout=9)
    made = generate(model, PROMPT, **cases.SHAPE, observers=[Streamed(words)])
    assert "".join(words) == Words().decode(made.completions[0])


@pytest.mark.parametrize("name", ["TextStreamer", "TextDiffusionStreamer"])
def test_the_streamers_that_print_print_the_whole_text(model, name):
    if not hasattr(transformers, name):
        pytest.skip("transformers has it since version 5")
    with redirect_stdout(io.StringIO()) as printed:
        made = generate(model, PROMPT, **cases.SHAPE, observers=[Streamed(getattr(transformers, name)(Words()))])
    text = printed.getvalue()
    for draft in text.split("\0337")[1:]:
        text = text.replace("\0337" + draft.split("\0338\033[J")[0] + "\0338\033[J", "")
    assert text == Words().decode([*PROMPT, *made.completions[0]]) + "\n"


def test_one_answer_can_be_shown_at_a_time(model):
    with pytest.raises(DllmError, match="a streamer shows one answer, not 4; give one prompt, once"):
        generate(model, cases.PROMPTS, **cases.SHAPE, observers=[Streamed(Recorded())])
    with pytest.raises(DllmError, match="not 2"):
        generate(model, PROMPT, **cases.SHAPE, num_samples=2, observers=[Streamed(Recorded())])


def test_what_is_no_streamer_is_refused():
    class Logits(Drafted):
        _takes_logits = True

    with pytest.raises(DllmError, match=r"list is no streamer; it needs the methods put\(ids\) and end\(\)"):
        Streamed([])
    with pytest.raises(DllmError, match="Logits wants logits, which steps do not have"):
        Streamed(Logits())
