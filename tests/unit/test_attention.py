import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from support import small_unet
from torch.utils._python_dispatch import TorchDispatchMode

from difformer import AttentionUnavailable, UNetConfig
from difformer.models import attention
from difformer.models.attention import check_attention
from difformer.models.layers import AttentionBlock


def qkv(dtype=torch.float32, device="cpu", seed=0, queries=33):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, 3, n, 16, generator=generator).to(device, dtype) for n in (queries, 33, 33))


@pytest.mark.parametrize("queries", [33, 1])
def test_it_is_its_equation(queries):
    q, k, v = (x.double() for x in qkv(queries=queries))
    expected = torch.softmax(torch.einsum("bhnd,bhmd->bhnm", q, k) / 4, dim=-1) @ v
    for implementation in ("auto", "sdpa", "math"):
        output = attention(q, k, v, implementation=implementation)
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
def test_implementations_agree(dtype, tolerance):
    q, k, v = qkv(dtype)
    outputs = [attention(q, k, v, implementation=name) for name in ("math", "sdpa", "auto")]
    for output in outputs:
        assert output.dtype == dtype
        torch.testing.assert_close(output, outputs[0], rtol=tolerance, atol=tolerance)


def test_gradients_agree():
    gradients = []
    for name in ("math", "sdpa"):
        inputs = [x.requires_grad_() for x in qkv()]
        attention(*inputs, implementation=name).square().sum().backward()
        gradients.append([x.grad for x in inputs])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


class Operations(TorchDispatchMode):
    """Collects the names of the operations that run inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


FUSED = "_scaled_dot_product_flash_attention_for_cpu"


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("new_order", [False, True])
def test_the_u_nets_attention_is_fused_after_one_copy(new_order, gradient):
    config = UNetConfig(32, 64, (1,), 1, (32,), num_head_channels=16, use_new_attention_order=new_order)
    block = AttentionBlock(64, config, "auto")
    x = torch.randn(2, 64, 8, 8, requires_grad=gradient)
    with torch.set_grad_enabled(gradient), Operations() as ran:
        out = block(x)
    assert out.is_contiguous()
    assert FUSED in ran.names
    assert "_softmax" not in ran.names
    assert ran.names.count("clone") == 1


@pytest.mark.parametrize("last", [1, 2])
def test_inputs_in_any_layout_are_fused(last):
    q, k, v = (x.transpose(last, 3).contiguous().transpose(last, 3) for x in qkv())
    assert q.stride(3) > 1
    with Operations() as ran:
        output = attention(q, k, v)
    assert FUSED in ran.names
    torch.testing.assert_close(output, attention(q, k, v, implementation="math"), rtol=1e-5, atol=1e-5)


def test_float16_mathematics_survives_large_queries():
    q, k, v = (x * 60 for x in qkv(torch.float16))
    assert attention(q, k, v, implementation="math").isfinite().all()


def test_xformers_on_a_cpu_says_why_not():
    with pytest.raises(AttentionUnavailable, match=r"no attention for cpu.*auto"):
        attention(*qkv(), implementation="xformers")


def test_unknown_name_raises():
    with pytest.raises(ValueError, match=r"'flash'.*auto, xformers, sdpa, math"):
        attention(*qkv(), implementation="flash")
    with pytest.raises(ValueError, match="'flash'"):
        small_unet(attention_resolutions=()).__class__(small_unet().config, attention="flash")


def test_without_cuda_xformers_is_not_loaded_and_nothing_is_printed():
    script = """
import sys, torch
from difformer.models import attention
q = torch.zeros(1, 1, 4, 8)
attention(q, q, q)
assert "xformers" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [33, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_xformers_agrees_on_a_gpu(dtype, queries):
    q, k, v = qkv(dtype, "cuda", queries=queries)
    expected = attention(q.float(), k.float(), v.float(), implementation="math")
    for name in ("xformers", "sdpa", "auto"):
        torch.testing.assert_close(attention(q, k, v, implementation=name).float(), expected, rtol=3e-2, atol=3e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [33, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_agree_on_a_gpu(dtype, queries):
    gradients = {}
    for name in ("math", "xformers", "sdpa", "auto"):
        inputs = [x.requires_grad_() for x in qkv(dtype, "cuda", queries=queries)]
        attention(*inputs, implementation=name).square().sum().backward()
        gradients[name] = [x.grad.float() for x in inputs]
    for name in ("xformers", "sdpa", "auto"):
        torch.testing.assert_close(gradients[name], gradients["math"], rtol=5e-2, atol=5e-2)


@pytest.fixture
def module():
    # The package gives the function of the same name.
    module = importlib.import_module("difformer.models.attention")
    module._xformers_fits.cache_clear()
    yield module
    module._xformers_fits.cache_clear()


@pytest.mark.parametrize(
    "error", [RuntimeError("no kernel image"), OSError("libcuda"), AttributeError("ops"), KeyError(1)]
)
def test_the_automatic_choice_survives_a_broken_xformers(module, monkeypatch, error):
    def fail(q, k, v):
        raise error

    monkeypatch.setattr(module, "_xformers", fail)
    assert not module._xformers_fits(torch.device("cpu"), torch.float32, 8, False)

    def fail_to_look(name):
        raise error

    module._xformers_fits.cache_clear()
    monkeypatch.setattr(module, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=fail_to_look)))
    assert not module._xformers_fits(torch.device("cpu"), torch.float32, 8, False)


def test_the_automatic_choice_is_made_for_each_device_with_a_probe_there(module, monkeypatch):
    probed = []
    # In the module only, since torch looks for libraries of its own.
    monkeypatch.setattr(module, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: name)))
    monkeypatch.setattr(module, "_xformers", lambda q, k, v: probed.append((q.device.type, q.dtype)) or q * 1)
    for device, gradient in (("cpu", True), ("meta", False), ("cpu", True)):
        assert module._xformers_fits(torch.device(device), torch.bfloat16, 8, gradient)
    # Twice each: with as many queries as keys, and with one.
    assert probed == 2 * [("cpu", torch.bfloat16)] + 2 * [("meta", torch.bfloat16)]


def test_whether_an_implementation_runs_can_be_asked():
    for name in ("auto", "sdpa", "math"):
        check_attention(name, "cpu")
    check_attention("xformers")
    with pytest.raises(AttentionUnavailable, match="no attention for cpu"):
        check_attention("xformers", "cpu")
