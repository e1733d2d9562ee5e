import torch

import cases
from dllm.canvas import Span
from dllm.models.tiny import tiny


def canvas():
    """Prompts of 1 and 3 columns, answers of 4; the first prompt is a mask, and the second row is the longer one."""
    tokens = torch.tensor([[9, 9, 1, 9, 9, 0, 0], [1, 2, 3, 9, 9, 9, 4]])
    made = cases.canvas(tokens, [1, 3], [5, 7], mask_id=9)
    made.open[0, 2] = False  # a given column of the first answer
    return made


def test_between_gives_every_row_its_columns_and_marks_the_padding():
    span = Span.between(torch.tensor([2, 5]), torch.tensor([5, 7]), 3)
    assert span.columns.tolist() == [[2, 3, 4], [5, 6, 6]]
    assert span.valid.tolist() == [[True, True, True], [True, True, False]]


def test_where_is_the_columns_of_a_mask_in_order():
    mask = torch.rand(5, 9) < 0.5
    mask[2] = False  # a row without any
    span = Span.where(mask, max(1, int(mask.sum(1).max())))
    for row, columns, valid in zip(mask, span.columns, span.valid, strict=True):
        assert columns[valid].tolist() == row.nonzero().flatten().tolist()
        assert not row.any() or (columns[~valid] == columns[valid][-1]).all()
    assert torch.equal(span.mask(9)[mask.any(1)], mask[mask.any(1)])


def test_rows_of_a_span_are_taken_by_index():
    span = Span.between(torch.tensor([0, 4, 8]), torch.tensor([2, 6, 9]), 2)
    some = span[torch.tensor([2, 0])]
    assert some.columns.tolist() == [[8, 8], [0, 1]] and some.valid.tolist() == [[True, False], [True, True]]


def test_only_masks_at_open_columns_are_undecided():
    assert canvas().undecided.nonzero().tolist() == [[0, 1], [0, 3], [0, 4], [1, 3], [1, 4], [1, 5]]
    assert canvas().columns.tolist() == [*range(7)] and canvas().exists.sum(1).tolist() == [5, 7]


def test_what_is_written_is_read_and_padding_changes_nothing():
    made = canvas()
    span = Span(torch.tensor([[1, 3, 4], [4, 5, 5]]), torch.tensor([[True, True, True], [True, True, False]]))
    before, after = made.read(span), torch.tensor([[5, 6, 9], [9, 8, 7]])
    rest = made.tokens.masked_fill(span.mask(7), -1)
    made.write(torch.tensor([0, 1]), span, before, after)
    assert made.read(span).tolist() == [[5, 6, 9], [9, 8, 8]]  # the 7 stood at padding
    assert torch.equal(made.tokens.masked_fill(span.mask(7), -1), rest)
    some = span[torch.tensor([1])]
    made.write(torch.tensor([1]), some, made.read(span)[1:], torch.tensor([[3, 3, 3]]))
    assert made.tokens.tolist() == [[9, 5, 1, 6, 9, 0, 0], [1, 2, 3, 9, 3, 3, 4]]


def test_a_mask_that_is_given_stays_as_it_is():
    made = canvas()
    made.tokens[0, 2] = 9
    assert made.undecided[0].nonzero().flatten().tolist() == [1, 3, 4]


def test_rows_that_go_on_keep_all_that_is_theirs():
    made, row = canvas(), canvas()
    row.keep_only(torch.tensor([1]))
    assert torch.equal(row.undecided, made.undecided[1:]) and row.prompt_lengths.tolist() == [3]


def test_a_window_holds_its_span_and_the_rows_that_predict_it():
    span = Span.between(torch.tensor([0, 3]), torch.tensor([2, 6]), 3)
    for shift in (0, 1):
        spec = tiny(logits_shift=shift).spec
        window, wanted = spec.window(span), span.mask(8) | spec.predictors(span).mask(8)
        assert torch.equal(window.mask(8), wanted)
        assert (window.columns.diff(dim=1) >= 0).all() and window.valid.sum(1).tolist() == wanted.sum(1).tolist()


def test_what_a_column_may_attend_to_follows_the_models_pattern():
    columns = torch.arange(8)[None]
    reach = {a: tiny(attention=a, block_length=4).spec.reach(columns) for a in ("full", "block", "causal")}
    assert reach["full"] is None and reach["causal"].tolist() == [[*range(8)]]
    assert reach["block"].tolist() == [[3] * 4 + [7] * 4]


def test_the_parameters_are_counted_as_torch_counts_them():
    for spec in ({}, {"tied_head": True}, {"qkv_bias": True, "qk_norm": True}):
        model = tiny(**spec)
        assert model.spec.n_parameters == sum(p.numel() for p in model.parameters())


def test_the_example_of_the_samplers_notes_has_the_entropies_it_says():
    p = cases.example().logits.softmax(-1)
    torch.testing.assert_close(torch.special.entr(p).sum(-1), torch.tensor([cases.ENTROPY]).double(), atol=1e-2, rtol=0)
    torch.testing.assert_close(p.amax(-1), torch.tensor([cases.CONFIDENCE]).double(), atol=1e-6, rtol=0)
    assert p.argmax(-1).tolist() == [[*range(8)]]


def test_what_a_span_does_not_keep_stands_for_its_first_kept_column():
    span = Span(torch.tensor([[3, 4, 5, 6], [7, 8, 9, 9]]), torch.tensor([[True] * 4, [True, True, True, False]]))
    some = span.only(torch.tensor([[False, True, False, True], [False, False, True, False]]))
    assert some.columns.tolist() == [[4, 4, 4, 6], [9, 9, 9, 9]]
    assert some.valid.tolist() == [[False, True, False, True], [False, False, True, False]]
