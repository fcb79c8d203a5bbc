"""What depends on what, against sets and loops; and which values are worth keeping, against trying out all choices."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitact_fx.campaigns.suffix.kept_values import Demand, Group, groups_of, worth_keeping
from fitact_fx.campaigns.suffix.slices import Dataflow, as_set, members, total

QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@st.composite
def graphs(draw):
    """By value, the earlier values that it is made of; the first is an argument and the last the output."""
    count = draw(st.integers(2, 9))
    return [set(), *(draw(st.sets(st.integers(0, number - 1), min_size=1)) for number in range(1, count))]


def flow_of(graph):
    return Dataflow(tuple(as_set(inputs) for inputs in graph), given=1, roots=1 << len(graph) - 1)


def sets_of(graph):
    return st.sets(st.integers(1, len(graph) - 1))


def recursively(graph, dirty, kept):
    """What runs and what is taken for the output, by asking for it."""
    executed, loaded = set(), set()

    def ask(number):
        if number == 0 or (number in kept and number not in dirty):
            loaded.add(number)
        elif number not in executed:
            executed.add(number)
            for each in graph[number]:
                ask(each)

    if len(graph) - 1 in dirty:
        ask(len(graph) - 1)
    return executed, loaded


def behind(graph, sources):
    dirty = set(sources)
    for number, inputs in enumerate(graph):
        if inputs & dirty:
            dirty.add(number)
    return dirty


@given(st.sets(st.integers(0, 200)))
def test_a_set_is_its_members(numbers):
    assert list(members(as_set(numbers))) == sorted(numbers)
    assert total(range(201), as_set(numbers)) == sum(numbers)


@QUICK
@given(st.data())
def test_dirty_is_whatever_is_made_from_a_source(data):
    graph = data.draw(graphs())
    sources, clean = data.draw(sets_of(graph)), data.draw(sets_of(graph))
    assert set(members(flow_of(graph).dirty(as_set(sources)))) == behind(graph, sources)
    cut = [set() if number in clean else inputs for number, inputs in enumerate(graph)]
    left = behind(cut, sources - clean)
    assert set(members(flow_of(graph).dirty(as_set(sources), as_set(clean)))) == left


@QUICK
@given(st.data())
def test_a_slice_is_what_the_output_asks_for(data):
    graph = data.draw(graphs())
    dirty, kept = behind(graph, data.draw(sets_of(graph))), data.draw(sets_of(graph))
    found = flow_of(graph).slice(as_set(dirty), as_set(kept))
    assert (set(members(found.executed)), set(members(found.loaded))) == recursively(graph, dirty, kept)


@QUICK
@given(st.data())
def test_a_value_goes_after_its_last_use_and_the_output_never(data):
    graph = data.draw(graphs())
    executed = sorted({*data.draw(sets_of(graph)), len(graph) - 1})
    uses = flow_of(graph).last_uses(as_set(executed))
    expected = {number: set() for number in executed}
    for value in range(len(graph) - 1):
        readers = [number for number in executed if value in graph[number]]
        if readers:
            expected[readers[-1]].add(value)
    assert {number: set(values) for number, values in uses.items()} == expected


CHAIN = [set(), {0}, {1}, {2}, {3}, {4}]  # five values, each made from the one before
COSTS = [0.0, 10.0, 1.0, 1.0, 1.0, 0.0]


def cost(graph, costs, demands, kept):
    flow = flow_of(graph)
    return sum(demand.weight * total(costs, flow.slice(demand.dirty, kept).executed) for demand in demands)


def test_with_room_for_all_everything_is_kept():
    groups = [Group(1 << number, 4) for number in (1, 2, 3)]
    assert worth_keeping(flow_of(CHAIN), COSTS, [Demand(as_set([4, 5]), 1)], groups, 12) == as_set([1, 2, 3])


def test_a_value_is_worth_all_of_the_way_that_leads_to_it():
    """The last value is cheap itself: without it, all before it would run again."""
    demands = [Demand(as_set([4, 5]), 1.0)]
    groups = [Group(1 << number, 4) for number in (1, 2, 3)]
    assert worth_keeping(flow_of(CHAIN), COSTS, demands, groups, 4) == as_set([3])


def test_what_is_hit_often_counts_more():
    groups = [Group(as_set([1]), 4), Group(as_set([3]), 4)]
    for early, late, kept in ((5.0, 1.0, 1), (1.0, 50.0, 3)):
        demands = [Demand(as_set([2, 3, 4, 5]), early), Demand(as_set([4, 5]), late)]
        assert worth_keeping(flow_of(CHAIN), COSTS, demands, groups, 4) == as_set([kept])


def test_what_fits_after_a_large_value_went_comes_back():
    groups = [Group(as_set([1]), 100), Group(as_set([2]), 8), Group(as_set([3]), 8)]
    demands = [Demand(as_set([4, 5]), 1.0), Demand(as_set([3, 4, 5]), 1.0), Demand(as_set([2, 3, 4, 5]), 1.0)]
    assert worth_keeping(flow_of(CHAIN), COSTS, demands, groups, 16) == as_set([2, 3])


def test_what_takes_no_memory_is_always_kept():
    assert worth_keeping(flow_of(CHAIN), COSTS, [], [Group(as_set([2]), 0), Group(as_set([3]), 4)], 0) == as_set([2])


def test_values_in_the_same_memory_are_one_group_which_counts_it_once():
    storages = [frozenset(), frozenset({7}), frozenset({7, 8}), frozenset({9}), frozenset({8}), frozenset()]
    groups = groups_of(as_set([1, 2, 3, 4, 5]), storages, {7: 10, 8: 20, 9: 5})
    assert {(group.values, group.bytes) for group in groups} == {
        (as_set([1, 2, 4]), 30),
        (as_set([3]), 5),
        (as_set([5]), 0),
    }


@QUICK
@given(st.data())
def test_the_choice_fits_and_is_near_the_best_one(data):
    graph = data.draw(graphs())
    costs = [0.0, *(data.draw(st.integers(1, 9)) for _ in graph[1:])]
    sizes = [data.draw(st.integers(1, 9)) for _ in graph[1:-1]]
    groups = [Group(1 << number, size) for number, size in enumerate(sizes, 1)]
    demands = [Demand(as_set(behind(graph, {number})), data.draw(st.integers(1, 5))) for number in range(1, len(graph))]
    budget = data.draw(st.integers(0, 30))
    kept = worth_keeping(flow_of(graph), costs, demands, groups, budget)
    assert sum(group.bytes for group in groups if group.values & kept) <= budget
    choices = (
        sum(group.values for group in chosen)
        for count in range(len(groups) + 1)
        for chosen in itertools.combinations(groups, count)
        if sum(group.bytes for group in chosen) <= budget
    )
    best, nothing = min(cost(graph, costs, demands, each) for each in choices), cost(graph, costs, demands, 0)
    found = cost(graph, costs, demands, kept)
    assert best <= found <= nothing
    assert found - best <= 0.5 * (nothing - best) + 1e-9 or found <= best * 1.35


@pytest.mark.parametrize("budget", [0, 3])
def test_a_budget_that_nothing_fits_into_keeps_nothing(budget):
    groups = [Group(1 << number, 4) for number in (1, 2, 3)]
    assert worth_keeping(flow_of(CHAIN), COSTS, [Demand(as_set([4, 5]), 1)], groups, budget) == 0
