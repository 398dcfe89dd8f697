import asyncio
import threading

import pytest

from fundsvc.concurrency.exclusive import Exclusive, single_thread_executor


@pytest.mark.parametrize("is_long", [False, True])
async def test_run_returns_the_result_or_raises_the_error_of_the_work(is_long):
    exclusive = Exclusive()
    assert await exclusive.run(lambda: 7, is_long=is_long) == 7
    with pytest.raises(ZeroDivisionError):
        await exclusive.run(lambda: 1 / 0, is_long=is_long)
    assert await exclusive.run(lambda: 8, is_long=is_long) == 8


async def test_long_work_runs_in_a_thread_and_short_work_on_the_loop():
    here, begun, end = threading.current_thread(), asyncio.Event(), threading.Event()
    loop, exclusive = asyncio.get_running_loop(), Exclusive()

    def work():
        loop.call_soon_threadsafe(begun.set)
        end.wait()
        return threading.current_thread()

    running = asyncio.create_task(exclusive.run(work, is_long=True))
    await begun.wait()
    end.set()
    assert await running is not here
    assert await exclusive.run(threading.current_thread) is here


@pytest.mark.parametrize("is_long", [False, True])
async def test_work_waits_for_cancelled_work_in_a_thread(is_long):
    done, end, exclusive = [], threading.Event(), Exclusive()

    def work():
        end.wait()
        done.append("first")

    first = asyncio.create_task(exclusive.run(work, is_long=True))
    await asyncio.sleep(0)
    second = asyncio.create_task(exclusive.run(lambda: done.append("second"), is_long=is_long))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert done == []
    end.set()
    await second
    assert done == ["first", "second"]


async def test_cancelled_waiting_work_does_not_run():
    done, end, exclusive = [], threading.Event(), Exclusive()
    first = asyncio.create_task(exclusive.run(end.wait, is_long=True))
    await asyncio.sleep(0)
    second = asyncio.create_task(exclusive.run(lambda: done.append("second")))
    await asyncio.sleep(0)
    second.cancel()
    end.set()
    await first
    assert await exclusive.run(lambda: "third") == "third"
    assert done == []


async def test_one_thread_runs_all_long_work():
    with single_thread_executor("test") as worker:
        threads = await asyncio.gather(*(Exclusive(worker).run(threading.current_thread, is_long=True) for _ in range(5)))
    assert len(set(threads)) == 1
    assert threads[0].name.startswith("test")


async def test_long_work_fails_and_access_continues_after_shutdown():
    with single_thread_executor("test") as worker:
        exclusive = Exclusive(worker)
    with pytest.raises(RuntimeError):
        await exclusive.run(lambda: 7, is_long=True)
    assert await exclusive.run(lambda: 8) == 8
