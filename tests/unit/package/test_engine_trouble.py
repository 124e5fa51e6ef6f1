"""What a container engine complains about, in our words."""

import pytest

from edgekit.contracts.errors import BadInputError, ResourceError, UnavailableError
from edgekit.engine import trouble
from edgekit.engine.ports import EngineAwayError


@pytest.mark.parametrize(
    ("text", "kind", "means"),
    [
        ("manifest for r/m@sha256:1 not found: manifest unknown", BadInputError, "no such image"),
        ("pull access denied for r/m, repository does not exist", BadInputError, "not allow"),
        ("unauthorized: authentication required", BadInputError, "not allow"),
        ("received unexpected HTTP status: 503 Service Unavailable", UnavailableError, "failing"),
        ("toomanyrequests: You have reached your pull rate limit", UnavailableError, "wait"),
        ('Get "http://r/v2/": dial tcp 1.2.3.4:80: i/o timeout', UnavailableError, "in time"),
        ("Get http://r/v2/: context deadline exceeded", UnavailableError, "in time"),
        (
            'Get "http://r/v2/": dial tcp: connect: connection refused',
            UnavailableError,
            "reachable",
        ),
        ("server gave HTTP response to HTTPS client", BadInputError, "no TLS"),
        ("no matching manifest for linux/arm64/v8 in the manifest list", BadInputError, "platform"),
        ("exec /usr/bin/python3.11: exec format error", BadInputError, "cannot run its arch"),
        ("write /x: no space left on device", ResourceError, "no space"),
        ("filesystem layer verification failed for digest sha256:1", BadInputError, "altered"),
        ("unexpected EOF", BadInputError, "altered"),
        ("something new", BadInputError, "refused: something new"),
    ],
)
def test_what_it_means(text, kind, means):
    error = trouble.meaning(text, "pull r/m")
    assert type(error) is kind
    assert error.message.startswith("pull r/m: ")
    assert means in error.message
    assert error.hint


def test_an_engine_that_is_not_there():
    error = trouble.away("unix:///x", "Connection refused")
    assert isinstance(error, EngineAwayError)
    assert error.exit_code == 5
    assert "DOCKER_HOST" in error.hint
    assert "usermod" in trouble.away("unix:///x", "Permission denied").hint
