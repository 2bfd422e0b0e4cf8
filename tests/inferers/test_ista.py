"""ISTA against a slow loop over slices written from the paper's section 2.3, and its invariants."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.inferers import ISTAInferer
from scripts.schedulers import BrownianBridgeScheduler

SAMPLERS = ("mean_path", "ancestral", "implicit", "mean_path_2", "implicit_2")
PREDICTION_TYPES = ("gradient", "unit_gradient", "sample")
SHAPE = (1, 1, 6, 5, 4)  # B, 1, H, W, Z


def spacing_of(sampler: str) -> str:
    return "lambda" if sampler.endswith("_2") else "linear"


def volume(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class RandomNetwork(torch.nn.Module):
    """A fixed random function of slab, timestep, style and source, -0.9 to 0.9."""

    def __init__(self, slab_size: int = 3, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.nn.Parameter(
            (0.3 * torch.randn(slab_size, 2 * slab_size, 3, 3, generator=generator, dtype=torch.float64)).to(dtype)
        )

    def forward(self, x, timesteps, context=None, source=None):
        hidden = torch.nn.functional.conv2d(torch.cat([x, source], 1), self.weight, padding=1)
        hidden = hidden + torch.sin(timesteps.to(x.dtype) / 300)[:, None, None, None]
        if context is not None:
            hidden = hidden + context.mean((1, 2))[:, None, None, None]
        return 0.9 * torch.tanh(hidden)


def predicting(scheduler, network):
    """Network whose prediction, in the scheduler's form, stands for x0_hat = network(...)."""

    def predict(x, timesteps, context=None, source=None):
        x0 = network(x, timesteps, context, source)
        if scheduler.prediction_type == "sample":
            return x0
        if scheduler.prediction_type == "gradient":
            return x - x0
        m, way = float(scheduler.source_weights[timesteps[0]]), source - x0
        return x - x0 - m * way + m * way / torch.linalg.vector_norm(way, dim=(-2, -1), keepdim=True)

    return predict


class SlowISTA:
    """SPEC of ISTA, slice by slice, with formulas of its own."""

    def __init__(self, network, prediction_type, slab_size=3, co_prediction=True, stride=1):
        self.network, self.prediction_type, self.co_prediction = network, prediction_type, co_prediction
        self.stride, self.turn = stride, 0
        self.n = slab_size // 2
        self.m = np.linspace(0.001, 0.999, 1000)
        self.delta = 2 * (self.m - self.m**2)

    def original(self, prediction, x, y, t):
        """x0_hat of one slice."""
        if self.prediction_type == "sample":
            return prediction
        if self.prediction_type == "gradient":
            return x - prediction
        z = y - (x - prediction)
        norm = float(z.norm())
        return y - z * max(norm - self.m[t], 0) / ((1 - self.m[t]) * norm)

    def gradients(self, xs, t, final=False):
        """CP: the mean over slabs of x_t - x0_hat, slice by slice."""
        found = [[] for _ in xs]
        last = len(xs) - 1 - self.n
        turn, self.turn = self.turn, self.turn + 1
        for centre in range(self.n, last + 1):
            if not final and (centre - self.n - turn) % self.stride and centre not in (self.n, last):
                continue
            where = range(centre - self.n, centre + self.n + 1)
            x, y = torch.stack([xs[j] for j in where])[None], torch.stack([self.ys[j] for j in where])[None]
            prediction = self.network(x, torch.tensor([t]), context=None, source=y)[0]
            for k, j in enumerate(where):
                if self.co_prediction or centre == min(max(j, self.n), last):
                    found[j].append(xs[j] - self.original(prediction[k], xs[j], self.ys[j], t))
        return [sum(each) / len(each) for each in found]

    def __call__(self, source, timesteps, sampler, num_corrections, step_size, norm, seed=0, eta=0.0):
        rows, columns = source.shape[2:4]
        background = torch.full((rows, columns), -1.0, dtype=torch.float64)
        slices = [2 * source[0, 0, :, :, z] - 1 for z in range(source.shape[4])]
        first, last = (end if (end > -1).double().mean() > 0.02 else background for end in (slices[0], slices[-1]))
        self.ys = [first] * self.n + slices + [last] * self.n
        generator = torch.Generator().manual_seed(seed)
        xs, before = [y.clone() for y in self.ys], None
        for t, u in pairwise(timesteps):
            gradients = self.gradients(xs, t)
            originals = [x - e for x, e in zip(xs, gradients, strict=True)]
            zs = [0.0] * len(xs)
            if sampler == "ancestral" or eta > 0:
                zs = torch.randn(len(xs), rows, columns, generator=generator).double()
            xs = [
                self.step(
                    sampler, t, u, xs[j], self.ys[j], originals[j], zs[j], eta, before and (before[0], before[1][j])
                )
                for j in range(len(xs))
            ]
            before = (t, originals)
            for _ in range(num_corrections):
                gradients = self.gradients(xs, u)
                xs = [self.correct(*args, u, step_size, norm) for args in zip(xs, self.ys, gradients, strict=True)]
        gradients = self.gradients(xs, timesteps[-1], final=True)
        result = [x - e for x, e in zip(xs, gradients, strict=True)][self.n : len(xs) - self.n]
        return ((torch.stack(result, -1) + 1) / 2).clamp(0, 1)[None, None]

    def step(self, sampler, t, u, x, y, x0, z, eta, before):
        m_t, m_u, d_t, d_u = self.m[t], self.m[u], self.delta[t], self.delta[u]
        if sampler == "ancestral":
            return m_u / m_t * x + (1 - m_u / m_t) * x0 + math.sqrt(2 * m_u * (1 - m_u / m_t)) * z
        if sampler == "implicit":
            v = eta**2 * 2 * m_u * (1 - m_u / m_t)
            way = x - (1 - m_t) * x0 - m_t * y
            return (1 - m_u) * x0 + m_u * y + math.sqrt((d_u - v) / d_t) * way + math.sqrt(v) * z
        if sampler.startswith("mean_path"):
            result = x - (1 - m_u / m_t) * (x - x0)
            if sampler == "mean_path_2" and before:
                h, h_before = math.log(m_t / m_u), math.log(self.m[before[0]] / m_t)
                result = result + (h - 1 + math.exp(-h)) * (x0 - before[1]) / h_before
            return result
        lam_u, lam_t = (0.5 * math.log((1 - m) / (2 * m)) for m in (m_u, m_t))
        h, c = lam_u - lam_t, math.sqrt(d_u / d_t)
        inner = (1 - math.exp(-h)) * x0
        if before:
            m_p = self.m[before[0]]
            lam_p = 0.5 * math.log((1 - m_p) / (2 * m_p))
            inner = inner + (h - 1 + math.exp(-h)) * (x0 - before[1]) / (lam_t - lam_p)
        return c * x + (m_u - m_t * c) * y + (1 - m_u) * inner

    def correct(self, x, y, gradient, u, step_size, norm):
        m, delta = self.m, self.delta
        score = -(m[u] * (x - y) + (1 - m[u]) * gradient) / delta[u]
        added = delta[u] - delta[u - 1] * (1 - m[u]) ** 2 / (1 - m[u - 1]) ** 2 if u > 0 else delta[0]
        d = x.numel() if norm == "paper" else math.sqrt(x.numel())
        return x + step_size * added * d / float((score**2).sum()) * score


def compare(prediction_type, sampler, tolerance, num_steps=5, **options):
    scheduler = BrownianBridgeScheduler(prediction_type=prediction_type)
    network, source = predicting(scheduler, RandomNetwork(options.get("slab_size", 3))), volume()
    slow = SlowISTA(
        network,
        prediction_type,
        options.get("slab_size", 3),
        options.get("co_prediction", True),
        options.get("slab_stride", 1),
    )
    inferer = ISTAInferer(
        scheduler,
        num_inference_steps=num_steps,
        sampler=sampler,
        timestep_spacing=spacing_of(sampler),
        batch_size=3,
        **options,
    )
    fast = inferer(source, network)
    with torch.no_grad():
        expected = slow(
            source,
            scheduler.timesteps.tolist(),
            sampler,
            options.get("num_corrections", 0),
            options.get("step_size", 0.5),
            options.get("correction_norm", "paper"),
            eta=options.get("eta", 0.0),
        )
    assert fast.shape == source.shape
    assert expected.std() > 0.1
    assert ((expected > 0) & (expected < 1)).all()  # clipping hides nothing
    torch.testing.assert_close(fast, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_co_prediction_agrees_with_the_slow_loop(prediction_type, sampler):
    compare(prediction_type, sampler, 1e-9, num_steps=8)


@pytest.mark.parametrize("correction_norm", ["paper", "reference_code"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_corrections_agree_with_the_slow_loop(prediction_type, sampler, correction_norm):
    compare(prediction_type, sampler, 1e-6, num_corrections=1, correction_norm=correction_norm)


@pytest.mark.parametrize(
    "options",
    [
        {"co_prediction": False},
        {"slab_size": 1},
        {"slab_size": 5},
        {"slab_size": 5, "co_prediction": False},
        {"slab_stride": 2},
        {"slab_stride": 3},
        {"slab_size": 5, "slab_stride": 3},
        {"slab_stride": 3, "num_corrections": 1, "correction_norm": "reference_code"},
        {"num_corrections": 2, "step_size": 2.0, "correction_norm": "reference_code"},
    ],
)
def test_options_agree_with_the_slow_loop(options):
    compare("sample", "mean_path", 1e-6 if "num_corrections" in options else 1e-9, **options)


def test_noisy_implicit_steps_agree_with_the_slow_loop():
    compare("sample", "implicit", 1e-9, eta=0.5)


def half_negative(x, timesteps, context=None, source=None):
    """An oracle where the target is known to be x0 = -y / 2."""
    return -source / 2


@pytest.mark.parametrize("num_corrections", [0, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_an_oracle_gives_the_target(prediction_type, sampler, num_corrections):
    scheduler = BrownianBridgeScheduler(prediction_type=prediction_type)
    source = volume(2)
    for num_steps in (1, 2, 3, 6):
        inferer = ISTAInferer(
            scheduler,
            num_inference_steps=num_steps,
            num_corrections=num_corrections,
            sampler=sampler,
            timestep_spacing=spacing_of(sampler),
            start_noise=True,
        )
        # x0 = -y / 2 in [-1, 1] is (1 - (2 y - 1) / 2) / 2 in [0, 1].
        torch.testing.assert_close(
            inferer(source, predicting(scheduler, half_negative)), 0.75 - source / 2, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("num_slices", [1, 2, 5])
def test_a_constant_network_gives_its_constant_clipped(num_slices):
    inferer = ISTAInferer(BrownianBridgeScheduler(prediction_type="sample"), num_inference_steps=3, num_corrections=1)
    source = volume(3, (1, 1, 4, 5, num_slices), torch.float32)
    for constant, expected in ((0.2, 0.6), (1.7, 1.0), (-1.2, 0.0)):
        output = inferer(source, lambda x, timesteps, context, source, constant=constant: torch.full_like(x, constant))
        torch.testing.assert_close(output, torch.full_like(source, expected))


@pytest.mark.parametrize("num_corrections", [0, 1])
def test_a_volume_upside_down_gives_its_result_upside_down(num_corrections):
    network = RandomNetwork()

    def symmetric(x, timesteps, context=None, source=None):
        mirrored = network(x.flip(1), timesteps, context, source.flip(1)).flip(1)
        return network(x, timesteps, context, source) + mirrored

    inferer = ISTAInferer(
        BrownianBridgeScheduler(),
        num_inference_steps=4,
        num_corrections=num_corrections,
        correction_norm="reference_code",
    )
    source = volume(4)
    torch.testing.assert_close(
        inferer(source.flip(-1), symmetric), inferer(source, symmetric).flip(-1), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_results_do_not_depend_on_batch_size_or_company(sampler):
    source, network = volume(5, (2, 1, 8, 7, 9), torch.float32), RandomNetwork(dtype=torch.float32)
    options = {
        "sampler": sampler,
        "timestep_spacing": spacing_of(sampler),
        "num_inference_steps": 6,
        "start_noise": True,
    }
    reference = ISTAInferer(BrownianBridgeScheduler(), batch_size=1, **options)(source, network)
    for batch_size in (2, 4, 9, 100):
        inferer = ISTAInferer(BrownianBridgeScheduler(), batch_size=batch_size, **options)
        torch.testing.assert_close(inferer(source, network), reference, rtol=0, atol=1e-5)
        alone = torch.cat([inferer(source[i : i + 1], network) for i in range(2)])
        torch.testing.assert_close(alone, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("num_steps", "num_corrections"), [(1, 3), (2, 0), (5, 0), (5, 1), (7, 2)])
def test_number_of_network_evaluations(num_steps, num_corrections):
    """S + M (S - 1) on every slab of each volume, in batches no larger than asked, at the grid's timesteps."""
    seen = []

    def network(x, timesteps, context=None, source=None):
        assert len(x) == len(source) == len(timesteps) <= 2
        seen.extend(timesteps.tolist())
        return 0.1 * x

    scheduler = BrownianBridgeScheduler()
    inferer = ISTAInferer(scheduler, num_inference_steps=num_steps, num_corrections=num_corrections, batch_size=2)
    inferer(volume(6, (2, 1, 4, 4, 5)), network)
    slabs = 2 * 5
    assert len(seen) == slabs * (num_steps + num_corrections * (num_steps - 1))
    assert seen.count(999) == slabs
    for t in scheduler.timesteps.tolist()[1:]:
        assert seen.count(t) == slabs * (1 + num_corrections)


@pytest.mark.parametrize(("stride", "num_steps", "slabs"), [(1, 4, 40), (2, 4, 28), (3, 4, 24), (3, 1, 10)])
def test_a_stride_spares_slabs_until_the_last_evaluation(stride, num_steps, slabs):
    """Of 10 slabs: those at every stride-th slice and at both ends, moving on; all of them in the end."""
    calls = []

    def network(x, timesteps, context=None, source=None):
        calls.append(len(x))
        return 0.1 * x

    inferer = ISTAInferer(BrownianBridgeScheduler(), num_inference_steps=num_steps, slab_stride=stride, batch_size=100)
    inferer(volume(6, (1, 1, 4, 4, 10)), network)
    assert sum(calls) == slabs
    assert calls[-1] == 10


class SmallMemory:
    """A device that has room for a few slabs a call, and says so as PyTorch does."""

    def __init__(self, room, error):
        self.room, self.error, self.calls, self.network = room, error, [], RandomNetwork()

    def __call__(self, x, timesteps, context=None, source=None):
        self.calls.append(len(x))
        if len(x) > self.room:
            raise self.error
        return self.network(x, timesteps, context, source)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(error, caplog):
    network, source = SmallMemory(3, error), volume(13, (2, 1, 6, 5, 9))
    inferer = ISTAInferer(BrownianBridgeScheduler(), num_inference_steps=3, batch_size=8)
    output = inferer(source, network)
    torch.testing.assert_close(
        output,
        ISTAInferer(BrownianBridgeScheduler(), num_inference_steps=3)(source, RandomNetwork()),
        rtol=0,
        atol=1e-9,
    )
    assert network.calls[:3] == [8, 4, 2]
    assert max(network.calls[3:]) == 2  # it is not tried again
    assert inferer.batch_size_used == 2
    assert [r.getMessage() for r in caplog.records] == [
        f"The memory ran out with {n} slabs a call; going on with {n // 2}." for n in (8, 4)
    ]


def test_memory_for_not_even_one_slab_is_an_error_and_so_is_any_other():
    inferer = ISTAInferer(BrownianBridgeScheduler(), num_inference_steps=2, batch_size=4)
    with pytest.raises(MemoryError):
        inferer(volume(), SmallMemory(0, MemoryError()))
    network = SmallMemory(0, RuntimeError("The size of tensor a must match"))
    with pytest.raises(RuntimeError, match="size of tensor"):
        inferer(volume(), network)
    assert network.calls == [4]


def test_an_automatic_batch_size_fits_into_the_memory(monkeypatch):
    source, network = volume(14, (1, 1, 16, 16, 12), torch.float32), RandomNetwork(dtype=torch.float32)
    inferer = ISTAInferer(BrownianBridgeScheduler(), num_inference_steps=2, batch_size="auto")
    assert inferer.batch_size_used is None
    monkeypatch.setattr("scripts.devices.available_memory", lambda device: 10**9)
    roomy = inferer(source, network)
    assert inferer.batch_size_used == 8
    # half of it for three slabs that hold no more than input, hidden features and result
    monkeypatch.setattr("scripts.devices.available_memory", lambda device: 2 * 3 * (3 * 2 + 3 + 3) * 16 * 16 * 4)
    tight = inferer(source, network)
    assert 1 <= inferer.batch_size_used < 8
    torch.testing.assert_close(tight, roomy, rtol=0, atol=1e-5)


def test_virtual_slices_start_as_background_and_take_part():
    """The first slab's outer slice is -1 in source and state, and then moves with what was predicted for it."""
    states = []

    def network(x, timesteps, context=None, source=None):
        assert (source[0, 0] == -1).all()
        assert (source[-1, -1] == -1).all()
        states.append(x[0, 0].mean().item())
        return torch.full_like(x, 0.5)

    scheduler = BrownianBridgeScheduler(prediction_type="sample")
    source = volume(7)
    source[..., [0, -1]] = 0
    ISTAInferer(scheduler, num_inference_steps=3, batch_size=10)(source, network)
    m = scheduler.source_weights
    ratio = float(m[1] / m[999])
    assert states[0] == -1
    assert states[1] == pytest.approx(-ratio + (1 - ratio) * 0.5)


def test_style_key_reaches_the_network():
    contexts = []

    def network(x, timesteps, context=None, source=None):
        contexts.append(context)
        return x

    own, other = np.random.default_rng(0).random((2, 3, 128)).astype(np.float32)
    options = {"num_inference_steps": 1, "batch_size": 3}
    source = volume(8, dtype=torch.float32)
    ISTAInferer(BrownianBridgeScheduler(), own, **options)(source, network)
    ISTAInferer(BrownianBridgeScheduler(), own, **options)(source, network, style_key=torch.from_numpy(other))
    ISTAInferer(BrownianBridgeScheduler(), None, **options)(source, network)
    assert [c is None for c in contexts] == [False] * 4 + [True] * 2
    for context, key, n in zip(contexts, (own, own, other, other), (3, 1, 3, 1), strict=False):
        assert context.shape == (n, 3, 128)
        assert context.dtype == torch.float32
        np.testing.assert_array_equal(context, np.stack([key] * n))
    with pytest.raises(ValueError, match=r"style key has shape \(128,\)"):
        ISTAInferer(BrownianBridgeScheduler(), own[0], **options)(source, network)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_the_inputs_type_and_the_network_its_own(dtype):
    network = RandomNetwork(dtype=torch.float32)
    seen = set()

    def recording(x, timesteps, context=None, source=None):
        output = network(x, timesteps, context, source)
        layout = x.is_contiguous(memory_format=torch.channels_last)
        seen.add((x.dtype, source.dtype, context.dtype, layout, torch.is_autocast_enabled("cpu")))
        return output

    source, key = volume(9, dtype=dtype), np.ones((3, 16))
    scheduler = BrownianBridgeScheduler(prediction_type="sample")
    exact = ISTAInferer(scheduler, key, num_inference_steps=4, dtype=torch.float32)(source, recording)
    assert seen == {(torch.float32,) * 3 + (False, False)}
    seen.clear()
    half = ISTAInferer(scheduler, key, num_inference_steps=4, dtype=torch.bfloat16)(source, recording)
    assert seen == {(torch.float32,) * 3 + (True, True)}
    assert exact.dtype == half.dtype == dtype
    assert 0 < (exact - half).abs().max() < 0.03


def test_noise_is_seeded_and_leaves_the_global_generator_alone():
    source, network = volume(10), RandomNetwork()

    def run(seed, **options):
        scheduler = BrownianBridgeScheduler(prediction_type="sample")
        return ISTAInferer(scheduler, num_inference_steps=4, seed=seed, **options)(source, network)

    state = torch.get_rng_state()
    for options in (
        {"sampler": "ancestral"},
        {"sampler": "implicit", "eta": 0.5},
        {"sampler": "implicit", "start_noise": True},
    ):
        assert torch.equal(run(1, **options), run(1, **options))
        assert not torch.equal(run(1, **options), run(2, **options))
    assert torch.equal(run(1), run(2))
    assert torch.equal(run(1, sampler="implicit"), run(2, sampler="implicit"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("correction_norm", ["paper", "reference_code"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_score_of_rounding_size_does_not_blow_up(dtype, correction_norm):
    """Empty slices that the network leaves where they are have no score but rounding: they must stay where they are."""
    furthest = []

    def network(x, timesteps, context=None, source=None):
        furthest.append(float((x + 0.9).abs().max()))
        return torch.full_like(x, -0.9)

    inferer = ISTAInferer(
        BrownianBridgeScheduler(prediction_type="sample"),
        num_inference_steps=20,
        num_corrections=3,
        step_size=2.0,
        correction_norm=correction_norm,
        slab_size=1,
    )
    source = torch.full(SHAPE, 0.05, dtype=dtype)
    assert torch.isfinite(inferer(source, network)).all()
    assert max(furthest) < (1e-5 if dtype == torch.float32 else 1e-13)


def test_meta_tensors_keep_their_place_in_the_world():
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    source = MetaTensor(volume(11, dtype=torch.float32), affine=affine)

    def network(x, timesteps, context=None, source=None):
        assert type(x) is torch.Tensor
        return x

    output = ISTAInferer(BrownianBridgeScheduler(), num_inference_steps=2)(source, network)
    assert isinstance(output, MetaTensor)
    np.testing.assert_array_equal(output.affine, affine)
    np.testing.assert_array_equal(source, volume(11, dtype=torch.float32))


def test_progress_bar(capsys):
    for progress in (True, False):
        inferer = ISTAInferer(BrownianBridgeScheduler(), num_inference_steps=3, progress=progress)
        inferer(volume(12), RandomNetwork())
        assert ("0/3" in capsys.readouterr().err) is progress


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slab_size": 2}, "odd number"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "most"}, "batch_size is 'most'; it has to be a whole number or auto"),
        ({"slab_stride": 0}, "slab_stride is 0"),
        ({"slab_stride": 4}, "slab_stride is 4; it must be from 1 to slab_size, 3"),
        ({"final_stride": 4}, "final_stride is 4; it must be from 1 to slab_size, 3"),
        ({"num_corrections": -1}, "num_corrections is -1"),
        ({"step_size": 0.0}, "step_size 0.0"),
        ({"correction_norm": "l2"}, "l2"),
        ({"sampler": "ddim"}, "ddim"),
        ({"sampler": "implicit_2"}, "lambda grid"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"sampler": "implicit", "eta": 1.5}, "eta is 1.5"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ISTAInferer(BrownianBridgeScheduler(), **options)


@pytest.mark.parametrize(
    "inputs", [torch.rand(1, 2, 4, 4, 3), torch.rand(1, 4, 4, 3), torch.zeros(SHAPE, dtype=torch.uint8)]
)
def test_wrong_inputs_are_refused(inputs):
    with pytest.raises(ValueError, match=r"floating volumes \(B, 1, H, W, Z\)"):
        ISTAInferer(BrownianBridgeScheduler())(inputs, RandomNetwork())


@pytest.mark.parametrize("name", ["num_inference_steps", "num_corrections", "batch_size", "slab_size", "slab_stride"])
def test_a_count_that_is_no_whole_number_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} is 'ten'"):
        ISTAInferer(BrownianBridgeScheduler(), **{name: "ten"})


def sided(x, timesteps, context=None, source=None, place=None):
    """A network that knows left from right: it adds where it is, and what it finds to its left."""
    rows = torch.linspace(-0.2, 0.3, x.shape[-2], dtype=x.dtype)[:, None]
    beside = 0 if place is None else 0.1 * place
    return 0.5 * x + 0.3 * source.roll(1, -2) + rows + beside


@pytest.mark.parametrize("num_steps", [1, 3])
def test_mirrored_predictions_make_the_sampler_commute_with_a_mirror(num_steps):
    volumes = 0.3 + 0.4 * torch.rand(1, 2, 12, 10, 5, dtype=torch.float64)
    options = {"num_inference_steps": num_steps, "channels": {"source": 1, "place": 1}}
    plain, mirrored = (ISTAInferer(BrownianBridgeScheduler(), mirrored=m, **options) for m in (False, True))
    assert mirrored.evaluations == 2 * plain.evaluations
    result = mirrored(volumes, sided)
    torch.testing.assert_close(mirrored(volumes.flip(2), sided), result.flip(2), rtol=0, atol=1e-12)
    assert (plain(volumes.flip(2), sided) - plain(volumes, sided).flip(2)).abs().max() > 0.01
    if num_steps == 1:
        averaged = (plain(volumes, sided) + plain(volumes.flip(2), sided).flip(2)) / 2
        torch.testing.assert_close(result, averaged, rtol=0, atol=1e-12)


def test_mirrored_is_yes_or_no():
    with pytest.raises(ValueError, match="mirrored is 'yes'; it must be True or False"):
        ISTAInferer(BrownianBridgeScheduler(), mirrored="yes")


def test_missing_slices_turn_to_the_first_prediction_the_farther_they_are():
    """A network that gives the timestep: the first evaluation is at the last timestep, later ones nearer to 0."""
    scheduler = BrownianBridgeScheduler(prediction_type="sample")

    def network(x, timesteps, context=None, source=None, missing=None):
        return (timesteps / 1000).to(x).reshape(-1, 1, 1, 1).expand_as(x)

    away = torch.tensor([0.0, 1.0, 2.0, 3.0, 2.0, 1.0])
    volume = torch.rand(1, 2, 8, 8, 6)
    volume[:, 1] = (away / 8).expand(8, 8, 6)
    settings = {"num_inference_steps": 5, "sampler": "implicit", "channels": {"source": 1, "missing": 1}}
    image = ISTAInferer(scheduler, **settings)(volume, network)
    first = ISTAInferer(scheduler, **settings, detail=0.0)(volume, network)
    dense = ISTAInferer(scheduler, **settings)(volume[:, :1], network)
    assert not torch.allclose(first, dense)
    torch.testing.assert_close(image, torch.lerp(dense, first, (away / 2).clamp(max=1).expand_as(dense)))


def test_the_last_evaluation_has_a_stride_of_its_own():
    slabs = []

    def network(x, timesteps, context=None, source=None):
        slabs.append(len(x))
        return x.mean(1, keepdim=True).expand_as(x) * 0.5

    volume = torch.rand(1, 1, 4, 4, 27, dtype=torch.float64)
    options = {"num_inference_steps": 3, "slab_size": 9, "slab_stride": 9, "batch_size": 100}
    ISTAInferer(BrownianBridgeScheduler(), final_stride=3, **options)(volume, network)
    assert slabs == [4, 5, 10]  # every ninth of 27, the first and the last; every third at the end


def test_conditions_of_a_whole_volume_reach_every_call_of_the_network():
    told = []

    def network(x, timesteps, context=None, source=None, target_contrast=None):
        told.append(target_contrast.tolist())
        return target_contrast.reshape(-1, 1, 1, 1).expand_as(x)

    scheduler = BrownianBridgeScheduler(prediction_type="sample")
    inferer = ISTAInferer(scheduler, num_inference_steps=2, batch_size=2)
    made = inferer(torch.rand(1, 1, 8, 8, 5), network, target_contrast=torch.tensor([1.0]))
    assert len(told) >= 6
    assert all(target == [1] for target in told)
    assert (made == 1).all()
