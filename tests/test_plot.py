"""Every loss has a look of its own, in one place, and blue and orange are left to the completions."""

import re

import pytest

from slpo.plot import CHOSEN, LOSS_STYLES, REJECTED, loss_style, plt
from slpo.settings import LOSSES


def test_every_loss_has_a_style_of_its_own():
    styles = [(style["color"], str(style["linestyle"])) for style in LOSS_STYLES.values()]
    assert len(set(styles)) == len(styles) == 9


def test_no_loss_has_the_colour_of_a_completion():
    assert not {CHOSEN, REJECTED} & {style["color"] for style in LOSS_STYLES.values()}


@pytest.mark.parametrize("name", (*LOSSES, *LOSS_STYLES))
def test_every_loss_is_found(name):
    style = loss_style(name)
    assert style in LOSS_STYLES.values()
    fig, ax = plt.subplots()
    (line,) = ax.plot([0, 1], [0, 1], **style)
    assert line.get_color() == style["color"]
    plt.close(fig)


def test_loss_types_differ():
    assert len({str(loss_style(name)) for name in LOSSES}) == len(LOSSES)


def test_a_style_is_the_callers_to_change():
    loss_style("DPO")["color"] = CHOSEN
    assert loss_style("DPO")["color"] != CHOSEN


def test_another_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=re.escape("'hinge' is not one of 'SLPO', 'SLPO-ratio'")):
        loss_style("hinge")
