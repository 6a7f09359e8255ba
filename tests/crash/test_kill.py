# SPDX-License-Identifier: Apache-2.0
"""kill -9 under load, again and again: nothing acknowledged is lost, nothing is charged twice."""

from __future__ import annotations

import random

import pytest

from tests.crash.conftest import GRANT, KILLS, Service
from tests.crash.load import Load, check_promises, daemons_die, running_load

pytestmark = daemons_die


@pytest.mark.slow
def test_kill_9_under_load(service: Service) -> None:
    moments = random.Random(20261122)
    with running_load([service.daemon], service.key) as load:
        for _ in range(KILLS):
            # Not a time but a number of messages: as meaningful on a slow machine as on a fast one.
            load.wait_for(moments.randrange(5, 60))
            service.daemon.kill()
            service.daemon.start()
        load.wait_for(20)
    found = check_promises(service.daemon, service.sink, load.promises, grant=GRANT)
    print(f"{KILLS} kills: {found}")


def test_kill_9_between_the_dot_and_its_answer(service: Service) -> None:
    """The next hop has the message, we do not know it: tried again, and the second copy is counted as in doubt."""

    test_sink = service.sink
    test_sink.stop()
    prompt = test_sink.command
    test_sink.command = [*prompt, "--delay-ms", "3600000"]
    test_sink.start()
    load = Load([service.daemon], service.key, smtp=3, https=1)
    load.start()
    try:
        test_sink.wait_for(3)  # written down, and not answered yet
        service.daemon.kill()
        test_sink.stop()
        test_sink.command = prompt
        test_sink.start()
        service.daemon.start()
        load.wait_for(3)
    finally:
        load.stop()
    found = check_promises(service.daemon, service.sink, load.promises, grant=GRANT)
    assert found["repeated"] >= 1
