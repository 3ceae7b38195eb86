"""Training epochs against a plain loop, step by step, and their exact resume."""

import copy
import math
import re
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from petface import errors
from petface.data.images import to_float
from petface.errors import UserError
from petface.models import checkpoints
from petface.training import epoch
from petface.training.augment.mixing import Mixing, draw_mix
from petface.training.augment.regimes import draw_parameters, regimes_of
from petface.training.epoch import EpochState, step_seed, train_epoch
from petface.training.evaluate import evaluate
from petface.training.recipe import WeightAverage
from tests import naive
from tests.training.small import CPU, HEADS, SIZE, progress_of, same, state_of, train

NONE = regimes_of("none", "none")
STRONG = regimes_of("mild", "strong")
ALL = np.arange(30)  # in batches of 8: four steps


def pixels_of(paths, chosen):
    """(B, 3, H, W) uint8 through Pillow."""
    photos = np.stack([naive.pixels(paths[i], SIZE) for i in chosen])
    return torch.from_numpy(photos).permute(0, 3, 1, 2)


def summed_loss(outputs, targets):
    heads = zip(outputs, targets, strict=True)
    return sum(nn.functional.cross_entropy(x, y, ignore_index=-1) for x, y in heads)


def test_an_epoch_without_augmentation_is_the_plain_loop(job, samples, paths, readable):
    job.network.model.drop.p = 0.0
    reference = copy.deepcopy(job.network.model)
    order = np.random.default_rng(5).permutation(30)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1.0, fused=True)
    loss_sum = 0.0
    for step, part in enumerate(np.array_split(order, 4)):
        part = [i for i in part.tolist() if i in readable]
        outputs = reference.train()(pixels_of(paths, part).float() / 255)
        loss = summed_loss(outputs, [torch.from_numpy(samples.labels[h][part]) for h in HEADS])
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.01 * (2 + step / 4)
        optimizer.step()
        loss_sum += loss.item() * len(part)

    progress = progress_of(job)
    progress.epoch = EpochState(epoch=2)
    assert train_epoch(job, progress, samples, order, NONE, seed=1, rate=lambda t: 0.01 * t) is True
    found = state_of(job)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    state, num = progress.epoch, len(readable)
    assert state.mean_loss == pytest.approx(loss_sum / num, rel=1e-4)
    assert (state.num_images, state.num_unreadable, state.step) == (num, 30 - num, 4)
    assert set(job.failures.messages) == set(range(30)) - set(readable)


def test_a_mixed_batch_answers_for_both_labels_and_clipped_gradients_have_their_norm(
    job, samples, paths, readable
):
    """The reference mixes the plain photos with the draws of the first step of that seed."""
    job.network.model.drop.p = 0.0
    reference, mixing, chosen = copy.deepcopy(job.network.model), Mixing("both", 1.0), readable[:8]
    generator = torch.Generator().manual_seed(step_seed(1, 0, 0))
    draw_parameters(torch.zeros(8, dtype=torch.bool), *NONE, generator)
    mixed = draw_mix(8, mixing, generator, CPU)(to_float(pixels_of(paths, chosen)))
    assert 0.05 < mixed.share < 0.95
    own = [torch.from_numpy(samples.labels[head][chosen]) for head in HEADS]
    partners = [labels[mixed.partner] for labels in own]
    outputs = reference.train()(mixed.images)
    loss = mixed.share * summed_loss(outputs, own)
    loss = loss + (1 - mixed.share) * summed_loss(outputs, partners)
    loss.backward()
    nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
    torch.optim.SGD(reference.parameters(), lr=3.0, fused=True).step()

    job = replace(job, clip_norm=0.05)
    progress = progress_of(job, torch.optim.SGD(job.network.model.parameters(), lr=1.0, fused=True))
    train(job, progress, samples, np.array(chosen), NONE, rate=3.0, seed=1, mixing=mixing)
    assert progress.epoch.mean_loss == pytest.approx(loss.item(), rel=1e-5)
    found = state_of(job)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(found[name], tensor, msg=name)


def test_a_parameter_group_takes_the_rate_times_its_factor(job, samples):
    one, two = job.network.model.one, job.network.model.two
    groups = [{"params": one.parameters()}, {"params": two.parameters(), "lr_factor": 0.0}]
    before, optimizer = state_of(job), torch.optim.AdamW(groups, lr=0.01, fused=True)
    progress = progress_of(job, optimizer)
    train(job, progress, samples, ALL[:8], NONE, rate=0.1)
    after = state_of(job)
    assert torch.equal(before["two.weight"], after["two.weight"])
    assert not torch.equal(before["one.weight"], after["one.weight"])
    assert [group["lr"] for group in progress.optimizer.param_groups] == [0.1, 0.0]


def test_the_average_follows_every_step_and_is_what_is_measured(job, samples, tmp_path):
    model, seen, progress = job.network.model, [], progress_of(job)
    progress.average = average = WeightAverage(model, 0.9)
    wanted = {name: tensor.double() for name, tensor in state_of(job).items()}
    update = average.update
    average.update = lambda *step: (seen.append(state_of(job)), update(*step))
    train(job, progress, samples, ALL, NONE, rate=0.1)
    assert len(seen) == 4
    for number, state in enumerate(seen):
        decay = min(0.9, (1 + number) / (10 + number))
        for name in wanted:
            wanted[name] = decay * wanted[name] + (1 - decay) * state[name].double()
    wanted["body.1.num_batches_tracked"] = torch.tensor(4.0)
    found = average.model.state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=1e-5, atol=1e-6)
    assert not same(found, state_of(job))

    measured = progress.measured(job)
    assert measured.network.model is average.model
    evaluate(measured, samples, "average")
    assert model.training and not average.model.training
    checkpoints.save(tmp_path / "last.pt", progress.state_dict())
    other = progress_of(job)
    assert other.measured(job) is job
    other.average = WeightAverage(model, 0.9)
    other.load_state_dict(checkpoints.load(tmp_path / "last.pt"))
    assert same(other.average.model.state_dict(), found) and other.average.num_updates == 4


@pytest.mark.parametrize("leave_after", [1, 2, 3])
def test_leaving_and_coming_back_gives_the_weights_of_the_straight_epoch(
    job, samples, leave_after, tmp_path
):
    """Strong augmentation and dropout are on: every draw must be the same again."""
    first, whole, order = state_of(job), progress_of(job), ALL[::-1]
    assert train(job, whole, samples, order, STRONG, seed=3)
    straight = state_of(job)

    job.network.model.load_state_dict(first)
    left, asked = progress_of(job), iter([False] * (leave_after - 1) + [True])
    ended = train(job, left, samples, order, STRONG, seed=3, stop=lambda: next(asked))
    assert ended is False and left.epoch.step == leave_after
    left.stopping.update(2.0), left.stopping.update(3.0)
    left.history.append({"epoch": 1, "val_loss": math.pi})
    checkpoints.save(tmp_path / "last.pt", {"model": state_of(job), **left.state_dict()})

    last = checkpoints.load(tmp_path / "last.pt")
    job.network.model.load_state_dict(last["model"])
    back = progress_of(job)
    back.load_state_dict(last)
    assert (back.epoch, back.history, back.stopping) == (left.epoch, left.history, left.stopping)
    assert back.stopping.num_bad_epochs == 1 and back.optimizer.param_groups[0]["lr"] == 0.01
    assert train(job, back, samples, order, STRONG, seed=3)
    assert same(state_of(job), straight) and back.epoch.loss_sum == whole.epoch.loss_sum
    assert back.epoch.seconds > left.epoch.seconds > 0

    job.network.model.load_state_dict(first)
    train(job, progress_of(job), samples, order, STRONG, seed=4)
    assert not same(state_of(job), straight)  # the seed matters


def poisoned(job, is_bad=lambda _: True):
    """A job whose loss is NaN in the steps for which `is_bad(step)` says so."""

    def loss(outputs, batch):
        factor = math.nan if is_bad(batch.step) else 1
        return [value * factor for value in job.loss(outputs, batch)]

    return replace(job, loss=loss)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(job, samples):
    parameters = dict(job.network.model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    progress = progress_of(job)
    assert train(poisoned(job), progress, samples, ALL, NONE, rate=0.1)
    assert same(before, parameters)
    state = progress.epoch
    assert (state.num_skipped_steps, state.num_bad_in_a_row, state.num_images) == (4, 4, 0)
    assert math.isnan(state.mean_loss)
    for kept in progress.optimizer.state.values():  # not even momentum
        assert not any(tensor.any() for tensor in kept.values())


def test_an_infinite_gradient_is_noticed_too():
    x = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([x], lr=1.0, fused=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for root, finite, wanted in ((x.sqrt(), False, 0.0), (x + 1, True, -1.0)):
        loss = root.sum()  # that of the root is 0, its gradient infinite
        loss.backward()
        assert bool(epoch._update(loss, optimizer, scaler)) is finite
        assert x.tolist() == [wanted, wanted]


def test_bad_steps_in_a_row_stop_the_run_across_short_epochs_and_a_good_one_ends_them(job, samples):
    progress = progress_of(job)
    train(poisoned(job, lambda step: step != 2), progress, samples, ALL, NONE)
    assert (progress.epoch.num_skipped_steps, progress.epoch.num_bad_in_a_row) == (3, 1)
    progress.epoch = EpochState()
    with pytest.raises(UserError, match=r"not finite in 10 steps in a row.*epoch 3, step 1 "):
        for _ in range(5):  # four steps each
            train(poisoned(job), progress, samples, ALL, NONE)
            progress.epoch = progress.epoch.next_epoch()
    assert progress.epoch.epoch == 2
    state = EpochState(3, 7, 1.5, 40, 2, 5, 4, 60.0)
    assert state.next_epoch() == EpochState(epoch=4, num_bad_in_a_row=4)


def test_a_batch_without_a_known_label_trains_on_nothing(job, unknown):
    parameters = dict(job.network.model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    progress = progress_of(job, torch.optim.SGD(parameters.values(), lr=1.0, fused=True))
    train(job, progress, unknown, ALL, NONE, rate=1.0)
    assert same(before, parameters)
    assert progress.epoch.mean_loss == 0.0 and progress.epoch.num_skipped_steps == 0


@pytest.mark.parametrize("place", ["augment_by", "_update"])
def test_out_of_memory_outside_the_backward_pass_is_one_line(
    job, unknown, place, monkeypatch, capsys
):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried")
    monkeypatch.setattr(epoch, place, mock.Mock(side_effect=error))
    with pytest.raises(torch.OutOfMemoryError):
        train(job, progress_of(job), unknown, ALL, NONE)
    assert errors.exit_code_of(error) == 1
    assert re.fullmatch("error: not enough memory (.*)\n", capsys.readouterr().err)


def test_a_run_without_a_scaler_goes_on_in_fp16_and_back(job):
    before = progress_of(job).state_dict()
    assert before["scaler"] == {}
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    progress = replace(progress_of(job), scaler=scaler)
    progress.load_state_dict(before)
    assert progress.scaler.get_scale() == 128.0
    progress_of(job).load_state_dict(progress.state_dict())  # a scaler that is not needed
