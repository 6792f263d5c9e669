"""Versions of the author's code by name, as settings of `SLPOConfig`."""

from dataclasses import replace

import pytest

from slpo import SLPOConfig
from slpo.flags import parse_run
from slpo.loss import PRESETS

SLPO = dict(output_dir="unused", use_cpu=True, loss_type="slpo")


def loss_settings(args):
    return args.form, args.target, args.temperature, args.scale_t2, args.alpha


def test_the_loss_named_slpo_is_the_preprints():
    assert loss_settings(SLPOConfig(**SLPO)) == ("halves", "mass", "length", False, 0.5)


@pytest.mark.parametrize(
    "name, more, want",
    [
        ("listing", {}, ("halves", "mass", "length", False, 1.0)),
        ("main", dict(alpha=0.3, temperature=17), ("halves", "mass", 17.0, False, 0.3)),
        ("branch", {}, ("squared", "mass", 512.0, False, 0.5)),
    ],
)
def test_a_preset_is_its_settings(name, more, want):
    args = SLPOConfig(**SLPO, preset=name, **more)
    assert loss_settings(args) == want
    assert loss_settings(replace(args, learning_rate=1e-3)) == want
    assert (
        loss_settings(SLPOConfig(**SLPO, preset=name, **{**PRESETS[name], **more})) == want
    )  # said twice is no contradiction
    flags = [part for key, value in more.items() for part in (f"--{key}", str(value))]
    assert (
        loss_settings(
            parse_run(
                [
                    "--output_dir",
                    "unused",
                    "--use_cpu",
                    "--loss_type",
                    "slpo",
                    "--preset",
                    name,
                    *flags,
                ]
            )[1]
        )
        == want
    )


@pytest.mark.parametrize(
    "more, words",
    [
        (dict(preset="author"), ["author", "listing, main, branch"]),
        (dict(preset="branch", alpha=0.9), ["alpha=0.5", "alpha=0.9"]),
        (dict(preset="branch", temperature=128), ["temperature=512", "128"]),
        (dict(preset="listing", form="joint"), ["form='halves'", "form='joint'"]),
        (dict(preset="main"), ["main", "temperature"]),
        (dict(preset="listing", loss_type="dpo"), ["loss_type='slpo'", "dpo"]),
    ],
)
def test_a_preset_with_another_setting_is_refused(more, words):
    with pytest.raises(ValueError) as e:
        SLPOConfig(**{**SLPO, **more})
    assert all(word in str(e.value) for word in words), e.value


@pytest.mark.parametrize(
    "first, then", [("slpo", "slpo_sample"), ("slpo_sample", "slpo"), ("slpo", "dpo")]
)
def test_another_loss_takes_no_default_of_the_one_before(first, then):
    args = replace(SLPOConfig(**{**SLPO, "loss_type": first}), loss_type=then)
    fresh = SLPOConfig(**{**SLPO, "loss_type": then})
    assert args.to_dict() | {"logging_dir": None} == fresh.to_dict() | {"logging_dir": None}
