import itertools
import random
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.abilities import Abilities
from autocompress.core.plan import Plan
from autocompress.cost.latency_terms import Term, features, terms
from autocompress.cost.workload import Op, Value, Workload, workload
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.targets import TARGETS
from autocompress.transforms.dry_run import dry_run
from tests.cost.test_workload import net_of, settings, work

NETS = ("resnet", "shuffled", "attention")

#: Rounds what integer layers read and nothing else; fuses ReLU; no layout of its own.
PLAIN = Abilities((2, 8, 16, 32), (8, 32), fused_activations=frozenset({"aten.relu.default"}))


def layer(name: str, into: str, out: str, a_bits: int = 32, **given: Any) -> Op:
    sizes: dict[str, Any] = {"cin": 4, "cout": 4, "pixels": 10, "taps": 9, **given}
    return Op(name, name, "conv", "conv", (into,), out, a_bits=a_bits, **sizes)


def other(kind: str, into: str, out: str) -> Op:
    return Op(out, out, kind, f"aten.{kind}", tuple(into), out)


def made(*ops: Op, small: str = "", sizes: int = 40, bits: int = 8) -> Workload:
    """A workload whose values are called by letters; those in ``small`` are rounded."""
    names = dict.fromkeys(name for op in ops for name in (*op.inputs, op.output))
    values = {n: Value(n, sizes, bits if n in small else 32, 10) for n in names}
    return Workload(ops, values, (ops[-1].output,))


def short(found: tuple[Term, ...]) -> list[str]:
    """Return terms in words: conversions as "f>q", layers and others as before(number)after."""
    words = []
    for term in found:
        converted = re.match(r"convert (\w+) to (\w+),", term.family)
        name = "int8" if "int8" in term.family else "float" if "float" in term.family else "else"
        words.append(
            f"{converted[1]}>{converted[2]}" if converted else f"{term.before}({name}){term.after}"
        )
    return words


def test_floats_are_converted_once_at_each_end() -> None:
    found = terms(made(layer("a", "x", "s"), layer("b", "s", "t"), other("elementwise", "t", "y")))
    assert short(found) == ["p>f", "p(float)f", "f(float)p", "f>p", "f(else)"]
    assert [term.op for term in found] == ["a", "a", "b", "y", "y"]


def test_integers_between_floats_are_converted_at_both_sides() -> None:
    ops = (layer("a", "x", "s"), layer("b", "s", "t", a_bits=8), layer("c", "t", "y"))
    found = terms(made(*ops, small="s"))
    # the rounded tensor of a float layer ("fr") becomes codes; floats come out
    assert short(found) == ["p>f", "p(float)qq", "fr>q", "f(int8)f", "q>f", "q(float)"]
    found = terms(made(*ops, small="st"))
    assert short(found) == ["p>f", "p(float)qq", "fr>q", "f(int8)qf", "q>f", "q(float)"]


def test_integers_among_themselves_need_nothing() -> None:
    ops = (layer("a", "x", "s", a_bits=8), layer("b", "s", "t", a_bits=8))
    found = terms(made(*ops, other("elementwise", "st", "y"), small="xsty"))
    assert short(found) == ["pr>q", "p(int8)qpq", "q(int8)qp", "qq(else)q"]


def test_a_rounded_tensor_that_a_float_layer_reads_is_rounded_all_the_same() -> None:
    ops = (layer("a", "x", "s"), layer("b", "s", "t"), layer("c", "s", "u", a_bits=8))
    found = terms(made(*ops, small="s"))
    assert short(found)[2:] == ["fr>f", "f(float)", "fr>q", "f(int8)"]


def test_a_value_is_converted_once_for_all_who_want_it_so() -> None:
    ops = (layer("a", "x", "s"), layer("b", "x", "t"), layer("c", "x", "u", a_bits=8))
    found = terms(made(*ops, other("elementwise", "xst", "y"), small=""))
    assert short(found) == [
        "p>f", "p(float)p", "p(float)p", "p>q", "p(int8)", "f>p", "f>p", "ffp(else)",
    ]  # fmt: skip
    assert [term.op for term in found if "convert" in term.family] == ["a", "c", "y", "y"]


def test_a_view_passes_the_format_of_its_source_on() -> None:
    for small, wanted in (("", ["f(float)", "f"]), ("sv", ["q(int8)", "q"])):
        bits = 8 if small else 32
        ops = (
            layer("a", "x", "s", a_bits=bits),
            other("view", "s", "v"),
            other("view", "v", "w"),
            layer("b", "w", "y", a_bits=bits),
        )
        found = terms(made(*ops, small=small + "w" * bool(small)))
        assert short(found)[-1] == wanted[0]
        assert found[-2].after[-1] == wanted[1]  # who reads a view reads its source
        assert len(found) == 3  # the network's input is converted, nothing else
        assert {term.op for term in found} == {"a", "b"}


def test_parts_of_a_split_are_counted_by_themselves() -> None:
    ops = (
        layer("a", "x", "s"),
        other("move", "s", "t"),
        other("view", "t", "u"),
        other("view", "t", "v"),
        layer("b", "u", "w", a_bits=8),
        other("move", "wv", "y"),
    )
    whole = made(*ops, small="u")
    values = {**whole.values, "u": Value("u", 30, 8, 10), "v": Value("v", 10, 32, 10)}
    found = terms(Workload(whole.ops, values, whole.outputs))
    assert short(found)[-4:] == ["p>q", "p(int8)p", "q>p", "pq(else)"]
    assert found[-4].area == 30  # of 40
    assert found[-1].area == 40 + 10 + 40
    assert found[3].after == "pq"  # of the split: both parts' readers


def test_the_layout_of_float_layers_is_a_format() -> None:
    ops = [layer("a", "x", "s"), layer("b", "s", "t"), layer("c", "t", "y")]
    plain = replace(ops[1], blocked=False)
    found = terms(made(ops[0], plain, ops[2]))
    assert short(found) == ["p>f", "p(float)p", "f>p", "f(float)f", "p>f", "p(float)"]
    assert found[3].family.startswith("conv plain float ")
    odd = {f"{u.name}/keep": 0.9 for u in net_of("resnet").units}
    blocks = TARGETS["onnxruntime"]().abilities
    assert blocks.float_block > 1
    families = {
        t.family for t in terms(workload(dry_run(net_of("resnet"), Plan(odd), blocks), blocks))
    }
    assert any("plain float" in family for family in families)


def test_families_separate_what_shares_no_kernel() -> None:
    base = layer("a", "x", "y")
    changes: list[dict[str, Any]] = [
        {}, {"kind": "depthwise"}, {"kind": "linear"}, {"kind": "grouped", "groups": 2},
        {"kind": "grouped", "groups": 4}, {"stride": 2}, {"pixels": 20}, {"taps": 25},
        {"a_bits": 8}, {"blocked": False},
    ]  # fmt: skip
    families = [terms(made(replace(base, **change)))[-1].family for change in changes]
    assert len(set(families)) == len(families)
    assert families[0] == "conv float 9 taps, stride 1, 10 positions"
    same: list[dict[str, Any]] = [
        {"w_bits": 4},
        {"cin": 8, "cout": 64},
        {"weight_bytes": 3},
        {"name": "b"},
    ]
    assert {terms(made(replace(base, **change)))[-1].family for change in same} == {families[0]}
    moves = [
        terms(made(other(kind, "x", "y"), sizes=size))[-1].family
        for kind, size in (("move", 40), ("move", 80), ("norm", 40))
    ]
    assert moves[0] == moves[1] != moves[2]


def test_sizes_of_a_layer_and_of_others() -> None:
    base = layer("a", "x", "y", cin=6, cout=8)
    assert terms(made(base))[-1] == Term(
        "conv float 9 taps, stride 1, 10 positions", 6, 8, 90, 10, "p", "", "a"
    )
    grouped = replace(base, kind="grouped", groups=2)
    assert terms(made(grouped))[-1][1:3] == (3, 8)
    depthwise = replace(base, kind="depthwise", groups=8, cin=8)
    assert terms(made(depthwise))[-1][1:3] == (1, 8)
    (added,) = terms(made(other("elementwise", "ab", "y")))
    assert added == Term("aten.elementwise, 10 positions", 8, 4, 0, 120, "pp", "", "y")
    convert = terms(made(base))[0]
    assert convert == Term("convert p to f, 10 positions", 4, 1, 0, 40, "", "", "a")


class Mixed(nn.Module):
    """An integer branch and a float one, a shortcut, a flatten before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, 1, stride=2)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        logits: Tensor = self.head((F.relu(self.a(x)) + self.b(x)).flatten(1))
        return logits


@pytest.fixture(scope="module")
def mixed() -> Network:
    torch.manual_seed(0)
    return trace(Mixed().eval(), (torch.randn(1, 3, 8, 8),))


def of(net: Network, *ints: str) -> tuple[Term, ...]:
    plan = Plan({f"{name}/{knob}": 8 for name in ints for knob in ("w_bits", "a_bits")})
    return terms(workload(dry_run(net, plan, PLAIN), PLAIN))


def test_a_traced_network_by_hand(mixed: Network) -> None:
    assert short(of(mixed)) == [
        "p>f", "p(float)f", "f(float)p", "f(float)p", "f>p", "f>p", "ff(else)f", "p>f", "p(float)",
    ]  # fmt: skip
    assert short(of(mixed, "a", "b")) == [
        "p>f", "p(float)qq", "fr>q", "f(int8)p", "f(int8)p", "q>p", "q>p", "qq(else)f", "p>f",
        "p(float)",
    ]  # fmt: skip
    # one of two readers asks for codes: the tensor stays float for both
    assert short(of(mixed, "a")) == short(of(mixed))
    # the flattened tensor is rounded, not what it is a view of
    last = of(mixed, "head")[-2:]
    assert short(last) == ["p>q", "p(int8)"]
    assert last[0].family == "convert p to q, 16 positions"
    assert (last[0].into, last[0].area) == (8, 128)


@pytest.mark.parametrize("name", NETS)
def test_every_operator_but_views_is_one_term_and_is_named(name: str) -> None:
    net, chance = net_of(name), random.Random(0)
    for _ in range(2):
        plan = {f"{u.name}/keep": chance.choice((0.3, 0.5, 1)) for u in net.units}
        for layer in net.layers:
            plan[f"{layer.name}/w_bits"] = chance.choice((2, 8, 32))
            plan[f"{layer.name}/a_bits"] = chance.choice((8, 32))
        found = work(net, Plan(plan))
        listed = terms(found)
        ops = [t for t in listed if not t.family.startswith("convert")]
        assert [t.op for t in ops] == [op.node for op in found.ops if op.kind != "view"]
        assert {t.op for t in listed} == {t.op for t in ops}
        place = {op: at for at, op in enumerate(t.op for t in ops)}
        assert [place[t.op] for t in listed] == sorted(place[t.op] for t in listed)
        for term, op in zip(ops, (op for op in found.ops if op.kind != "view"), strict=True):
            if op.layer:
                assert term.work * term.into * term.out == op.macs
            else:
                assert term.work == 0
        assert listed == terms(found)


@pytest.mark.parametrize("name", NETS)
def test_a_network_of_one_number_format_is_converted_at_its_ends_alone(name: str) -> None:
    def changes(a_bits: int) -> set[str]:
        found = terms(work(net_of(name), settings(net_of(name), 1, 8, a_bits)))
        return {t.family.split(",")[0] for t in found if t.family.startswith("convert")}

    assert changes(32) <= {"convert p to f", "convert f to p"}
    assert not any(change.endswith(" f") for change in changes(8))


def test_features_grow_with_sizes_and_have_the_family_in_their_names() -> None:
    base = Term("conv float 9 taps, stride 1, 10 positions", 6, 20, 90, 10, "p", "")
    found = dict(features(base))
    assert found == {
        f"{base.family}: once": 1.0,
        f"{base.family}: multiply-adds": pytest.approx(90 * 6 * 20 / 1e6),
        f"{base.family}: whole tiles": pytest.approx(90 * 8 * 32 / 1e6),
        f"{base.family}: inputs": pytest.approx(10 * 6 / 1e4),
        f"{base.family}: outputs": pytest.approx(10 * 20 / 1e4),
    }
    for small, large in itertools.pairwise(
        [base, base._replace(out=21), base._replace(out=40, into=9)]
    ):
        assert all(x <= y for (_, x), (_, y) in zip(features(small), features(large), strict=True))
    assert dict(features(Term("aten.add, 10 positions", 8, 4, 0, 120, "pp", ""))) == {
        "aten.add, 10 positions: once": 1.0,
        "aten.add, 10 positions: elements": pytest.approx(0.012),
    }
