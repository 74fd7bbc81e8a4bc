"""A workshop: workers announce themselves by gossip, take jobs by RPC, and move files as blobs.

The reference for an application that composes several protocols on one endpoint. `job` adds a job
of your own; as an entry point it brings the command ``dialkey workshop``.
"""

from __future__ import annotations

from dialkey_workshop.jobs import JobError, job

__all__ = ["JobError", "job"]
