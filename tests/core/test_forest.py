import torch
from torch.testing import assert_close

from thalweg.core.forest import Child, Forest, Leaves, Level, Roots, count_passes
from thalweg.core.values import Condition, Prompt

ODE, SDE = Child(stochastic=False), Child(stochastic=True, trained=True)


def level_of(parents: list[int], roots: list[int], children: list[int]) -> Level:
    count = len(parents)
    return Level(
        sigma=torch.full((count,), 0.5),
        parent=torch.tensor(parents),
        root=torch.tensor(roots),
        end=torch.tensor([-1 if row in children else 0 for row in range(count)]),
        trained=torch.zeros(count, dtype=torch.bool),
        k=torch.zeros(count),
        std=torch.zeros(count),
        log_prob=torch.zeros(count),
        latents=torch.arange(float(count)).flip(0)[:, None],
        row=torch.arange(count - 1, -1, -1),
        depth=torch.zeros(count, dtype=torch.int64),
    )


def forest_of(*parents: list[int]) -> Forest:
    """One level for each list, which holds the parent of every node; roots answer two prompts in turn."""
    count, num_roots = len(parents[-1]), len(parents[0])
    column, roots, levels = torch.arange(count), list(range(num_roots)), []
    for at, of in enumerate(parents):
        roots = roots if at == 0 else [roots[parent] for parent in of]
        levels.append(level_of(of, roots, parents[at + 1] if at + 1 < len(parents) else []))
    # Ends are numbered from the last level on, so that leaves come first.
    number = 0
    for level in levels[::-1]:
        for row in (level.end == 0).nonzero().flatten().tolist():
            level.end[row] = number
            number += 1
    of_root = torch.arange(num_roots)
    return Forest(
        levels=tuple(levels),
        roots=Roots(of_root, of_root, of_root % 2),
        leaves=Leaves(column, column, column, column),
        prompts=(Prompt("a"), Prompt("b")),
        condition=Condition({"shift": torch.zeros(2)}),
        leaf_node=column,
    )


#    root 0 ── node 0 ── leaf 0          root 1 ── node 2 ── leaf 4
#           └─ node 1 ── leaves 1, 2, 3
TREE = ([-1, -1], [0, 0, 1], [0, 1, 1, 1, 2])


def test_a_value_of_leaves_reaches_a_node_as_the_mean_over_its_descendants():
    roots, nodes, leaves = forest_of(*TREE).below(torch.tensor([1.0, 2.0, 3.0, 7.0, 5.0]))
    assert_close(leaves, torch.tensor([1.0, 2.0, 3.0, 7.0, 5.0]))
    assert_close(nodes, torch.tensor([1.0, 4.0, 5.0]))  # (2 + 3 + 7) / 3
    assert_close(roots, torch.tensor([13 / 4, 5.0]))  # (1 + 2 + 3 + 7) / 4, not (1 + 4) / 2


def test_several_values_of_leaves_are_averaged_each_by_itself():
    values = torch.tensor([[1.0, 0.0], [2.0, 4.0], [3.0, 0.0], [7.0, 0.0], [5.0, 1.0]])
    roots, nodes, _ = forest_of(*TREE).below(values)
    assert_close(nodes, torch.tensor([[1.0, 0.0], [4.0, 4 / 3], [5.0, 1.0]]))
    assert_close(roots, torch.tensor([[13 / 4, 1.0], [5.0, 1.0]]))


def test_a_way_is_named_after_its_first_end():
    roots, nodes, leaves = forest_of(*TREE).first_end()
    assert (roots.tolist(), nodes.tolist(), leaves.tolist()) == ([0, 4], [0, 1, 4], [0, 1, 2, 3, 4])


def test_a_node_that_ends_early_has_no_value_and_a_name_of_its_own():
    # root 0 ── node 0 ── leaf 0, and node 1, which was judged and left.
    forest = forest_of([-1], [0, 0], [0])
    root, nodes, leaf = forest.below(torch.tensor([3.0]))
    assert (root.tolist(), leaf.tolist(), nodes[0].item()) == ([3.0], [3.0], 3.0)
    assert nodes[1].isnan()
    assert [names.tolist() for names in forest.first_end()] == [[0], [0, 1], [0]]


def test_finished_latents_come_in_the_order_of_the_leaves():
    # The states of a level lie in reverse here: node i is in row 4 - i and holds the number i.
    assert_close(forest_of(*TREE).latents.flatten(), torch.arange(5.0))


def test_each_leaf_knows_its_prompt():
    assert [prompt.text for prompt in forest_of(*TREE).leaf_prompts] == ["a", "a", "a", "a", "b"]


def test_passes_of_a_layout_are_the_nodes_that_have_children():
    chain = ({0: (SDE,)}, {0: (SDE,)}, {0: (ODE,)})
    assert count_passes(chain) == (3, 2, 1)
    fork = ({0: (ODE,)}, {0: (SDE,) * 4}, {0: (SDE,)}, {0: (ODE,)})
    assert count_passes(fork) == (1 + 1 + 4 + 4, 8, 4)


def test_roles_have_children_of_their_own():
    branch = Child(stochastic=True, trained=True, role=1)
    layout = (
        {0: (branch, branch, ODE), 1: (Child(stochastic=False, role=1),)},
        {0: (branch, branch), 1: (Child(stochastic=False, role=1),)},
        {0: (), 1: (Child(stochastic=False, role=1),)},
    )
    # Passes: the root; trunk and 2 branches; 4 branches. The trunk ends at the second step.
    assert count_passes(layout) == (1 + 3 + 4, 4, 4)
