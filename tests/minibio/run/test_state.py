"""A run as named tensors: nothing twice, nothing forgotten, nothing put in another's place."""

import dataclasses
import json

import pytest
import torch
import torch.nn as nn

from helpers import tiny_config
from minibio.config import METHODS, RunConfig
from minibio.distil.objectives import Tiny
from minibio.model.heads import Model
from minibio.run import state
from minibio.run.errors import InputError
from minibio.run.optim import make_optimizer

TEACHER = tiny_config(L=4)
CPU = torch.device("cpu")


def objective(fidelity="released", **shape):
    torch.manual_seed(0)
    student = Model(tiny_config(L=2, **{"C": 30, "F": 20, **shape}))
    run = dataclasses.replace(METHODS["tiny"], fidelity=fidelity)
    return Tiny(student, Model(TEACHER), run)


def optimizer(module, steps=1):
    made = make_optimizer(module, lr=1e-3, weight_decay=0.01)
    for step in range(steps):
        for i, p in enumerate(module.parameters()):
            p.grad = torch.full_like(p, (i % 7 - 3) / (step + 1))
        made.step()
    return made


def test_a_shared_tensor_comes_once():
    module = objective("released")  # one projection under two names
    assert module.W_e is module.W_h
    named = state.weights(module)
    assert "W_h.weight" in named and "W_e.weight" not in named
    assert len({x.data_ptr() for x in named.values()}) == len(named)
    assert sum(x.numel() for x in named.values()) == sum(p.numel() for p in module.parameters())
    assert {"W_h.weight", "W_e.weight"} < set(state.weights(objective("paper")))


def test_buffers_that_are_saved_come_too():
    module = nn.BatchNorm1d(3)
    module.register_buffer("scratch", torch.zeros(2), persistent=False)
    assert list(state.weights(module)) == [
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked"
    ]  # fmt: skip


def test_names_are_those_of_the_module_without_its_wrappers():
    module = nn.Sequential(nn.Linear(2, 2))
    module[0] = torch.compile(module[0])  # nothing is compiled before it is called
    assert list(state.weights(module)) == ["0.weight", "0.bias"]
    assert state.groups(module, optimizer(module)) == [["0.weight"], ["0.bias"]]
    assert state.plain("module._orig_mod.a.module.b") == "a.module.b"


def test_put_back_into_another_run_every_tensor_is_the_same():
    module = objective()
    made = optimizer(module, steps=3)
    stored = {name: x.clone() for name, x in state.weights(module).items()}
    kept = {name: x.clone() for name, x in state.moments(module, made).items()}
    n = len(list(module.parameters()))
    assert len(kept) == 3 * n and kept["step:W_h.bias"] == 3
    other = objective()
    anew = optimizer(other, steps=0)
    assert state.moments(other, anew) == {}
    anew.param_groups[0]["weight_decay"] = 0.25  # the present run's options stay
    state.check_weights(stored, other, "x")
    state.check_moments(kept, state.groups(module, made), other, anew, "x")
    state.put_weights(other, stored)
    state.put_moments(other, anew, kept)
    for then, now in ((stored, state.weights(other)), (kept, state.moments(other, anew))):
        assert list(then) == list(now)
        assert all(torch.equal(x, now[name]) for name, x in then.items())
    assert [g["weight_decay"] for g in anew.param_groups] == [0.25, 0.0]
    assert other.W_e.weight is other.W_h.weight
    before = {name: x.clone() for name, x in kept.items()}
    for p in other.parameters():
        p.grad = torch.ones_like(p)
    anew.step()
    assert all(torch.equal(x, before[name]) for name, x in kept.items())  # copies, not the same


def test_an_optimizer_before_its_first_step():
    module = objective()
    made = optimizer(module, steps=0)
    groups = state.groups(module, made)
    assert sum(map(len, groups)) == len(list(module.parameters()))
    state.check_moments({}, groups, module, made, "x")
    state.put_moments(module, made, {})
    assert state.moments(module, made) == {}


def without(named, name):
    return {n: x for n, x in named.items() if n != name}


def test_weights_of_another_shape_are_refused_by_name():
    wide, narrow = objective(C=40), objective()
    stored = state.weights(wide)
    table = "student.encoder.embeddings.token.weight"
    with pytest.raises(InputError, match=rf"run/7: {table} is \(101, 40\), expected \(101, 30\)"):
        state.check_weights(stored, narrow, "run/7")
    stored = state.weights(narrow)
    with pytest.raises(InputError, match=rf"no W_h.bias in it, expected \({TEACHER.C},\)"):
        state.check_weights(without(stored, "W_h.bias"), narrow, "x")
    with pytest.raises(InputError, match="W_x is in it, but not in this run"):
        state.check_weights({**stored, "W_x": torch.ones(1)}, narrow, "x")
    with pytest.raises(InputError, match="float64, expected torch.float32"):
        state.check_weights({**stored, "W_h.bias": stored["W_h.bias"].double()}, narrow, "x")


def test_an_optimizer_of_other_parameters_is_refused_by_name():
    module = objective()
    made = optimizer(module)
    kept, groups = state.moments(module, made), state.groups(module, made)
    name = groups[0][1]

    def check(stored, stored_groups):
        state.check_moments(stored, stored_groups, module, made, "run/7")

    with pytest.raises(InputError, match=f"{name} was in no group of .*, expected group 0"):
        check(kept, [[n for n in groups[0] if n != name], groups[1]])
    with pytest.raises(InputError, match=f"{name} was in group 1 .*, expected group 0"):
        check(kept, [[n for n in groups[0] if n != name], [*groups[1], name]])
    with pytest.raises(InputError, match="extra was in group 1 .*, expected no group"):
        check(kept, [groups[0], [*groups[1], "extra"]])
    with pytest.raises(InputError, match="in another order"):
        check(kept, [groups[0][::-1], groups[1]])
    with pytest.raises(InputError, match=f"run/7: exp_avg:{name} is .2,., expected"):
        check({**kept, f"exp_avg:{name}": torch.ones(2)}, groups)
    module.W_h.requires_grad_(False)  # trained then, frozen now
    frozen = optimizer(module, steps=0)
    with pytest.raises(InputError, match="W_h.weight was in group 0 .*, expected no group"):
        state.check_moments(kept, groups, module, frozen, "x")


def test_random_numbers_go_on():
    torch.randn(3)  # an odd number of normal draws leaves half a pair behind
    kept = state.random_state(CPU)
    assert set(kept) == {"cpu"}
    first = torch.randn(5), torch.rand(2)
    torch.manual_seed(9)
    rows = torch.stack([torch.get_rng_state(), kept["cpu"]])
    for x in (kept["cpu"], rows[1]):  # a row of all processes' states too
        state.put_random_state({"cpu": x}, CPU)
        again = torch.randn(5), torch.rand(2)
        assert all(map(torch.equal, first, again))


@pytest.mark.gpu
def test_random_numbers_of_a_gpu_go_on():
    device = torch.device("cuda", 0)
    torch.rand(7, device=device)
    kept = state.random_state(device)
    first = torch.rand(5, device=device), torch.rand(5)
    torch.manual_seed(9)
    state.put_random_state(kept, device)
    again = torch.rand(5, device=device), torch.rand(5)
    assert all(map(torch.equal, first, again))


def test_a_fresh_random_state_follows_from_seed_step_and_rank():
    drawn = {}
    for key in [(1, 10, 0), (2, 10, 0), (1, 11, 0), (1, 10, 1), (2**63 + 1, 0, 0)]:
        for _ in range(2):
            torch.rand(3)
            state.fresh_random_state(*key)
            drawn.setdefault(key, []).append(tuple(torch.rand(4).tolist()))
    assert all(first == again for first, again in drawn.values())
    assert len({first for first, _ in drawn.values()}) == len(drawn)


CONFIG = dataclasses.asdict(METHODS["compact"])
THEN = json.loads(json.dumps(CONFIG))  # as a file has it: lists for tuples
SAME = {  # what makes it the same run
    "method": "tiny", "model": "x", "fidelity": "released", "alpha": (1.0, 5.0, 2.0),
    "temperature": 2.0, "layer_map": (1, 2), "init_layers": (), "init_head": "copy", "stages": 0.5,
    "length": 128, "batch": 191, "batch_tokens": 99, "seed": 43,
}  # fmt: skip
OTHERWISE = {
    "steps": 7, "lr": 1e-5, "warmup": 2, "schedule": "cosine", "weight_decay": 0.5,
    "betas": (0.8, 0.9), "adam_eps": 1e-6, "clip": 2.0, "precision": "bf16",
}  # fmt: skip


def test_every_field_of_a_run_is_decided():
    fields = {f.name for f in dataclasses.fields(RunConfig)}
    assert set(SAME) | set(OTHERWISE) >= fields - state.MAY_DIFFER
    assert set(OTHERWISE) == fields & state.MAY_DIFFER
    assert not set(SAME) & state.MAY_DIFFER


@pytest.mark.parametrize("name", SAME)
def test_another_run_is_refused(name):
    with pytest.raises(InputError) as caught:
        state.changes(THEN, {**CONFIG, name: SAME[name]}, "out/step-7")
    now = list(SAME[name]) if isinstance(SAME[name], tuple) else SAME[name]
    assert f"out/step-7 is of another run: {name} is {now!r}, expected {THEN[name]!r}; resume" in (
        str(caught.value)
    )


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(InputError, match="batch is 16, expected 192; seed is 1, expected 42; res"):
        state.changes(THEN, {**CONFIG, "seed": 1, "batch": 16, "lr": 1.0}, "x")
    with pytest.raises(InputError, match="tokenizer is 'b', expected 'a'"):  # unknown: must agree
        state.changes({"tokenizer": "a"}, {"tokenizer": "b"}, "x")


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_may_differ_is_told(name):
    now = list(OTHERWISE[name]) if isinstance(OTHERWISE[name], tuple) else OTHERWISE[name]
    assert state.changes(THEN, {**CONFIG, name: OTHERWISE[name]}, "x") == [(name, THEN[name], now)]


def test_the_same_configuration_and_fields_of_another_version():
    assert state.changes(THEN, CONFIG, "x") == []
    assert state.changes({**THEN, "old": 1}, {**CONFIG, "new": 2}, "x") == [
        ("old", 1, "not recorded"), ("new", "not recorded", 2)
    ]  # fmt: skip
