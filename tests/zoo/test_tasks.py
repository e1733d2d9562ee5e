import re
from itertools import pairwise

import pytest

from dllm.zoo.tasks import TASKS, consistent, correct, make, problems, split_of
from dllm.zoo.tasks.code import FAMILIES
from dllm.zoo.tasks.lists import LISTS


@pytest.mark.parametrize("task", TASKS)
def test_a_sampled_answer_passes_its_own_checkers(task):
    for problem in problems(task, 400):
        assert correct(problem, problem.answer) and consistent(problem, problem.answer), problem


@pytest.mark.parametrize("task", TASKS)
def test_another_problems_answer_fails(task):
    several = problems(task, 200)
    wrong = sum(correct(a, b.answer) for a, b in pairwise(several) if a.answer != b.answer)
    assert wrong <= 0.04 * len(several)  # two word problems may share a number


@pytest.mark.parametrize("task", TASKS)
def test_a_problem_depends_on_nothing_but_its_arguments(task):
    assert problems(task, 50, seed=3) == problems(task, 50, seed=3) != problems(task, 50, seed=4)


@pytest.mark.parametrize("task", TASKS)
def test_train_and_test_share_no_question(task):
    train = {make(task, 0, index, "train").question for index in range(1000)}
    test = {problem.question for problem in problems(task, 200)}
    assert not train & test and {split_of(question) for question in test} == {"test"}


def test_every_kind_is_drawn():
    kinds = {task: {problem.kind for problem in problems(task, 600)} for task in TASKS}
    assert kinds["math"] == {f"steps{n}" for n in (1, 2, 3, 4)} and kinds["lists"] == set(LISTS)
    assert kinds["code"] == {family.name for family in FAMILIES}


def test_level_zero_draws_only_the_easiest():
    assert {make("math", 0, index, level=0.0).kind for index in range(100)} == {"steps1"}
    assert all(2 <= make("lists", 0, index, level=0.0).answer.count(", ") + 1 <= 4 for index in range(100))


def test_the_grammar_sees_a_wrong_sum_a_lost_style_and_a_missing_line():
    for problem in problems("math", 200):
        first, *rest = problem.answer.split("\n")
        broken = re.sub(r"= (\d+)", lambda match: f"= {int(match[1]) + 1}", first)
        for lines in ([broken, *rest], [first.replace(".", " indeed."), *rest], rest):
            assert not consistent(problem, "\n".join(lines)), (problem, lines)
        assert correct(problem, "\n".join([broken, *rest])) and not correct(problem, problem.answer + "1")


def test_the_grammar_wants_one_unit_in_all_lines():
    for problem in (p for p in problems("math", 300) if p.kind != "steps1" and "dollars" in p.question):
        first, *rest = problem.answer.split("\n")
        other = first.replace("dollars", "bucks") if "dollars" in first else first.replace("bucks", "dollars")
        assert other != first and not consistent(problem, "\n".join([other, *rest]))


def test_a_shuffle_must_be_another_order_of_the_same_words():
    problem = next(p for p in problems("lists", 100) if p.kind == "shuffle")
    given, answer = problem.question.split("\n")[1], problem.answer.split(", ")
    assert correct(problem, ", ".join([*answer[1:], answer[0]])) or ", ".join([*answer[1:], answer[0]]) == given
    assert not correct(problem, given) and not correct(problem, ", ".join([answer[0], *answer[:-1]]))


def test_every_body_of_every_family_passes_the_tests_of_its_problem():
    for problem in problems("code", 300):
        scope: dict[str, object] = {}
        exec(problem.question + problem.answer + "\n" + problem.tests, scope)  # our own text, never a model's
        assert problem.entry_point in scope


def test_code_is_compared_up_to_the_names_of_locals_and_never_run():
    problem = next(p for p in problems("code", 500) if "for " in p.answer and "result" in p.answer)
    assert correct(problem, problem.answer.replace("result", "anything"))
    raised = problem.answer + "\nraise SystemExit"
    for wrong in ("    return None", problem.answer + " +", "    raise SystemExit", raised, "\0"):
        assert not correct(problem, wrong)


def test_arguments_out_of_range_are_refused():
    for arguments, message in (
        (("maths", 0, 0), "did you mean 'math'"),
        (("math", 0, 0, "dev"), "unknown split 'dev'"),
        (("math", 0, 0, "train", 2.0), r"level=2\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(*arguments)
