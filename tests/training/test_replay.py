from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.noise import Address
from thalweg.core.processes import Processes, connect, disconnect
from thalweg.core.values import Condition, Transitions
from thalweg.training.folder import checkpoint
from thalweg.training.loop import resume, train
from thalweg.training.replay import Replay, ReplayBuffer, mixed
from training.several_processes import on_processes
from training.small_runs import small, trains

ALL = Replay(quantile=0.0)


def rows_of(advantages: list[float], slots: list[int] | None = None, steps: int = 2) -> Transitions:
    """Samples with these advantages, `steps` rows each, in the order of a forest."""
    count = len(advantages)
    sample = torch.arange(count).repeat(steps) + 1000
    slot = torch.tensor(slots or [0] * count).repeat(steps)
    number = torch.arange(count * steps, dtype=torch.float32)
    return Transitions(
        x=number[:, None].expand(-1, 3).contiguous(),
        x_next=number[:, None].expand(-1, 3).contiguous() + 0.5,
        sigma=number,
        sigma_next=number,
        k=number,
        std=number,
        old_log_prob=number,
        advantages=torch.tensor(advantages).repeat(steps)[:, None],
        weight=torch.ones(count * steps),
        condition=slot,
        prompt_slot=slot,
        seed_group=slot,
        sample=sample,
        step=torch.arange(steps).repeat_interleave(count),
        depth=slot,
        parent=sample,
        behaviour_log_prob=number,
    )


def condition_of(*values: float) -> Condition:
    return Condition({"tokens": torch.tensor(values)[:, None]})


def draw(buffer, count=100, iteration=0, processes=Processes(), start=0):  # noqa: B008  (frozen)
    return buffer.draw(count, Address(0, "selection", iteration), processes, start)


def filled(*, rule=ALL, iterations=1, advantages=(1.0, 2.0, 3.0)):
    """A buffer after some iterations, whose samples have condition 10 · iteration."""
    buffer = ReplayBuffer()
    for iteration in range(iterations):
        rows = rows_of([a + iteration for a in advantages])
        buffer.admit(rows, condition_of(10.0 * iteration), rule, iteration, Processes())
    return buffer


def test_samples_are_kept_that_reach_the_quantile_of_their_own_prompt():
    buffer = ReplayBuffer()
    rows = rows_of([0.0, 9.0, 1.0, 8.0, 2.0, 8.0, 3.0, 7.0], slots=[0, 1] * 4)
    buffer.admit(rows, condition_of(5.0, 6.0), Replay(quantile=0.75), 0, Processes())
    # Of 0, 1, 2, 3 the quantile is 2.25; of 7, 8, 8, 9 it is 8.25.
    again, given = draw(buffer)
    assert sorted(again.advantages.flatten().tolist()) == [3, 3, 9, 9]
    assert sorted(given.tensors["tokens"][again.condition].flatten().tolist()) == [5, 5, 6, 6]
    # Equal samples are all there are to keep.
    assert len(filled(rule=Replay(quantile=0.75), advantages=(1.0, 1.0, 1.0))) == 3


def test_a_sample_comes_back_whole_with_its_condition_and_a_number_of_its_own():
    rows = rows_of([1.0, 2.0], slots=[0, 1])
    buffer = ReplayBuffer()
    buffer.admit(rows, condition_of(5.0, 6.0), ALL, 0, Processes())
    again, given = draw(buffer, start=7)
    order = torch.cat([(again.x[:, 0] == n).nonzero().flatten() for n in range(4)])
    for f in fields(rows):
        column = getattr(rows, f.name)
        if column is not None and f.name not in ("condition", "sample"):
            assert torch.equal(getattr(again, f.name)[order], column), f.name
    assert given.tensors["tokens"][again.condition[order] - 7].flatten().tolist() == [5, 6, 5, 6]
    numbers = again.sample[order].tolist()
    assert numbers[:2] == numbers[2:] and len(set(numbers)) == 2 and max(numbers) < 0


def test_samples_are_let_go_when_they_are_too_old():
    rule, sizes, ages = Replay(quantile=0.0, max_age=2), [], []
    buffer = ReplayBuffer()
    for iteration in range(5):
        again, given = draw(buffer, iteration=iteration)
        if again is not None:
            ages.append(iteration - int(given.tensors["tokens"].min()) // 10)
        buffer.admit(rows_of([1.0, 2.0]), condition_of(10.0 * iteration), rule, iteration, Processes())
        sizes.append(len(buffer))
    assert sizes == [2, 4, 4, 4, 4]
    assert ages == [1, 2, 2, 2]  # drawn again in the next two iterations
    assert len(buffer.conditions["tokens"]) == 4  # conditions go with their samples


def test_the_oldest_go_first_where_there_is_no_room():
    buffer = filled(rule=Replay(quantile=0.0, capacity=4), iterations=3)
    again, given = draw(buffer)
    assert len(buffer) == 4
    kept = given.tensors["tokens"][again.condition].flatten()
    # All three of the last iteration, one of the one before.
    assert sorted(kept.tolist()) == [10, 10] + [20] * 6


def test_processes_draw_parts_of_one_choice():
    buffer = filled(iterations=3)
    whole, _ = draw(buffer, count=5)
    parts = [draw(buffer, count=5, processes=Processes(rank, 2))[0].sample for rank in (0, 1)]
    assert [len(set(part.tolist())) for part in parts] == [2, 3]
    assert sorted(torch.cat(parts).tolist()) == sorted(whole.sample.tolist())
    assert len(set(whole.sample.tolist())) == 5
    other = {tuple(sorted(set(draw(buffer, count=5, iteration=i)[0].sample.tolist()))) for i in range(20)}
    assert len(other) > 10


def test_an_empty_buffer_gives_nothing_and_takes_nothing_ill():
    rows, condition = rows_of([1.0, 2.0]), condition_of(1.0)
    buffer = ReplayBuffer()
    assert draw(buffer) == (None, None) and buffer.tensors() == {}
    same, conditions = mixed(rows, condition, *draw(buffer))
    assert same is rows and conditions is condition
    buffer.admit(rows.index(rows.sample < 0), condition, ALL, 0, Processes())
    assert len(buffer) == 0 and draw(buffer) == (None, None)
    buffer.admit(rows, condition, ALL, 1, Processes())
    assert len(buffer) == 2


def test_fresh_and_replayed_rows_stand_in_one_table():
    buffer, rows, condition = filled(), rows_of([1.0, 2.0], slots=[1, 0]), condition_of(3.0, 4.0)
    again, given = draw(buffer, start=len(condition))
    both, conditions = mixed(rows, condition, again, given)
    assert len(both) == 4 + 6
    assert torch.equal(both.x[:4], rows.x) and torch.equal(both.x[4:], again.x)
    assert conditions.tensors["tokens"][both.condition].flatten().tolist() == [4, 3, 4, 3] + [0] * 6
    assert not set(rows.sample.tolist()) & set(again.sample.tolist())


def test_prompts_of_other_lengths_are_filled_up_where_they_meet():
    def words(*lengths):
        longest = max(lengths)
        tokens = [[float(n)] * n + [0.0] * (longest - n) for n in lengths]
        return Condition({"tokens": torch.tensor(tokens), "tokens.length": torch.tensor(lengths)})

    buffer = ReplayBuffer()
    for iteration, condition in enumerate([words(2), words(3), words(1)]):
        buffer.admit(rows_of([1.0]), condition, ALL, iteration, Processes())
    assert buffer.conditions["tokens"].tolist() == [[2, 2, 0], [3, 3, 3], [1, 0, 0]]
    again, given = buffer.draw(3, Address(0, "selection", 3), Processes(), 1)
    _, both = mixed(rows_of([1.0]), words(4), again, given)
    assert both.tensors["tokens"].shape == (4, 4)
    assert both.tensors["tokens"][0].tolist() == [4, 4, 4, 4]
    assert both.tensors["tokens.length"].tolist() == [4, 2, 3, 1]


def test_processes_fill_up_the_prompts_of_the_others(tmp_path):
    def admit():
        processes = connect()
        words = Condition({"tokens": torch.ones(1, 2 + processes.rank)})
        buffer = ReplayBuffer()
        sample = torch.tensor([1000 + processes.rank, 1000 + processes.rank])
        rows = replace(rows_of([1.0]), sample=sample, prompt_slot=torch.full((2,), processes.rank))
        buffer.admit(rows, words, ALL, 0, processes)
        torch.save(buffer.conditions["tokens"], tmp_path / f"{processes.rank}.pt")
        disconnect(processes)

    on_processes(2, admit)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True).tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_buffer_is_the_same_after_a_checkpoint(tmp_path):
    buffer = filled(iterations=2)
    save_file(buffer.tensors(), tmp_path / checkpoint.REPLAY)
    other = ReplayBuffer()
    other.restore(checkpoint.replayed(tmp_path), (3,), "file")
    for held in (buffer, other):
        held.admit(rows_of([5.0, 6.0]), condition_of(20.0), Replay(quantile=0.0, max_age=2), 2, Processes())
    (one, given), (two, same) = draw(buffer, count=3), draw(other, count=3)
    for f in fields(one):
        column = getattr(one, f.name)
        assert column is None or torch.equal(column, getattr(two, f.name)), f.name
    assert_close(given.tensors, same.tensors)


BROKEN = {
    "truncated": (None, "missing or damaged"),
    "of another kind": ({"a": torch.zeros(2)}, "the replay buffer lacks 'advantages'"),
    "of another model": ({"x": torch.zeros(2, 5)}, r"holds latents of shape \(5,\), this model's have"),
}


@pytest.mark.parametrize(("tensors", "complaint"), BROKEN.values(), ids=BROKEN)
def test_a_replay_file_that_does_not_fit_is_named_in_one_line(tensors, complaint, tiny_world, tmp_path):
    recipe = small("op-grpo", {"run.save_every": 1})
    run = train(recipe.model_copy(update={"iterations": 1}), tmp_path / "run")
    file = checkpoint.complete(run.path / "checkpoints")[-1] / checkpoint.REPLAY
    held = load_file(file)
    if tensors is None:
        file.write_bytes(file.read_bytes()[:100])
    else:
        save_file(tensors if "a" in tensors else held | tensors, file)
    with pytest.raises(UserError, match=complaint) as refused:
        resume(run.path, recipe)
    assert "\n" not in str(refused.value) and str(file.parent) in str(refused.value)
    assert len(trains(run)) == 1  # what was there stays


def test_replayed_samples_are_trained_on_and_weighed(tiny_world, tmp_path):
    overrides = {"replay.fraction": 0.5, "replay.quantile": 0.0, "iterations": 3, "optim.learning_rate": 0.01}
    lines = trains(train(small("op-grpo", overrides), tmp_path / "run"))
    # 8 samples of 5 steps at or above sigma .5; from the second iteration on 4 more.
    passes = [line["backwards"] for line in lines]
    assert [passes[0], passes[1] - passes[0], passes[2] - passes[1]] == [40, 60, 60]
    assert lines[0]["correction/gap"] < 1e-5 < 1e-4 < lines[1]["correction/gap"]
    assert all(line["ratio_deviation"] < 1e-5 for line in lines)
