"""Every example has its turn, with its own logits."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from minibio.batch import Batch
from minibio.tasks.forward import forward


class Sums(torch.nn.Module):
    """The sum of each sequence's tokens; and what it was asked, in what mood."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.asked, self.inside = [], []

    def forward(self, batch):
        self.asked.append(batch.lengths)
        self.inside.append((self.training, torch.is_grad_enabled(), context.is_open))
        sums = [part.sum() for part in batch.tokens.split(batch.lengths)]
        return SimpleNamespace(logits=self.weight * torch.stack(sums)[:, None])


@contextmanager
def context():
    context.is_open = True
    yield
    context.is_open = False


def collate(examples):
    return Batch.from_sequences([x.tokens for x in examples])


@pytest.mark.parametrize("B", [1, 3, 7, 100])
def test_in_order_of_length_and_each_once(B):
    lengths = [5, 1, 4, 1, 9, 2, 6]
    examples = [SimpleNamespace(tokens=[i + 1] * T) for i, T in enumerate(lengths)]
    model, found = Sums().train(), {}
    for chosen, batch, logits in forward(model, examples, collate, B, "cpu", context):
        assert not context.is_open and torch.is_grad_enabled()  # the caller's own again
        assert list(batch.lengths) == [lengths[i] for i in chosen] and len(chosen) <= B
        found |= dict(zip(chosen, logits[:, 0].tolist(), strict=True))
    assert found == {i: (i + 1) * T for i, T in enumerate(lengths)}
    assert sum(map(list, model.asked), []) == sorted(lengths)
    assert set(model.inside) == {(False, False, True)}


def test_of_nothing_nothing_comes():
    assert list(forward(Sums(), [], collate, 4, "cpu", context)) == []
