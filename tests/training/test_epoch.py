import copy
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

from petface.data.images import Preprocessing, to_float
from petface.data.loading import FileImages, Samples
from petface.data.sources.petface import scan
from petface.devices import Precision, choose_device, choose_precision
from petface.errors import UserError
from petface.models import checkpoints
from petface.models.network import Network
from petface.training import epoch, losses
from petface.training.augment import REGIMES, draw_parameters
from petface.training.augment.mixing import Mixing, mix_batch
from petface.training.epoch import EpochState, Progress, train_epoch
from petface.training.evaluate import Job, evaluate
from petface.training.recipe import WeightAverage
from petface.training.runs import FailureLog, RunFolder
from petface.training.schedule import EarlyStopping
from tests import naive
from tests.conftest import BOMB, EMPTY, TRUNCATED

CPU = torch.device("cpu")
SIZE = 12
NONE = REGIMES["none"], REGIMES["none"]


class Small(nn.Module):
    """Two heads on a convolution: enough to have every kind of state."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        features = self.drop(self.body(x).mean(dim=(2, 3)))
        return self.one(features), self.two(features)


@pytest.fixture(scope="module")
def catalog(tree):
    return scan(tree.images).catalog


@pytest.fixture
def job(catalog, tmp_path):
    torch.manual_seed(0)

    def loss(outputs, batch):
        pairs = zip(outputs, batch.labels.values(), strict=True)
        return sum(losses.masked_focal_loss(logits, label, 0.0) for logits, label in pairs)

    rule = Preprocessing(SIZE)
    return Job(
        network=Network(Small(), rule, CPU, Precision(None)),
        num_classes={"one": 3, "two": 2},
        loss=loss,
        source=FileImages(catalog, rule),
        batch_size=8,
        num_workers=0,
        failures=FailureLog(RunFolder(tmp_path), catalog, len(catalog), 0.5),
    )


@pytest.fixture
def samples():
    """Thirty images with labels that follow from their number; some of them unknown."""
    images = np.arange(30)
    one = np.where(images % 5, images % 3, -1)
    return Samples(images, {"one": one, "two": images % 2}, images % 4 == 0)


def progress_of(job, optimizer=None):
    optimizer = optimizer or torch.optim.AdamW(job.network.model.parameters(), lr=0.01)
    return Progress(optimizer, job.network.grad_scaler(), EarlyStopping(3, mode="min"))


def weights(job):
    return {k: v.clone() for k, v in job.network.model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[k], other[k]) for k in one.keys() | other.keys())


def readable(tree, samples):
    paths = naive.photos(tree.images)
    return [i for i in samples.images.tolist() if paths[i] not in (TRUNCATED, BOMB, EMPTY)]


def test_an_epoch_without_augmentation_is_the_plain_loop(job, samples, tree):
    """The reference: a loop of a dozen lines over photos read with Pillow."""
    job.network.model.drop.p = 0.0
    reference = copy.deepcopy(job.network.model)
    paths, order = naive.photos(tree.images), np.random.default_rng(5).permutation(30)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1.0)
    kept, losses_seen, num_seen = set(readable(tree, samples)), 0.0, 0
    for step, part in enumerate(np.array_split(order, 4)):
        part = [i for i in part.tolist() if i in kept]
        x = np.stack([naive.pixels(tree.images / paths[i], SIZE) for i in part])
        outputs = reference.train()(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255)
        total = 0.0
        for head, logits in zip(("one", "two"), outputs, strict=True):
            target = torch.from_numpy(samples.labels[head][part])
            total = total + nn.functional.cross_entropy(logits, target, ignore_index=-1)
        optimizer.zero_grad()
        total.backward()
        optimizer.param_groups[0]["lr"] = 0.01 * (2 + step / 4)
        optimizer.step()
        losses_seen, num_seen = losses_seen + total.item() * len(part), num_seen + len(part)

    progress = progress_of(job)
    progress.epoch = EpochState(epoch=2)
    ended = train_epoch(job, progress, samples, order, NONE, seed=1, rate=lambda t: 0.01 * t)
    assert ended is True
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(
            job.network.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5
        )
    state = progress.epoch
    assert state.mean_loss == pytest.approx(losses_seen / num_seen, rel=1e-4)
    assert (state.num_images, state.num_unreadable, state.step) == (num_seen, 30 - num_seen, 4)
    assert set(job.failures.messages) == set(range(30)) - kept


def test_a_mixed_batch_answers_for_both_labels_and_clipped_gradients_have_their_norm(
    job, samples, tree
):
    """The reference mixes the plain photos with the draws of the first step of that seed."""
    job.network.model.drop.p = 0.0
    object.__setattr__(job, "clip_norm", 0.05)
    reference, mixing = copy.deepcopy(job.network.model), Mixing("both", 1.0)
    chosen = readable(tree, samples)[:8]
    paths = naive.photos(tree.images)
    x = torch.from_numpy(np.stack([naive.pixels(tree.images / paths[i], SIZE) for i in chosen]))
    generator = torch.Generator().manual_seed(epoch._step_seed(1, 0, 0))
    draw_parameters(torch.zeros(8, dtype=torch.bool), *NONE, generator)
    mixed = mix_batch(to_float(x.permute(0, 3, 1, 2)), mixing, generator)
    assert mixed and 0.05 < mixed.share < 0.95
    outputs, total = reference.train()(mixed.images), 0.0
    for head, logits in zip(("one", "two"), outputs, strict=True):
        own = torch.from_numpy(samples.labels[head][chosen])
        for share, target in ((mixed.share, own), (1 - mixed.share, own[mixed.partner])):
            loss = nn.functional.cross_entropy(logits, target, ignore_index=-1)
            total = total + share * loss
    total.backward()
    nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
    torch.optim.SGD(reference.parameters(), lr=3.0).step()

    progress = progress_of(job, torch.optim.SGD(job.network.model.parameters(), lr=1.0))
    train_epoch(
        job, progress, samples, np.array(chosen), NONE, seed=1, rate=lambda _: 3.0, mixing=mixing
    )
    assert progress.epoch.mean_loss == pytest.approx(total.item(), rel=1e-5)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(job.network.model.state_dict()[name], tensor, msg=name)


def test_a_parameter_group_takes_the_rate_times_its_factor(job, samples):
    model = job.network.model
    groups = [
        {"params": model.one.parameters()},
        {"params": model.two.parameters(), "lr_factor": 0.0},
    ]
    before = weights(job)
    progress = progress_of(job, torch.optim.AdamW(groups, lr=0.01))
    train_epoch(job, progress, samples, np.arange(8), NONE, seed=0, rate=lambda _: 0.1)
    after = weights(job)
    assert torch.equal(before["two.weight"], after["two.weight"])
    assert not torch.equal(before["one.weight"], after["one.weight"])
    assert [group["lr"] for group in progress.optimizer.param_groups] == [0.1, 0.0]


def test_the_average_follows_every_step_and_is_what_is_measured(job, samples, tmp_path):
    model, seen = job.network.model, []
    progress = progress_of(job)
    progress.average = WeightAverage(model, 0.9)
    wanted = {k: v.clone().double() for k, v in weights(job).items()}
    update = progress.average.update

    def noted(model):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        update(model)

    progress.average.update = noted
    train_epoch(job, progress, samples, np.arange(30), NONE, seed=0, rate=lambda _: 0.1)
    assert len(seen) == 4
    for number, state in enumerate(seen):
        decay = min(0.9, (1 + number) / (10 + number))
        for name in wanted:
            wanted[name] = decay * wanted[name] + (1 - decay) * state[name].double()
    found = progress.average.model.state_dict()
    for name in set(wanted) - {"body.1.num_batches_tracked"}:
        torch.testing.assert_close(found[name].double(), wanted[name], rtol=1e-5, atol=1e-6)
    assert found["body.1.num_batches_tracked"] == 4
    assert not same(found, weights(job))

    measured = progress.measured(job)
    assert measured.network.model is progress.average.model
    evaluate(measured, samples, "average")
    assert model.training and not measured.network.model.training
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
    strong, order = (REGIMES["mild"], REGIMES["strong"]), np.arange(30)[::-1]
    first = weights(job)
    whole = progress_of(job)
    assert train_epoch(job, whole, samples, order, strong, seed=3, rate=lambda _: 0.01)
    straight = weights(job)

    job.network.model.load_state_dict(first)
    left = progress_of(job)
    asked = iter([False] * (leave_after - 1) + [True])
    ended = train_epoch(
        job, left, samples, order, strong, seed=3, rate=lambda _: 0.01, stop=lambda: next(asked)
    )
    assert ended is False and left.epoch.step == leave_after
    checkpoints.save(tmp_path / "last.pt", {"model": weights(job), **left.state_dict()})

    last = checkpoints.load(tmp_path / "last.pt")
    job.network.model.load_state_dict(last["model"])
    back = progress_of(job)
    back.load_state_dict(last)
    assert train_epoch(job, back, samples, order, strong, seed=3, rate=lambda _: 0.01)
    assert same(weights(job), straight)
    assert back.epoch.loss_sum == whole.epoch.loss_sum
    assert back.epoch.seconds > left.epoch.seconds > 0

    job.network.model.load_state_dict(first)
    train_epoch(job, progress_of(job), samples, order, strong, seed=4, rate=lambda _: 0.01)
    assert not same(weights(job), straight)  # the seed matters


def test_progress_survives_a_checkpoint_whole(job, samples, tmp_path):
    progress = progress_of(job)
    train_epoch(job, progress, samples, np.arange(16), NONE, seed=0, rate=lambda _: 0.02)
    progress.stopping.update(2.0), progress.stopping.update(3.0)
    progress.history.append({"epoch": 1, "val_loss": math.pi})
    checkpoints.save(tmp_path / "x.pt", progress.state_dict())
    other = progress_of(job)
    other.load_state_dict(checkpoints.load(tmp_path / "x.pt"))
    assert other.epoch == progress.epoch and other.history == progress.history
    assert other.stopping == progress.stopping and other.stopping.num_bad_epochs == 1
    for one, two in zip(
        other.optimizer.state_dict()["state"].values(),
        progress.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert same(one, two)
    assert other.optimizer.param_groups[0]["lr"] == 0.02


def poison(job, is_bad):
    """Make the loss NaN in the steps for which `is_bad(step)` says so."""
    good = job.loss
    loss = lambda outputs, batch: good(outputs, batch) * (math.nan if is_bad(batch.step) else 1)  # noqa: E731
    object.__setattr__(job, "loss", loss)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(job, samples):
    job.network.model.body[1].eval()
    order = np.arange(30)
    poison(job, lambda _: True)
    before = {k: v for k, v in weights(job).items() if "running" not in k and "num_" not in k}
    progress = progress_of(job)
    assert train_epoch(job, progress, samples, order, NONE, seed=0, rate=lambda _: 0.1)
    assert same(before, {k: v for k, v in weights(job).items() if k in before})
    state = progress.epoch
    assert (state.num_skipped_steps, state.num_bad_in_a_row, state.num_images) == (4, 4, 0)
    assert math.isnan(state.mean_loss)
    assert not progress.optimizer.state  # not even momentum


def test_an_infinite_gradient_is_noticed_too():
    x = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([x], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss = x.sqrt().sum()  # 0, its gradient infinite
    loss.backward()
    assert epoch._update(loss, optimizer, scaler) is False
    assert x.tolist() == [0.0, 0.0]
    loss = (x + 1).sum()
    loss.backward()
    assert epoch._update(loss, optimizer, scaler) is True
    assert x.tolist() == [-1.0, -1.0]


def test_a_good_step_ends_a_row_of_bad_ones(job, samples):
    poison(job, lambda step: step != 2)
    progress = progress_of(job)
    train_epoch(job, progress, samples, np.arange(30), NONE, seed=0, rate=lambda _: 0.01)
    assert (progress.epoch.num_skipped_steps, progress.epoch.num_bad_in_a_row) == (3, 1)


def test_too_many_bad_steps_in_a_row_stop_the_run_across_short_epochs(job, samples):
    poison(job, lambda _: True)
    progress = progress_of(job)
    with pytest.raises(UserError, match=r"not finite in 10 steps in a row.*epoch 3, step 1 "):
        for _ in range(5):  # four steps each
            train_epoch(job, progress, samples, np.arange(30), NONE, seed=0, rate=lambda _: 0.01)
            progress.epoch = progress.epoch.next_epoch()
    assert progress.epoch.epoch == 2


def test_the_next_epoch_begins_from_nothing_else():
    state = EpochState(3, 7, 1.5, 40, 2, 5, 4, 60.0)
    assert state.next_epoch() == EpochState(epoch=4, num_bad_in_a_row=4)


def test_an_evaluation_counts_as_scikit_learn_does_one_image_at_a_time(job, samples, tree):
    paths, kept = naive.photos(tree.images), readable(tree, samples)
    seen = evaluate(job, samples, "all")
    answers = [naive.logits_of_all(job.network.model, tree.images / paths[i], SIZE) for i in kept]
    for number, head in enumerate(("one", "two")):
        known = [k for k, i in enumerate(kept) if samples.labels[head][i] >= 0]
        true = [samples.labels[head][kept[k]] for k in known]
        predicted = [int(answers[k][number].argmax()) for k in known]
        size = job.num_classes[head]
        expected = confusion_matrix(true, predicted, labels=range(size))
        assert np.array_equal(seen.confusions[head], expected)
        assert seen.accuracy(head) == np.trace(expected) / expected.sum()
    assert (seen.num_images, seen.num_unreadable) == (len(kept), 30 - len(kept))
    assert seen.num_non_finite == 0
    total = 0.0
    for part in np.array_split(np.arange(30), 4):
        rows = [kept.index(i) for i in part.tolist() if i in kept]
        for number, head in enumerate(("one", "two")):
            target = torch.from_numpy(samples.labels[head][[kept[k] for k in rows]])
            logits = torch.stack([answers[k][number] for k in rows])
            loss = nn.functional.cross_entropy(logits, target, ignore_index=-1)
            total += loss.item() * len(rows)
    assert seen.loss == pytest.approx(total / len(kept), rel=1e-4)


def test_answers_are_kept_on_request_as_they_are_for_one_image_at_a_time(job, samples, tree):
    """The part is in no order of the catalog; a head that is not finite is kept like the other."""
    order = np.random.default_rng(3).permutation(30)
    labels = {head: label[order] for head, label in samples.labels.items()}
    part = Samples(order, labels, samples.is_tail[order])
    paths, kept = naive.photos(tree.images), set(readable(tree, samples))
    places = [i for i in order.tolist() if i in kept]
    with torch.no_grad():
        job.network.model.two.bias[0] = math.nan
    assert evaluate(job, part, "all").answers == {}
    seen = evaluate(job, part, "all", keep_answers=True).answers
    assert list(seen) == ["one", "two"]
    single = [naive.logits_of_all(job.network.model, tree.images / paths[i], SIZE) for i in places]
    folders = [str((tree.images / paths[i]).parent) for i in places]
    for number, (head, answers) in enumerate(seen.items()):
        expected = torch.stack([logits[number] for logits in single]).numpy()
        np.testing.assert_allclose(answers.logits, expected, rtol=1e-4, atol=1e-5)
        assert answers.logits.dtype == np.float32
        assert answers.labels.tolist() == [samples.labels[head][i] for i in places]
        pairs = set(zip(answers.records.tolist(), folders, strict=True))
        assert len(pairs) == len(set(folders)) == len(set(answers.records.tolist()))
    nobody = Samples(np.array([], np.int64), {h: np.array([], int) for h in labels}, np.array([]))
    none = evaluate(job, nobody, "none", keep_answers=True).answers
    assert none["one"].logits.shape == (0, 3) and none["two"].labels.shape == (0,)


@pytest.mark.parametrize(("num", "most"), [(17, 2), (9, 1), (30, 2)])  # 3 batches, 2 and 4
def test_processes_with_one_batch_less_ask_once_more_whether_to_stop(
    job, samples, num, most, monkeypatch
):
    """All must ask equally often, or one waits for ever."""
    some = Samples(
        samples.images[:num], {h: y[:num] for h, y in samples.labels.items()}, samples.is_tail[:num]
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        asked = []
        stop = lambda asked=asked: asked.append(1) or len(asked) == most  # noqa: E731
        assert evaluate(job, some, "val", stop=stop) is None and len(asked) == most


def test_an_evaluation_leaves_the_network_as_it_was(job, samples):
    before = weights(job)
    evaluate(job, samples, "all")
    assert same(before, weights(job))


def test_images_with_logits_that_are_not_finite_are_in_no_matrix(job, samples):
    with torch.no_grad():
        job.network.model.two.bias[0] = math.nan
    seen = evaluate(job, samples, "all")
    assert seen.num_non_finite == seen.num_images > 0
    assert not any(matrix.any() for matrix in seen.confusions.values())
    assert math.isnan(seen.accuracy("one"))


def test_a_loss_over_no_known_label_is_no_loss(job, samples):
    """0 would be the best validation loss ever, after the first epoch."""
    unknown = Samples(
        samples.images, dict.fromkeys(("one", "two"), np.full(30, -1)), samples.is_tail
    )
    assert math.isnan(evaluate(job, unknown, "all").loss)
    some = Samples(
        samples.images, {**unknown.labels, "two": samples.labels["two"]}, samples.is_tail
    )
    assert evaluate(job, some, "all").loss > 0
    nobody = Samples(
        np.array([], np.int64), {"one": np.array([]), "two": np.array([])}, np.array([])
    )
    assert math.isnan(evaluate(job, nobody, "none").loss)


def test_a_batch_without_a_known_label_trains_on_nothing(job, samples):
    unknown = Samples(
        samples.images, dict.fromkeys(("one", "two"), np.full(30, -1)), samples.is_tail
    )
    optimizer = torch.optim.SGD(job.network.model.parameters(), lr=1.0)
    progress = progress_of(job, optimizer)
    before = {name: p.clone() for name, p in job.network.model.named_parameters()}
    train_epoch(job, progress, unknown, np.arange(30), NONE, seed=0, rate=lambda _: 1.0)
    assert same(before, dict(job.network.model.named_parameters()))
    assert progress.epoch.mean_loss == 0.0 and progress.epoch.num_skipped_steps == 0


def test_devices_and_precisions_are_chosen_or_refused_by_name():
    assert choose_device("cpu") == CPU
    for wanted in ("cuda:99", "gpu", "meta-physical"):
        with pytest.raises(UserError, match=f"DEVICE '{wanted}' cannot be used"):
            choose_device(wanted)
    assert [str(choose_precision(p, CPU)) for p in ("fp32", "bf16", "fp16")] == [
        "fp32", "bf16", "fp16",
    ]  # fmt: skip
    assert str(choose_precision("auto", CPU)) in ("fp32", "bf16")
    assert Precision(torch.float16).grad_scaler(CPU).is_enabled()
    assert not Precision(torch.bfloat16).grad_scaler(CPU).is_enabled()
