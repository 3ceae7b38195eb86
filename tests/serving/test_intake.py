"""What comes between a request and its answer."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

from petface.serving.batcher import Answered
from petface.serving.intake import Intake
from petface.serving.limits import Limits
from petface.serving.observe import Facts
from tests.serving.made_server import FakeEngine

NUM = 20


class AnsweredPlace:
    """A place in the queue whose answer is there at once."""

    def submit(self, job: int) -> Future[Answered]:
        future: Future[Answered] = Future()
        future.set_result(Answered(job, 0.0, NUM))
        return future


def test_answers_that_come_together_leave_in_turns_of_their_own():
    intake, answers, turns = Intake(FakeEngine(), Limits()), [], []

    async def answer_all() -> None:
        turn = 0

        async def count() -> None:
            nonlocal turn
            while True:
                turn += 1
                await asyncio.sleep(0)

        async def answer(job: int) -> None:
            leaving = asyncio.create_task(asyncio.sleep(60))
            answers.append(await intake._answer(leaving, AnsweredPlace(), job, Facts()))
            turns.append(turn)
            leaving.cancel()

        counting = asyncio.create_task(count())
        await asyncio.gather(*(answer(job) for job in range(NUM)))
        counting.cancel()

    try:
        asyncio.run(answer_all())
    finally:
        intake.close()
    assert sorted(answers) == list(range(NUM))
    assert len(set(turns)) == NUM, "others had their turn between any two"
