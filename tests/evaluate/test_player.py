import html
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import cases
from dllm import DllmError, Trace, stream
from dllm.evaluate import player

TEMPLATE = Path(player.__file__).with_suffix(".html").read_text(encoding="utf-8")
HEADER = '{"trace": 1, "requests": [], "settings": {}, "mask_id": 0, "eos_ids": []}'
AWKWARD = [
    "</script><script>boom()</script>",
    "<!--",
    "&lt;",
    "\n",
    "\t",
    "\x00",
    "",
    '"\\',
    "\u2028",
    "\u202e",
    "日本",
    "🙂",
]


@pytest.fixture
def written(model, tmp_path):
    """Writes the trace of a generation, and gives its path."""

    def write(sampler="wino:threshold=0.1", **settings):
        run = stream(model, cases.PROMPTS, sampler, "none", observers=[trace := Trace()], **cases.SHAPE | settings)
        for _ in run:
            pass
        trace.to_json(tmp_path / "trace.jsonl", run, sampler={"name": sampler}, cache=None, seed=0)
        return tmp_path / "trace.jsonl"

    return write


def made_up(texts, columns=512, forwards=200, changed=512, seed=0):
    """A trace in which every forward changes `changed` columns at random, masks among them."""
    rng, state, lines = random.Random(seed), [0] * columns, []
    for forward in range(1, forwards + 1):
        for column in sorted(rng.sample(range(columns), changed)):
            token = rng.choice([t for t in (0, *rng.choices(range(1, 600), k=3)) if t != state[column]])
            state[column] = token
            change = {
                "request": 0,
                "forward": forward,
                "column": 9 + column,
                "token": token,
                "confidence": rng.random(),
            }
            lines.append(change | {"text": texts[token % len(texts)], "seconds": forward / 7})
    answer = [token or 1 for token in state]
    asked = {"prompt": [5] * 9, "prompt_text": texts[0], "canvas": [0] * columns, "answer": answer, "nfe": forwards}
    asked["answer_text"] = [texts[token % len(texts)] for token in answer]
    settings = {"sampler": {"name": "wino", "threshold": 0.3, "on": True, "none": None}, "cache": {"name": "dual"}}
    header = {"trace": 1, "settings": settings | {"model": texts[0]}, "mask_id": 0, "eos_ids": [1], "seconds": 30.0}
    return [header | {"requests": [asked]}, *lines]


def replayed(film):
    """What stands in the columns when all steps are done, as the page works it out."""
    state = list(film["start"])
    for step in film["steps"]:
        column = 0
        for gap, piece in zip(step["c"], step["k"], strict=True):
            column += gap
            state[column] = piece
    return state


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


@pytest.mark.parametrize("sampler", ["static", "threshold:threshold=0.6", "wino:threshold=0.1"])
@pytest.mark.parametrize("request_number", range(len(cases.PROMPTS)))
def test_the_steps_lead_from_the_canvas_to_the_answer(written, sampler, request_number):
    header, *changes = player.read(written(sampler, eos_early_stop=False))
    film, asked = player.film([header, *changes], request_number), header["requests"][request_number]
    assert [film["pieces"][piece] for piece in film["end"]] == [(token, f"{token} ") for token in asked["answer"]]
    assert replayed(film) == film["end"] and set(film["start"]) == {-1}
    numbers = [step["n"] for step in film["steps"]]
    assert numbers == sorted(set(numbers)) and numbers[0] >= 1 and numbers[-1] <= film["nfe"]
    own = [change for change in changes if change["request"] == request_number]
    assert [p for step in film["steps"] for p in re.findall("..", step["p"])] == [
        f"{min(99, int(100 * change['confidence'])):02d}" for change in own
    ]


def test_what_fills_the_canvas_after_the_end_of_text_is_no_step(tiny, tmp_path):
    run = stream(tiny(eos_ids=(31,)), [3, 1, 4], "static", gen_length=16, block_length=4, observers=[trace := Trace()])
    for _ in run:
        pass
    trace.to_json(tmp_path / "trace.jsonl", run)
    film = player.film(player.read(tmp_path / "trace.jsonl"), 0)
    left = [column for column, piece in enumerate(replayed(film)) if piece < 0]
    assert left and left == [*range(left[0], 16)] and film["title"] == "Static()"
    assert [film["end"][column] for column in left] == film["ends"] * len(left)


def test_the_page_holds_the_films_and_nothing_from_elsewhere(written):
    traces = [player.read(written(sampler)) for sampler in ("static", "factor")]
    page = player.page(traces, 1)
    assert data_of(page) == json.loads(json.dumps([player.film(trace, 1) for trace in traces]))
    assert "default-src 'none'" in page and not re.search(r"https?:|\bsrc=|\bhref=|url\(|@import|\bfetch\(", page)
    assert page.startswith("<!doctype html>")


def test_texts_cannot_leave_their_place():
    page = player.page([made_up(AWKWARD, columns=12, forwards=9, changed=6)])
    assert page.count("</script") == TEMPLATE.count("</script") and page.count("<!--") == TEMPLATE.count("<!--")
    assert page.count("<") == TEMPLATE.count("<") and page.isascii() == TEMPLATE.isascii()
    [film] = data_of(page)
    assert {text for _, text in film["pieces"]} <= set(AWKWARD) and film["told"] == f"model {AWKWARD[0]}"
    assert film["title"] == "wino:threshold=0.3,on=true, cache dual"


def test_512_columns_that_all_change_in_200_forwards_fit_into_a_megabyte():
    page = player.page([made_up([" word", "ing", "<", "é"])])
    assert 500_000 < len(page.encode()) < 1_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not begin with the header of a trace"),
        ("{", r"is no trace \(Expecting property name"),
        ('{"step": 0}', "does not begin with the header of a trace"),
        ("[1]", "does not begin with the header of a trace"),
        ('{"trace": 1, "settings": {}}', "the header of the trace .* has no eos_ids, mask_id, requests; dllm generate"),
        (HEADER + '\n{"forward": 1}', "line 2 of .* is no change of a trace; it needs column, confidence, forward"),
        (HEADER + "\n3", "line 2 of .* is no change"),
        (b"\xff", "is no trace"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, text, message):
    file = tmp_path / "trace"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DllmError, match=message):
        player.read(file)


@pytest.mark.parametrize("request_number", [-1, 9])
def test_a_request_that_is_not_there_is_refused(written, request_number):
    with pytest.raises(DllmError, match=f"request={request_number} is not in the trace; it has 0 to"):
        player.page([player.read(written())], request_number)


@pytest.mark.skipif(not shutil.which("node"), reason="checks the page's script with node")
def test_the_script_of_the_page_parses(tmp_path):
    (tmp_path / "script.js").write_text(TEMPLATE.split("<script>")[1].split("</script>")[0], encoding="utf-8")
    subprocess.run(["node", "--check", tmp_path / "script.js"], check=True)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PRESS = """
const press = key => document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const seen = () => runs.map(run => run.spans.map(span => span.textContent)), log = {};
const at = name => log[name] = {value: Number(slider.value), cells: seen(), told: get("told").textContent};
at("begin"); press("ArrowRight"); at("one"); press("PageUp"); at("eleven"); press("ArrowLeft"); at("ten");
press("End"); at("end"); clock.value = "time"; clock.onchange(); at("time"); press("Home"); at("home");
press(" "); log.playing = get("play").textContent; press(" "); log.stopped = get("play").textContent;
log.kinds = [...new Set(runs.flatMap(run => run.spans.flatMap(span => [...span.classList])))];
const out = document.createElement("pre");
out.id = "log"; out.textContent = JSON.stringify(log); document.body.append(out);
"""


@pytest.mark.browser
@pytest.mark.skipif(not BROWSER, reason="plays the page in headless Chromium")
def test_a_browser_plays_the_page(tmp_path):
    traces = [made_up(AWKWARD, columns=40, forwards=n, changed=5, seed=n) for n in (30, 20)]
    page = player.page(traces).replace("</body>", f"<script>{PRESS}</script></body>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    got = subprocess.run(
        [BROWSER, *flags, "--dump-dom", (tmp_path / "page.html").as_uri()], capture_output=True, timeout=300, check=True
    )
    log = json.loads(html.unescape(re.search(r'<pre id="log">(.*?)</pre>', got.stdout.decode(), re.DOTALL)[1]))
    places = {name: log[name]["value"] for name in ("begin", "one", "eleven", "ten", "end", "home")}
    assert places == {"begin": 0, "one": 1, "eleven": 11, "ten": 10, "end": 30, "home": 0}
    assert not any(map(any, log["begin"]["cells"])) and log["home"]["cells"] == log["begin"]["cells"]
    assert log["end"]["cells"] == log["time"]["cells"] and all(map(all, log["end"]["cells"]))
    assert [sum(map(bool, cells)) for cells in log["one"]["cells"]] == [5, 5]
    assert (log["playing"], log["stopped"]) == ("Pause", "Play")
    assert "forward 1, 5 revealed, 5 of 40 columns decided" in log["one"]["told"]
