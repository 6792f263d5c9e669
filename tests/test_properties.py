"""What must hold for any input: invariances, agreement with sums over all sequences of a small
model and with 50 digits, finite numbers."""

import math
import random
from functools import lru_cache
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from mpmath import mp, mpf
from torch.testing import assert_close

from slpo import (
    dpo_loss,
    ipo_loss,
    nca_loss,
    log1mexp,
    mass_targets,
    sequence_logps,
    slpo_loss,
    slpo_sample_loss,
    sppo_loss,
    transport,
    ybar_logp,
    ybar_logp_tree,
)
from slpo.loss import PRESETS

mp.dps = 50
FORMS, TARGETS, TEMPERATURES = (
    ("halves", "joint", "squared"),
    ("mass", "ratio"),
    (1.0, 7.5, "length"),
)
FINITE = 0.999  # the squared form needs a target with some mass
DTYPES = torch.bfloat16, torch.float32, torch.float64
EPS = torch.finfo(torch.float64).eps
examples = settings(
    deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "The tensors are small: a second thread costs more than it saves."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def every_loss(logps, ref_logps, ranks, alpha, lengths, reduction="none"):
    "Every loss in every form, {name: (B,) or ()}."
    some = torch.as_tensor(alpha).clamp(max=FINITE)
    out = {
        f"{form} {target} {t}": slpo_loss(
            logps,
            ref_logps,
            alpha=some if form == "squared" else alpha,
            temperature=t,
            lengths=lengths,
            form=form,
            target=target,
            scale_t2=True,
            ranks=ranks,
            reduction=reduction,
        )
        for form, target, t in product(FORMS, TARGETS, TEMPERATURES)
    }
    out["sample"] = slpo_sample_loss(
        logps, ref_logps, alpha=alpha, ranks=ranks, reduction=reduction
    )
    out["dpo"] = dpo_loss(logps, ref_logps, label_smoothing=0.1, reduction=reduction)
    out["ipo"] = ipo_loss(logps, ref_logps, reduction=reduction)
    for name, loss in (("nca", nca_loss), ("sppo", sppo_loss)):
        out[name] = loss(logps, ref_logps, alpha=alpha, ranks=ranks, reduction=reduction)
    return out


# Properties. Inputs are drawn number by number, so that a failure shrinks to a small one.


def array(draw, element, *shape):
    n = math.prod(shape)
    return torch.tensor(
        draw(st.lists(element, min_size=n, max_size=n)), dtype=torch.float64
    ).reshape(shape)


def disjoint_logps(draw, B, K):
    "(B,K) log-probabilities of K outcomes among K+1; something is left for the last."
    return torch.cat(
        [array(draw, st.floats(-150, 0), B, K), array(draw, st.floats(-20, 0), B, 1)], 1
    ).log_softmax(-1)[:, :K]


@st.composite
def groups(draw, min_K=2, room=True):
    """B groups of K completions. With `room` the probabilities of a group sum to at most 1/K: a
    `ratio` target may be K times as large."""
    B, K = draw(st.integers(1, 3)), draw(st.integers(min_K, 5))
    logps, ref_logps = (disjoint_logps(draw, B, K) - room * math.log(K) for _ in range(2))
    return SimpleNamespace(
        logps=logps,
        ref_logps=ref_logps,
        ranks=array(draw, st.integers(0, K), B, K).long(),
        alpha=array(draw, st.floats(0, 1), B),
        lengths=array(draw, st.integers(1, 50), B, K).long(),
    )


@st.composite
def texts(draw):
    """Logits, and labels in which any position may be unscored; `predicts` marks the logits that
    predict a scored label."""
    B, T, V = draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(st.integers(2, 4))
    labels = array(draw, st.sampled_from([-100, *range(V)]), B, T).long()
    predicts = torch.cat([labels[:, 1:] != -100, torch.zeros(B, 1, dtype=torch.bool)], 1)
    return SimpleNamespace(
        logits=array(draw, st.floats(-20, 20), B, T, V), labels=labels, predicts=predicts
    )


@examples
@given(texts(), st.data())
def test_a_constant_added_to_a_positions_logits_changes_nothing(x, data):
    shifted = x.logits + array(data.draw, st.floats(-1e3, 1e3), *x.labels.shape)[..., None]
    assert_close(
        sequence_logps(shifted, x.labels), sequence_logps(x.logits, x.labels), rtol=0, atol=1e-11
    )
    assert_close(
        ybar_logp_tree(shifted, x.labels), ybar_logp_tree(x.logits, x.labels), rtol=0, atol=1e-11
    )


@examples
@given(texts())
def test_scored_spans_may_be_apart_as_in_a_dialogue_of_many_turns(x):
    g = x.logits.log_softmax(-1).tolist()
    for b, labels in enumerate(x.labels.tolist()):
        want = math.fsum(
            g[b][t - 1][label] for t, label in enumerate(labels) if t and label != -100
        )
        assert sequence_logps(x.logits, x.labels)[b].item() == pytest.approx(
            want, rel=1e-14, abs=1e-14
        )
        assert ybar_logp_tree(x.logits, x.labels)[0][b].item() == pytest.approx(
            want, rel=1e-14, abs=1e-14
        )


def values_and_gradients(logits, labels):
    """Of log π(y), and of the tree's two numbers. A row that scores nothing has no other sequence:
    log p(ȳ) = -inf there, left out."""
    for f in (sequence_logps, lambda *a: ybar_logp_tree(*a)[0], lambda *a: ybar_logp_tree(*a)[1]):
        logits = logits.detach().requires_grad_()
        value = f(logits, labels)
        yield value.detach(), torch.autograd.grad(value[value > -math.inf].sum(), logits)[0]


@examples
@given(texts(), st.data())
def test_padding_and_unscored_positions_are_not_looked_at(x, data):
    (B, T, V), extra = x.logits.shape, data.draw(st.integers(0, 3))
    logits = array(data.draw, st.floats(-1e308, 1e308), B, T + extra, V)
    logits[:, :T] = torch.where(x.predicts[..., None], x.logits, logits[:, :T])
    labels = torch.cat([x.labels, torch.full((B, extra), -100)], 1)
    labels[:, 0] = data.draw(st.integers(0, V - 1))  # nothing predicts the first token
    for (value, grad), (want, want_grad) in zip(
        values_and_gradients(logits, labels), values_and_gradients(x.logits, x.labels)
    ):
        assert_close(value, want, rtol=1e-14, atol=1e-14)
        assert_close(grad[:, :T], want_grad, rtol=1e-13, atol=1e-15)
        assert (grad[:, :T][~x.predicts] == 0).all() and (grad[:, T:] == 0).all()


@examples
@given(groups(min_K=3), st.booleans(), st.data())
def test_the_order_of_the_other_completions_changes_no_loss(x, ranked, data):
    order = [0, *data.draw(st.permutations(range(1, x.logps.shape[1])))]
    ranks, reordered = (x.ranks, x.ranks[:, order]) if ranked else (None, None)
    want = every_loss(x.logps, x.ref_logps, ranks, x.alpha, x.lengths)
    got = every_loss(
        x.logps[:, order], x.ref_logps[:, order], reordered, x.alpha, x.lengths[:, order]
    )
    for name in want:
        assert_close(got[name], want[name], rtol=1e-10, atol=1e-10, msg=lambda m: f"{name}: {m}")


@examples
@given(groups())
def test_a_batch_is_its_groups_one_by_one(x):
    each, mean, total = (
        every_loss(x.logps, x.ref_logps, x.ranks, x.alpha, x.lengths, reduction)
        for reduction in ("none", "mean", "sum")
    )
    for b in range(len(x.alpha)):
        alone = every_loss(
            *(y[b : b + 1] for y in (x.logps, x.ref_logps, x.ranks, x.alpha, x.lengths))
        )
        for name in each:
            assert_close(
                each[name][b], alone[name][0], rtol=1e-10, atol=1e-10, msg=lambda m: f"{name}: {m}"
            )
    for name in each:
        assert_close(
            (mean[name], total[name]), (each[name].mean(), each[name].sum()), rtol=1e-14, atol=0
        )


@examples
@given(groups(), st.data())
def test_the_order_of_completions_and_ranks_reorders_the_targets(x, data):
    order = data.draw(st.permutations(range(x.logps.shape[1])))
    for target in TARGETS:
        want = mass_targets(x.ref_logps, alpha=x.alpha, target=target, ranks=x.ranks)[:, order]
        got = mass_targets(
            x.ref_logps[:, order], alpha=x.alpha, target=target, ranks=x.ranks[:, order]
        )
        assert_close(got, want, rtol=1e-14, atol=1e-14)


@examples
@given(groups(room=False))
def test_mass_is_moved_and_not_made(x):
    rest = ybar_logp(x.ref_logps)
    moved = ybar_logp(mass_targets(x.ref_logps, alpha=x.alpha, ranks=x.ranks))
    # Each probability is known to a few bits of its own; what is left of 1 after taking all of them
    # away, to that over itself.
    assert (
        (moved - rest).abs() <= 20 * EPS * (1 + rest.abs() + rest.expm1().abs() / rest.exp())
    ).all(), (moved - rest, rest)


@examples
@given(groups(), st.floats(0, 1), st.floats(0, 1), st.sampled_from(TARGETS))
def test_a_larger_alpha_raises_the_best_and_lowers_the_worst(x, a, b, target):
    low, high = (
        mass_targets(x.ref_logps, alpha=alpha, target=target, ranks=x.ranks)
        for alpha in sorted((a, b))
    )
    best, worst = (
        x.ranks == x.ranks.amin(-1, keepdim=True),
        x.ranks == x.ranks.amax(-1, keepdim=True),
    )
    rounding = 4 * EPS * x.ref_logps.abs()
    assert (high >= low - rounding)[best].all()
    assert (high <= low + rounding)[worst].all()
    assert_close(
        high[best & worst], x.ref_logps[best & worst], rtol=1e-14, atol=0
    )  # all tied: nothing moves


@examples
@given(groups(), st.sampled_from(DTYPES), st.booleans())
def test_alpha_0_at_the_reference_is_exactly_zero(x, dtype, transposed):
    x.logps = x.ref_logps = x.ref_logps.to(dtype)
    if transposed:
        x.logps = x.logps.T.contiguous().T  # another memory layout must not cost the last bits
    x.logps = x.logps.detach().requires_grad_()
    for form, target, t, scale in product(FORMS, TARGETS, TEMPERATURES, (False, True)):
        loss = slpo_loss(
            x.logps,
            x.ref_logps,
            alpha=0.0,
            form=form,
            target=target,
            temperature=t,
            lengths=x.lengths,
            scale_t2=scale,
        )
        (grad,) = torch.autograd.grad(loss, x.logps)
        assert loss.item() == 0 and (grad == 0).all(), (form, target, t, scale, loss, grad)


@examples
@given(groups(), st.sampled_from(FORMS), st.sampled_from(TARGETS), st.sampled_from(TEMPERATURES))
def test_the_loss_at_its_target_is_exactly_zero(x, form, target, t):
    x.alpha = x.alpha.clamp(max=0.999)  # at 1 the target's log-probability is -inf
    logps = mass_targets(x.ref_logps, alpha=x.alpha, target=target, ranks=x.ranks).requires_grad_()
    loss = slpo_loss(
        logps,
        x.ref_logps,
        alpha=x.alpha,
        form=form,
        target=target,
        temperature=t,
        lengths=x.lengths,
        ranks=x.ranks,
    )
    assert loss.item() == 0 and (torch.autograd.grad(loss, logps)[0] == 0).all()


@examples
@given(
    groups(),
    st.sampled_from(FORMS),
    st.sampled_from(TARGETS),
    st.sampled_from(TEMPERATURES),
    st.floats(-9, 0),
    st.data(),
)
def test_no_loss_is_below_zero(x, form, target, t, distance, data):
    # Near the target, where the two cross-entropies nearly cancel. Each is right to its last bits,
    # so their difference may be -1e-14.
    options = dict(alpha=x.alpha.clamp(max=0.999), target=target, ranks=x.ranks)
    near = mass_targets(x.ref_logps, **options) - 10**distance * array(
        data.draw, st.floats(0, 1), *x.logps.shape
    )
    for logps in (near, x.logps):
        loss = slpo_loss(
            logps,
            x.ref_logps,
            form=form,
            temperature=t,
            lengths=x.lengths,
            scale_t2=False,
            reduction="none",
            **options,
        )
        assert (loss >= -1e-13).all(), loss


# Enumeration. A model over at most T tokens is a dictionary, and a probability of anything is a sum
# over all sequences.

EOS = 0


def tabular_model(V, T, rng):
    "{prefix: probabilities of the next token}"

    def row():
        weights = [math.exp(rng.gauss(0, 1.5)) for _ in range(V)]
        return [w / sum(weights) for w in weights]

    return {prefix: row() for n in range(T) for prefix in product(range(1, V), repeat=n)}


def every_sequence(model, V, T):
    "{sequence: probability}; a sequence ends with EOS or at T tokens."
    ends = [
        prefix + (token,)
        for prefix in model
        for token in range(V)
        if token == EOS or len(prefix) == T - 1
    ]
    return {y: math.prod(model[y[:t]][y[t]] for t in range(len(y))) for y in ends}


def as_batch(model, sequences, V, T):
    "Logits and labels of a batch with two prompt tokens in front and padding behind."
    logits, labels = (
        torch.zeros(len(sequences), T + 2, V, dtype=torch.float64),
        torch.full((len(sequences), T + 2), -100),
    )
    for b, y in enumerate(sequences):
        labels[b, 2 : 2 + len(y)] = torch.tensor(y)
        for t in range(len(y)):
            logits[b, t + 1] = torch.tensor(model[y[:t]], dtype=torch.float64).log() + 5
    return logits, labels


@pytest.fixture(params=[(3, 4), (4, 3), (5, 4)], ids=["V3-T4", "V4-T3", "V5-T4"])
def world(request):
    "A policy, a reference model, and groups of 2 and 3 completions with ranks and strengths."
    V, T = request.param
    rng = random.Random(V)
    model = tabular_model(V, T, rng)
    P, R = every_sequence(model, V, T), every_sequence(tabular_model(V, T, rng), V, T)
    likely = sorted(R, key=R.get)[-12:]  # a sum of two or three of these is not nearly 0
    groups = [
        SimpleNamespace(
            ys=rng.sample(likely, K),
            ranks=[rng.randrange(3) for _ in range(K)],
            alpha=rng.choice([0.0, 0.3, 0.9]),
        )
        for K in (2, 3)
        for _ in range(12)
    ]
    return SimpleNamespace(V=V, T=T, model=model, P=P, R=R, groups=groups)


def logs(distribution, ys):
    return torch.tensor([[math.log(distribution[y]) for y in ys]], dtype=torch.float64)


def others(distribution, ys):
    "The probability of everything but `ys`, one sequence at a time."
    return math.fsum(p for y, p in distribution.items() if y not in ys)


def after_moving(R, group, target="mass"):
    """The whole distribution once every completion of the group has given `alpha` of its mass to
    those ranked above it."""
    Q = dict(R)
    for y, rank in zip(group.ys, group.ranks):
        better = [z for z, other in zip(group.ys, group.ranks) if other < rank]
        for z in better:
            Q[z] += group.alpha / len(better) * (R[y] if target == "mass" else R[z])
            Q[y] -= group.alpha / len(better) * R[y]
    return Q


def kl(q, p, t=1):
    "KL between two lists of probabilities, each raised to 1/t and normalised."
    q, p = ([x ** (1 / t) for x in xs] for xs in (q, p))
    q, p = ([x / math.fsum(xs) for x in xs] for xs in (q, p))
    return math.fsum(a * math.log(a / b) for a, b in zip(q, p))


def tempered(p, t):
    "log of p^(1/t), made a probability together with its complement's."
    root, rest = mpf(p) ** (1 / mpf(t)), (1 - mpf(p)) ** (1 / mpf(t))
    return mp.log(root / (root + rest))


def near(got, want, rel=1e-11):
    assert got.detach().flatten().tolist() == pytest.approx(
        want if isinstance(want, list) else [want], rel=rel, abs=1e-13
    )


def test_sequence_probabilities_are_products_and_sum_to_1(world):
    logps = sequence_logps(*as_batch(world.model, list(world.P), world.V, world.T))
    near(logps, [math.log(p) for p in world.P.values()])
    assert math.fsum(logps.exp().tolist()) == pytest.approx(1, rel=1e-14)


def test_walk_and_closed_form_have_the_same_gradients_at_the_logits():
    """The walk's are sums of terms near 1 that cancel, good to 1e-15 and no more; the closed form's
    are right at any size."""
    rng = torch.Generator().manual_seed(0)
    for size, T in product((0.1, 1.0, 3.0, 40.0), (1, 2, 5, 12)):
        logits = size * torch.randn(6, T + 2, 9, generator=rng, dtype=torch.float64)
        labels = torch.randint(0, 9, (6, T + 2), generator=rng)
        labels[:, :2] = -100  # the prompt
        logits.requires_grad_()
        logps = sequence_logps(logits, labels)
        (walk,) = torch.autograd.grad(ybar_logp_tree(logits, labels)[1].sum(), logits)
        (closed,) = torch.autograd.grad(log1mexp(logps).sum(), logits)
        by_hand = torch.zeros_like(closed)
        odds = (1 / torch.expm1(-logps)).detach()[:, None, None]  # p/(1 - p)
        by_hand[:, 1:-1] = (
            -odds * (torch.eye(9)[labels[:, 2:]] - logits[:, 1:-1].softmax(-1)).detach()
        )
        assert_close(closed, by_hand, rtol=1e-12, atol=1e-300)
        assert_close(walk, by_hand, rtol=1e-9, atol=4e-15)
        assert (
            (by_hand.abs().amax() > 1e-3) or size == 40.0 or T > 2
        )  # not all of it is below the tolerance


def test_the_rest_is_the_sum_over_all_other_sequences(world):
    one_by_one = [math.log(others(world.P, [y])) for y in world.P]
    logps = torch.tensor([math.log(p) for p in world.P.values()], dtype=torch.float64)
    tree_logps, tree = ybar_logp_tree(*as_batch(world.model, list(world.P), world.V, world.T))
    near(tree_logps, logps.tolist())
    for rest in (tree, log1mexp(logps), ybar_logp(logps[:, None])):
        near(rest, one_by_one)
    for group in world.groups:
        near(ybar_logp(logs(world.P, group.ys)), math.log(others(world.P, group.ys)))
    three = logs(world.P, [y for group in world.groups[12:] for y in group.ys]).reshape(-1, 3)
    near(ybar_logp(three.T, dim=0), ybar_logp(three).tolist(), rel=1e-15)


@pytest.mark.parametrize("target", TARGETS)
def test_targets_are_the_masses_after_moving(world, target):
    for g in world.groups:
        Q, log_r, ranks = (
            after_moving(world.R, g, target),
            logs(world.R, g.ys),
            torch.tensor([g.ranks]),
        )
        log_q = mass_targets(log_r, alpha=g.alpha, ranks=ranks, target=target)
        near(log_q, [math.log(Q[y]) for y in g.ys])
        if target == "ratio":
            continue
        assert math.fsum(log_q.exp().flatten().tolist()) + others(world.R, g.ys) == pytest.approx(
            1, rel=1e-14
        )
        M = transport(g.alpha, ranks)
        near(M.sum(-1), [1.0] * len(g.ys))
        near((log_r.exp()[..., None] * M).sum(1), [Q[y] for y in g.ys])


@pytest.mark.parametrize("t", [1.0, 3.0, "length"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_is_the_divergence_of_the_enumerated_distributions(world, target, t):
    compared = 0
    for g in world.groups:
        Q, lengths = after_moving(world.R, g, target), [len(y) for y in g.ys]
        rest, ts = 1 - sum(Q[y] for y in g.ys), [t] * len(g.ys) if t != "length" else lengths
        if rest < 0.01:
            continue  # a ratio target that needs more mass than there is
        mean, p, q = sum(ts) / len(ts), [world.P[y] for y in g.ys], [Q[y] for y in g.ys]
        halves = [
            kl([Q[y], 1 - Q[y]], [world.P[y], others(world.P, [y])], s) for y, s in zip(g.ys, ts)
        ]
        joint = kl(q + [rest], p + [others(world.P, g.ys)], mean)
        roots = [[tempered(x, s) for x, s in zip(xs, ts)] for xs in (p, q)]
        squared = (
            [
                ((a - b) ** 2 + (mp.log(1 - mp.exp(a)) - mp.log(1 - mp.exp(b))) ** 2) / 2
                for a, b in zip(*roots)
            ]
            if all(q)
            else None
        )
        want = {
            ("halves", False): math.fsum(halves),
            ("halves", True): math.fsum(s**2 * x for s, x in zip(ts, halves)),
            ("joint", False): joint,
            ("joint", True): mean**2 * joint,
        }
        if squared:
            want[("squared", False)] = float(mp.fsum(squared))
            want[("squared", True)] = float(mp.fsum(s**2 * x for s, x in zip(ts, squared)))
        for form in FORMS:
            if (form, False) not in want:
                continue  # no mass is left, no logarithm
            options = dict(
                form=form,
                target=target,
                alpha=g.alpha,
                temperature=t,
                lengths=torch.tensor([lengths]),
            )
            for scale in (True, False):
                got = slpo_loss(
                    logs(world.P, g.ys),
                    logs(world.R, g.ys),
                    scale_t2=scale,
                    ranks=torch.tensor([g.ranks]),
                    **options,
                )
                near(got, want[form, scale])
        compared += 1
    assert compared >= 12


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_relative_losses_are_their_formulas(world, beta):
    for g in world.groups:
        K, log_p, log_r = len(g.ys), logs(world.P, g.ys), logs(world.R, g.ys)
        ratio = [world.P[y] / world.R[y] for y in g.ys]
        share = [x**beta / math.fsum(z**beta for z in ratio) for x in ratio]
        uniform = SimpleNamespace(ys=g.ys, ranks=g.ranks, alpha=g.alpha)
        q = after_moving(
            dict.fromkeys(g.ys, 1 / K), uniform
        )  # sample mass: every completion stands for 1/K
        A = math.fsum(x**beta for x in ratio) / K
        want = {
            "dpo": -math.log(share[0]),
            "cdpo": -0.8 * math.log(share[0]) - sum(0.2 / (K - 1) * math.log(s) for s in share[1:]),
            "ipo": sum((math.log(ratio[0]) - math.log(x) - 1 / (2 * beta)) ** 2 for x in ratio[1:])
            / (K - 1),
            "nca": -sum(
                q[y] * math.log(x**beta / (1 + x**beta)) - math.log(1 + x**beta) / K
                for y, x in zip(g.ys, ratio)
            ),
            "sppo": sum((beta * math.log(x) - (K * q[y] - 1)) ** 2 for y, x in zip(g.ys, ratio))
            / 2,
            "sample": -sum(q[y] * math.log(s) for y, s in zip(g.ys, share))
            + 0.3 * (A - 1 - math.log(A)),
        }
        near(dpo_loss(log_p, log_r, beta=beta), want["dpo"])
        near(dpo_loss(log_p, log_r, beta=beta, label_smoothing=0.2), want["cdpo"])
        near(ipo_loss(log_p, log_r, beta=beta), want["ipo"])
        given = dict(alpha=g.alpha, beta=beta, ranks=torch.tensor([g.ranks]))
        near(nca_loss(log_p, log_r, **given), want["nca"])
        near(sppo_loss(log_p, log_r, **given), want["sppo"])
        near(
            slpo_sample_loss(
                log_p, log_r, alpha=g.alpha, beta=beta, anchor=0.3, ranks=torch.tensor([g.ranks])
            ),
            want["sample"],
        )


# 50 digits.


def ulps(got, want, dtype):
    """The largest error in units in the last place; where the result is subnormal, at most the
    smallest normal number is forgiven."""
    info, worst = torch.finfo(dtype), 0
    for x, w in zip(got.tolist(), want):
        if abs(w) < info.tiny:
            assert abs(x - w) <= info.tiny
        else:
            worst = max(worst, abs(x - w) / mp.ldexp(info.eps, mp.frexp(abs(w))[1] - 1))
    return float(worst)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_log1mexp_has_all_its_digits(dtype):
    grid = torch.cat(
        [
            -torch.logspace(-30, 5, 1500, dtype=torch.float64),
            -torch.linspace(0.6, 0.8, 200, dtype=torch.float64),
        ]
    )
    a = grid.to(dtype).requires_grad_()
    value = log1mexp(a)
    (grad,) = torch.autograd.grad(value.sum(), a)
    exact = [mpf(x) for x in a.tolist()]
    assert (
        ulps(
            value, [mp.log(-mp.expm1(x)) if x > -1 else mp.log1p(-mp.exp(x)) for x in exact], dtype
        )
        <= 4
    )
    assert ulps(grad, [-1 / mp.expm1(-x) for x in exact], dtype) <= 4


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_the_rest_of_three_completions_has_all_its_digits_below_one_half(dtype):
    sizes = [-math.log(x) for x in (0.16, 0.1, 0.01, 1e-5, 1e-12, 1e-37)]
    a = torch.tensor(
        [[-x, -y, -z] for x, y, z in product(sizes, repeat=3)], dtype=dtype
    ).requires_grad_()
    value = ybar_logp(a)
    (grad,) = torch.autograd.grad(value.sum(), a)
    p = [[mp.exp(mpf(x)) for x in row] for row in a.tolist()]
    assert ulps(value, [mp.log1p(-sum(row)) for row in p], dtype) <= 6
    assert ulps(grad.flatten(), [-x / (1 - sum(row)) for row in p for x in row], dtype) <= 6


def exact_halves(log_p, log_q, t):
    """Of one completion: the divergence and its derivative, and for each of them the size of the
    terms whose difference it is."""
    z, zq = ((a - mp.log(-mp.expm1(a))) / t for a in (log_p, log_q))
    P, Q, P0, Q0 = (1 / (1 + mp.exp(x)) for x in (-z, -zq, z, zq))
    size, slope = 1 + abs(z) + abs(zq), -t / mp.expm1(log_p)
    return (
        t**2 * (Q * mp.log(Q / P) + Q0 * mp.log(Q0 / P0)),
        slope * (P - Q),
        t**2 * size,
        slope * (P + Q) * size,
    )


@pytest.mark.parametrize("t", [1, 7.5, 60])
def test_halves_are_right_to_the_last_digits_of_their_terms(t):
    # With u = t²(1 + |z| + |z*|), values are right to 1e-15 u: relative to 1e-9 above 1e-6 u.
    # Below, digits cancel: at temperature 1 and log-probabilities of -100 the value is 1e-44 and
    # 0 is returned. The gradient keeps its relative precision at any size.
    masses = [-1e-3, -0.5, -3.0, -20.0, -100.0, -400.0, -700.0]
    rows = [
        (r + step, r - step, r, r)
        for r in masses
        for step in (0, 1e-6, 1e-3, 0.1, 1.0, 5.0)
        if r + step < 0
    ]
    p, r = (
        torch.tensor(x, dtype=torch.float64) for x in ([x[:2] for x in rows], [x[2:] for x in rows])
    )
    loss = slpo_loss(
        p.requires_grad_(), r, alpha=0.5, temperature=t, scale_t2=True, reduction="none"
    )
    (grad,) = torch.autograd.grad(loss.sum(), p)
    for i, (a, b, r0, r1) in enumerate(rows):
        log_q = mp.log(mp.exp(r0) + mp.exp(r1) / 2), mpf(r1) - mp.log(2)
        if log_q[0] > -1e-3:
            continue  # cut to 1: no divergence is finite there
        values, grads, sizes, grad_sizes = zip(
            *(exact_halves(mpf(x), y, mpf(t)) for x, y in zip((a, b), log_q))
        )
        assert abs(loss[i].item() - sum(values)) <= 4 * EPS * sum(sizes), (
            a,
            b,
            r0,
            float(sum(values)),
        )
        for got, want, size in zip(grad[i].tolist(), grads, grad_sizes):
            assert abs(got - want) <= 4 * EPS * size, (a, b, r0, float(want))


# Finite numbers. Log-probabilities from -1e-30 to -1e5, uniform in their logarithm; policy and
# reference have nothing in common.

N = 100_000


@lru_cache(maxsize=2)
def random_logps(dtype, K, scaled):
    """`scaled`: a group's probabilities sum to at most 1 (1) or 1/K (K), as the joint form needs; 0
    leaves them alone."""
    rng = torch.Generator().manual_seed(K)

    def draw():
        x = -(10 ** (torch.rand(N, K, generator=rng, dtype=torch.float64) * 35 - 30))
        if scaled:
            x = x - x.logsumexp(-1, keepdim=True).clamp(min=0) - math.log(scaled)
        return x.to(dtype)

    return draw(), draw()


def random_alpha():
    "(N,) a quarter each of 0, 1/2, 1 and any other strength."
    alpha = torch.rand(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for i, value in enumerate((0.0, 0.5, 1.0)):
        alpha[i::4] = value
    return alpha


def assert_finite(loss, logps, **inputs):
    "Values and gradients, in the precision they should have."
    value = loss(logps := logps.detach().requires_grad_())
    (grad,) = torch.autograd.grad(value.sum(), logps)
    assert (
        len(value) == N
        and value.dtype == torch.promote_types(logps.dtype, torch.float32)
        and grad.dtype == logps.dtype
    )
    bad = ~(value.isfinite() & grad.reshape(N, -1).isfinite().all(-1))
    if bad.any():
        i = bad.nonzero()[0, 0]
        pytest.fail(
            f"{bad.sum()} of {N}; at {i}: logps {logps[i].tolist()} gives {value[i].item()}, "
            f"gradient {grad[i].tolist()}; "
            + ", ".join(f"{name} {x[i].tolist()}" for name, x in inputs.items())
        )


@pytest.mark.parametrize("scale_t2", [True, False], ids=["t2", "plain"])
@pytest.mark.parametrize("t", TEMPERATURES)
@pytest.mark.parametrize("form, target", list(product(FORMS, TARGETS)))
@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slpo_loss_is_finite(dtype, K, form, target, t, scale_t2):
    logps, ref_logps = random_logps(
        dtype, K, 0 if form != "joint" else 1 if target == "mass" else K
    )
    alpha = random_alpha().clamp(max=FINITE if form == "squared" else 1)
    lengths = torch.randint(1, 2000, (N, K), generator=torch.Generator().manual_seed(2))

    def loss(logps):
        return slpo_loss(
            logps,
            ref_logps,
            alpha=alpha,
            temperature=t,
            lengths=lengths,
            form=form,
            target=target,
            scale_t2=scale_t2,
            reduction="none",
        )

    assert_finite(loss, logps, ref_logps=ref_logps, alpha=alpha, lengths=lengths)


@pytest.mark.parametrize("anchor", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slpo_sample_loss_is_finite(dtype, K, beta, anchor):
    (logps, ref_logps), alpha = random_logps(dtype, K, 0), random_alpha()

    def loss(logps):
        return slpo_sample_loss(
            logps, ref_logps, alpha=alpha, beta=beta, anchor=anchor, reduction="none"
        )

    assert_finite(loss, logps, ref_logps=ref_logps, alpha=alpha)


def of_the_authors_code(log_p, log_r, alpha, t_w, t_l):
    """(target, prediction) pairs of tempered log-probabilities of y and its complement, for chosen
    and rejected, in 50 digits."""
    p, r = [mp.exp(mpf(x)) for x in log_p], [mp.exp(mpf(x)) for x in log_r]
    q = [r[0] + alpha * r[1], (1 - alpha) * r[1]]

    def events(x, t):
        root, rest = x ** (1 / mpf(t)), (1 - x) ** (1 / mpf(t))
        return root / (root + rest), rest / (root + rest)

    return [list(zip(events(x, t), events(y, t))) for x, y, t in zip(q, p, (t_w, t_l))]


def divergence(pairs):
    return mp.fsum(q * mp.log(q / p) if q else 0 for q, p in pairs)


@pytest.mark.parametrize(
    "log_p, log_r",
    [
        ((-40.0, -35.0), (-41.0, -33.0)),
        ((-3.0, -2.0), (-2.5, -2.2)),
        ((-120.0, -160.0), (-119.0, -158.0)),
    ],
)
def test_presets_are_the_versions_of_the_authors_code(log_p, log_r):
    """Up to the constant factor of their averages: the listing's is one half, main's a quarter, the
    branch's one half."""
    logps, ref_logps = (torch.tensor([x], dtype=torch.float64) for x in (log_p, log_r))
    lengths = torch.tensor([[30, 21]])
    chosen, rejected = of_the_authors_code(
        log_p, log_r, 1, 30, 21
    )  # each completion's own length; the hard form
    listing = divergence(chosen) / 2 + divergence(rejected) / 2
    near(
        slpo_loss(logps, ref_logps, lengths=lengths, **PRESETS["listing"]) / 2,
        float(listing),
        rel=1e-9,
    )
    chosen, rejected = of_the_authors_code(
        log_p, log_r, mpf(0.3), 17, 17
    )  # one number for the call, from the caller
    main = (divergence(chosen) + divergence(rejected)) / 4
    near(
        slpo_loss(logps, ref_logps, alpha=0.3, temperature=17.0, **PRESETS["main"]) / 4,
        float(main),
        rel=1e-9,
    )
    events = of_the_authors_code(log_p, log_r, mpf(0.5), 512, 512)
    branch = (
        mp.fsum(mp.fsum((mp.log(p) - mp.log(q)) ** 2 for q, p in pairs) / 2 for pairs in events) / 2
    )
    near(slpo_loss(logps, ref_logps, **PRESETS["branch"]) / 2, float(branch), rel=1e-9)


def test_the_squared_form_refuses_a_target_without_mass():
    logps = torch.tensor([[-3.0, -4.0], [-2.0, -5.0]])
    with pytest.raises(ValueError, match=r"'alpha'.*\[1, 1\].*alpha < 1"):
        slpo_loss(logps, logps, alpha=torch.tensor([0.5, 1.0]), temperature=1.0, form="squared")


def test_no_loss_decides_how_much_mass_moves():
    logps = torch.tensor([[-3.0, -4.0]])
    for loss in (slpo_loss, slpo_sample_loss, lambda p, r: mass_targets(r)):
        with pytest.raises(TypeError, match="alpha"):
            loss(logps, logps)


@pytest.mark.parametrize("K", [2, 3])
def test_beyond_30_the_anchor_is_its_own_tangent(K):
    """log A is the group's common score here: A - 1 - log A up to 30, and a straight line of slope
    e^30 - 1 from there on."""
    edge, slope = mp.exp(30) - 1 - 30, mp.exp(30) - 1
    for score in (29.0, 30.0, 31.0, 45.0, 700.0):
        logps = torch.full((1, K), -1000.0 + score, dtype=torch.float64, requires_grad=True)
        options = dict(alpha=0.5, beta=1.0, reduction="sum")
        ref_logps = torch.full((1, K), -1000.0, dtype=torch.float64)
        with_anchor, without = (
            slpo_sample_loss(logps, ref_logps, anchor=anchor, **options) for anchor in (1.0, 0.0)
        )
        want = mp.exp(score) - 1 - score if score <= 30 else edge + slope * (mpf(score) - 30)
        near(with_anchor - without, float(want), rel=1e-12)
        (got,) = torch.autograd.grad(with_anchor - without, logps)
        want = (mp.exp(min(score, 30)) - 1) / K  # each completion has an equal share of A
        assert all(abs(x - want) <= 1e-9 * want for x in got[0].tolist()), (score, got, want)


@pytest.mark.parametrize("K", [2, 3])
def test_the_gradient_of_sample_mass_to_50_digits(K):
    """β(s_k(1 + λ(A - 1)) - q_k), s the softmax of the scores, for groups near the reference and
    far from it."""
    rng, beta, anchor = random.Random(K), 0.1, 0.7
    for size, alpha in product((1e-6, 1e-3, 0.1, 1, 10), (0.0, 0.5, 1.0)):
        logps = torch.tensor(
            [[rng.gauss(-400, size / beta) for _ in range(K)] for _ in range(50)],
            dtype=torch.float64,
            requires_grad=True,
        )
        ref_logps = torch.full_like(logps, -400)
        loss = slpo_sample_loss(
            logps, ref_logps, alpha=alpha, beta=beta, anchor=anchor, reduction="sum"
        )
        q = [(1 + (K - 1) * alpha) / K] + [(1 - alpha) / K] * (K - 1)
        for row, got in zip(
            (logps - ref_logps).tolist(), torch.autograd.grad(loss, logps)[0].tolist()
        ):
            e = [mp.exp(beta * mpf(x)) for x in row]
            want = [beta * (x / sum(e) * (1 + anchor * (sum(e) / K - 1)) - k) for x, k in zip(e, q)]
            assert max(abs(x - w) for x, w in zip(got, want)) <= 50 * EPS * beta * (1 + max(e)), (
                size,
                alpha,
                row,
                got,
            )


def test_gradients_on_devices_without_float64(monkeypatch):
    "There everything is computed in float32 (Apple's GPUs)."
    rng = torch.Generator().manual_seed(0)
    ref_logps = -150 * torch.rand(200, 2, generator=rng) - 5
    logps = (
        (
            ref_logps
            + torch.randn(200, 2, generator=rng)
            * torch.tensor([1e-2, 0.3, 2, 10]).repeat_interleave(50)[:, None]
        )
        .clamp(max=-0.5)
        .requires_grad_()
    )
    lengths = torch.randint(5, 60, (200, 2), generator=rng)

    def gradients():
        return {
            name: torch.autograd.grad(loss, logps)[0]
            for name, loss in every_loss(logps, ref_logps, None, 0.5, lengths, "sum").items()
        }

    want = gradients()
    for module in ("loss", "dpo", "mass"):
        monkeypatch.setattr(f"slpo.{module}._wide", lambda x: x.float())
    for name, got in gradients().items():
        error = (got - want[name]).abs().amax(-1) / want[name].abs().amax(-1).clamp(min=1e-30)
        assert error.max() < 1e-2 and error.median() < 1e-5, (name, error.max(), error.median())


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("loss", [dpo_loss, ipo_loss])
@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relative_losses_are_finite(dtype, K, loss, beta):
    logps, ref_logps = random_logps(dtype, K, 0)
    assert_finite(
        lambda logps: loss(logps, ref_logps, beta=beta, reduction="none"),
        logps,
        ref_logps=ref_logps,
    )


@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_rest_is_finite(dtype, K):
    # Short of a sum of 1: either far from it, or one completion has nearly all and the others share
    # a quarter of what that one leaves.
    logps = random_logps(dtype, K, K)[0] if K > 1 else random_logps(dtype, 1, 0)[0]
    nearly_all = logps[:, :1].double().clamp(max=-1e-30)
    crowded = torch.cat(
        [nearly_all, (log1mexp(nearly_all) - math.log(4 * K)).expand(N, K - 1)], 1
    ).to(dtype)
    for x in (logps, crowded):
        assert_finite(ybar_logp, x)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_targets_are_log_probabilities(dtype, K, target):
    # Here a group's probabilities may sum to more than 1, and so may what one completion is given:
    # it is cut to 1.
    log_r, alpha = random_logps(dtype, K, 0)[1], random_alpha()
    log_q = mass_targets(log_r, alpha=alpha, target=target)
    assert (
        log_q.dtype == torch.promote_types(dtype, torch.float32)
        and (log_q <= 0).all()
        and (log_q == 0).any()
    )
    assert ((log_q == -math.inf).any(-1) == (alpha == 1)).all() and log_q[
        :, 0
    ].isfinite().all()  # -inf: all mass was moved away


def test_a_loss_too_large_for_its_precision_is_cut_to_the_largest_number():
    logps = torch.tensor([[-2.0, -3.0]], requires_grad=True)
    loss = ipo_loss(
        logps, torch.tensor([[-3.0, -2.0]]), beta=1e-20
    )  # a target gap of 5e19 nats, squared
    assert (
        loss.item() == torch.finfo(torch.float32).max
        and torch.autograd.grad(loss, logps)[0].isfinite().all()
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log1mexp_is_finite(dtype):
    a = random_logps(dtype, 2, 0)[0].requires_grad_()
    value = log1mexp(a)
    assert value.dtype == dtype and value.isfinite().all() and (value <= 0).all()
    assert torch.autograd.grad(value.sum(), a)[0].isfinite().all()
