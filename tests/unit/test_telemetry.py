"""Metrics that processes share."""

from __future__ import annotations

import threading
from pathlib import Path

from service.telemetry import Telemetry

N_ROUNDS = 200
N_WORKERS = 4


def test_several_may_take_out_the_gauges_of_one_that_was_killed(tmp_path: Path) -> None:
    nobody, failed = 2**22 + 1, list[Exception]()  # Linux gives no process such a number
    telemetry, turn = Telemetry(tmp_path), threading.Barrier(N_WORKERS)

    def ask() -> None:
        for _ in range(N_ROUNDS):
            (tmp_path / f"gauge_livesum_{nobody}.db").touch()
            turn.wait()
            try:
                telemetry.exposition()
            except Exception as error:
                failed.append(error)
            turn.wait()

    workers = [threading.Thread(target=ask) for _ in range(N_WORKERS)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert not failed
