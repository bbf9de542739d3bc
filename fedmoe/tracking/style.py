"""What all drawings share: colours, and axes without clutter."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the Okabe-Ito palette and Tol's, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#595959"
MANY = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#882255", "#44AA99", "#999933", GREY)


def tidy(axes: "Axes") -> None:
    """Leave two spines and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
