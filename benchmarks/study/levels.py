"""What insight exchange is compared at: what clients tell, which policies are on, and against whom.

A method's `role` says which table of the document it belongs to.
"""

from benchmarks.study.methods import FEW_RATES, METHODS, Method, Words
from benchmarks.study.settings import SETTINGS, Family, Setting

BEST_LEVEL = "gaussians"
# Images of MNIST vary in more directions than digits of 8 x 8 pixels.
_MORE_DIRECTIONS: dict[Family, Words] = {"mnist5k": ("insight.rank=40",)}
_HELD_OUT = ("insight.public=held_out",)
_INSIGHT = ("strategy=insight", "strategy.averaging=6")


def _tuned(name: str, *words: str) -> Method:
    """With three learning rates to choose from, as the policies and their rivals have."""
    return Method(
        name=name, words=words, by_family=_MORE_DIRECTIONS if "gaussians" in name else {},
        rates=FEW_RATES,
    )  # fmt: skip


def _like(other: str, name: str, *words: str) -> Method:
    """As another is tuned."""
    by_family = _MORE_DIRECTIONS if "gaussians" in name else {}
    return Method(name=name, words=words, by_family=by_family, like=other)


REFERENCES = [
    _tuned("local", "strategy=local"),
    _tuned("fedavg", "strategy=fedavg"),
    _like("fedavg", "fedavg_finetune", "strategy=fedavg_finetune"),
    METHODS["fedproto"],
    _tuned("fedmoe", "strategy=fedmoe"),
]
LEVELS = [
    _tuned("scalars", *_INSIGHT, "meta_learner=none", "insight.payloads=[scalars]"),
    _tuned("prototypes", *_INSIGHT, "meta_learner=prototypes"),
    Method(
        name="distillation", rates=FEW_RATES,
        words=(*_INSIGHT, "meta_learner=distillation", "insight.every=10"),
        by_family={"digits": _HELD_OUT, "mnist5k": _HELD_OUT},
    ),
    _like(BEST_LEVEL, "gaussians_diagonal", *_INSIGHT, "meta_learner=gaussians",
          "insight.covariance=diagonal"),
    _tuned(BEST_LEVEL, *_INSIGHT, "meta_learner=gaussians"),
]  # fmt: skip
ABLATIONS = [
    _like(BEST_LEVEL, "gaussians_of_all", *_INSIGHT, "meta_learner=gaussians",
          "meta_learner.gaussians.of=federation"),
    _like(BEST_LEVEL, "gaussians_last_round", "strategy=insight", "meta_learner=gaussians"),
    _like("prototypes", "prototypes_of_all", *_INSIGHT, "meta_learner=prototypes",
          "meta_learner.prototypes.of=federation"),
    _like(BEST_LEVEL, "gaussians, prototypes", *_INSIGHT, "meta_learner=[gaussians,prototypes]"),
    _like(BEST_LEVEL, "gaussians, step_size", *_INSIGHT, "meta_learner=[gaussians,step_size]"),
    _like(BEST_LEVEL, "gaussians, hyperparameters", *_INSIGHT,
          "meta_learner=[gaussians,hyperparameters]"),
    _like("fedavg", "fedavg, gaussians", "strategy=fedavg", "meta_learner=gaussians"),
    _like("fedmoe", "fedmoe, expert_assignment", "strategy=fedmoe",
          "meta_learner=expert_assignment"),
    _like("fedmoe", "fedmoe, expert_assignment, gaussians", "strategy=fedmoe",
          "meta_learner=[expert_assignment,gaussians]", "meta_learner.gaussians.strength=1"),
]  # fmt: skip
# A regression: nothing is tuned, the configuration is the experiment's.
LINEAR = [
    Method(name=name, words=words, fixed=("training.learning_rate=0.05",))
    for name, words in {
        "local": ("strategy=local",),
        "fedavg": ("strategy=fedavg",),
        "fedavg_finetune": ("strategy=fedavg_finetune",),
        "fedmoe": ("strategy=fedmoe",),
        "scalars": ("strategy=insight", "meta_learner=none"),
        "prior": ("strategy=insight", "meta_learner=prior"),
    }.items()
]
# The same digits among an eighth of the clients: enough for each.
PLENTY = Setting(
    name="iid_plenty", family="digits",
    words=("+experiment=regimes/iid", "partition.num_clients=5"),
)  # fmt: skip
RELATED = [
    Setting(
        name=f"related={tau:g}", family="linear",
        words=("+experiment=related", f"data.deviation={tau}"),
    )
    for tau in (0.0, 0.3, 1.0)
]  # fmt: skip
_ALONE = [*SETTINGS.values(), PLENTY, *RELATED]
INSIGHT_SETTINGS = {setting.name: setting for setting in _ALONE}
