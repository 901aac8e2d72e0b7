# SPDX-License-Identifier: Apache-2.0
"""Answers appended and read: nothing is lost, and what does not count is named."""

import json
import subprocess
import sys

import msgspec
import pytest

from spatext_lab.evaluation.study.answers import Answer, append, read
from spatext_lab.evaluation.study.pairs import Key

ASKED = ("better", "caption", "regions")
KEY = Key(
    "5f0c",
    ("one", "two"),
    {"p1": ("one", "two"), "p2": ("two", "one")},
    {"p1": ASKED, "p2": ASKED[:1]},
)


def answer(
    rater="anna", pair="p1", question="better", choice="x", second=0, study="5f0c"
) -> Answer:
    time = f"2026-01-01T00:00:{second:02}.000Z"
    more = {"answer": choice, "side": "left", "time": time, "seconds": 1.5}
    return Answer(study=study, rater=rater, pair=pair, question=question, **more)


FOUR = [answer(pair="p2")] + [
    answer(question=name, second=k) for k, name in enumerate(ASKED, start=1)
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "answers.jsonl"


def filled(path, answers=FOUR):
    for each in answers:
        append(path, each)
    return path


def test_answers_are_lines_and_read_back(path):
    reading = read([filled(path)], KEY)
    assert reading.answers == tuple(FOUR)
    assert reading.problems == ()
    fields = {"study", "rater", "pair", "question", "answer", "side", "time", "seconds"}
    assert [set(json.loads(line)) for line in path.read_text().splitlines()] == [fields] * 4


@pytest.mark.parametrize("form", ["the page's", "in one line", "indented"])
def test_a_list_is_read_too(path, form):
    path.parent.mkdir()
    plain = msgspec.to_builtins(FOUR)
    lines = ",\n".join(map(json.dumps, plain))
    texts = {"the page's": f"[\n{lines}\n]\n", "in one line": json.dumps(plain)}
    path.write_text("\ufeff" + texts.get(form, json.dumps(plain, indent=2)))
    assert read([path], KEY).answers == tuple(FOUR)


@pytest.mark.parametrize("cut", range(1, 120, 17))
def test_a_line_cut_short_costs_only_itself(path, cut):
    """As a killed process or a full disk leaves it; the next answer starts a line of its own."""
    whole = filled(path).read_bytes()
    path.write_bytes(whole[:-cut])
    append(path, late := answer(rater="ben", second=30))
    reading = read([path], KEY)
    kept = FOUR if cut == 1 else FOUR[:-1]  # the newline alone was lost
    assert reading.answers == (*kept, late)
    assert reading.counts == ({} if cut == 1 else {"damaged": 1})
    assert path.read_bytes().startswith(whole[:-cut])


def test_a_pages_file_cut_short_keeps_its_other_lines(path):
    path.parent.mkdir()
    text = "[\n" + ",\n".join(map(json.dumps, msgspec.to_builtins(FOUR)))
    path.write_text(text[:-20])
    reading = read([path], KEY)
    assert reading.answers == tuple(FOUR[:3])
    assert reading.counts == {"damaged": 1}


def test_processes_may_append_to_one_file(path):
    """As raters in a folder that they share."""
    code = (
        "import sys; from tests.evaluation.study.test_answers import answer, append\n"
        "for k in range(20): append(sys.argv[1], answer(rater=f'{sys.argv[2]}-{k}'))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, path, str(k)]) for k in range(3)]
    assert [each.wait() for each in running] == [0] * 3
    reading = read([path], KEY)
    assert len(reading.answers) == 60
    assert reading.problems == ()


def test_what_does_not_count_is_named_with_its_line(path):
    lines = [
        "not JSON",
        json.dumps(msgspec.to_builtins(answer()) | {"answer": "one"}),
        json.dumps(msgspec.to_builtins(answer()) | {"seconds": -1}),
        json.dumps(msgspec.to_builtins(answer()) | {"rater": ""}),
        "[" * 100_000,
        "\x00\x00\x00",
    ]
    filled(path)
    path.write_text(path.read_text() + "\n".join(lines) + "\n")
    others = [answer(study="other"), answer(pair="p9"), answer(pair="p2", question="regions")]
    filled(path, others)
    reading = read([path], KEY)
    assert reading.answers == tuple(FOUR)
    assert reading.counts == {"damaged": 6, "another study": 1, "unknown pair or question": 2}
    lines = [int(problem.where.rpartition(" ")[2]) for problem in reading.problems]
    assert lines == list(range(5, 14))
    assert "it answers the study 'other', the key is of 5f0c" in reading.problems[6].what
    assert all(len(problem.what) < 400 for problem in reading.problems)


def test_the_first_of_two_answers_counts_in_whatever_order(path, tmp_path):
    again = [answer(choice="y", second=50), answer(pair="p2")]
    filled(path)
    filled(tmp_path / "second.jsonl", again)
    for order in ([path, tmp_path / "second.jsonl"], [tmp_path / "second.jsonl", path]):
        reading = read(order, KEY)
        assert reading.answers == tuple(FOUR)
        assert reading.counts == {"answered before": 2}
        words = sorted(problem.what for problem in reading.problems)
        assert words == [
            "'anna' answered better of p1: another answer; the first counts",
            "'anna' answered better of p2: the same answer",
        ]


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read([tmp_path / "none.json"], KEY)
