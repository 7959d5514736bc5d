"""The best settings of the baseline and of the student, chosen on validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.gain.protocol import Protocol
from coterie.ablation import Row

MOST_DOUBLINGS = 3
ENOUGH = 0.3  # val mAP that twice the epochs must gain to be taken

Words = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """Choices that are tried together over the best so far, which stays where none of them is better."""

    name: str
    choices: Mapping[str, Words]


LOSSES: dict[str, Words] = {
    "BCE": ("train.loss=bce",),
    "ASL, gamma- 2": ("train.loss=asl", "train.gamma_neg=2"),
    "ASL, gamma- 4": ("train.loss=asl", "train.gamma_neg=4"),
}
FIRST_RATE = "1e-3"


def rate_step(*rates: str) -> Step:
    return Step("rate", {f"lr = {rate}": (f"train.lr={rate}",) for rate in rates})


RATES = ("2.5e-4", "5e-4", FIRST_RATE, "2e-3")


@dataclass
class Trial:
    """One choice: its settings, its val mAP at each seed, and whether it was taken."""

    step: str
    choice: str
    words: Words
    val: dict[int, float]
    taken: bool = False

    @property
    def mean(self) -> float:
        return sum(self.val.values()) / len(self.val)


@dataclass
class Search:
    """Settings chosen one step after the other, and all that was tried on the way."""

    protocol: Protocol
    role: str
    words: Words = ()
    trials: list[Trial] = field(default_factory=list)

    def take(self, step: Step) -> None:
        """Try the choices of a step, and go on with the best."""
        tried = self._try(step.name, step.choices)
        best = max(tried, key=lambda trial: trial.mean)
        if best.mean > max((trial.mean for trial in self.trials if trial.taken), default=0.0):
            for trial in self.trials:
                trial.taken = False
            best.taken = True
            self.words = (*self.words, *best.words)
        self.trials += tried

    def speed_up(self) -> None:
        """Double the rate, the largest of those tried, for as long as that is better."""
        before = ""
        while (rate := value_of("train.lr", self.words)) != before:
            before = rate
            self.take(rate_step(f"{2 * float(rate):.1e}".replace(".0e", "e").replace("e-0", "e-")))

    def lengthen(self) -> int:
        """Double the epochs until that gains less than ENOUGH on validation: the number of epochs."""
        epochs = self.protocol.epochs
        for _ in range(MOST_DOUBLINGS):
            before = next(trial for trial in self.trials if trial.taken)
            (longer,) = self._try("epochs", {f"{2 * epochs} epochs": (f"train.epochs={2 * epochs}",)})
            self.trials.append(longer)
            if longer.mean - before.mean < ENOUGH:
                break
            before.taken, longer.taken = False, True
            epochs *= 2
            self.words = (*self.words, *longer.words)
        return epochs

    def _try(self, step: str, choices: Mapping[str, Words]) -> list[Trial]:
        rows = [
            Row(f"choice-{number}", choice, words, model=self.role)
            for number, (choice, words) in enumerate(choices.items())
        ]
        found = self.protocol.searched(self.words, rows)
        return [Trial(step, row.title, row.words, found.values(row.name, "val")) for row in rows]

    def write(self) -> None:
        trials = [asdict(trial) | {"mean": trial.mean} for trial in self.trials]
        self.protocol.write(f"search-{self.role}", {"words": self.words, "trials": trials})


def search_baseline(protocol: Protocol) -> Words:
    """Loss, rate and number of epochs of the baseline at its own best."""
    start = (f"train.epochs={protocol.epochs}", f"train.lr={FIRST_RATE}")
    if (found := _found_before(protocol, "baseline", start)) is not None:
        return found
    search = Search(protocol, "baseline", start)
    for step in (Step("loss", LOSSES), rate_step(*RATES)):
        search.take(step)
    if value_of("train.lr", search.words) == RATES[-1]:
        search.speed_up()
    epochs = search.lengthen()
    search.take(shorter_step(epochs))
    search.write()
    return search.words


def shorter_step(epochs: int) -> Step:
    """Fewer epochs for what learns from the labels alone, baseline and teachers, if that is better for the
    baseline.
    """
    fewer = (epochs // 2, epochs // 4)
    words = {
        f"{number} epochs": tuple(f"{role}.epochs={number}" for role in ("baseline", "teacher"))
        for number in fewer
    }
    return Step("fewer epochs, without a teacher", words)


def search_student(protocol: Protocol, baseline: Words) -> Words:
    """The student's best settings over teachers that train as the `baseline` does; as many are tried."""
    if (found := _found_before(protocol, "student", baseline)) is not None:
        return found
    search = Search(protocol, "student", baseline)
    for step in student_steps(float(value_of("train.lr", baseline)), baseline):
        search.take(step)
    search.write()
    return search.words


def student_steps(rate: float, words: Sequence[str]) -> list[Step]:
    """What is tried for the student: how much it listens to its teachers, and how it learns."""
    losses = {
        name: tuple(word.replace("train.", "student.") for word in choice)
        for name, choice in LOSSES.items()
        if not set(choice) <= set(words)
    }
    return [
        Step("teachers' weight", {f"w = {w}": (f"distill.w={w}",) for w in (0.5, 0.7, 0.9)}),
        Step("rate", {f"lr x {x}": (f"student.lr={rate * x:.3g}",) for x in (2, 4)}),
        Step("loss against the labels", losses),
        Step("balance of the branches", {f"a = {a}": (f"distill.a={a}",) for a in (0.25, 0.75)}),
    ]


def value_of(key: str, words: Sequence[str]) -> str:
    """The value of the last word of `key`."""
    return [word.partition("=")[2] for word in words if word.startswith(f"{key}=")][-1]


def _found_before(protocol: Protocol, role: str, start: Words) -> Words | None:
    """What a search has found that began at `start`, is at its end, and had these settings and seeds."""
    if (content := protocol.found_before(f"search-{role}")) is None:
        return None
    words = tuple(content["words"])
    seeds = {tuple(map(int, trial["val"])) for trial in content["trials"]}
    return words if words[: len(start)] == start and seeds == {protocol.search_seeds} else None
