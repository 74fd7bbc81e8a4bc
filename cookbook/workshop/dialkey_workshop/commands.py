"""What the commands do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import dialkey_rpc as rpc
from dialkey import EndpointId
from dialkey.cli import Options, Output, Progress
from dialkey_gossip import TopicId, TopicTicket
from dialkey_workshop.announcements import Board, Here
from dialkey_workshop.client import (
    Assigned,
    Completed,
    Event,
    Failed,
    HandedOver,
    Limits,
    Progressed,
    run,
    watch,
)
from dialkey_workshop.errors import JobsFailed
from dialkey_workshop.jobs import load_jobs
from dialkey_workshop.service import Order, Workshop
from dialkey_workshop.site import open_site
from dialkey_workshop.worker import Terms, Worker, announce

__all__ = ["list_workers", "run_jobs", "work"]

JOIN_TIMEOUT_S = 15.0


def _ids(texts: Sequence[str] | None) -> frozenset[EndpointId] | None:
    return None if not texts else frozenset(EndpointId.parse(text) for text in texts)


async def work(
    output: Output,
    options: Options,
    ticket: str | None,
    terms: Terms,
    allow: Sequence[str] | None,
    grace_s: float,
) -> None:
    """Work until cancelled; then take no more jobs, and end those that are here within `grace_s`."""
    topic_of = TopicTicket.parse(ticket) if ticket is not None else TopicId.generate()
    allowed = _ids(allow)
    if terms.jobs_file is not None:
        await asyncio.to_thread(load_jobs, terms.jobs_file)

    def tell(order: Order, caller: EndpointId, what: str) -> None:
        output.remark(f"{order.job} for {caller.short()}: {what}")
        output.result("job", None, id=order.id, job=order.job, client=str(caller), what=what)

    async with options.open_endpoint() as endpoint, open_site(endpoint) as site:
        changed = asyncio.Event()
        worker = Worker(site, terms, changed=changed.set, tell=tell)
        policy = None if allowed is None else {"*": allowed}
        site.router.add(rpc.Rpc(worker, Workshop, allow=policy))
        await options.until_online(endpoint, output)
        async with site.join(topic_of) as topic:
            if ticket is not None:
                await topic.joined(JOIN_TIMEOUT_S)
            own = str(topic.ticket())
            output.result("ready", own, ticket=own, endpoint_id=str(endpoint.id))
            output.remark("Working. Ctrl-C ends it. Elsewhere, with the ticket above:")
            output.remark("  dialkey workshop run wordcount FILE... --ticket TICKET")
            announcing = asyncio.create_task(announce(topic, worker, changed))
            try:
                await asyncio.wait({announcing})
                announcing.result()
            finally:
                announcing.cancel()
                await asyncio.wait({announcing})
                output.result("leaving", None, active=worker.active)
                if worker.active:
                    output.remark(f"Finishing {worker.active} jobs; Ctrl-C again leaves at once.")
                await worker.leave(grace_s)


async def list_workers(
    output: Output, options: Options, ticket: str, wait_s: float, expected: int
) -> None:
    """Listen for a while, and list who was heard."""
    board = Board()
    async with (
        options.open_endpoint() as endpoint,
        open_site(endpoint) as site,
        site.join(TopicTicket.parse(ticket)) as topic,
    ):
        await options.until_online(endpoint, output)
        await topic.joined(JOIN_TIMEOUT_S)
        enough = asyncio.Event()

        def heard(worker: Here | None) -> None:
            if len(board.workers) >= expected:
                enough.set()

        watching = asyncio.create_task(watch(topic, board, heard))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await enough.wait()
        finally:
            watching.cancel()
    if not board.workers:
        output.remark("Nobody was heard.")
    for here in board.workers:
        output.result(
            "worker",
            f"{here.id}  {here.active}/{here.slots}  {' '.join(here.jobs)}",
            endpoint_id=str(here.id),
            active=here.active,
            slots=here.slots,
            jobs=here.jobs,
            max_input_bytes=here.max_input_bytes,
        )


async def run_jobs(
    output: Output,
    options: Options,
    ticket: str,
    job: str,
    files: Sequence[Path],
    folder: Path,
    allow: Sequence[str] | None,
    *,
    overwrite: bool,
    limits: Limits,
) -> None:
    """Have a job done for each file.

    Raises:
        JobsFailed: some have no result.
        DialkeyError: as `dialkey_workshop.client.run`.
    """
    where = TopicTicket.parse(ticket)
    allowed = _ids(allow)
    async with options.open_endpoint() as endpoint, open_site(endpoint) as site:
        await options.until_online(endpoint, output)
        async with site.join(where) as topic:
            await topic.joined(JOIN_TIMEOUT_S)
            with output.progress(job, sum(file.stat().st_size for file in files)) as progress:
                display = _Display(output, progress, len(files))
                await run(
                    site,
                    topic,
                    job,
                    files,
                    folder,
                    display.show,
                    allowed=allowed,
                    overwrite=overwrite,
                    limits=limits,
                )
    if display.failed:
        raise JobsFailed(f"{display.failed} of {len(files)} jobs have no result")


class _Display:
    """Shows what happens: one bar for people, a line for each event for programs."""

    def __init__(self, output: Output, progress: Progress, total: int) -> None:
        self._output = output
        self._progress = progress
        self._total = total
        self._done_bytes: dict[UUID, int] = {}
        self._completed = 0
        self.failed = 0

    def show(self, event: Event) -> None:
        """Show an event."""
        task, worker = event.task, event.worker
        fields = {"id": task.id, "name": task.name, "worker": str(worker)}
        if isinstance(event, Assigned):
            self._output.result("assigned", None, **fields)
        elif isinstance(event, Progressed):
            done = max(0, min(event.report.done_bytes, task.size))
            step = event.report.step.value
            self._output.result("working", None, **fields, step=step, done_bytes=done)
            # Fetching and working are each the half of it.
            self._update(task.id, done // 2 + (task.size // 2 if step == "working" else 0))
        elif isinstance(event, HandedOver):
            self._output.remark(f"{task.name}: not at {worker.short()}: {event.reason}")
            self._output.result("handed_over", None, **fields, reason=event.reason)
            self._update(task.id, 0)
        elif isinstance(event, Completed):
            self._completed += 1
            self._output.result(
                "done", str(event.path), **fields, path=str(event.path), size=event.size
            )
            self._update(task.id, task.size)
        elif isinstance(event, Failed):
            self.failed += 1
            self._output.remark(f"{task.name}: failed: {event.reason}")
            self._output.result("failed", None, **fields, reason=event.reason)
            self._update(task.id, task.size)

    def _update(self, id: UUID, done_bytes: int) -> None:
        self._done_bytes[id] = done_bytes
        note = f"{self._completed} of {self._total} results"
        self._progress.update(sum(self._done_bytes.values()), note=note)
