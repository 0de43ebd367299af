"""When a process is replaced by a fresh one, and how soon one that cannot start is tried again."""

from __future__ import annotations

from dataclasses import dataclass

from jobq.config import Settings

_LEAST_PAUSE_S = 1.0
_MOST_PAUSE_S = 60.0
_SHARE = 5.0
"""A process that died at birth is tried again after this many times the processor time that its birth took."""


@dataclass(frozen=True, slots=True)
class Recycling:
    """The limits after which an executor or a job child is replaced. None: never.

    Attributes:
        jobs: Jobs it has run, or claimed.
        age_s: Seconds since its start.
        growth_kb: Resident memory it has gained since its first job.
    """

    jobs: int | None = None
    age_s: float | None = None
    growth_kb: int | None = None

    @classmethod
    def of(cls, settings: Settings, *, jobs: int | None = None) -> Recycling:
        """What the settings ask for.

        Args:
            jobs: For settings that do not say.
        """
        age = settings.recycle_age
        return cls(
            jobs=jobs if settings.recycle_jobs is None else settings.recycle_jobs,
            age_s=None if age is None else age.total_seconds(),
            growth_kb=settings.recycle_growth // 1024,
        )

    def is_due(self, *, jobs: int, age_s: float, growth_kb: int) -> bool:
        """Whether any limit is reached."""
        return (
            (self.jobs is not None and jobs >= self.jobs)
            or (self.age_s is not None and age_s >= self.age_s)
            or (self.growth_kb is not None and growth_kb >= self.growth_kb)
        )


def pause_after_stillbirth(cpu_s: float, peers: int) -> float:
    """Seconds until a process that died before it could serve is tried again.

    So many that all tries together are at most one a second, and take at most a sixth of one core, however long an
    import takes.

    Args:
        cpu_s: Processor time it has taken.
        peers: How many such processes are tried side by side.
    """
    return min(_MOST_PAUSE_S, peers * max(_LEAST_PAUSE_S, _SHARE * cpu_s))
