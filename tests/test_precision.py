"""Precision and Policy: normalisation, JSON, spelling, refusals."""

import copy
import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowprec import Accumulator, Format, Rounding
from lowprec.precision import Policy, Precision, as_policy, as_precision
from lowprec.testing import strategies as lps

FIELDS = (
    "input",
    "weight",
    "output",
    "grad_output",
    "grad_input",
    "grad_weight",
    "elementwise",
)


@st.composite
def precisions(draw):
    roundings = st.none() | lps.roundings()
    fields = {name: draw(roundings) for name in FIELDS}
    fields["accumulator"] = draw(st.none() | lps.accumulators())
    fields["grad_accumulator"] = draw(
        st.none() | st.just("carrier") | lps.accumulators()
    )
    return Precision(**fields)


@given(precisions())
def test_json_round_trip(precision):
    text = json.dumps(precision.to_json())
    assert Precision.from_json(json.loads(text)) == precision


@given(precisions())
def test_repr_evaluates_back_on_one_line(precision):
    text = repr(precision)
    assert "\n" not in text
    names = {
        "Precision": Precision,
        "Rounding": Rounding,
        "Accumulator": Accumulator,
        "Format": Format,
    }
    assert eval(text, names) == precision


@given(precisions())
def test_copies_are_equal_and_hash_equal(precision):
    for twin in (pickle.loads(pickle.dumps(precision)), copy.deepcopy(precision)):
        assert twin == precision
        assert hash(twin) == hash(precision)


def test_shorthands_mean_the_same():
    spelled = Precision(
        input=Rounding("bfloat16"),
        accumulator=Accumulator(Rounding("e8m15"), product="exact"),
    )
    for accumulator in ("e8m15", Rounding("e8m15"), Accumulator("e8m15")):
        assert Precision(input=torch.bfloat16, accumulator=accumulator) == spelled
    assert Precision(accumulator="carrier") == Precision()


def test_backward_accumulator_follows_unless_told():
    same = Precision(accumulator="e8m15")
    assert same.backward_accumulator == Accumulator("e8m15")
    other = Precision(accumulator="e8m15", grad_accumulator="bfloat16")
    assert other.backward_accumulator == Accumulator("bfloat16")
    carrier = Precision(accumulator="e8m15", grad_accumulator="carrier")
    assert carrier.backward_accumulator is None
    assert carrier.accumulator == Accumulator("e8m15")


def test_json_of_nested_values():
    accumulator = Accumulator(
        Rounding("e6m8", "stochastic", random_bits=8),
        product=Rounding("e5m2", "to_odd"),
        order="blocked",
        block_size=4,
    )
    precision = Precision(weight="e4m3fn", accumulator=accumulator)
    assert precision.to_json() == {
        "weight": "e4m3fn",
        "accumulator": {
            "rounding": {"format": "e6m8", "mode": "stochastic", "random_bits": 8},
            "product": {"format": "e5m2", "mode": "to_odd"},
            "order": "blocked",
            "block_size": 4,
        },
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"weigth": "e4m3fn"}, "unknown key 'weigth' in the JSON form of a Precision"),
        ({"weight": {"format": "e4m3fn", "mod": "x"}}, "unknown key 'mod'.*a Rounding"),
        ({"weight": {"precision": 3, "emax": 3, "p": 1}}, "unknown key 'p'.*a Format"),
        (
            {"accumulator": {"rounding": "e4m3fn", "block": 2}},
            "unknown key 'block'.*an Accumulator",
        ),
    ],
)
def test_unknown_keys_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Precision.from_json(data)


@pytest.mark.parametrize("data", [3, ["weight"], {"weight": 3}])
def test_wrong_json_types_are_refused(data):
    with pytest.raises(TypeError, match="must be a mapping, got"):
        Precision.from_json(data)


def test_errors_name_the_field():
    with pytest.raises(ValueError, match=r"Precision\(weight='e4m0'\)"):
        Precision(weight="e4m0")
    with pytest.raises(TypeError, match=r"Precision\(accumulator=3\)"):
        Precision(accumulator=3)
    with pytest.raises(ValueError, match=r"Precision\(weight='carrier'\)"):
        Precision(weight="carrier")
    with pytest.raises(TypeError, match="positional"):
        Precision("bfloat16")


def test_a_bare_rounding_is_no_precision():
    with pytest.raises(TypeError, match="say which tensors are rounded"):
        as_precision("bfloat16")


def test_precision_is_frozen():
    with pytest.raises(AttributeError):
        Precision().weight = Rounding("e4m3fn")


LOW, LOWER = Precision(weight="bfloat16"), Precision(weight="e4m3fn")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", LOW),
        ("layers.0", LOWER),
        ("layers.0.norm1", None),
        ("head", LOW),
        ("HEAD", LOW),
    ],
)
def test_last_match_wins(name, expected):
    policy = Policy({"*": LOW, "layers.*": LOWER, "*.norm*": None, "HEA?": LOW})
    assert policy.precision_for(name) == expected


def test_no_match_is_none_and_case_counts():
    policy = Policy({"Head": LOW})
    assert policy.precision_for("head") is None
    assert policy.precision_for("other") is None


def test_policy_json_keeps_the_order():
    policy = Policy({"*": LOW, "b": None, "a": LOWER})
    back = Policy.from_json(json.loads(json.dumps(policy.to_json())))
    assert back == policy
    assert hash(back) == hash(policy)
    assert [pattern for pattern, _ in back.rules] == ["*", "b", "a"]
    assert policy != Policy({"a": LOWER, "b": None, "*": LOW})
    assert eval(repr(policy), {"Policy": Policy, "Precision": Precision}) == policy


def test_as_policy():
    assert as_policy(LOW) == Policy({"*": LOW}) == as_policy({"*": LOW})
    with pytest.raises(TypeError, match="expected a Precision"):
        as_policy(3)


def test_policy_refusals():
    with pytest.raises(TypeError, match="mapping from name pattern"):
        Policy([("*", LOW)])
    with pytest.raises(TypeError, match="a name pattern must be a str"):
        Policy({1: LOW})
    with pytest.raises(TypeError, match="expected a Precision"):
        Policy({"*": "bfloat16"})
