"""HumanEval's prompts and programs against lm-evaluation-harness's own, on invented problems, and its solutions."""

import ast
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

import dllm
from dllm.errors import DllmError
from dllm.evaluate.data import humaneval, installed
from dllm.evaluate.runner import evaluate
from dllm.evaluate.tasks import make
from dllm.evaluate.tasks.humaneval import PASS, PROTOCOLS, HumanEval, completed, first_block, sanitized, up_to_fence

walled = pytest.mark.usefixtures("walled")


def problem(index, name, doc, body, *checks):
    tests = "".join(f"    assert {check}\n" for check in checks)
    return {
        "task_id": f"Invented/{index}",
        "prompt": f'from typing import List\n\n\ndef {name}(values: List[int]) -> int:\n    """{doc}\n    """\n',
        "entry_point": name,
        "canonical_solution": f"    {body}\n",
        "test": f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n{tests}\n",
    }


ROWS = [
    problem(0, "total", "Add {{all}} values.", "return sum(values)", "candidate([1, 2]) == 3", "candidate([]) == 0"),
    problem(1, "widest", 'Most of "all".', "return max(values)", "candidate([1, 5, 2]) == 5"),
    problem(2, "evens", "Count even ones.", "return sum(v % 2 == 0 for v in values)", "candidate([1, 2, 4]) == 2"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("humaneval") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def ours(protocol, rows=ROWS):
    """The task without asking whether programs can be run here."""
    p = PROTOCOLS[protocol]
    own = {"ask": p.ask, "prefix": p.prefix, "program": p.program, "allow_code_execution": True}
    return HumanEval("humaneval", (PASS,), chat=p.chat, stop=p.stop, settings=p.settings, rows=rows, **own)


# Prompts

ASKED = {
    "H1": ("{}", ""),
    "H2": (
        "Write a solution to the following problem and make sure that it passes the tests:\n```{}",
        "Here is the completed function:\n```python\n{}\n",
    ),
    "H3": ("{}", ""),
    "H4": ("Complete the following python code:\n{}", ""),
    "H5": (
        "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{}\n```\n",
        "Here is the completed function:\n```python\n{}\n",
    ),
    "H5-base": ("{}", ""),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prompts_are_the_protocols(protocol):
    for question, row in zip(ours(protocol).questions(), ROWS, strict=True):
        around, before = ((row["prompt"].join(parts.split("{}"))) for parts in ASKED[protocol])
        assert (question.prompt, question.prefix) == (around, before)
        assert (question.id, question.record) == (row["task_id"], row)
    assert PROTOCOLS[protocol].chat is (protocol not in ("H3", "H5-base"))


class Plain(yaml.SafeLoader):
    """Reads the harness's files without the functions that they name: those fetch code when they are imported."""


Plain.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.mark.parametrize(
    ("protocol", "name"),
    [("H1", "humaneval"), ("H3", "humaneval"), ("H5-base", "humaneval"), ("H5", "humaneval_instruct")],
)
def test_prompts_are_those_of_the_harness(protocol, name):
    from lm_eval.utils import apply_template

    def read(name):
        return yaml.load(installed("lm_eval", f"tasks/humaneval/{name}.yaml").read_text(), Plain)

    theirs = read("humaneval") | read(name)
    for question, row in zip(ours(protocol).questions(), ROWS, strict=True):
        assert question.prompt == apply_template(theirs["doc_to_text"], row)
        assert question.prefix == apply_template(theirs.get("gen_prefix", ""), row)
        assert question.target == apply_template(theirs["doc_to_target"], row)
    if protocol.startswith("H5"):
        arguments = theirs["generation_kwargs"]
        assert list(ours(protocol).stop) == arguments["until"]
        assert ours(protocol).settings["gen_length"] == arguments["max_gen_toks"]


# Programs


@pytest.mark.parametrize(
    ("program", "name"), [(completed, "build_predictions"), (up_to_fence, "build_predictions_instruct")]
)
def test_programs_are_those_of_the_harness(program, name):
    tree = ast.parse(installed("lm_eval", "tasks/humaneval/utils.py").read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    exec(compile(tree, "utils.py", "exec"), theirs := {})
    answers = ["    return 1\n", "    return 1\n```\nIt ```is``` so.", "```", ""]
    assert theirs[name]([answers], ROWS[:1]) == [[program(ROWS[0], answer) for answer in answers]]


BODY = ROWS[0]["canonical_solution"]
WHOLE = ROWS[0]["prompt"] + BODY
FENCED = f"Sure!\n```python\n{WHOLE}```\nThat's it: (done"


@walled
@pytest.mark.parametrize(
    ("protocol", "answer", "passes"),
    [
        ("H1", BODY, 1),
        ("H1", FENCED, 1),
        ("H1", FENCED.split("```\nThat")[0], 1),
        ("H1", WHOLE + "\nprint(total([1]))\nAnd so on", 1),
        ("H1", "", 0),
        ("H1", "    return 0\n", 0),
        ("H2", BODY + "```", 1),
        ("H2", FENCED, 1),
        ("H3", BODY + "\ndef other(x):\n    return (", 1),
        ("H4", FENCED, 1),
        ("H4", WHOLE, 1),
        ("H4", "\n\n" + WHOLE, 1),
        ("H4", BODY, 0),  # OpenCompass takes the indentation away.
        ("H5", BODY + "```\nThat's it: (done", 1),
        ("H5", FENCED, 0),
        ("H5-base", BODY, 1),
        ("H5-base", FENCED, 0),
    ],
)
def test_what_a_protocol_takes_for_the_program(protocol, answer, passes):
    task = ours(protocol)
    result = task.score(task.questions()[0], answer)
    assert result[PASS] == passes and result["extracted"] == task.program(ROWS[0], answer)


@walled
def test_a_score_is_the_same_in_every_run():
    task = ours("H5-base")
    question = task.questions()[0]
    scores = [task.score(question, "    raise ValueError(object())\n") for _ in range(2)]
    assert scores[0] == scores[1] and scores[0]["status"] == "failed" and scores[0]["error"] == "ValueError"


def test_the_rules_name_no_other_function():
    assert sanitized(ROWS[0], FENCED).count("def ") == 1 and first_block(ROWS[0], "x") == ROWS[0]["prompt"] + "x"


# The data set


def scored(task, answer):
    """The ids of the questions whose answer passes."""
    with ThreadPoolExecutor(2) as pool:
        questions = task.questions()
        scores = list(pool.map(lambda question: task.score(question, answer(question.record))[PASS], questions))
    return {question.id for question, score in zip(questions, scores, strict=True) if score}


def needed(row):
    """Of a given solution, as trees: imports, then the functions that the wanted one calls, in their order."""
    tree = ast.parse(row["prompt"] + row["canonical_solution"])
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    called = {node.id for node in ast.walk(functions[row["entry_point"]]) if isinstance(node, ast.Name)}
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return [*imports, *(node for name, node in functions.items() if name in {row["entry_point"], *called})]


@walled
def test_given_solutions_pass():
    task = ours("H5-base", humaneval())
    assert len(task.rows) == len(scored(task, lambda row: row["canonical_solution"])) == 164


def test_of_given_solutions_what_is_needed_is_kept():
    for row in humaneval():
        found = ast.parse(sanitized(row, row["canonical_solution"])).body
        assert [*map(ast.dump, found)] == [*map(ast.dump, needed(row))], row["task_id"]


@walled
@pytest.mark.parametrize("protocol", ["H1", "H2"])
def test_what_is_kept_of_given_solutions_passes(protocol):
    """The 50th does not call a function of the problem that its test calls, so papers' rule leaves that out."""
    task = ours(protocol, [row for i, row in enumerate(humaneval()) if i == 50 or i % 20 == 0])
    failed = {row["task_id"] for row in task.rows} - scored(task, lambda row: row["canonical_solution"])
    assert len(task.rows) == 10 and failed == {"HumanEval/50"}


@walled
def test_broken_solutions_fail():
    """Each gives its result in a list: nearly right, and wrong for every test."""

    def broken(row):
        name = row["entry_point"]
        return f"{row['canonical_solution']}\nright = {name}\ndef {name}(*given):\n    return [right(*given)]\n"

    assert not scored(ours("H5-base", humaneval()), broken)


# From end to end


@walled
def test_a_model_is_evaluated(file, tmp_path):
    task = make("humaneval", protocol="H1", data=file, allow_code_execution=True)
    path = evaluate(dllm.load("tiny-llada"), task, tmp_path, name="tiny-llada", gen_length=32)
    results = json.loads(path.read_text())
    assert results["headline"] == PASS and results["n-samples"]["humaneval"]["effective"] == 3
    assert 0 <= results["results"]["humaneval"][PASS] <= 1


def test_nothing_is_asked_without_permission(file):
    with pytest.raises(DllmError, match="allow-code-execution"):
        make("humaneval", data=file)


def test_an_unknown_protocol_is_told(file):
    with pytest.raises(DllmError, match="did you mean 'H1'"):
        make("humaneval", protocol="H11", data=file, allow_code_execution=True)
