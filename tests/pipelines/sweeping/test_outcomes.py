"""The line of Ray's report of a failed trial that says what happened."""

import pytest

from pipelines.sweeping.outcomes import reason

RAISED = """Failure # 1 (occurred at 2026-11-24_18-35-20)
\x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=1, ip=127.0.0.2)
  File "trial.py", line 90, in run_trial
OSError: earlier
Failure # 2 (occurred at 2026-11-24_18-35-27)
\x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=1, ip=127.0.0.2)
  File "trial.py", line 90, in run_trial
    import stages
ModuleNotFoundError: No module named 'stages'
"""
DIED = """Failure # 1 (occurred at 2026-11-24_18-35-20)
The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
\tactor_id: 1f
The actor is dead because its worker process has died.
"""


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (RAISED, "ModuleNotFoundError: No module named 'stages'"),
        (DIED, "The actor died unexpectedly before finishing this task."),
        ("", ""),
        ("Failure # 1 (occurred at 2026-11-24_18-35-20)\n", ""),
    ],
)
def test_the_reason_of_the_last_failure_is_found(report, said):
    assert reason(report) == said
