"""Options from the fields of a dataclass: what is read, and what is refused in one line."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from minibio.config import RunConfig, option
from minibio.run import options
from minibio.run.errors import InputError


@dataclass(frozen=True)
class Config:
    name: str = "a row"  # not an option
    steps: int = option(5, "steps", least=1, may_differ=True)
    rate: float = option(0.5, "rate", above=0)
    share: float = option(0.0, "share", least=0, below=1, const=0.25)
    weights: tuple[float, ...] = option((), "weights", least=0)
    pair: tuple[float, float] = option((0.1, 0.2), "two")
    layers: int | None = option(None, "layers", least=1)
    kind: str = option("x", "kind", choices=("x", "y"))
    fast_mode: bool = option(False, "fast")


def read(*argv):
    parser = options.Parser("test", description="A test.\nMore.")
    options.add_options(parser, Config)
    return options.given(parser.parse_args(argv), Config)


def test_what_is_not_given_is_left_to_the_row():
    assert read() == {}
    line = "--steps 7 --share --weights 1,2.5 --pair 0,1 --layers 3 --kind y --fast-mode"
    assert read(*line.split()) == {
        "steps": 7, "share": 0.25, "weights": (1.0, 2.5), "pair": (0.0, 1.0), "layers": 3,
        "kind": "y", "fast_mode": True,
    }  # fmt: skip
    assert read("--weights", "none", "--share", "0.5") == {"weights": (), "share": 0.5}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--step 3", "--step is not an option; did you mean --steps?"),
        ("--max_steps 3", "--max_steps is --steps here"),
        ("--resume", "--resume is not needed: re-run the same command"),
        ("--name b", "--name is not an option"),
        ("--learning-rate 3", "--learning-rate is not an option"),  # there is no --lr here
        ("--steps x", "--steps: invalid INT value: 'x'"),
        ("--pair 1", "--pair: invalid"),
        ("--weights 1,,2", "--weights: invalid"),
        ("--kind z", "--kind: invalid choice: 'z'"),
        ("here", "'here' belongs to no option"),
    ],
)
def test_what_cannot_be_read_is_one_line(argv, message):
    with pytest.raises(InputError) as caught:
        read(*argv.split())
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "--steps is 0, expected at least 1"),
        ("steps", 2**63, f"expected at most {2**63 - 1}"),
        ("rate", 0.0, "--rate is 0.0, expected above 0"),
        ("rate", float("nan"), "--rate is nan, expected a finite number"),
        ("rate", float("inf"), "expected a finite number"),
        ("share", 1.0, "--share is 1.0, expected below 1"),
        ("weights", (1.0, -1.0), "--weights is -1.0, expected at least 0"),
        ("layers", 0, "--layers is 0, expected at least 1"),
        ("kind", "z", "--kind is 'z', expected one of x, y"),
    ],
)
def test_a_value_out_of_its_range_is_refused(field, value, message):
    options.check(Config())
    with pytest.raises(InputError) as caught:
        options.check(replace(Config(), **{field: value}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--count", str(2**63)], f"--count: {2**63}, expected at most {2**63 - 1}"),
        (["--count", "x"], "--count: invalid int value: 'x'"),
        (["--out", "a\0b"], "--out: 'a\\x00b' has a NUL in it"),
        (["--pattern", "a\0b"], "--pattern: 'a\\x00b' has a NUL in it"),
    ],
)
def test_what_no_tensor_and_no_file_system_holds(argv, message):
    parser = options.Parser("test")
    parser.add_argument("--count", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pattern")
    rest = ["--count", str(1 - 2**63), "--out", "a", "--pattern", "b"]
    assert vars(parser.parse_args(rest)) == {"count": 1 - 2**63, "out": Path("a"), "pattern": "b"}
    with pytest.raises(InputError) as caught:
        parser.parse_args(argv)
    assert str(caught.value).startswith(message)


def test_every_number_of_a_run_has_a_range():
    """Or a negative or endless one would train, or fail deep inside."""
    for f in options.fields(RunConfig):
        kind, _ = options.element(options.get_type_hints(RunConfig)[f.name])
        if kind in (int, float):
            assert f.metadata["least"] is not None or f.metadata["above"] is not None, f.name


def test_every_habit_is_of_an_option_that_trains_have():
    known = {options.flag(f.name) for f in options.fields(RunConfig)}
    known |= {"--out", "--from", "--teacher", "--overwrite"}
    assert {ours.split(" ")[0] for ours in options.HABITS.values()} <= known
