"""queued_resource.sh babysit: through preemptions to COMPLETE, and never a slice left behind."""

import signal
import time

from processes import HANGING

RUN = ["--", "train", "--config=configs/nano.py", "--workdir=gs://bucket/a run"]
QUICK = {"POLL_SECONDS": "0"}


def verbs(machine):
    """What was done, a word each."""
    done = []
    for call in machine.calls:
        words = call[4:] if call[1] != "alpha" else call[5:]
        if call[1] == "storage":
            done.append("look")
        elif words[0] == "ssh":
            remote = call[-1].rpartition("on_worker.sh ")[2].split()
            done.append("programs" if "else echo" in call[-1] else remote[0])
        else:
            done.append(words[0])
    return done


def babysit(machine, *rules, code=0, arguments=RUN, **settings):
    machine.answer(*rules)
    _, errors = machine.run(
        "queued_resource.sh", "babysit", *arguments, code=code, **(QUICK | settings)
    )
    return errors


def test_a_preempted_run_is_ordered_again_and_goes_on_to_complete(machine):
    errors = babysit(
        machine,
        ("storage ls", "", 1, 8),
        ("describe", "", 1, 1),  # there is none yet
        ("describe", "WAITING_FOR_RESOURCES", 0, 1),
        ("describe", "ACTIVE", 0, 2),
        ("describe", "SUSPENDED", 0, 1),
        ("describe", "", 1, 1),
        ("describe", "ACTIVE", 0, -1),
        ("else echo", "not set up\nnot set up", 0, 1),
        ("else echo", "running\nrunning", 0, 1),
        ("else echo", "not set up\nnot set up", 0, 1),
        ("else echo", "running\nrunning", 0, -1),
    )
    assert [verb for verb in verbs(machine) if verb != "look"] == [
        *("describe", "create"),
        "describe",  # in the queue
        *("describe", "programs", "scp", "setup", "start"),
        *("describe", "programs"),  # runs
        *("describe", "delete"),  # preempted
        *("describe", "create"),
        *("describe", "programs", "scp", "setup", "start"),
        *("describe", "programs"),
        "delete",  # complete
    ]
    first, second = (call[-1] for call in machine.calls if " start " in call[-1])
    assert first == second and first.endswith("'--workdir=gs://bucket/a run'")
    looks = [call for call in machine.calls if call[1] == "storage"]
    assert looks[0] == ["gcloud", "storage", "ls", "gs://bucket/a run/COMPLETE"]
    assert "SUSPENDED: preempted" in errors and "babysit: complete" in errors


def test_a_complete_run_orders_nothing(machine):
    babysit(machine)
    assert verbs(machine) == ["look", "delete"]


def test_it_gives_up_after_the_limit_and_deletes_the_slices(machine):
    errors = babysit(
        machine,
        ("storage ls", "", 1, -1),
        ("describe", "ACTIVE", 0, -1),
        ("else echo", "not started", 0, 1),
        ("else echo", "exit 1\nexit 1", 0, -1),
        code=1,
        RETRIES="3",
    )
    assert verbs(machine).count("start") == 1 + 3
    assert verbs(machine)[-1] == "delete"
    assert "giving up after 3 retries" in errors and "2 exit 1" in errors


def test_a_training_that_diverged_is_not_tried_again(machine):
    errors = babysit(
        machine,
        ("storage ls", "", 1, -1),
        ("describe", "ACTIVE", 0, -1),
        ("else echo", "not started", 0, 1),
        ("else echo", "exit 3\nexit 3", 0, -1),
        code=3,
    )
    assert verbs(machine).count("start") == 1 and verbs(machine)[-1] == "delete"
    assert "giving up: training has diverged" in errors


def test_what_cannot_be_ordered_is_tried_no_more_often_than_the_limit(machine):
    babysit(
        machine,
        ("storage ls", "", 1, -1),
        ("describe", "", 1, -1),
        ("create", "no quota", 1, -1),
        code=1,
        RETRIES="2",
    )
    assert verbs(machine).count("create") == 1 + 2


def test_one_worker_that_failed_stops_the_others_before_all_start_again(machine):
    babysit(
        machine,
        ("storage ls", "", 1, 2),
        ("describe", "ACTIVE", 0, -1),
        ("else echo", "running\nexit 1\nrunning", 0, 1),
        ("else echo", "running", 0, -1),
    )
    work = [verb for verb in verbs(machine) if verb in ("stop", "scp", "setup", "start", "delete")]
    assert work == ["stop", "scp", "setup", "start", "delete"]


def test_a_worker_that_ended_well_before_the_others_is_waited_for(machine):
    errors = babysit(
        machine,
        ("storage ls", "", 1, -1),
        ("describe", "ACTIVE", 0, -1),
        ("else echo", "exit 0\nrunning", 0, 2),
        ("else echo", "exit 0\nexit 0", 0, 1),
    )
    assert "start" not in verbs(machine) and "stop" not in verbs(machine)
    assert "complete" in errors


def test_a_sweep_is_over_when_its_program_ends_well_on_every_worker(machine):
    sweep = ["--", "sweep", "--config=configs/head_rank.py", "--workdir=gs://b/s", "--index=3"]
    babysit(
        machine,
        ("describe", "ACTIVE", 0, -1),
        ("else echo", "not started", 0, 1),
        ("else echo", "exit 0", 0, -1),
        arguments=sweep,
    )
    assert "look" not in verbs(machine)
    assert verbs(machine)[-4:] == ["start", "describe", "programs", "delete"]


def test_the_slices_are_deleted_when_babysit_is_stopped_and_kept_when_asked(machine):
    for keep in ([], ["--keep"]):
        before = len(machine.calls)
        machine.answer(("storage ls", "", 1, -1), ("describe", "CREATING", 0, -1))
        process = machine.start("queued_resource.sh", "babysit", *keep, *RUN, POLL_SECONDS="3600")
        deadline = time.monotonic() + HANGING
        while len(machine.calls) < before + 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.1)  # it sleeps now
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=HANGING)
        assert process.returncode == 130
        assert ("delete" in verbs(machine)[before:]) == (not keep)


def test_a_workdir_on_a_disk_that_will_be_lost_is_refused(machine):
    errors = babysit(machine, arguments=["--", "train", "--workdir", "runs/a"], code=2)
    assert "must be gs://" in errors and machine.calls == []
