"""Where SLPO-sample converges to: `sample_mass_optimum` against other ways to the same numbers, and
what it refuses."""

import math

import pytest
import torch
from mpmath import findroot, mp, quad

from slpo import sample_mass_optimum

# KL from the reference, nats, for a strict ranking; a row for each alpha
BETAS = (1.0, 0.5, 0.2, 0.1, 0.05)
TABLE = {
    0.1: (0.002, 0.007, 0.038, 0.124, 0.298),
    0.5: (0.043, 0.140, 0.402, 0.604, 0.735),
    0.9: (0.150, 0.343, 0.600, 0.727, 0.802),
    1.0: (0.193, 0.390, 0.627, 0.743, 0.810),
}


def ranking(N):
    "(u, weights) of N equally likely sequences in a strict order."
    u = (2 * torch.arange(N, dtype=torch.float64) + 1 - N) / N
    return u, torch.full((N,), 1 / N, dtype=torch.float64)


def distance(w, weights):
    return (weights @ torch.xlogy(w, w)).item()


def kl_by_quadrature(alpha, beta):
    """The same number for u uniform on [-1, 1], without a table: u is an explicit function of w, so
    every mean is an integral over log w."""

    def ends(kappa):
        "log w at u = -1 and u = 1."
        bounds = []
        for c in (max(1 - alpha, 1e-300), 1 + alpha):
            low, high = math.log(c) / beta - 5, math.log(c) / beta
            while math.exp(beta * low) + kappa * math.exp(low) > c:
                low -= 5
            for _ in range(200):
                x = (low + high) / 2
                if math.exp(beta * x) + kappa * math.exp(x) > c:
                    high = x
                else:
                    low = x
            bounds.append(high)
        return bounds

    def mean(f, kappa):
        low, high = ends(kappa)
        low = max(low, -60 / beta)  # below, f(w)·u'(w) is nothing

        def integrand(x):
            slope = (beta * mp.exp(beta * x) + kappa * mp.exp(x)) / alpha  # du/dlog w
            return f(mp.exp(x)) * slope / 2

        points = [low + (high - low) * i / 8 for i in range(9)]
        return quad(integrand, sorted({*points, max(low, high - 5), max(low, high - 20)}))

    kappa = 0.0
    if beta < 1:
        kappa = findroot(
            lambda k: mean(lambda w: w, k) - 1, (1e-6, 0.5), solver="anderson", tol=1e-9
        )
    return float(mean(lambda w: w * mp.log(w), float(kappa)))


@pytest.mark.parametrize("alpha", TABLE)
def test_the_distances_of_a_ranking_by_quadrature_and_by_table(alpha):
    u, weights = ranking(2000)
    for beta, want in zip(BETAS, TABLE[alpha]):
        got = distance(sample_mass_optimum(alpha, beta, u, weights), weights)
        assert abs(got - want) < 5e-4
        assert abs(kl_by_quadrature(alpha, beta) - got) < 5e-4


@pytest.mark.parametrize("beta", (1.0, 0.7, 0.1, 1e-3, 1e-5))
@pytest.mark.parametrize("alpha", (0.0, 1e-6, 0.5, 1.0))
def test_the_optimum_is_a_distribution_and_solves_its_equation(alpha, beta):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(50, dtype=torch.float64, generator=generator).mul(3).softmax(0)
    wins = torch.rand(50, 50, dtype=torch.float64, generator=generator).triu(1)
    wins = wins + (1 - wins.T).tril(-1) + 0.5 * torch.eye(50, dtype=torch.float64)
    u = 2 * wins @ weights - 1
    w = sample_mass_optimum(alpha, beta, u, weights)
    assert w.dtype == torch.float64 and w.isfinite().all() and (w >= 0).all()
    assert abs(weights @ w - 1) < 1e-12
    most, seen = w.argmax(), w > 1e-300  # below, w**beta is lost
    kappa = (1 + alpha * u[most] - w[most] ** beta) / w[most]
    error = w**beta + kappa * w - (1 + alpha * u)
    assert -1e-12 < kappa <= 1 and error[seen].abs().max() < 1e-9
    assert (w[u.argsort()].diff() >= 0).all()  # it grows with u, and depends on it alone


@pytest.mark.parametrize("alpha", (0.1, 0.5, 1.0))
@pytest.mark.parametrize("beta", (1.0, 0.3, 0.1, 0.01, 1e-3))
def test_a_ranking_stays_within_its_bound(alpha, beta):
    u, weights = ranking(2000)
    w = sample_mass_optimum(alpha, beta, u, weights)
    assert w.max() < 4 and distance(w, weights) < math.log(4) - 0.5


def test_single_precision_and_sequences_of_no_probability_are_taken():
    u, weights = ranking(100)
    want = sample_mass_optimum(0.5, 0.1, u, weights)
    got = sample_mass_optimum(0.5, 0.1, u.float(), weights.float())
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    more = torch.cat([u, u.new_tensor([1.0, -1.0])])
    got = sample_mass_optimum(0.5, 1e-3, more, torch.cat([weights, u.new_zeros(2)]))
    torch.testing.assert_close(got[:100], sample_mass_optimum(0.5, 1e-3, u, weights))
    assert got.isfinite().all()


@pytest.mark.parametrize(
    "wrong, said",
    (
        (dict(alpha=1.1), "argument 'alpha': 1.1 is outside"),
        (dict(alpha=math.nan), "argument 'alpha': nan"),
        (dict(beta=0), "argument 'beta': 0 is outside"),
        (dict(beta=1.5), "argument 'beta': 1.5 is outside"),
        (dict(u=torch.zeros(3, 1)), r"shape \(N,\), got \(3, 1\) and \(3,\)"),
        (dict(u=torch.zeros(4)), r"got \(4,\) and \(3,\)"),
        (
            dict(u=torch.tensor([0.0, 2.0, -2.0])),
            r"argument 'u': 2.0 at \[1\] is outside \[-1, 1\]",
        ),
        (dict(u=torch.tensor([0.0, math.nan, 0.0])), r"argument 'u': nan at \[1\]"),
        (dict(u=torch.tensor([0.5, 0.5, 0.0])), "argument 'u': its mean under the weights is 0.3"),
        (dict(weights=torch.tensor([1.5, -0.5, 0.0])), r"'weights': 1.5 at \[0\]"),
        (dict(weights=torch.tensor([0.5, 0.1, 0.1])), "'weights': they sum to 0.7"),
    ),
)
def test_what_is_no_population_is_refused(wrong, said):
    good = dict(alpha=0.5, beta=0.1, u=torch.zeros(3), weights=torch.full((3,), 1 / 3))
    with pytest.raises(ValueError, match=said):
        sample_mass_optimum(**good | wrong)
