"""Soft labels and the bias on experts, on real clients: what travels, when, and what it does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from mixture_runs import SIZES, experiment_of, run
from test_mixture_messages import Recording

from fedmoe.clients.guidance import NOT_GUIDED
from fedmoe.clients.guided import distillation_terms, guided_rates
from fedmoe.clients.requests import Settings, TrainRequest
from fedmoe.config import load_config
from fedmoe.errors import ConfigError
from fedmoe.messages.arrays import from_record
from fedmoe.rounds import RoundRecord
from fedmoe.strategies import build_strategy
from fedmoe.training.distillation import distillation, looked_at
from fedmoe.training.terms import Rehearsal, Term
from fedmoe.training.trust import label_trust

LABELS = [
    "meta_learner=distillation", "insight.every=2", "insight.public_samples=12",
    "meta_learner.distillation.samples=5", "rounds=4",
]  # fmt: skip
BIAS = ["model=moe", "model.hidden=[4]", "model/router=loss_free", "meta_learner=expert_bias"]
MIXTURES = {
    "fedavg": ["strategy=fedavg"],
    "insight": ["strategy=insight"],
    "fedmoe": ["strategy=fedmoe", "strategy.gate=shared", "strategy.warm_up_rounds=1"],
    "fedmoe-some": [
        "strategy=fedmoe", "strategy.gate=shared", "strategy.warm_up_rounds=1",
        "strategy.experts_per_client=2",
    ],
}  # fmt: skip


def contents(grid: Recording, way: str) -> list[list[Any]]:
    """What went that way to train, a list of all clients' messages a round."""
    seen = [c for kind, own, _, c in grid.seen if (kind, own) == ("train", way)]
    return [seen[at : at + len(SIZES)] for at in range(0, len(seen), len(SIZES))]


def decisions(records: Sequence[RoundRecord], policy: str) -> list[dict[str, Any]]:
    return [(one.findings or {})["decisions"][policy] for one in records]


def parts(content: Any) -> dict[str, torch.Tensor]:
    """The parts of guidance in a message."""
    found = content.array_records.get("guidance")
    return {} if found is None else from_record(found)


@pytest.mark.parametrize("strategy", ["insight", "fedavg", "local"])
@pytest.mark.parametrize("of", ["cluster", "federation"])
def test_soft_labels_are_told_when_there_are_new_ones(strategy: str, of: str) -> None:
    words = [f"strategy={strategy}", *LABELS, f"meta_learner.distillation.of={of}"]
    grid = Recording(experiment_of(words))
    done = run(words, grid=grid)
    told = [[set(parts(c)) for c in round] for round in contents(grid, "down")]
    came = [["logits" in c.array_records.get("payload", {}) for c in one]
            for one in contents(grid, "up")]  # fmt: skip
    assert came == [[False] * 6, [True] * 6, [False] * 6, [True] * 6]
    assert told[0] == told[1] == told[3] == [set()] * 6
    assert {"soft_labels", "soft_weight"} in told[2]
    assert decisions(done.records, "distillation")[1]["reason"].startswith("new answers of 6")
    alone = run(words, alone=True)
    for one, other in zip(alone.records, done.records, strict=True):
        assert one.metrics["train"] == pytest.approx(other.metrics["train"], abs=1e-5)
    for name, value in done.scores().items():
        np.testing.assert_allclose(alone.scores()[name], value, atol=1e-5)
    plain = run([f"strategy={strategy}", "meta_learner=none", "rounds=4"])
    losses = [[r.metrics["train"]["loss"] for r in each.records] for each in (done, plain)]
    assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]


def test_distillation_makes_a_loss_a_mean_as_rehearsal_does() -> None:
    nothing, index = torch.zeros(2, 1, 3), torch.zeros(2, 1, dtype=torch.int64)
    distilled = distillation(torch.zeros(1, 3), index, nothing, torch.tensor([1.0, 0.0]))
    rehearsed = Rehearsal(
        torch.zeros(2, 2, 3), torch.zeros(2, 2, 3), torch.tensor([[0.5, 0.5], [3.0, 0.0]])
    )
    terms: list[Term] = [distilled, rehearsed]
    for optimizer, expected in (("sgd", [0.1 / 3, 0.1 / 4]), ("adam", [0.1, 0.1])):
        config = [f"training={optimizer}", "training.learning_rate=0.1"]
        rate_C = guided_rates(experiment_of(config), NOT_GUIDED, terms, 2)
        torch.testing.assert_close(rate_C, torch.tensor(expected))


def test_labels_weigh_as_much_as_a_client_s_samples_bear_them_out() -> None:
    """And what a client looks at is its own draw."""
    experiment = experiment_of([*LABELS, "meta_learner.distillation.of=federation"])
    request = TrainRequest(clients=np.array([0, 4]), settings=Settings(round=3))
    samples = experiment.samples("train", request.clients)
    label_CSO = torch.rand(2, 12, 3, generator=torch.Generator().manual_seed(0)).softmax(dim=2)
    weight_C = torch.tensor([2.0, 0.5])
    told = {"soft_labels": label_CSO, "soft_weight": weight_C}
    held = NOT_GUIDED._replace(parts=told)
    (term,) = distillation_terms(experiment, request, held, samples)
    assert isinstance(term, Rehearsal)
    trust_C = label_trust(*samples.padded(), experiment.public_SD, label_CSO)
    assert 0 < float(trust_C.max()) < 1
    torch.testing.assert_close(term.weight.sum(dim=1), weight_C * trust_C)
    drawn_CM = looked_at(experiment.config.seed, 3, request.clients, 12, 5)
    torch.testing.assert_close(term.inputs, experiment.public_SD[torch.from_numpy(drawn_CM)])
    torch.testing.assert_close(term.target[1, 2], label_CSO[1, int(drawn_CM[1, 2])])


@pytest.mark.parametrize("strategy", MIXTURES)
@pytest.mark.parametrize("rule", ["sign", "error"])
def test_clients_choose_by_the_bias_that_they_are_told(strategy: str, rule: str) -> None:
    rate = ["meta_learner.expert_bias.rate=0.2", f"meta_learner.expert_bias.rule={rule}"]
    words = [*BIAS, *MIXTURES[strategy], *rate, "rounds=4"]
    grid = Recording(experiment_of(words))
    done = run(words, grid=grid)
    decided = decisions(done.records, "expert_bias")
    downs, ups = contents(grid, "down"), contents(grid, "up")
    for round in range(1, 4):
        wanted = torch.tensor(decided[round - 1]["bias"])
        for down, up in zip(downs[round], ups[round], strict=True):
            if wanted.any() or strategy in ("fedavg", "insight"):
                torch.testing.assert_close(parts(down).get("expert_bias", wanted), wanted)
            if "arrays" in up.array_records:  # it is not trained, and comes back as it was told
                held = up.array_records.get("experts")
                own = wanted if held is None else wanted[from_record(held)["index"]]
                sent = from_record(up.array_records["arrays"])["router.balance_bias"]
                torch.testing.assert_close(sent, own, rtol=0, atol=1e-6)
            assert "expert-load" not in up.array_records  # the same is not told twice
    if strategy.startswith("fedmoe"):
        assert not any(decided[0]["bias"])  # a single expert in the warm-up
    assert any(any(one["bias"]) for one in decided)
    alone = run(words, alone=True)
    for name, value in done.scores().items():
        np.testing.assert_allclose(alone.scores()[name], value, atol=1e-5)


def test_a_biased_choice_evens_the_load_out() -> None:
    """Of the training samples, over the federation; without the policy it stays as it was."""
    variations = []
    for rate in (1e-9, 0.05):
        words = [
            *BIAS, "strategy=fedavg", "model.router.top_k=1", "model.losses.importance=0",
            "model.losses.balance=0", f"meta_learner.expert_bias.rate={rate}", "rounds=12",
        ]  # fmt: skip
        variations.append(decisions(run(words).records, "expert_bias")[-1]["variation"])
    assert variations[1] < 0.5 * variations[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.options.kind=regression", "meta_learner=distillation"],
         "soft labels of classes, but data=custom is a regression"),
        (["meta_learner=expert_bias"],
         "model=linear has none; allowed: model=moe with model/router=loss_free"),
        (["meta_learner=expert_bias", "model=moe"], "strategy=fedavg with model=moe has none"),
    ],
)  # fmt: skip
def test_policies_that_could_do_nothing_are_refused(words: list[str], message: str) -> None:
    more = ["+data.options.kind=regression"] if words[0].startswith("data.options") else []
    experiment = experiment_of([*more, *words[len(more) :]])
    with pytest.raises(ConfigError, match=message):
        build_strategy(experiment.config, experiment.data.task)


@pytest.mark.parametrize("word", ["distillation.temperature=0", "distillation.samples=0",
                                  "expert_bias.rate=0", "expert_bias.rule=both"])  # fmt: skip
def test_values_out_of_range_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=word.split("=")[0].replace(".", r"\.")):
        load_config([f"meta_learner={word.split('.')[0]}", f"meta_learner.{word}"])
