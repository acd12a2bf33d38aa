import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autocompress.errors import PlanError, TraceError
from autocompress.models.students import MobileNetV2, ResNet
from autocompress.models.trace import trace


def warmed(model):
    """Give BatchNorms statistics and weights that are not neutral."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


class Standing(nn.Module):
    """A BatchNorm with no layer before it, one after an add, one over tokens."""

    def __init__(self):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6, affine=False)
        self.down = nn.Conv2d(6, 6, 1)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)
        self.bn3 = nn.BatchNorm1d(5)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv(self.bn0(x))))
        y = self.bn2(y + self.down(y))
        return self.bn3(self.fc(y.mean((2, 3))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn2(self.conv(F.relu(self.bn1(self.conv(x)))))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(6, 3)

    def forward(self, x, y):
        s = self.a(x) + self.b(y)
        return s, s.relu()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (ResNet(in_channels=1, depth=1), (1, 28, 28)),
        (MobileNetV2(in_channels=1), (1, 28, 28)),
        (Standing(), (3, 6, 6)),
        (Tied(), (4, 5, 5)),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (4,)),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(16, 3)), (2, 6)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8)),
    ],
)
def test_the_network_computes_what_the_model_does(model, shape):
    model = warmed(model)
    network = trace(model, (torch.randn(1, *shape),))
    for batch in (1, 2, 7):
        x = torch.randn(batch, *shape)
        torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network.module()(x)[0], model(x), rtol=1e-4, atol=1e-4)
    assert not any("batch_norm" in str(node.target) for node in network.graph.nodes)
    assert all(layer.bias in network.params for layer in network.layers)


def test_several_inputs_and_outputs():
    model = Two().eval()
    network = trace(model, (torch.randn(1, 4), torch.randn(1, 6)))
    x, y = torch.randn(3, 4), torch.randn(3, 6)
    for found, expected in zip(network(x, y), model(x, y), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_model_is_not_touched():
    model = warmed(ResNet(in_channels=1, depth=1))
    before = copy.deepcopy(model.state_dict())
    network = trace(model, (torch.randn(1, 1, 28, 28),))
    network.params["fc.weight"].zero_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_layer_table_counts_by_hand():
    model = warmed(MobileNetV2(in_channels=1))
    network = trace(model, (torch.randn(1, 1, 28, 28),))
    stem = network.layer("features.0.0")
    assert (stem.kind, stem.in_shape, stem.out_shape) == ("conv", (1, 28, 28), (16, 28, 28))
    assert stem.macs == 16 * 9 * 28 * 28
    assert stem.parameters == 16 * 9 + 16
    depthwise = network.layer("features.1.layers.0.0")
    assert (depthwise.kind, depthwise.groups) == ("depthwise", 16)
    assert depthwise.macs == 16 * 9 * 28 * 28
    head = network.layer("classifier")
    assert (head.kind, head.macs, head.positions) == ("linear", 2560, 1)
    assert network.macs == sum(layer.macs for layer in network.layers)
    with pytest.raises(PlanError, match=r"features\.0\.0"):
        network.layer("features.0.00")


def test_token_positions_count_in_macs():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    network = trace(model, (torch.randn(1, 5, 8),))
    assert network.layer("linear1").macs == 5 * 8 * 16
    assert network.layer("self_attn.out_proj").macs == 5 * 8 * 8


def test_fingerprint_changes_with_weights_alone():
    model = warmed(ResNet(in_channels=1, depth=1))
    x = (torch.randn(1, 1, 28, 28),)
    one, two = trace(model, x), trace(model, x)
    assert one.fingerprint == two.fingerprint
    changed = one.replace(params={"fc.bias": one.params["fc.bias"] + 1e-3})
    assert changed.fingerprint != one.fingerprint


def test_observe_sees_and_replaces_values():
    network = trace(warmed(Standing()), (torch.randn(1, 3, 6, 6),))
    x = torch.randn(2, 3, 6, 6)
    node = network.layer("conv").node
    seen = {}

    def observe(n, value):
        seen[n.name] = value
        return torch.zeros_like(value) if n.name == node else None

    zeroed = network.run(x, observe=observe)
    assert node in seen
    assert not torch.allclose(zeroed, network(x))
    assert torch.allclose(zeroed[0], zeroed[1])


def test_edits_leave_the_original_graph_alone():
    network = trace(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).eval(), (torch.randn(1, 2, 3),))
    view = next(n for n in network.graph.nodes if "reshape" in str(n.target))
    edited = network.replace(edits={view.name: (view.args[0], [-1, 6])})
    x = torch.randn(2, 2, 3)
    assert torch.equal(edited(x), network(x))
    assert [n.name for n in edited.graph.nodes] == [n.name for n in network.graph.nodes]
    assert next(n for n in edited.graph.nodes if n.name == view.name).args[1] == [-1, 6]
    assert view.args[1] != [-1, 6]


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


@pytest.mark.parametrize("model", [Branching(), FixedBatch()])
def test_what_cannot_be_exported_is_one_clear_error(model, capfd):
    with pytest.raises(TraceError, match=r"torch\.export"):
        trace(model.eval(), (torch.randn(1, 4),))
    assert capfd.readouterr() == ("", "")


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn(self.conv(-x))


def test_a_layer_called_twice_before_one_norm_is_folded_once():
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(8, 2, 6, 6)
    model(x * 2 + 1)
    network = trace(model.eval(), (x[:1],))
    torch.testing.assert_close(network(x), model(x), atol=1e-5, rtol=1e-5)
    assert set(network.params) == {"conv.weight", "conv.bias", "conv.bias_2"}  # each has its own
    assert [layer.name for layer in network.layers] == ["conv", "conv:2"]


class Computed(nn.Module):
    """A bias that is computed, inputs as *args, a weight behind a parametrization."""

    def __init__(self):
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(4, 2, 3, 3)), nn.Linear(2, 4)
        self.bn = nn.BatchNorm2d(4)
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))

    def forward(self, *inputs):
        x, y = inputs
        x = self.bn(torch.nn.functional.conv2d(x, self.weight, self.shift(y).mean(0)))
        return self.last(x.mean((2, 3)))


def test_computed_biases_many_inputs_and_names_of_parametrized_layers():
    torch.manual_seed(0)
    model, inputs = Computed().eval(), (torch.randn(3, 2, 6, 6), torch.randn(3, 2))
    network = trace(model, tuple(x[:1] for x in inputs))
    torch.testing.assert_close(network(*inputs), model(*inputs), atol=1e-5, rtol=1e-5)
    assert "last" in [layer.name for layer in network.layers]


class Keeping(nn.Module):
    """A layer that keeps something of what it sees; ``step``: what it does and returns."""

    def __init__(self, step):
        super().__init__()
        self.out = nn.Linear(4, 3)
        self.register_buffer("state", torch.zeros(4))
        self.step = step

    def forward(self, x):
        return self.step(self, x)


def _cached(net, x):
    last = x * 2
    net.state.copy_(last[0])
    return net.out(x), last


def _repeated(net, x):
    hidden = net.out(x).relu()
    net.state.copy_(x[0])
    return hidden, x, hidden[:, :2], hidden


def _averaged(net, x):
    net.state.mul_(0.9).add_(0.1 * x.mean(0))
    return net.out(x)


@pytest.mark.parametrize("step", [_cached, _repeated, _averaged])
def test_outputs_are_the_users_in_their_order(step):
    """State that is written has no part in them, though a value of it may be one too."""
    torch.manual_seed(0)
    model, x = Keeping(step).eval(), torch.randn(5, 4)
    network = trace(model, (x[:1],))
    with torch.no_grad():
        wanted = model(x)
    found, wanted = (v if isinstance(v, tuple) else (v,) for v in (network(x), wanted))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def _moving(net, x):
    net.state.mul_(0.9).add_(0.1 * x.mean(0))
    return net.out(x - net.state)


def _told(net, x):
    net.state.add_(x.mean(0))
    return net.out(x), net.state


def _before(net, x):
    found = net.out(x + net.state)
    net.state.add_(1)
    return found


@pytest.mark.parametrize("step", [_moving, _told, _before])
def test_answers_that_depend_on_state_are_refused_by_name(step):
    with pytest.raises(TraceError, match="reads 'state' and writes it"):
        trace(Keeping(step).eval(), (torch.randn(1, 4),))


def _emptied(net, x):
    net.state.zero_()
    net.state.add_(x.mean(0))
    return net.out(x - net.state)


def _filled(net, x):
    net.state.fill_(0.5)
    return net.out(x * net.state)


def _replaced(net, x):
    net.state.copy_(x[0])
    return net.out(x) + net.out(net.state)


@pytest.mark.parametrize("step", [_emptied, _filled, _replaced])
def test_state_that_is_overwritten_before_it_is_read_is_no_state(step):
    model, x = Keeping(step).eval(), torch.randn(5, 4)
    network = trace(model, (x[:1],))
    torch.testing.assert_close(network(x), model(x))


_RANDOM = {
    "randn": lambda net, x: net.out(x) + torch.randn(3),
    "rand_like": lambda net, x: net.out(x + torch.rand_like(x)),
    "a dropout that forgot training": lambda net, x: net.out(F.dropout(x, 0.5)),
    "attention that drops": lambda net, x: net.out(
        F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.2)[0]
    ),
    "bernoulli": lambda net, x: net.out(torch.bernoulli(x.sigmoid())),
    "randperm": lambda net, x: net.out(x[:, torch.randperm(4)]),
    "multinomial": lambda net, x: net.out(x) + torch.multinomial(x.softmax(-1), 3),
    "gumbel": lambda net, x: net.out(F.gumbel_softmax(x)),
}


@pytest.mark.parametrize("name", _RANDOM)
def test_answers_of_chance_are_refused(name):
    """A file would hold one draw of them for ever."""
    with pytest.raises(TraceError, match="forward draws random numbers"):
        trace(Keeping(_RANDOM[name]).eval(), (torch.randn(1, 4),))


_IDLE = {
    "unused": lambda net, x: (torch.randn(3), net.out(x))[1],
    "dropout in eval": lambda net, x: net.out(F.dropout(x, 0.5, net.training)),
    "rrelu in eval": lambda net, x: net.out(F.rrelu(x)),
    "attention": lambda net, x: net.out(
        F.scaled_dot_product_attention(x[None], x[None], x[None])[0]
    ),
}


@pytest.mark.parametrize("name", _IDLE)
def test_chance_without_a_part_in_the_answers_is_none(name):
    model, x = Keeping(_IDLE[name]).eval(), torch.randn(5, 4)
    network = trace(model, (x[:1],))
    torch.testing.assert_close(network(x), model(x))


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norms_with_running_statistics_are_batch_norms(affine):
    norm = nn.InstanceNorm2d(4, affine=affine, track_running_stats=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU())
    model(torch.randn(8, 3, 8, 8))  # in training, so that the statistics are not neutral
    x = torch.randn(5, 3, 8, 8)
    network = trace(model.eval(), (x[:1],))
    assert not any("norm" in str(node.target) for node in network.graph.nodes)
    torch.testing.assert_close(network(x), model(x))


def test_an_output_that_is_no_tensor_is_refused_but_none_is_left_out():
    x = torch.randn(1, 4)
    with pytest.raises(TraceError, match="output 1 is 3"):
        trace(Keeping(lambda net, x: (net.out(x), 3)).eval(), (x,))
    with pytest.raises(TraceError, match="must return tensors alone: output 1 is sym_size"):
        trace(Keeping(lambda net, x: (net.out(x), x.shape[0])).eval(), (x,))
    with pytest.raises(TraceError, match="forward returns none"):
        trace(Keeping(lambda net, x: None).eval(), (x,))
    network = trace(Keeping(lambda net, x: {"a": net.out(x), "b": (None, x)}).eval(), (x,))
    assert [tuple(value.shape) for value in network(x)] == [(1, 3), (1, 4)]


class Tables(nn.Module):
    """A position table that layers make of a buffer, and parameters named like values."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.randn(1, 15, 15, 2))
        self.up, self.down = nn.Linear(2, 512), nn.Linear(512, 8, bias=False)
        self.mix = nn.Linear(8, 8)
        for name in ("view", "add", "relu", "linear", "_2", "input", "output"):
            setattr(self, name, nn.Parameter(torch.randn(8)))

    def forward(self, x):
        place = self.down(self.up(self.table).relu()).view(-1, 8)[:4]
        x = self.mix(x.view(-1, 4, 8) + place + self.view).relu() * self.add
        return (x * self._2 + self.relu * self.linear + self.input).mean(1) + self.output


def test_layers_of_constants_are_folded():
    torch.manual_seed(0)
    model, x = Tables().eval(), torch.randn(6, 4, 8)
    network = trace(model, (x[:1],))
    assert [layer.name for layer in network.layers] == ["mix"]
    torch.testing.assert_close(network(x), model(x).detach(), rtol=1e-4, atol=1e-4)
    assert "table" not in network.params


def test_parameters_of_the_exported_module_are_named_like_no_value():
    network = trace(Tables().eval(), (torch.randn(1, 4, 8),))
    module = network.module()
    assert all(name.startswith("held.p") for name, _ in module.named_parameters())
    x = torch.randn(3, 4, 8)
    torch.testing.assert_close(module(x)[0], network(x))
