from datetime import UTC, datetime

import pytest
from tests.unit.authority.forge import Forge

from jobengine.authority.guard import Guard
from jobengine.authority.keys import SigningKey, generate_signing_key
from jobengine.authority.tokens import Realm


@pytest.fixture(scope="session")
def now() -> datetime:
    return datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def realm() -> Realm:
    return Realm("https://jobs.example", "jobengine")


@pytest.fixture(scope="session")
def key(now: datetime) -> SigningKey:
    return generate_signing_key(now, now)


@pytest.fixture(scope="session")
def forge(key: SigningKey, realm: Realm, now: datetime) -> Forge:
    return Forge(key, realm, now)


@pytest.fixture(scope="session")
def guard(forge: Forge) -> Guard:
    return forge.guard
