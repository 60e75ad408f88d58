"""Limits, inputs and small models that many tests share."""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minibio.batch import Batch
from minibio.config import ModelConfig
from minibio.report import card

ROOT = Path(__file__).resolve().parent.parent  # of the repository
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# relative to the truth's largest magnitude; 2 x eps where the output itself is rounded
LIMIT = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2 * 2**-10,
    torch.bfloat16: 2 * 2**-7,
}


def guarded(x, pad=64):
    """Same values between two NaN bands: a load outside the tensor shows in the result."""
    buf = torch.full((x.numel() + 2 * pad,), float("nan"), dtype=x.dtype, device=x.device)
    view = buf[pad : pad + x.numel()].view(x.shape)
    view.copy_(x)
    return view


def assert_near(name, got, truth, limit):
    """|got - truth| <= limit * max|truth| everywhere; refuses NaN; names the worst element.

    Where the truth is 0 everywhere the limit is absolute.
    """
    assert got.shape == truth.shape, f"{name}: shape {got.shape}, expected {truth.shape}"
    if not truth.numel():
        return
    got, truth = got.detach().double().flatten(), truth.detach().double().flatten()
    assert not got.isnan().any(), f"{name}: NaN in result"
    error = (got - truth).abs()
    i = int(error.argmax())
    scale = truth.abs().max().item() or 1.0
    ratio = error[i].item() / scale
    assert ratio <= limit, (
        f"{name}: error {ratio:.2e} of max, expected <= {limit:.0e}; "
        f"worst at {i}: got {got[i].item():.6g}, truth {truth[i].item():.6g}"
    )


def without_pictures() -> None:
    """Training in this process ends without its loss.png, which takes longer than a few steps.

    Commands that are started from scratch draw it, as one of test_train.py's tests sees.
    """
    card.loss_curves = lambda runs, out: None


def in_shares(script: Path, every: int = 1, shares: int = 2) -> list[dict]:
    """The JSON objects that `script I/OF` prints for one case in `every`, computed side by side."""
    commands = [
        [sys.executable, str(script), f"{i * every}/{shares * every}"] for i in range(shares)
    ]
    processes = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    lines = [line for p in processes for line in p.communicate()[0].splitlines()]
    assert [p.returncode for p in processes] == [0] * shares
    return [json.loads(line) for line in lines]


class ForkServer:
    """A process that has imported torch and this repository, and forks for each command."""

    def __init__(self):
        folders = [ROOT, ROOT / "tests", ROOT / "tests" / "kernels"]
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "fork_server.py"], cwd=ROOT, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        )  # fmt: skip
        atexit.register(self.close)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def answer(self, end: float) -> list | None:
        """The next line, None where there is none until `end`."""
        if not select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]:
            return None
        return json.loads(self.process.stdout.readline())

    def run(self, jobs: list[dict], timeout: float) -> list[int]:
        """Run the commands side by side -> their exit statuses, negative for a signal."""
        self.process.stdin.write(json.dumps(jobs).encode() + b"\n")
        pids = self.answer(time.monotonic() + 60)  # it imports torch before its first answer
        statuses, end = {}, time.monotonic() + timeout
        while len(statuses) < len(pids):
            ended = self.answer(end)
            if ended is not None:
                statuses[ended[0]] = ended[1]
                continue
            for pid in set(pids) - set(statuses):
                os.kill(pid, signal.SIGKILL)
            while len(statuses) < len(pids):
                pid, status = self.answer(time.monotonic() + 60)
                statuses[pid] = status
            raise subprocess.TimeoutExpired(jobs[0]["argv"], timeout)
        return [statuses[pid] for pid in pids]


fork_server = functools.cache(ForkServer)  # one for the session, where one is needed


def processes(
    world: int, command: list, timeout: float = 120, own_end: bool = False, **env
) -> list:
    """`python COMMAND` as each of `world` processes of one group -> [(status, stdout, stderr)].

    Forks of a server, which import torch no more, and take its modules apart at their end only with
    `own_end`; where there is a GPU, which cannot be shared with a fork, processes from scratch.
    """
    with socket.socket() as s:  # a port that is free now
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(world), "PYTHONPATH": str(ROOT), **env,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            {
                "argv": [*map(str, command)], "cwd": str(ROOT),
                "env": {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                "out": f"{folder}/{rank}.out", "err": f"{folder}/{rank}.err", "own_end": own_end,
            }
            for rank in range(world)
        ]  # fmt: skip
        statuses = (from_scratch if DEVICE == "cuda" else fork_server().run)(jobs, timeout)
        return [
            (status, Path(job["out"]).read_text("utf-8"), Path(job["err"]).read_text("utf-8"))
            for job, status in zip(jobs, statuses, strict=True)
        ]


def from_scratch(jobs: list[dict], timeout: float) -> list[int]:
    """As `ForkServer.run`."""
    started = []
    try:
        for job in jobs:
            with open(job["out"], "wb") as out, open(job["err"], "wb") as err:
                started.append(subprocess.Popen(
                    [sys.executable, *job["argv"]], cwd=job["cwd"], env=job["env"],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                ))  # fmt: skip
        end = time.monotonic() + timeout
        return [process.wait(max(0, end - time.monotonic())) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def real_data(relative) -> Path:
    """A file or folder of the real data sets; skips the test where they are not at hand.

    They lie in $MINIBIO_DATA, or in ../shared/data beside the repository.
    """
    base = Path(os.environ.get("MINIBIO_DATA", ROOT.parent / "shared" / "data"))
    path = base / relative
    if not path.exists():
        pytest.skip(f"no {path}; set MINIBIO_DATA to the folder of the real data sets")
    return path


# Odd on purpose: no width is a multiple of 8, and no two letters share a number.
BERT = ModelConfig(V=101, L=3, C=60, H=5, F=84, P=40)
CONFIGS = {
    "bert": BERT,
    "tinybert": replace(BERT, L=2, C=52, H=2, F=76),  # heads 26 wide
    "distilbert": replace(BERT, family="distilbert", n_segments=0),
    "mobilebert": ModelConfig(
        family="mobilebert", V=101, L=3, C=44, H=5, F=52, P=40, C_embed=22, C_intra=30, n_ffn=3,
        norm="no_norm", activation="relu", shared_qk=True, trigram=True,
        dropout=0.0, tanh_pooler=False,
    ),
    "ib-bert": ModelConfig(
        family="ib-bert", V=101, L=3, C=44, H=5, F=84, P=40, C_embed=22, C_intra=60, trigram=True,
        activation="gelu_new",
    ),
}  # fmt: skip
FAMILIES = list(CONFIGS)


def tiny_config(family="bert", **changes) -> ModelConfig:
    """A small configuration of one family: a row of CONFIGS, with fields replaced."""
    return replace(CONFIGS[family], **changes)


def random_batch(lengths=(7, 1, 13), V=101, n_segments=2, n_predicted=0, seed=0) -> Batch:
    """Sequences of random ids; with `n_predicted` > 0 that many places to be predicted."""
    rng = torch.Generator().manual_seed(seed)
    sequences = [torch.randint(V, (T,), generator=rng) for T in lengths]
    segments = [(torch.arange(T) >= (T + 1) // 2).long() * (n_segments > 1) for T in lengths]
    predict = labels = None
    if n_predicted:
        predict = torch.randperm(sum(lengths), generator=rng)[:n_predicted].sort().values
        labels = torch.randint(V, (n_predicted,), generator=rng)
    return Batch.from_sequences(sequences, segments, predict, labels)


def damaged(whole: bytes, rng) -> bytes:
    """A file after up to three mishaps: a stretch lost, doubled, or overwritten by odd bytes."""
    for _ in range(rng.randint(1, 3)):
        a = rng.randint(0, len(whole))
        b = min(len(whole), a + rng.randint(0, 12))
        odd = rng.choice([b"", whole[a:b] * 2, b"\xff", b"-1", b"null", b"\\ud800",
                          *(char.encode() for char in "\t\n\r\0\u200b@{]\"")])  # fmt: skip
        whole = whole[:a] + odd + whole[b:]
    return whole


SCORES = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3}


def run_record(
    task="ner", model="runs/tiny-biobert", data="NCBI_disease", seed=0, f1=0.8, teacher=None,
    **config,
):  # fmt: skip
    """As the commands write them."""
    test = {
        "ner": {"word": {**SCORES, "f1": f1}, "piece": {**SCORES, "f1": f1 - 0.1}},
        "relation": {"main": "macro", "macro": {**SCORES, "f1": f1}, "micro": SCORES},
        "qa": {"strict_accuracy": 0.2, "lenient_accuracy": 0.4, "mrr": f1, "questions": 162},
    }[task]
    if task == "qa":
        config = {"tests": [f"BioASQ-test-factoid-7b-{i}" for i in range(1, 6)], **config}
    return {
        "task": task, "model": model, "teacher": teacher, "data": data, "seed": seed,
        "config": config, "test": test,
    }  # fmt: skip


def write_run(place, **what):
    """One run's directory."""
    place.mkdir(parents=True, exist_ok=True)
    found = run_record(**what)
    (place / f"{found['task']}.json").write_text(json.dumps(found), "utf-8")
    return place
