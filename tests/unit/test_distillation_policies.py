"""Policies: golden numbers, expectations by enumeration, draws that depend on nothing else, and wrong input."""

import itertools
import math

import pytest
import torch
from scipy import stats
from support import read_golden
from torch.distributions import Categorical

from difformer.distillation import (
    Choice,
    ExactPolicy,
    FixedPolicy,
    LearnedPolicy,
    PolicyNetwork,
    ReinforcePolicy,
    UniformPolicy,
    decayed_entropy_weight,
    hint,
    optimal_logits,
    policies,
)

GOLDEN, METADATA = read_golden("distill_reinforce")
TIMESTEPS = (10, 50, 100, 400)
DTYPES = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chosen(actions):
    """A choice of these actions, (B, D)."""
    return Choice(actions, actions, torch.full(actions.shape, 1 / actions.shape[1]))


def gradient(policy, logits, choice, rewards, entropy_weight=0.0):
    logits = logits.clone().requires_grad_()
    policy.losses(logits, choice, rewards, entropy_weight).mean().backward()
    return logits.grad


class TestGolden:
    @pytest.mark.parametrize(("dtype", "rtol"), DTYPES)
    @pytest.mark.parametrize("part", ["", ".policy"])
    @pytest.mark.parametrize("baseline", ["none", "leave_one_out", "running"])
    def test_baselines(self, baseline, part, dtype, rtol):
        policy = ReinforcePolicy(range(10), baseline=baseline)
        policy.running = GOLDEN["running.baseline"].item()
        rewards = GOLDEN["rewards"][:, None]
        self.check(policy, GOLDEN["actions"][:, None], rewards, f"{baseline}{part}", 0 if part else 0.1, dtype, rtol)
        policy.update(rewards)
        assert policy.running == pytest.approx(GOLDEN["running.baseline.next"].item(), rel=1e-12)

    @pytest.mark.parametrize(("dtype", "rtol"), DTYPES)
    def test_draws(self, dtype, rtol):
        policy = ReinforcePolicy(range(10), draws=4, baseline="leave_one_out")
        self.check(policy, GOLDEN["draws.actions"], GOLDEN["draws.rewards"], "draws", 0.1, dtype, rtol)

    @pytest.mark.parametrize(("dtype", "rtol"), DTYPES)
    def test_exact(self, dtype, rtol):
        actions = torch.arange(10).expand(6, -1)
        self.check(ExactPolicy(range(10)), actions, GOLDEN["rewards.table"], "exact", 0.1, dtype, rtol)

    def test_the_best_policy(self):
        logits, policy = optimal_logits(GOLDEN["rewards.table"], 0.1), ExactPolicy(range(10))
        choice = policy.choose(range(6), 0, logits)
        torch.testing.assert_close(choice.weights.double(), GOLDEN["exact.best.policy"], rtol=1e-6, atol=1e-7)
        found = policy.losses(logits, choice, GOLDEN["rewards.table"], 0.1).mean()
        assert found.item() == pytest.approx(GOLDEN["exact.best.loss"].item(), rel=1e-10)
        assert gradient(policy, logits, choice, GOLDEN["rewards.table"], 0.1).abs().max() < 1e-12

    def check(self, policy, actions, rewards, name, weight, dtype, rtol):
        logits = GOLDEN["logits"].to(dtype, copy=True).requires_grad_()
        found = policy.losses(logits, chosen(actions), rewards.to(dtype), weight)
        assert (found.shape, found.dtype) == ((6,), dtype)
        found.mean().backward()
        assert found.mean().item() == pytest.approx(GOLDEN[f"{name}.loss"].item(), rel=rtol)
        wanted = GOLDEN[f"{name}.grad.logits"]
        torch.testing.assert_close(logits.grad.double(), wanted, rtol=0, atol=rtol * wanted.abs().max().item())


class TestGradients:
    @pytest.mark.parametrize("weight", [0.0, 0.3])
    def test_the_published_form_by_torchs_distributions(self, weight):
        """RepFusion's terms as its code writes them."""
        logits, rewards = normal(5, 4).requires_grad_(), -normal(5, seed=1).abs()
        policy = ReinforcePolicy(TIMESTEPS)
        choice = policy.choose(range(5), 3, logits)
        m = Categorical(logits.softmax(dim=-1))
        wanted = -(m.log_prob(choice.actions[:, 0]) * rewards).mean() - weight * m.entropy().mean()
        found = policy.losses(logits, choice, rewards[:, None], weight).mean()
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(wanted, logits))

    @pytest.mark.parametrize(
        ("images", "draws", "baseline"),
        [(2, 1, "none"), (2, 1, "running"), (2, 1, "leave_one_out"), (1, 2, "none"), (1, 2, "leave_one_out"),
         (1, 3, "leave_one_out"), (2, 2, "leave_one_out"), (3, 1, "leave_one_out")],
    )  # fmt: skip
    def test_reinforce_is_unbiased_for_exact(self, images, draws, baseline):
        """The mean over everything that can be drawn, weighted by its probability."""
        logits, table = normal(images, 4).double(), normal(images, 4, seed=1).double() - 2
        exact = ExactPolicy(TIMESTEPS)
        wanted = gradient(exact, logits, exact.choose(range(images), 0, logits), table, 0.1)
        policy, pi = ReinforcePolicy(TIMESTEPS, draws=draws, baseline=baseline), logits.softmax(dim=1)
        policy.update(torch.tensor([-0.7]))
        mean, total = torch.zeros_like(logits), 0.0
        for drawn in itertools.product(range(4), repeat=images * draws):
            actions = torch.tensor(drawn).view(images, draws)
            probability = pi.gather(1, actions).prod()
            mean += probability * gradient(policy, logits, chosen(actions), table.gather(1, actions), 0.1)
            total += probability.item()
        assert total == pytest.approx(1)
        torch.testing.assert_close(mean, wanted, rtol=0, atol=1e-12)

    def test_the_exact_gradient_by_differences(self):
        logits, table = normal(3, 4).double().requires_grad_(), normal(3, 4, seed=1).double()
        policy = ExactPolicy(TIMESTEPS)
        choice = policy.choose(range(3), 0, logits)
        assert torch.autograd.gradcheck(lambda x: policy.losses(x, choice, table, 0.2), logits)

    @pytest.mark.parametrize("baseline", ["leave_one_out", "running"])
    def test_equal_rewards_teach_nothing_where_there_is_a_baseline(self, baseline):
        policy = ReinforcePolicy(TIMESTEPS, draws=3, baseline=baseline)
        policy.update(torch.tensor([-2.0]))
        logits = normal(5, 4)
        found = gradient(policy, logits, policy.choose(range(5), 0, logits), torch.full((5, 3), -2.0))
        assert found.abs().max() < 1e-7

    def test_the_weights_of_a_choice_make_the_hint_the_one_of_the_mean_but_for_a_constant(self):
        """Drawing t is regressing on the mixture's mean: the difference is its variance."""
        policy, logits = ExactPolicy(TIMESTEPS), normal(3, 4)
        student, teachers = normal(3, 6, seed=1).requires_grad_(), normal(3, 4, 6, seed=2)
        weights = policy.choose(range(3), 0, logits.requires_grad_()).weights
        assert not weights.requires_grad
        found = sum(weights[:, d] * hint(student, teachers[:, d]) for d in range(4))
        mean = (weights[:, :, None] * teachers).sum(dim=1)
        variance = (weights[:, :, None] * (teachers - mean[:, None]) ** 2).sum(dim=1).mean(dim=1)
        torch.testing.assert_close(found, hint(student, mean) + variance)

    @pytest.mark.parametrize("make", [ReinforcePolicy, ExactPolicy])
    def test_rewards_get_no_gradient(self, make):
        policy, logits = make(TIMESTEPS), normal(2, 4).requires_grad_()
        choice = policy.choose([0, 1], 0, logits)
        rewards = torch.zeros(choice.actions.shape, requires_grad=True)
        policy.losses(logits, choice, rewards).sum().backward()
        assert rewards.grad is None

    def test_a_decided_policy_and_half_precision_stay_finite(self):
        policy = ReinforcePolicy(TIMESTEPS)
        logits = torch.tensor([[300.0, 0, 0, -300], [0, 0, 0, 0]], dtype=torch.bfloat16).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = policy.losses(logits, chosen(torch.tensor([[3], [0]])), torch.tensor([[-2.0], [-1]]), 0.1)
        assert losses.dtype == torch.float32
        losses.sum().backward()
        assert logits.grad.isfinite().all()
        assert losses.tolist() == pytest.approx([-1200, -1.1 * math.log(4)])

    @pytest.mark.parametrize("make", [ReinforcePolicy, ExactPolicy])
    def test_learns_the_best_timestep_of_each_image(self, make):
        """A bandit: each image has its own best timestep."""
        policy, table = make(TIMESTEPS), -torch.ones(4, 4) + torch.eye(4)
        logits = torch.zeros(4, 4, requires_grad=True)
        optimiser = torch.optim.SGD([logits], lr=8)
        for step in range(150):
            choice = policy.choose(range(4), step, logits)
            optimiser.zero_grad()
            policy.losses(logits, choice, table.gather(1, choice.actions)).mean().backward()
            optimiser.step()
        assert logits.argmax(dim=1).tolist() == [0, 1, 2, 3]
        assert logits.softmax(dim=1).diagonal().min() > 0.9


class TestDraws:
    @pytest.mark.parametrize("make", [UniformPolicy, ReinforcePolicy])
    def test_a_draw_depends_on_seed_step_and_image_alone(self, make):
        logits, ids = normal(64, 4), torch.arange(64) * 2**40
        policy = make(TIMESTEPS, draws=3, seed=7)
        found = policy.choose(ids, 5, logits).timesteps
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(1)
        policy.choose(ids, 9, logits)
        assert torch.equal(policy.choose(ids[order], 5, logits[order]).timesteps, found[order])
        assert torch.equal(policy.choose(ids[3:4].tolist(), 5, logits[3:4]).timesteps, found[3:4])
        assert torch.equal(make(TIMESTEPS, draws=1, seed=7).choose(ids, 5, logits).timesteps, found[:, :1])
        assert not torch.equal(policy.choose(ids, 6, logits).timesteps, found)
        assert not torch.equal(make(TIMESTEPS, draws=3, seed=8).choose(ids, 5, logits).timesteps, found)
        assert not torch.equal(found[:, 0], found[:, 1])

    @pytest.mark.parametrize("make", [UniformPolicy, ReinforcePolicy])
    def test_draws_follow_the_probabilities(self, make):
        logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
        policy = make(TIMESTEPS, draws=8)
        actions = policy.choose(range(500), 0, logits.expand(500, -1)).actions
        expected = torch.full((4,), 0.25) if make is UniformPolicy else logits.softmax(dim=0)
        counts = actions.flatten().bincount(minlength=4)
        assert stats.chisquare(counts.numpy(), 4000 * expected.double().numpy(), sum_check=False).pvalue > 0.01

    def test_what_has_no_probability_is_never_drawn(self):
        logits = torch.tensor([-2000.0, 0, -2000, 0, -2000]).expand(200, -1)
        actions = ReinforcePolicy(range(5), draws=4).choose(range(200), 0, logits).actions
        assert set(actions.flatten().tolist()) == {1, 3}

    def test_the_least_and_the_greatest_chance(self, monkeypatch):
        """Chances at the edges of probabilities, whose sum is not 1 to the last bit."""
        edges = torch.tensor([[0.0, 0.5, 1 - 2**-53]], dtype=torch.float64)
        monkeypatch.setattr(policies, "_chances", lambda seed, step, ids, draws: edges.repeat(len(ids), 1).numpy())
        found = ReinforcePolicy(range(4), draws=3).choose([0], 0, torch.tensor([[-2000.0, 0, 0, -2000]]))
        assert found.actions.tolist() == [[1, 2, 2]]
        found = ReinforcePolicy(range(1000), draws=3).choose(range(100), 0, normal(100, 1000))
        assert found.actions[:, 2].eq(999).all()

    @pytest.mark.parametrize(
        ("policy", "width"),
        [(FixedPolicy(50), 1), (UniformPolicy(TIMESTEPS, draws=2), 2), (ExactPolicy(TIMESTEPS), 4),
         (ReinforcePolicy(TIMESTEPS, draws=3), 3)],
    )  # fmt: skip
    @pytest.mark.parametrize("images", [0, 5])
    def test_form_of_a_choice(self, policy, width, images):
        choice = policy.choose(torch.arange(images), 0, normal(images, 4))
        for values, dtype in ((choice.actions, torch.int64), (choice.timesteps, torch.int64), (choice.weights, None)):
            assert values.shape == (images, width)
            assert values.dtype == (dtype or torch.float32)
        torch.testing.assert_close(choice.weights.sum(dim=1), torch.ones(images))
        assert torch.equal(torch.tensor(policy.timesteps)[choice.actions], choice.timesteps)
        assert isinstance(policy, LearnedPolicy) == isinstance(policy, ExactPolicy | ReinforcePolicy)

    def test_fixed_is_fixed(self):
        assert FixedPolicy(50).choose([3, 4], 0).timesteps.tolist() == [[50], [50]]

    def test_known_draws(self):
        """Draws of earlier versions stay as they are, so that runs can be repeated."""
        found = UniformPolicy(range(1000), draws=2, seed=1).choose([0, 1, 2**62], 3).timesteps
        assert found.tolist() == [[426, 87], [582, 913], [695, 634]]


class TestState:
    def test_a_resumed_policy_continues_to_the_bit(self):
        def run(policy, network, optimiser, steps):
            for step in steps:
                ids = torch.arange(8) + 8 * step
                logits = network(normal(8, 3, 16, 16, seed=step))
                choice = policy.choose(ids, step, logits)
                rewards = -(choice.timesteps / 100 - 1).square()
                optimiser.zero_grad()
                policy.losses(logits, choice, rewards, decayed_entropy_weight(step, epochs=6)).mean().backward()
                optimiser.step()
                policy.update(rewards)

        def parts():
            torch.manual_seed(0)
            network = PolicyNetwork(4, 16)
            optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
            return ReinforcePolicy(TIMESTEPS, draws=2, baseline="running", seed=3), network, optimiser

        whole, first, second = parts(), parts(), parts()
        run(*whole, range(6))
        run(*first, range(3))
        for new, old in zip(second, first, strict=True):
            new.load_state_dict(old.state_dict())
        run(*second, range(3, 6))
        assert second[0].state_dict() == whole[0].state_dict()
        for name, weight in whole[1].state_dict().items():
            assert torch.equal(second[1].state_dict()[name], weight), name

    def test_the_running_mean_begins_with_the_first_step(self):
        policy, logits = ReinforcePolicy(TIMESTEPS, baseline="running"), normal(2, 4)
        choice = policy.choose([0, 1], 0, logits)
        plain = ReinforcePolicy(TIMESTEPS).losses(logits, choice, -torch.ones(2, 1))
        assert torch.equal(policy.losses(logits, choice, -torch.ones(2, 1)), plain)
        policy.update(torch.tensor([[-1.0], [-3.0]]))
        assert policy.running == -2
        policy.update(torch.tensor([[-1.0], [-1.0]]))
        assert policy.running == pytest.approx(-1.9)

    @pytest.mark.parametrize(
        ("policy", "state", "message"),
        [
            (FixedPolicy(3), {"running": 1.0}, r"holds nothing, got \['running'\]; resume with the policy"),
            (ReinforcePolicy([1, 2]), {}, r"holds \['running'\], got \[\]"),
            (ReinforcePolicy([1, 2]), {"running": math.nan}, "must be a finite number or None, got nan"),
            (ReinforcePolicy([1, 2]), {"running": "1"}, "must be a finite number or None, got '1'"),
        ],
    )
    def test_refuses_other_states(self, policy, state, message):
        with pytest.raises(ValueError, match=message):
            policy.load_state_dict(state)


class TestEntropyWeight:
    def test_as_published(self):
        assert METADATA["entropy_weight_at_epoch"].startswith("w_0 max(0, 1 - epoch/100), w_0 = 0.1")
        found = [decayed_entropy_weight(epoch) for epoch in (0, 25, 50, 99, 100, 101, 400)]
        assert found == pytest.approx([0.1, 0.075, 0.05, 0.001, 0, 0, 0])
        assert decayed_entropy_weight(1, initial=0.3, epochs=4) == pytest.approx(0.225)

    @pytest.mark.parametrize(
        ("epoch", "options", "message"),
        [
            (-1, {}, "epoch must be at least 0, got -1"),
            (0, {"epochs": 0}, "epochs must be a positive integer"),
            (0, {"initial": -1}, "of at least 0, got -1"),
            (0, {"initial": math.inf}, "of at least 0, got inf"),
        ],
    )
    def test_refuses(self, epoch, options, message):
        with pytest.raises(ValueError, match=message):
            decayed_entropy_weight(epoch, **options)


class TestNetwork:
    def test_as_published(self):
        """The shapes of RepFusion's networks for 32 and 64 pixels."""
        weights = {32: 146156, 64: 456 + 2416 + 6416 + (256 * 120 + 120) + (120 * 84 + 84) + (84 * 1000 + 1000)}
        for side, count in weights.items():
            network = PolicyNetwork(1000, side)
            assert sum(weight.numel() for weight in network.parameters()) == count
            assert network(torch.zeros(2, 3, side, side)).shape == (2, 1000)

    def test_32_pixels_by_hand(self):
        network = PolicyNetwork(7)
        (conv1, conv2), (fc1, fc2, fc3) = network.convs, network.fcs
        layers = [conv1, torch.nn.ReLU(), torch.nn.MaxPool2d(2), conv2, torch.nn.ReLU(), torch.nn.MaxPool2d(2),
                  torch.nn.Flatten(), fc1, torch.nn.ReLU(), fc2, torch.nn.ReLU(), fc3]  # fmt: skip
        images = normal(3, 3, 32, 32)
        torch.testing.assert_close(network(images), torch.nn.Sequential(*layers)(images))

    @pytest.mark.parametrize(
        ("size", "stages"), [(6, 1), (15, 1), (16, 2), (28, 2), (100, 4), (224, 5), ((64, 96), 3), ((6, 40), 1)]
    )
    def test_any_size(self, size, stages):
        height, width = size if isinstance(size, tuple) else (size, size)
        network = PolicyNetwork(4, size)
        assert len(network.convs) == stages
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(normal(2, 3, height, width))
        assert (logits.shape, logits.dtype) == ((2, 4), torch.float32)
        assert not torch.equal(logits[0], logits[1])

    def test_refuses(self):
        with pytest.raises(ValueError, match="image_size must be at least 6 pixels a side, got 5×5"):
            PolicyNetwork(4, 5)
        with pytest.raises(ValueError, match="num_timesteps must be a positive integer, got 0"):
            PolicyNetwork(0)
        with pytest.raises(ValueError, match=r"images must be \(B, 3, 32, 32\), got \(2, 3, 64, 64\); resize them"):
            PolicyNetwork(4)(torch.zeros(2, 3, 64, 64))


class TestWrongInput:
    @pytest.mark.parametrize("make", [UniformPolicy, ExactPolicy, ReinforcePolicy])
    @pytest.mark.parametrize(
        ("timesteps", "message"),
        [
            ([], "timesteps must be one or more different numbers"),
            ([3, 3], "timesteps must be one or more different numbers"),
            ([0.5], "timesteps must be an integer, got 0.5"),
            (1000, r"timesteps must be a sequence of integers, got 1000; all of T are range\(T\)"),
            ([-1], r"timesteps must lie in \[0, 65536\), got \[-1\]"),
            ([1 << 16], "timesteps must lie in"),
        ],
    )
    def test_timesteps(self, make, timesteps, message):
        with pytest.raises(ValueError, match=message):
            make(timesteps)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"draws": 0}, "draws must be a positive integer"),
            ({"seed": -1}, "seed must be at least 0, got -1"),
            ({"baseline": "mean"}, "baseline must be one of none, leave_one_out, running, got 'mean'"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            ReinforcePolicy(TIMESTEPS, **options)

    @pytest.mark.parametrize(
        ("ids", "step", "logits", "message"),
        [
            ([0, 1], 0, None, r"logits must be floating-point numbers \(2, 4\).*got None"),
            ([0, 1], 0, normal(2, 5), r"got torch.float32 \(2, 5\)"),
            ([0, 1], 0, torch.zeros(2, 4, dtype=torch.int64), "got torch.int64"),
            ([0, 1], 0, torch.tensor([[0.0] * 4, [0, math.nan, 0, 0]]), r"finite, and are not for images \[1\]"),
            (5, 0, normal(1, 4), "ids must be a sequence of integers, one an image, got 5"),
            ([0, -1], 0, normal(2, 4), "every entry of ids must be at least 0, got -1"),
            (torch.zeros(2), 0, normal(2, 4), "every entry of ids must be an integer, got 0.0"),
            (torch.zeros(2, 1, dtype=torch.int64), 0, normal(2, 4), "every entry of ids must be an integer"),
            ([0, 1], -1, normal(2, 4), "step must be at least 0, got -1"),
        ],
    )
    def test_choices(self, ids, step, logits, message):
        with pytest.raises(ValueError, match=message):
            ReinforcePolicy(TIMESTEPS).choose(ids, step, logits)

    @pytest.mark.parametrize(
        ("logits", "rewards", "weight", "message"),
        [
            (normal(2, 5), normal(2, 1), 0, r"logits must be \(2, 4\), as the choice was made, got \(2, 5\)"),
            (normal(2, 4), normal(2), 0, r"rewards must be \(2, 1\).*write rewards\[:, None\]"),
            (normal(2, 4), normal(2, 3), 0, r"rewards must be \(2, 1\), one for each choice, got \(2, 3\)"),
            (normal(2, 4), normal(2, 1), -1, "the weight of the entropy must be a number of at least 0, got -1"),
        ],
    )
    def test_losses(self, logits, rewards, weight, message):
        with pytest.raises(ValueError, match=message):
            ReinforcePolicy(TIMESTEPS).losses(logits, chosen(torch.zeros(2, 1, dtype=torch.int64)), rewards, weight)

    def test_the_choice_of_another_policy(self):
        with pytest.raises(ValueError, match="the choice must hold all 4 timesteps, got 1; make it with this policy"):
            ExactPolicy(TIMESTEPS).losses(normal(2, 4), FixedPolicy(10).choose([0, 1], 0), normal(2, 1))

    def test_nothing_to_leave_out(self):
        policy = ReinforcePolicy(TIMESTEPS, baseline="leave_one_out")
        with pytest.raises(ValueError, match="got one image with one draw; raise draws or the batch size"):
            policy.losses(normal(1, 4), chosen(torch.zeros(1, 1, dtype=torch.int64)), normal(1, 1))

    @pytest.mark.parametrize("rewards", [torch.zeros(0), torch.tensor([0, math.inf])])
    def test_rewards_without_a_mean(self, rewards):
        with pytest.raises(ValueError, match="rewards must be one or more finite numbers"):
            ReinforcePolicy(TIMESTEPS).update(rewards)

    @pytest.mark.parametrize("weight", [0, math.nan])
    def test_no_best_policy_without_entropy(self, weight):
        with pytest.raises(ValueError, match="entropy_weight must be a finite number above 0"):
            optimal_logits(normal(2, 4), weight)
