"""The audit runs in a process of its own: its results reach the engine's metrics, and it never outlives the engine."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager

import msgspec
import psutil
import pytest
from eventually import eventually
from exposed import sample_sum
from ledgers import fill, listing, owned

from fundsvc.config.settings import Config
from fundsvc.engine.audit_process import AuditProcess
from fundsvc.metrics import Metrics

AMOUNTS = [5, -3, 0, -10, 4, 20]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("fundsvc.engine.audit_process.START_SECONDS", 0.0)
    monkeypatch.setattr("fundsvc.engine.audit_process.OWNED_SECONDS", 0.05)


@pytest.fixture
async def ledger(config):
    async with owned(config) as owner:
        await owner.settle([listing("ABC"), *(fill("ABC", seq, amount) for seq, amount in enumerate(AMOUNTS, 1))])
        yield owner


@asynccontextmanager
async def auditing(config, partitions):
    metrics = Metrics()
    task = asyncio.create_task(AuditProcess(config, metrics, lambda: partitions).run())
    try:
        yield metrics
    finally:
        task.cancel()
        await asyncio.wait([task])


def workers():
    running = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    return [one for one in running if "fundsvc.engine.audit_worker" in one.cmdline()]


def is_good(metrics):
    return sample_sum(metrics, "fundsvc_audit_success", symbol="ABC") == 1


def test_configuration_survives_the_way_to_the_process(config):
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config


async def test_results_reach_the_metrics_and_new_entries_are_followed(config, ledger, owner_connection):
    async with auditing(config, {0}) as metrics:
        await eventually(lambda: is_good(metrics) and sample_sum(metrics, "fundsvc_audit_entries_total") == len(AMOUNTS))
        assert sample_sum(metrics, "fundsvc_audit_remaining_seconds") == 0
        await ledger.settle([fill("ABC", 7, 1)])
        await eventually(lambda: sample_sum(metrics, "fundsvc_audit_entries_total") == len(AMOUNTS) + 1)
        await owner_connection.execute("SET session_replication_role = replica")
        await ledger.settle([fill("ABC", 8, 1)])
        await owner_connection.execute("UPDATE funds SET balance = balance + 1")
        await eventually(lambda: sample_sum(metrics, "fundsvc_audit_success", symbol="ABC") == 0)


async def test_ended_process_is_started_again(config, ledger):
    async with auditing(config, {0}) as metrics:
        await eventually(lambda: is_good(metrics))
        (first,) = workers()
        first.kill()
        await ledger.settle([fill("ABC", 7, 1)])
        await eventually(lambda: sample_sum(metrics, "fundsvc_audit_entries_total") == len(AMOUNTS) + 1)
        (second,) = workers()
        assert second.pid != first.pid


async def test_partitions_of_other_engines_are_not_audited(config, ledger):
    partitions = {1}
    async with auditing(config, partitions) as metrics:
        await eventually(workers)
        assert sample_sum(metrics, "fundsvc_audit_entries_total") == 0
        partitions |= {0}
        await eventually(lambda: is_good(metrics))


async def test_process_ends_with_its_engine(config, ledger):
    async with auditing(config, {0}) as metrics:
        await eventually(lambda: is_good(metrics))
        (worker,) = workers()
    await eventually(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


async def test_terminal_that_interrupts_the_engine_does_not_interrupt_the_process(config, ledger):
    async with auditing(config, {0}) as metrics:
        await eventually(lambda: is_good(metrics))
        (worker,) = workers()
        assert os.getpgid(worker.pid) != os.getpgrp()


async def test_process_ends_with_its_input(config):
    receiving, sending = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fundsvc.engine.audit_worker", str(sending)), stdin=asyncio.subprocess.PIPE, pass_fds=(sending,)
    )
    process.stdin.write(msgspec.json.encode(config) + b"\n[0]\n")
    await asyncio.sleep(0.2)
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 30) == 0
    os.close(sending)
    os.close(receiving)
