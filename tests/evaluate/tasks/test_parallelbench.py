import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.errors import DllmError
from dllm.evaluate import tasks
from dllm.evaluate.tasks import TASKS, Question
from dllm.evaluate.tasks.parallelbench import PARALLELBENCH, Drawn, WaitingLine, make, problems, words_of
from dllm.zoo.tasks import split_of
from dllm.zoo.tasks.lists import LISTS, MORE_LISTS, WORDS

LINES = [*LISTS, *MORE_LISTS]
EDITS = [kind for kind in LINES if kind not in ("copy", "shuffle")]
SEEDS = st.integers(0, 2**63 - 1)


def headline(task, question, answer):
    return task.score(question, answer)[task.metrics[0]]


def answer_of(task, question):
    """A right answer, made from what the question is scored against."""
    if task.kind in LINES:
        return ", ".join(question.record["expected"])
    if task.kind == "latin_square":
        symbols = question.record["symbols"]
        return "\n".join(",".join(symbols[i:] + symbols[:i]) for i in range(len(symbols)))
    if task.kind == "words_to_sentence":
        return f"The {' and the '.join(question.record['words'])} are here."
    return question.record["answer"]


@pytest.mark.parametrize("name", PARALLELBENCH)
def test_questions_depend_on_nothing_but_name_and_seed(name):
    first, again, other = make(name, n=6), make(name, n=4), make(name, n=6, seed=1)
    assert first.questions()[:4] == again.questions()
    prompts = [{question.prompt for question in task.questions()} for task in (first, other)]
    assert len(prompts[0]) == 6 and not prompts[0] & prompts[1]
    ids = [question.id for task in (first, other) for question in task.questions()]
    assert len(set(ids)) == 12


@pytest.mark.parametrize("name", PARALLELBENCH)
def test_a_right_answer_has_every_metric_and_nothing_has_none(name):
    task = make(name, n=8)
    for question in task.questions():
        kept = Question(
            question.id, question.prompt, json.loads(json.dumps(question.record))
        )  # as a file gives it back
        got = task.score(kept, answer_of(task, kept))
        assert all(got[metric] == 1 for metric in task.metrics) and json.dumps(got)
        assert not any(task.score(kept, "")[metric] for metric in task.metrics)


@pytest.mark.parametrize("name", PARALLELBENCH)
def test_another_questions_answer_is_wrong(name):
    task = make(name, n=8)
    questions = task.questions()
    for one, other in zip(questions, questions[1:] + questions[:1], strict=True):
        assert headline(task, one, answer_of(task, other)) == 0


@given(kind=st.sampled_from(LINES), length=st.integers(3, 20), seed=SEEDS, data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_list_with_a_word_too_many_too_few_or_another_is_wrong(kind, length, seed, data):
    task = make(f"{kind}:length={length}", n=1, seed=seed)
    [question] = task.questions()
    words = list(question.record["expected"])
    place = data.draw(st.integers(0, len(words) - 1))
    strange = data.draw(st.sampled_from([w for w in WORDS if w not in words and w not in question.record["given"]]))
    for wrong in (
        [*words[:place], strange, *words[place:]],
        [*words[:place], *words[place + 1 :]],
        [*words[:place], words[place - 1], *words[place + 1 :]],
        [*words[:place], strange, *words[place + 1 :]],
    ):
        got = task.score(question, ", ".join(wrong))
        assert (got["score"], got["score_strict"]) == (0, 0), (question, wrong)
    assert len(question.record["given"]) == length and split_of(question.prompt) == "test"


@given(kind=st.sampled_from(LINES), seed=SEEDS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_only_a_shuffle_may_have_another_order(kind, seed, data):
    task = make(f"{kind}:length=5", n=1, seed=seed)
    [question] = task.questions()
    given_words, words = list(question.record["given"]), data.draw(st.permutations(question.record["expected"]))
    right = words != given_words if kind == "shuffle" else words == list(question.record["expected"])
    if kind not in ("insert_random", "replace_random"):  # the word that came in may move
        assert headline(task, question, ", ".join(words)) == right
    assert kind not in EDITS or headline(task, question, ", ".join(given_words)) == (
        kind == "sort" and given_words == sorted(given_words)
    )


@pytest.mark.parametrize(
    ("kind", "right"),
    [
        ("shuffle", ["b, a, c", "c, b, a"]),
        ("insert_random", ["x, a, b, c", "a, x, b, c", "a, b, c, x"]),
        ("replace_random", ["x, b, c", "a, x, c", "a, b, x"]),
        ("remove_random", ["b, c", "a, c", "a, b"]),
    ],
)
def test_where_there_is_a_choice_every_choice_is_right(kind, right):
    question = Question("q", "", {"kind": kind, "question": "", "given": ["a", "b", "c"], "word": "x", "expected": []})
    task = make(kind)
    assert all(task.score(question, answer)["score_strict"] for answer in right)
    for wrong in ("a, b, c", "a, b, x, x", "c, b", "x, a, c, b", "x", "b, b, a", "a, b, d"):
        assert headline(task, question, wrong) == 0


def test_a_list_may_be_written_as_in_the_paper_unless_strictly_read():
    task = make("copy:length=3")
    question = task.questions()[0]
    words = question.record["given"]
    for text in (json.dumps(words), f"Here it is: {json.dumps(words)} Done.", " ,".join(words) + "."):
        got = task.score(question, text)
        assert (got["score"], got["score_strict"], got["extracted"]) == (1, 0, list(words))
    assert words_of("") == [] and words_of("[]") == []


def test_lists_have_3_to_6_words_in_turn_unless_told():
    lengths = [len(question.record["given"]) for question in make("sort", n=8).questions()]
    assert lengths == [3, 4, 5, 6, 3, 4, 5, 6]


@given(size=st.integers(2, 6), seed=SEEDS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_square_with_one_wrong_cell_or_a_repeated_row_is_wrong(size, seed, data):
    task = make(f"latin_square:size={size}", n=1, seed=seed)
    [question] = task.questions()
    rows = [row.split(",") for row in answer_of(task, question).split("\n")]
    rows = data.draw(st.permutations(rows))
    assert headline(task, question, "\n".join(map(",".join, rows))) == 1
    i, j = data.draw(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)))
    cell = [[*row] for row in rows]
    cell[i][j] = rows[i][j - 1]
    again = [*rows]
    again[i] = rows[i - 1]
    for wrong in (cell, again, rows[1:]):
        assert headline(task, question, "\n".join(map(",".join, wrong))) == 0


def test_text_around_a_square_is_overlooked_unless_strictly_read():
    task = make("latin_square")
    question = task.questions()[0]
    got = task.score(question, f"Here:\n{answer_of(task, question)}\nDone.")
    assert (got["score"], got["score_strict"]) == (1, 0)


@given(name=st.sampled_from(["mini_sudoku", "sudoku"]), index=st.integers(0, 3), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_sudoku_with_a_wrong_cell_is_not_solved_but_earns_a_part(name, index, data):
    task, question = SUDOKUS[name]
    question = question[index]
    solution = question.record["answer"]
    place = data.draw(st.sampled_from([i for i, c in enumerate(solution) if c.isdigit()]))
    other = data.draw(st.sampled_from([c for c in "1234" if c != solution[place]]))
    got = task.score(question, solution[:place] + other + solution[place + 1 :])
    assert got["score"] == 0 < got["reward"] < 1


SUDOKUS = {name: (made := make(name, n=4), made.questions()) for name in ("mini_sudoku", "sudoku")}


def test_a_sudoku_has_as_many_empty_cells_as_asked_for():
    for question in make("mini_sudoku:empty=4", n=5).questions():
        assert question.prompt.count("_") == 4


@given(words=st.lists(st.sampled_from(WORDS), min_size=2, max_size=5, unique=True), data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_sentence_without_one_of_the_words_is_wrong(words, data):
    task, question = make("words_to_sentence"), Question("q", "", {"words": words})
    assert headline(task, question, f"Once, {' '.join(words).upper()}!") == 1
    missing = data.draw(st.sampled_from(words))
    others = [f"{word}" if word != missing else f"{word}s" for word in words]  # a part of another word is not the word
    assert headline(task, question, f"Once, {' '.join(others)}!") == 0


@pytest.mark.parametrize("name", ["copy", "latin_square", "mini_sudoku", "words_to_sentence"])
def test_problems_check_themselves_by_the_headline(name):
    task = make(name, n=3, seed=5)
    for problem, question in zip(problems(name, 3, 5), task.questions(), strict=True):
        assert problem.question == question.prompt and (problem.task, problem.kind) == (name, name)
        assert problem.check(answer_of(task, question)) and not problem.check("no")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("copi", "unknown task 'copi'; did you mean 'copy'?"),
        ("copy:lenght=3", "unknown option of task copy 'lenght'; did you mean 'length'?"),
        ("copy:metrics=x", "unknown option of task copy 'metrics'"),
        ("copy:length", "is not option=value"),
        ("copy:length=many", "copy:length=many is not of type"),
        ("copy:length=1", "length=1 of the task copy:length=1 is out of range; give 2 to 63"),
        ("copy:n=0", "n=0 of the task copy:n=0 is out of range; give 1 to 1000000"),
        ("copy:seed=-1", "seed=-1 of the task"),
        ("latin_square:size=10", "size=10 of the task latin_square:size=10 is out of range; give 2 to 9"),
        ("mini_sudoku:empty=13", "empty=13 of the task mini_sudoku:empty=13 is out of range; give 0 to 12"),
        ("sudoku:empty=51", "give 0 to 50"),
        ("words_to_sentence:length=0", "give 1 to 64"),
    ],
)
def test_what_cannot_be_is_told(spec, message):
    with pytest.raises(DllmError) as told:
        make(spec)
    assert message in str(told.value)


def test_without_reasoning_gym_sudokus_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DllmError, match=r"the task sudoku needs reasoning-gym; pip install 'dllm-decode\[eval\]'"):
        make("sudoku").questions()


def test_a_task_must_say_how_it_draws():
    with pytest.raises(NotImplementedError, match="Drawn draws no questions"):
        Drawn("nothing", n=1).questions()


def test_every_task_is_found_by_its_name():
    assert {name for name, made in PARALLELBENCH.items() if made is WaitingLine} == {*LISTS, *MORE_LISTS}
    assert {name for name, module in TASKS.items() if module == "parallelbench"} == set(PARALLELBENCH)
    assert tasks.make("copy:length=9") == WaitingLine("copy:length=9", length=9)
    with pytest.raises(DllmError, match="unknown task 'copi'; did you mean 'copy'"):
        tasks.make("copi:length=9")
    with pytest.raises(DllmError, match="protocol='P1' is not for the task copy, which takes no options"):
        tasks.make("copy", protocol="P1")
