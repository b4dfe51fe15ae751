import pytest
import torch
import torch.nn.functional as F
from support import recipe_input, small_config, small_unet

from difformer import UNet


@pytest.fixture(scope="module")
def unet():
    return small_unet()


@pytest.fixture(scope="module")
def x():
    return recipe_input(3, 2, 3, 32, 32)


def hooked(unet, x, t, wanted, inject=None):
    """Features and injections the plain way: hooks on a whole forward pass, no code of `forward_taps`."""
    blocks = dict(zip(unet.taps, [*unet.input_blocks, unet.middle_block, *unet.output_blocks], strict=True))
    found, handles = {}, []

    def add(value):
        return lambda module, args, output: (
            output + F.interpolate(value, output.shape[2:], mode="bilinear", align_corners=False)
        )

    for name, value in (inject or {}).items():
        handles.append(blocks[name].register_forward_hook(add(value)))
    for name in wanted:
        handles.append(blocks[name].register_forward_hook(lambda m, a, output, name=name: found.update({name: output})))
    unet(x, t)
    for handle in handles:
        handle.remove()
    return found


def test_early_stop_gives_the_features_of_a_full_run(unet, x):
    expected = hooked(unet, x, 150, list(unet.taps))
    for name in unet.taps:
        assert torch.equal(unet.forward_taps(x, 150, [name])[name], expected[name])


def test_nothing_after_the_deepest_tap_runs(unet, x):
    ran = []
    blocks = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    handles = [block.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(blocks)]
    unet.forward_taps(x, 150, ["in02", "mid", "in00"])
    for handle in handles:
        handle.remove()
    assert ran == list(range(len(unet.input_blocks) + 1))


def test_output_follows_the_order_of_the_request(unet, x):
    request = ["out03", 2, "mid", "12"]
    features = unet.forward_taps(x, 150, request)
    assert list(features) == ["out03", "in01", "mid", "out01"]
    for name, spec in unet.taps.items():
        if name in features:
            assert features[name].shape == (2, spec.channels, spec.size, spec.size)
            assert torch.equal(features[name], unet.forward_taps(x, 150, [name])[name])


@pytest.mark.parametrize(
    ("taps", "message"),
    [([], "no tap"), (["mid", 10], "more than once"), (["out99"], "unknown tap 'out99'"), ("mid", "sequence")],
)
def test_bad_requests_raise(unet, x, taps, message):
    with pytest.raises(ValueError, match=message):
        unet.forward_taps(x, 150, taps)


@pytest.mark.parametrize("side", [1, 5, 16, 32])
def test_injection_into_every_encoder_block_matches_hooks(unet, x, side):
    for index, name in enumerate(list(unet.taps)[: len(unet.input_blocks)]):
        value = recipe_input(index, 2, unet.taps[name].channels, side, side)
        wanted = [name, "mid", list(unet.taps)[-1 - index]]
        expected = hooked(unet, x, 150, wanted, {name: value})
        features = unet.forward_taps(x, 150, wanted, inject={name: value})
        for tap in wanted:
            torch.testing.assert_close(features[tap], expected[tap], rtol=1e-5, atol=1e-5)
            assert not torch.allclose(features[tap], unet.forward_taps(x, 150, [tap])[tap], atol=1e-2)


def test_several_injections_by_name_and_number_match_hooks(unet, x):
    inject = {"in01": recipe_input(1, 2, 32, 32, 32), "mid": recipe_input(2, 2, 64, 8, 8)}
    inject["out02"] = recipe_input(3, 2, 64, 4, 8)
    expected = hooked(unet, x, 150, ["out05"], inject)["out05"]
    found = unet.forward_taps(x, 150, ["out05"], inject={13: inject["out02"], "10": inject["mid"], 2: inject["in01"]})
    torch.testing.assert_close(found["out05"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("inject", "message"),
    [
        ({"in99": torch.zeros(2, 32, 8, 8)}, "unknown tap"),
        ({"in01": torch.zeros(2, 33, 8, 8)}, r"in01 must have shape \(2, 32, h, w\)"),
        ({"in01": torch.zeros(1, 32, 8, 8)}, r"\(2, 32, h, w\)"),
        ({"in01": torch.zeros(2, 32)}, r"\(2, 32, h, w\)"),
        ({"in01": torch.zeros(2, 32, 0, 8)}, r"\(2, 32, h, w\)"),
        ({"in01": torch.zeros(2, 32, 8, 8).long()}, r"in01 must be a floating-point tensor, got torch\.int64"),
        ({"in01": 0.5}, "in01 must be a floating-point tensor, got float"),
        ({"in01": torch.zeros(2, 32, 8, 8), 2: torch.zeros(2, 32, 8, 8)}, "more than once"),
        ({"out03": torch.zeros(2, 64, 8, 8)}, "out03, which comes after mid"),
    ],
)
def test_bad_injections_raise(unet, x, inject, message):
    with pytest.raises(ValueError, match=message):
        unet.forward_taps(x, 150, ["mid"], inject=inject)


def test_nothing_runs_for_a_request_that_is_refused(unet, x):
    ran = []
    handle = unet.time_embed.register_forward_hook(lambda *_: ran.append(1))
    for taps, inject in [(["out99"], None), (["mid"], {"in01": torch.zeros(2, 1, 8, 8)}), (["in00"], {"mid": x})]:
        with pytest.raises(ValueError, match=r"out99|in01|mid"):
            unet.forward_taps(x, 150, taps, inject=inject)
    handle.remove()
    assert ran == []


def test_going_on_from_any_prefix_gives_what_a_whole_pass_gives(unet, x):
    wanted = ["out03", "in00", "mid", "in08", "out08"]
    expected = unet.forward_taps(x, 150, wanted)
    for last in list(unet.taps)[: len(unet.input_blocks)]:
        prefix = unet.forward_prefix(x, 150, last)
        assert list(prefix.outputs) == list(unet.taps)[: unet.taps[last].block]
        found = unet.forward_from(prefix, wanted)
        assert list(found) == wanted
        for tap in wanted:
            assert torch.equal(found[tap], expected[tap])
        assert torch.equal(unet.forward_from(prefix, ["in00"])["in00"], expected["in00"])


def test_injections_after_any_prefix_give_what_a_whole_pass_gives(unet, x):
    encoder = list(unet.taps)[: len(unet.input_blocks)]
    for index, last in enumerate(encoder):
        inject = {
            tap: recipe_input(i, 2, unet.taps[tap].channels, 8, 8)
            for i, tap in enumerate([*encoder[index:], "mid", "out01"])
        }
        prefix = unet.forward_prefix(x, 150, last)
        before = {name: feature.clone() for name, feature in prefix.outputs.items()}
        for _ in range(2):  # the prefix is as good for the second pass as for the first
            wanted = [last, "out05", "in00"] if last != "in00" else [last, "out05"]
            expected, found = (
                unet.forward_taps(x, 150, wanted, inject=inject),
                unet.forward_from(prefix, wanted, inject=inject),
            )
            for tap in wanted:
                assert torch.equal(found[tap], expected[tap])
        assert list(prefix.outputs) == list(before)
        assert all(torch.equal(prefix.outputs[name], feature) for name, feature in before.items())
        assert prefix.h is prefix.outputs[last]


def test_gradients_flow_from_a_prefix_to_injections(unet, x):
    gradients = []
    for run in (
        lambda value: unet.forward_taps(x, 150, ["out02"], inject={"in04": value}),
        lambda value: unet.forward_from(unet.forward_prefix(x, 150, "in04"), ["out02"], inject={"in04": value}),
    ):
        value = recipe_input(1, 2, 32, 16, 16).requires_grad_()
        run(value)["out02"].square().sum().backward()
        gradients.append(value.grad)
    unet.zero_grad(set_to_none=True)
    torch.testing.assert_close(*gradients)


def test_a_prefix_takes_labels():
    conditional, x, y = small_unet(num_classes=5), recipe_input(3, 2, 3, 32, 32), torch.tensor([0, 4])
    found = conditional.forward_from(conditional.forward_prefix(x, 10, "in03", y=y), ["out08"])
    assert torch.equal(found["out08"], conditional.forward_taps(x, 10, ["out08"], y=y)["out08"])


def test_bad_prefixes_raise(unet, x):
    for last, message in [("mid", "must end in the encoder"), ("out00", "not at out00"), ("in99", "unknown tap")]:
        with pytest.raises(ValueError, match=message):
            unet.forward_prefix(x, 150, last)
    prefix = unet.forward_prefix(x, 150, "in03")
    for taps, inject, message in [
        (["mid"], {"in02": torch.zeros(2, 32, 8, 8)}, "in02, which comes before the end of the prefix"),
        (["mid"], {"in04": torch.zeros(3, 32, 8, 8)}, r"\(2, 32, h, w\)"),
        (["in03"], {"in04": torch.zeros(2, 32, 8, 8)}, "comes after in03"),
        ([], {}, "no tap"),
    ]:
        with pytest.raises(ValueError, match=message):
            unet.forward_from(prefix, taps, inject=inject)


@pytest.mark.parametrize("size", [(16, 16), (64, 32), (4, 36)])
def test_other_and_non_square_sizes_work(unet, size):
    x = recipe_input(5, 1, 3, *size)
    features = unet.forward_taps(x, 10, list(unet.taps))
    for name, spec in unet.taps.items():
        assert features[name].shape[2:] == tuple(side * spec.size // 32 for side in size)
    assert unet(x, 10).shape == (1, 6, *size)


@pytest.mark.parametrize("size", [(30, 32), (32, 33), (0, 32)])
def test_sizes_that_the_downsampling_does_not_divide_raise(unet, size):
    with pytest.raises(ValueError, match="multiples of 4"):
        unet.forward_taps(torch.zeros(1, 3, *size), 10, ["mid"])


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)]
)
def test_bad_images_raise(unet, images):
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\)"):
        unet(images, 10)


def test_timesteps_may_be_one_or_one_an_image(unet, x):
    both = unet(x, torch.tensor([10, 500]))
    torch.testing.assert_close(both, torch.cat([unet(x[:1], 10), unet(x[1:], torch.tensor(500))]), rtol=1e-4, atol=1e-5)
    for t, message in [
        (torch.tensor([1, 2, 3]), "one timestep or 2"),
        (True, "real numbers"),
        (1j, "real numbers"),
        (None, "t must be a number"),
        ("a", "t must be a number"),
    ]:
        with pytest.raises(ValueError, match=message):
            unet(x, t)


def test_class_labels_are_wanted_exactly_where_the_network_has_classes(unet, x):
    conditional = small_unet(num_classes=5)
    y = torch.tensor([0, 4])
    assert not torch.allclose(conditional(x, 10, y), conditional(x, 10, y.flip(0)), atol=1e-3)
    assert list(conditional.forward_taps(x, 10, ["mid"], y=y)) == ["mid"]
    for same in ([0, 4], y.short(), y.byte(), y.int()):
        assert torch.equal(conditional(x, 10, same), conditional(x, 10, y))
    for network, labels, message in [
        (conditional, None, r"give y, a label in \[0, 5\) for each image"),
        (unet, y, "not class-conditional"),
        (conditional, torch.tensor([0, 5]), r"must lie in \[0, 5\)"),
        (conditional, torch.tensor([0]), "y must be integers, one an image"),
        (conditional, torch.tensor([0.0, 1.0]), "y must be integers, one an image"),
        (conditional, torch.tensor([False, True]), "y must be integers, one an image"),
        (conditional, ["cat", "dog"], "y must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            network.forward_taps(x, 10, ["mid"], y=labels)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_torsos_stay_close(unet, x, dtype, tolerance):
    half = small_unet().cast_torso(dtype)
    kept = {p.dtype for n, p in half.named_parameters() if ".emb_layers." in n or "time_embed" in n or n[:4] == "out."}
    norms = {m.weight.dtype for m in half.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert kept == norms == {torch.float32}
    assert half.dtype == dtype
    features, expected = half.forward_taps(x, 150, list(unet.taps)), unet.forward_taps(x, 150, list(unet.taps))
    for name, feature in features.items():
        assert feature.dtype == dtype
        error = (feature.float() - expected[name]).norm() / expected[name].norm()
        assert error < tolerance
    assert half(x, 150).dtype == torch.float32
    with pytest.raises(ValueError, match="float64"):
        half.cast_torso(torch.float64)


def test_gradient_checkpointing_changes_nothing_but_memory(unet, x):
    gradients = []
    for checkpointing in (False, True):
        unet.gradient_checkpointing = checkpointing
        injected = recipe_input(1, 2, 32, 32, 32).requires_grad_()
        unet.forward_taps(x, 150, ["out02"], inject={"in01": injected})["out02"].square().sum().backward()
        gradients.append(injected.grad)
    unet.gradient_checkpointing = False
    unet.zero_grad(set_to_none=True)
    torch.testing.assert_close(*gradients)


def test_gradient_checkpointing_keeps_fewer_activations(x):
    def kept(checkpointing):
        network = small_unet()
        network.gradient_checkpointing = checkpointing
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network(x, 150)
        return total

    assert kept(True) < 0.5 * kept(False)


def test_dropout_acts_in_training_only(x):
    unet = small_unet(dropout=0.5)
    assert torch.equal(unet(x, 10), unet(x, 10))
    unet.train()
    assert not torch.allclose(unet(x, 10), unet(x, 10))


def test_a_new_network_starts_from_zero_output(x):
    assert not UNet(small_config())(x, 10).any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_gives_the_same_features(unet, x, dtype):
    expected = unet.forward_taps(x, 150, ["mid", "out04"])
    features = small_unet().cast_torso(dtype).cuda().forward_taps(x.cuda(), 150, ["mid", "out04"])
    for name, feature in features.items():
        error = (feature.float().cpu() - expected[name]).norm() / expected[name].norm()
        assert error < (1e-3 if dtype == torch.float32 else 0.1)
