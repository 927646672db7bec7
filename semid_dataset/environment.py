"""
The environment variables that this package honours, and the only place that reads them.

A door (reading a dataset's attribute, a function of `api`, a command, `SemanticIdTable.open`) makes one `Context` and
hands it in. Reading variables anywhere deeper would make an answer depend on when it was asked, and a slip in a
variable that has nothing to do with it could end a look-up.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from semid_dataset._messages import speak, tell, warn
from semid_dataset.config import LEAST_MEMORY, SemanticIdConfig
from semid_dataset.errors import ConfigError

__all__ = ["Context", "Environment", "Gate", "Misread", "parse_bytes", "parse_seconds"]

UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}  # powers of two
SECONDS = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
YES, NO = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


@dataclass(frozen=True)
class Gate:
    """Whether `ALLOW_SEMANTIC_GENERATION` lets IDs be made; `value` is what it held."""

    allowed: bool
    value: str | None
    understood: bool = True

    @classmethod
    def parse(cls, value: str | None) -> "Gate":
        """Unset, empty, 1, true, yes and on allow; 0, false, no and off forbid; so does anything else."""
        word = (value or "").strip().casefold()
        if word in {"", *YES}:
            return cls(True, value)
        return cls(False, value, understood=word in NO)


@dataclass(frozen=True)
class Misread:
    """A variable whose value is not understood; `used` says what is done instead."""

    variable: str
    value: str
    wanted: str
    used: str


@dataclass(frozen=True)
class Environment:
    """A snapshot of the variables that this package reads; a value that is not understood counts as unset."""

    gate: Gate
    cache_dir: str | None  # SEMID_CACHE_DIR
    user_cache_path: str | None  # USER_CACHE_PATH, the competition's shared folder
    parent: str | None  # SEMID_PARENT
    mmap: bool  # SEMID_MMAP
    language: str  # SEMID_LANG, else the locale: "en" or "zh"
    world_size: int  # ranks that were launched: WORLD_SIZE, else what other launchers set, see LAUNCHED
    lock_timeout: float | None  # SEMID_LOCK_TIMEOUT, seconds
    memory_limit: int | None = None  # SEMID_MEMORY_LIMIT, bytes
    lock_deadline: float | None = None  # SEMID_LOCK_DEADLINE, seconds
    caches: str | None = None  # XDG_CACHE_HOME, where a user's caches lie on Linux
    expect: str | None = None  # SEMID_EXPECT, a digest or a lineage
    pin: str | None = None  # SEMID_PIN, a lineage or one of its tables
    misread: tuple[Misread, ...] = field(default=(), compare=False)

    def memory_for(self, config: SemanticIdConfig) -> int:
        """Return the bytes that making IDs may take: those of `config` where they were named, else of the variable."""
        default = SemanticIdConfig.memory_limit
        return config.memory_limit if config.memory_limit != default else self.memory_limit or default

    @classmethod
    def read(cls, variables: Mapping[str, str] | None = None) -> "Environment":
        """Read the variables from `variables`, by default from the process. Never raises; see `misread`."""
        env = os.environ if variables is None else variables
        misread: list[Misread] = []

        def seconds(name: str) -> float | None:
            value = env.get(name, "").strip()
            try:
                return parse_seconds(name, value) if value else None
            except ConfigError:
                misread.append(Misread(name, value, "seconds, or a duration such as 300s, 5m or 2h", "the default"))
                return None

        def memory(name: str) -> int | None:
            value = env.get(name, "").strip()
            try:
                return parse_bytes(name, value) if value else None
            except ConfigError:
                misread.append(Misread(name, value, "a size from a megabyte on, such as 2G or 512M", "the default"))
                return None

        word = env.get("SEMID_MMAP", "").strip().casefold()
        if word not in {"", *YES, *NO}:
            misread.append(Misread("SEMID_MMAP", env["SEMID_MMAP"], "true or false", "true: files are mapped"))
        return cls(
            gate=Gate.parse(env.get("ALLOW_SEMANTIC_GENERATION")),
            cache_dir=env.get("SEMID_CACHE_DIR") or None,
            user_cache_path=env.get("USER_CACHE_PATH") or None,
            parent=env.get("SEMID_PARENT") or None,
            mmap=word not in NO,
            language=_language(env),
            world_size=_world_size(env),
            lock_timeout=seconds("SEMID_LOCK_TIMEOUT"),
            memory_limit=memory("SEMID_MEMORY_LIMIT"),
            lock_deadline=seconds("SEMID_LOCK_DEADLINE"),
            caches=env.get("XDG_CACHE_HOME", "").strip() or None,
            expect=env.get("SEMID_EXPECT", "").strip() or None,
            pin=env.get("SEMID_PIN", "").strip() or None,
            misread=tuple(misread),
        )


_said: set[Misread] = set()  # log lines are said once a process; Python's own filter does that for warnings


@dataclass(frozen=True)
class Context:
    """
    What was read at a door.

    Attributes:
        environment: the variables.
        language: of the lines that are logged: "en" or "zh".
        memory_limit: bytes that making IDs may take, None where no variable says it.
    """

    environment: Environment
    language: str
    memory_limit: int | None

    @classmethod
    def at_door(cls, *, explicit: bool = False, variables: Mapping[str, str] | None = None) -> "Context":
        """
        Read the environment; what is not understood in it is said, with what is used instead.

        Args:
            explicit: somebody called a command and waits for its answer: what is not understood is an error then.
            variables: by default those of the process.

        Raises:
            ConfigError: with `explicit`, a value is not understood.
        """
        environment = Environment.read(variables)
        speak(environment.language)
        for slip in environment.misread:
            if explicit:
                raise ConfigError(f"{slip.variable}={slip.value!r} is not understood: wanted {slip.wanted}.")
            if slip not in _said:
                _said.add(slip)
                tell("not_understood", **asdict(slip))
            warn("not_understood", **asdict(slip))
        return cls(environment, environment.language, environment.memory_limit)

    def waiting(self, config: SemanticIdConfig) -> tuple[float, float]:
        """Return how many seconds to wait for another process: without its progress, and in all."""
        timeout = self.environment.lock_timeout or config.lock_timeout
        return timeout, self.environment.lock_deadline or DEADLINES * timeout


DEADLINES = 288.0  # lock timeouts: a day where nothing is set


def _language(env: Mapping[str, str]) -> str:
    for name in ("SEMID_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := env.get(name):
            return "zh" if value.strip().casefold().startswith("zh") else "en"
    return "en"


# What launchers set in each rank: how many there are, and the number of this one, which is another proof above 0.
LAUNCHED = (
    ("SLURM_NTASKS", "SLURM_PROCID"),  # srun
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),  # mpirun of Open MPI
    ("PMI_SIZE", "PMI_RANK"),  # mpiexec of MPICH and Intel MPI
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    ("FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
    ("HOROVOD_SIZE", "HOROVOD_RANK"),
    ("LOCAL_WORLD_SIZE", "LOCAL_RANK"),  # torchrun, of one node
    ("", "RANK"),
)


def _world_size(env: Mapping[str, str]) -> int:
    """
    Return how many ranks were launched, 1 for a process alone.

    WORLD_SIZE decides where it is a number: one task of a Slurm job may well train alone. What is no number was set
    by somebody else for something else. SLURM_NTASKS stands in batch scripts too, which are one process: there the
    step says how many tasks it has.
    """
    said = _number(env.get("WORLD_SIZE"))
    if said is not None:
        return max(1, said)
    ranks = 1
    for size, rank in LAUNCHED:
        total, number = _number(env.get(size)), _number(env.get(rank))
        if size == "SLURM_NTASKS":
            step = _number(env.get("SLURM_STEP_NUM_TASKS"))
            total = (total if step is None else step) if number is not None else None
        ranks = max(ranks, total or 1, (number or 0) + 1)
    return ranks


def _number(value: str | None) -> int | None:
    try:
        return int(value or "")
    except ValueError:
        return None


def parse_seconds(name: str, value: str) -> float:
    """
    Return a number of seconds: "300", "1.5", "300s", "5m", "2 h", "1h30m".

    Raises:
        ConfigError: it is no positive duration; the message says `name`.
    """
    asked = value.strip().casefold()
    parts = re.findall(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*", asked)
    whole = "".join(re.split(r"\s+", asked)) == "".join(number + unit for number, unit in parts)
    units = [unit or ("s" if len(parts) == 1 else "") for _, unit in parts]
    if not parts or not whole or not all(unit in SECONDS for unit in units):
        raise ConfigError(f"{name}={value!r} is not a positive number of seconds, nor a duration such as 5m.")
    seconds = sum(float(number) * SECONDS[unit] for (number, _), unit in zip(parts, units, strict=True))
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"{name}={value!r} is not a positive number of seconds, nor a duration such as 5m.")
    return seconds


def parse_bytes(name: str, text: str) -> int:
    """
    Return a number of bytes: "1073741824", "1G", "1.5 GiB", "800MB" (units are powers of two).

    Raises:
        ConfigError: it is none, or less than a megabyte; the message says `name`.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([KMGT]?)(?:I?B)?", text.strip().upper())
    size = int(min(float(match[1]), 2e18) * (1 << UNITS[match[2]])) if match else 0
    if not LEAST_MEMORY <= size <= 1 << 60:
        raise ConfigError(f"{name}={text!r} is no number of bytes from a megabyte on, such as 2G or 512M.")
    return size
