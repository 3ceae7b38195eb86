"""Passes that measure against scikit-learn and one image at a time."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

from petface import distributed
from petface.data.loading import Samples
from petface.training.evaluate import evaluate
from tests import naive
from tests.training.small import HEADS, SIZE, Small, make_job, same, samples_of, state_of

NOBODY = samples_of([], np.array([], int), np.array([], int))


def test_an_evaluation_counts_as_scikit_learn_does_one_image_at_a_time(
    job, samples, paths, readable
):
    model, loss, asked = job.network.model, 0.0, []
    answers = [naive.logits_of_all(model, paths[i], SIZE) for i in readable]
    with torch.no_grad():  # so that more than one class is predicted
        for head, logits in zip(HEADS, zip(*answers, strict=True), strict=True):
            getattr(model, head).bias -= torch.stack(logits).median(dim=0).values
    before = state_of(job)
    seen = evaluate(job, samples, "all", stop=lambda: asked.append(1))
    assert same(before, state_of(job)) and seen.answers == {} and len(asked) == 4
    answers = {i: naive.logits_of_all(model, paths[i], SIZE) for i in readable}
    for number, head in enumerate(HEADS):
        known = [i for i in readable if samples.labels[head][i] >= 0]
        true = [samples.labels[head][i] for i in known]
        predicted = [int(answers[i][number].argmax()) for i in known]
        expected = confusion_matrix(true, predicted, labels=range(job.num_classes[head]))
        assert np.array_equal(seen.confusions[head], expected)
        assert expected[:, 0].any() and expected[:, 1:].any()
        assert seen.accuracy(head) == np.trace(expected) / expected.sum()
        logits = torch.stack([answers[i][number] for i in known])
        loss += float(nn.functional.cross_entropy(logits, torch.tensor(true)))
    assert (seen.num_images, seen.num_unreadable) == (len(readable), 30 - len(readable))
    assert seen.num_non_finite == 0
    assert seen.loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_does_not_depend_on_how_photos_fall_into_batches(
    tree, samples, tmp_path, weighted
):
    """Few labels are known; the mean is over these, by their weight."""
    labels = {head: np.where(np.arange(30) % 7 < 2, samples.labels[head], -1) for head in HEADS}
    few = Samples(samples.images, labels, samples.is_tail)
    torch.manual_seed(0)
    model, found = Small(is_plain=True), []
    for size in (1, 4, 8, 30):
        job = make_job(tree.images, tmp_path / str(size), model, size, 2.0, weighted)
        found.append(evaluate(job, few, "all").loss)
    assert found == pytest.approx([found[-1]] * 4, rel=1e-5) and found[0] > 0


def test_answers_are_kept_on_request_as_they_are_for_one_image_at_a_time(
    job, samples, paths, readable
):
    """The part is in no order of the catalog; a head that is not finite is kept like the other."""
    order = np.random.default_rng(3).permutation(30)
    part = samples_of(order, *(samples.labels[head][order] for head in HEADS))
    places = [i for i in order.tolist() if i in readable]
    with torch.no_grad():
        job.network.model.two.bias[0] = math.nan
    seen = evaluate(job, part, "all", keep_answers=True)
    assert seen.num_non_finite == seen.num_images == len(places)
    assert not any(matrix.any() for matrix in seen.confusions.values())
    assert math.isnan(seen.accuracy("one"))
    single = [naive.logits_of_all(job.network.model, paths[i], SIZE) for i in places]
    folders = [str(paths[i].parent) for i in places]
    for number, (head, answers) in enumerate(seen.answers.items()):
        expected = torch.stack([logits[number] for logits in single]).numpy()
        np.testing.assert_allclose(answers.logits, expected, rtol=1e-4, atol=1e-5)
        assert answers.logits.dtype == np.float32
        assert answers.labels.tolist() == [samples.labels[head][i] for i in places]
        pairs = set(zip(answers.records.tolist(), folders, strict=True))
        assert len(pairs) == len(set(folders)) == len(set(answers.records.tolist()))
    none = evaluate(job, NOBODY, "none", keep_answers=True).answers
    assert none["one"].logits.shape == (0, 3) and none["two"].labels.shape == (0,)


@pytest.mark.parametrize(("num", "most"), [(17, 2), (9, 1), (30, 2)])  # 3 batches, 2 and 4
def test_processes_with_one_batch_less_ask_once_more_whether_to_stop(
    job, samples, num, most, monkeypatch
):
    """All must ask equally often, or one waits for ever; also where nobody says to stop."""
    labels = {head: label[:num] for head, label in samples.labels.items()}
    some = Samples(samples.images[:num], labels, samples.is_tail[:num])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        asked = []
        stop = lambda asked=asked: asked.append(1) or len(asked) == most  # noqa: E731
        assert evaluate(job, some, "val", stop=stop) is None and len(asked) == most
        monkeypatch.setattr(distributed, "gather_objects", mock.Mock(side_effect=EOFError))
        never = mock.Mock(return_value=False)
        with pytest.raises(EOFError):
            evaluate(job, some, "val", stop=never)
        assert never.call_count == most


def test_a_loss_over_no_known_label_is_no_loss(job, samples, unknown):
    """0 would be the best validation loss ever, after the first epoch."""
    assert math.isnan(evaluate(job, unknown, "all").loss)
    assert math.isnan(evaluate(job, NOBODY, "none").loss)
    some = Samples(
        unknown.images, {**unknown.labels, "two": samples.labels["two"]}, unknown.is_tail
    )
    assert evaluate(job, some, "all").loss > 0
