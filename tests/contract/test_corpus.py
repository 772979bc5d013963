"""Bad input, case by case: each is answered exactly as the corpus says, by a real server over real HTTP."""

import pytest
from tests.contract.corpus import Case, Stage, deviations, read_cases
from tests.contract.deployment import Deployment

CASES = read_cases()


@pytest.fixture(scope="module")
def stage(deployment: Deployment) -> Stage:
    """What the cases speak of."""
    return Stage.build(deployment)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_bad_request_is_answered_as_the_corpus_says(stage: Stage, case: Case) -> None:
    """Status, code, paths, challenge: all of it, and no secret and no stack trace beside it."""
    secrets = (stage.words["secret"], stage.words["signature"])

    assert list(deviations(case, stage.send(case), secrets)) == []
