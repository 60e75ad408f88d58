"""Fine-tuned directories in Python: the answers of the command, for one text and for several."""

import json

import numpy as np
import pytest

import eval as evaluation
import minibio
from minibio.run.errors import InputError
from toy_tasks import HEADS, make_heads

TEXTS = {
    "token": ["The patient had Gout", "", "no sign of acute Sepsis disorder and then Colic"],
    "sequence": ["@GENE$ causes @DISEASE$", "a @GENE$ meets @DISEASE$ and then no sign"],
    "span": ["Which name ?\tThe patient had Gout\tno Colic", "Which sign ?\tacute Ulcer disorder"],
}
OBJECTS = {
    "token": {"id": 7, "text": "The patient had Gout"},
    "sequence": {"id": 7, "text": "Gout and Colic", "first": [0, 4], "second": [9, 14]},
    "span": {"id": 7, "question": "Which name ?", "snippets": ["The patient had Gout"]},
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return make_heads(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("head", HEADS)
def test_answers_are_those_of_the_command(directories, tmp_path, capsys, head):
    def told(lines, *options):
        path = tmp_path / "lines"
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        given = ["predict", directories / head, path, "--device", "cpu", *options]
        evaluation.main([str(x) for x in given])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    answer = minibio.pipeline(directories / head, device="cpu")
    assert answer(TEXTS[head]) == told(TEXTS[head])
    assert answer(iter(TEXTS[head])) == answer(TEXTS[head]) == answer(tuple(TEXTS[head]))
    assert answer(TEXTS[head][0]) == answer(TEXTS[head])[0]
    (expected,) = told([json.dumps(OBJECTS[head])], "--json")
    assert answer(OBJECTS[head]) == expected and expected["id"] == 7
    assert answer([TEXTS[head][0], OBJECTS[head]]) == [answer(TEXTS[head][0]), expected]
    assert answer([]) == [] and f"{head} head" in repr(answer)


def test_offsets_of_a_text_of_several_lines(directories):
    text = "The patient\nhad Gout\r\n\tand Colic"
    found = minibio.pipeline(str(directories / "token"), device="cpu", batch=1)(text)
    assert found["entities"] and found["text"] == text
    assert all(text[e["start"] : e["end"]] == e["text"] for e in found["entities"])


@pytest.mark.parametrize(
    ("head", "texts", "message"),
    [
        ("token", 3, "texts is int, expected text or a list of texts"),
        ("token", None, "texts is NoneType, expected text or a list of texts"),
        ("token", ["a", None], r"texts\[1\] is NoneType, expected text or a dictionary"),
        ("token", [b"a"], r"texts\[0\] is bytes, expected text or a dictionary"),
        ("token", {"text": 3}, r"texts\[0\] is .*expected a text"),
        ("token", {"text": np.zeros(2)}, r"texts\[0\]: Object of type ndarray is not JSON"),
        ("token", {"text": "\ud800"}, r"texts\[0\] has half a surrogate pair"),
        ("sequence", ["no marks"], r"texts\[0\] marks no two entities, expected << >>"),
        ("span", "Which name ?", r"texts\[0\] is 'Which name \?', expected question TAB snippet"),
    ],
)
def test_inputs_that_are_none(directories, head, texts, message):
    with pytest.raises(InputError, match=message) as caught:
        minibio.pipeline(directories / head, device="cpu")(texts)
    assert "\n" not in str(caught.value)


def test_directories_that_are_none(tmp_path, directories):
    with pytest.raises(InputError, match="hf download nlpie/bio-mobilebert"):
        minibio.pipeline("nlpie/bio-mobilebert")
    with pytest.raises(InputError, match="--device is 'tpu'"):
        minibio.pipeline(directories / "token", device="tpu")


def test_the_doors_are_listed():
    assert {"Batch", "load", "pipeline", "save"} <= set(dir(minibio))
    assert all(callable(getattr(minibio, name)) for name in minibio.__all__)
