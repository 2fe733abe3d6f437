import torch

from thalweg.models.diffusers.conditions import cut, describe, doubled, join, stack, trim


def encoded(*lengths):
    """A result with everything that occurs: a batch, a doubled batch, a list, shared tables, None."""
    rows = len(lengths)
    longest = max(lengths)
    return (
        torch.arange(rows * longest * 2.0).view(rows, longest, 2),
        [torch.full((n, 3), float(n)) for n in lengths],
        torch.arange(longest * 3).view(longest, 3),
        torch.ones(1, 6, 2),
        None,
        {"doubled": torch.stack([torch.arange(4.0) + i for i in range(2 * rows)])},
    )


def test_rows_come_back_as_they_were_encoded():
    one = encoded(5)
    slot = describe(one, encoded(5, 5), "0")
    table = stack([cut(slot, one), cut(slot, encoded(3))])
    names = {"0.0", "0.1", "0.2", "0.3", "0.5.doubled"}
    assert set(table) == names | {f"{name}.length" for name in names}
    for row, length in enumerate((5, 3)):
        taken = {name: column[[row, row]] for name, column in table.items()}
        batch, texts, positions, negative, nothing, named = join(slot, trim(taken))
        assert torch.equal(batch, encoded(length)[0].expand(2, -1, -1))
        assert [t.shape for t in texts] == [(length, 3)] * 2
        assert torch.equal(positions, encoded(length)[2]) and nothing is None
        assert torch.equal(negative, torch.ones(1, 6, 2))
        # (negative, negative, positive, positive), as a pipeline doubles a batch
        assert torch.equal(named["doubled"], encoded(length)[5]["doubled"].repeat_interleave(2, 0))


def test_counts_come_back_for_the_rows_at_hand():
    # How many tokens each prompt has, how many prompts there are, and a switch.
    slot = describe(([5], 1, True), ([5, 5], 2, True), "0")
    table = stack([cut(slot, ([5], 1, True)), cut(slot, ([3], 1, True))])
    assert join(slot, trim(table)) == ([5, 3], 2, True)


def test_a_result_for_one_prompt_stands_for_the_same_prompt_twice():
    one = {"embeds": torch.ones(1, 4, 2), "ids": torch.zeros(4, 3), "none": None}
    two = doubled(one)
    assert two["embeds"].shape == (2, 4, 2) and two["ids"].shape == (4, 3) and two["none"] is None
    both = join(describe(one, two, "0"), stack([cut(describe(one, two, "0"), one)] * 2))
    assert torch.equal(both["embeds"], torch.ones(2, 4, 2))
